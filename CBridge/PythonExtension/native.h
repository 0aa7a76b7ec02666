// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
//
// What the files of the extension share. A function of the module reads its arguments into a `native_call`, which
// remembers the first failure so that the steps after it do nothing, runs one lr_* function without the GIL, and
// finishes: tensors are handed back, a status becomes an exception.
#ifndef LOWRANK_NATIVE_H
#define LOWRANK_NATIVE_H

#define Py_LIMITED_API 0x030A0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdbool.h>
#include <stdint.h>

#include "lowrank.h"

typedef struct {
  PyObject *linalg_error;
  PyObject *backend_unavailable_error;
  PyObject *internal_error;
  PyObject *no_arguments;      // ()
  PyObject *dlpack_arguments;  // {"max_version": (1, 0)}
  PyObject *torch_name;        // "torch"
  PyObject *exchange_name;     // "__dlpack_c_exchange_api__"
  PyObject *plain_type;        // the last type seen without that attribute, or NULL
  PyObject *tensor_type;       // lowrank_swift.Tensor
} native_state;

// module.c
native_state *native_get_state(PyObject *module);

// methods.c
extern PyMethodDef native_methods[];

// errors.c

/// Creates the exception types and adds them to the module. Returns false with an exception set.
bool native_add_exceptions(PyObject *module, native_state *state);
/// Sets the exception of a failed call of this thread; the one table from status to exception.
void native_raise_status(const native_state *state, lr_status_t status);
/// `name: expected <expected>, got <type of object>` as a TypeError.
void native_raise_type_error(const char *name, const char *expected, PyObject *object);

// call.c

/// The most tensors that one function takes.
enum { NATIVE_MAX_TENSORS = 10 };

/// A tensor borrowed through DLPack. One of the two pointers is set until its deleter is called, or neither where the
/// memory is the argument's, which the caller keeps alive.
typedef struct {
  DLTensor unowned;
  DLManagedTensor *unversioned;
  DLManagedTensorVersioned *versioned;
} native_tensor;

typedef struct {
  native_state *state;
  bool failed;  // an exception is set
  lr_status_t status;
  int cuda_device;  // the device whose stream is set, -1 for none
  const DLPackExchangeAPI *framework;  // whose memory the call uses on the device, or NULL
  bool waits;       // for what the call has enqueued, as the caller's framework knows nothing of our stream
  int tensor_count;
  native_tensor tensors[NATIVE_MAX_TENSORS];
} native_call;

/// Opens a call of `function` with its number of positional arguments. Returns false with a TypeError set.
bool native_begin(native_call *call, PyObject *module, const char *function, Py_ssize_t count, Py_ssize_t expected);
/// Hands the tensors back and raises what failed. Returns true after success.
bool native_finish(native_call *call);

int64_t native_int64(native_call *call, PyObject *object, const char *name);
int32_t native_int32(native_call *call, PyObject *object, const char *name);
uint64_t native_uint64(native_call *call, PyObject *object, const char *name);
double native_double(native_call *call, PyObject *object, const char *name);
bool native_bool(native_call *call, PyObject *object);
const char *native_string(native_call *call, PyObject *object, const char *name);

/// Has the call's intermediate memory on a device come from its framework.
void native_enter_device(const native_call *call);
/// Ends that, and waits for the device's work where the call has to. A failed call keeps its own failure.
void native_leave_device(native_call *call);

/// Runs an lr_* expression without the GIL, unless the call has failed already.
#define NATIVE_RUN(call, expression)      \
  do {                                    \
    if (!(call)->failed) {                \
      Py_BEGIN_ALLOW_THREADS              \
      native_enter_device(call);          \
      (call)->status = (expression);      \
      native_leave_device(call);          \
      Py_END_ALLOW_THREADS                \
    }                                     \
  } while (0)

// tensors.c

typedef enum {
  NATIVE_READ = 0,
  NATIVE_WRITE = 1,     // refuses an array that says it is read-only
  NATIVE_OPTIONAL = 2,  // None is allowed and gives NULL
  NATIVE_OWN = 4,       // may outlive the call
} native_access;

/// Borrows a tensor for the call; NULL for None where that is allowed, or after a failure.
DLTensor *native_borrow(native_call *call, PyObject *object, const char *name, int access);
void native_release(native_tensor *tensor);

// ranks.c

/// allocate_ranks(values, counts, norms, limits, costs, rank_min, budget): lr_allocate_ranks over bytes of 8-byte numbers.
PyObject *native_allocate_ranks(PyObject *module, PyObject *const *args, Py_ssize_t count);
/// contents(array, name): the bytes of a vector's or matrix's elements, row by row.
PyObject *native_contents(PyObject *module, PyObject *const *args, Py_ssize_t count);
/// read_file(descriptor, offset, out): fills a contiguous tensor from a file.
PyObject *native_read_file(PyObject *module, PyObject *const *args, Py_ssize_t count);

// tensor_type.c

/// Creates lowrank_swift.Tensor and adds it to the module. Returns false with an exception set.
bool native_add_tensor_type(PyObject *module, native_state *state);
/// The name of one of the dtypes that tensors of this package have, or NULL for all others.
const char *native_dtype_name(DLDataType dtype);
/// borrow(object, name): the memory of an object with __dlpack__ as a lowrank_swift.Tensor.
PyObject *native_borrow_as_tensor(PyObject *module, PyObject *const *args, Py_ssize_t count);

#endif
