// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
//
// What the CUDA backend needs of C.
#ifndef LOWRANK_CUDA_SUPPORT_H
#define LOWRANK_CUDA_SUPPORT_H

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

/// The file that the code or data at an address was loaded from, or NULL.
const char *cuda_library_path(const void *address);

/// The stream of a device that this thread's calls run on; NULL, the default stream, until set. `device` is below
/// LR_CUDA_MAX_DEVICES.
void *cuda_thread_stream(int device);
void cuda_set_thread_stream(int device, void *stream);

enum { LR_CUDA_MAX_DEVICES = 64 };

/// lr_cuda_allocator_t of lowrank.h.
typedef struct cuda_allocator {
  int32_t (*allocate)(void *context, int32_t device, uint64_t bytes, void **out_memory, void **out_block);
  void (*release)(void *context, void *block);
  void *context;
} cuda_allocator;

/// Where this thread's calls get their intermediate memory; without functions, the default, until set.
cuda_allocator cuda_thread_allocator(void);
void cuda_set_thread_allocator(cuda_allocator allocator);

// What Swift has in its overlay of the C library alone, which would ask for a newer one than all the rest does.

/// openat(2).
static inline int cuda_open_at(int directory, const char *path, int flags, unsigned mode) {
  return openat(directory, path, flags, mode);
}

/// Whether the last call of this thread that failed was interrupted by a signal.
static inline bool cuda_was_interrupted(void) { return errno == EINTR; }

/// Whether a file's mode is that of a regular file.
static inline bool cuda_is_regular_file(unsigned mode) { return S_ISREG(mode); }

/// Whether others than the owner may write.
static inline bool cuda_others_may_write(unsigned mode) { return (mode & (S_IWGRP | S_IWOTH)) != 0; }

/// The CUDA C++ source of all kernels, compiled at run time.
extern const char *const cuda_kernel_source;

#endif
