// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
//
// The part of DLPack 1.x that this project uses, from its specification: https://dmlc.github.io/dlpack
// Layouts and values are DLPack's; the comments are ours.
#ifndef LOWRANK_CDLPACK_H
#define LOWRANK_CDLPACK_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { kDLCPU = 1, kDLCUDA = 2, kDLCUDAHost = 3 };
enum { kDLInt = 0, kDLUInt = 1, kDLFloat = 2, kDLBfloat = 4 };

enum { DLPACK_FLAG_BITMASK_READ_ONLY = 1 };

typedef struct DLDevice {
  int32_t device_type;
  int32_t device_id;
} DLDevice;

typedef struct DLDataType {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
} DLDataType;

// `strides` counts elements and may be NULL for a compact row-major tensor (before DLPack 1.2).
typedef struct DLTensor {
  void *data;
  DLDevice device;
  int32_t ndim;
  DLDataType dtype;
  int64_t *shape;
  int64_t *strides;
  uint64_t byte_offset;
} DLTensor;

typedef struct DLManagedTensor {
  DLTensor dl_tensor;
  void *manager_ctx;
  void (*deleter)(struct DLManagedTensor *self);
} DLManagedTensor;

typedef struct DLPackVersion {
  uint32_t major;
  uint32_t minor;
} DLPackVersion;

typedef struct DLManagedTensorVersioned {
  DLPackVersion version;
  void *manager_ctx;
  void (*deleter)(struct DLManagedTensorVersioned *self);
  uint64_t flags;
  DLTensor dl_tensor;
} DLManagedTensorVersioned;

// The table of functions that a Python tensor type offers as `__dlpack_c_exchange_api__`, a capsule "dlpack_exchange_api"
// (DLPack 1.3). Those that are not called here have no prototype.
typedef struct DLPackExchangeAPIHeader {
  DLPackVersion version;
  struct DLPackExchangeAPIHeader *prev_api;  // of an older major version, or NULL
} DLPackExchangeAPIHeader;

// Both fill `out` from a Python object of the type and return 0, or -1 with a Python exception. What the second gives has
// no owner: the object must outlive it.
typedef int (*DLPackManagedTensorFromPyObjectNoSync)(void *object, DLManagedTensorVersioned **out);
typedef int (*DLPackDLTensorFromPyObjectNoSync)(void *object, DLTensor *out);
// A new tensor of the framework, of the prototype's device, dtype and shape.
typedef int (*DLPackManagedTensorAllocator)(DLTensor *prototype, DLManagedTensorVersioned **out, void *error_context,
                                            void (*set_error)(void *error_context, const char *kind, const char *message));
// The stream on which the framework has its work done now on a device.
typedef int (*DLPackCurrentWorkStream)(int32_t device_type, int32_t device_id, void **out_stream);

typedef struct DLPackExchangeAPI {
  DLPackExchangeAPIHeader header;
  DLPackManagedTensorAllocator managed_tensor_allocator;
  DLPackManagedTensorFromPyObjectNoSync managed_tensor_from_py_object_no_sync;
  void (*managed_tensor_to_py_object_no_sync)(void);
  DLPackDLTensorFromPyObjectNoSync dltensor_from_py_object_no_sync;  // may be NULL
  DLPackCurrentWorkStream current_work_stream;
} DLPackExchangeAPI;

#ifdef __cplusplus
}
#endif

#endif
