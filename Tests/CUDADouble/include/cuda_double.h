// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
//
// What tests ask of the double of the CUDA libraries, beside the functions of the driver, cuBLAS, cuSOLVER and NVRTC
// that it exports under their own names. The double runs on the CPU; it is stricter than a GPU:
// - Device memory can't be read or written by the host, starts as NaNs and ends at a page that nobody may touch.
// - A stream is a queue: its operations run when it is synchronized and no earlier, in the order of the calls.
// - Every span, leading dimension, alignment, type and workspace that a call names is checked when it is made.
// - NVRTC compiles the kernels for the host. Threads of a block run one after the other between two barriers, in an
//   order that changes from block to block. Shared memory starts as NaNs.
#ifndef LOWRANK_CUDA_DOUBLE_H
#define LOWRANK_CUDA_DOUBLE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/// A new block of device memory, aligned to 16 bytes, that ends as close to the forbidden page as that allows.
uint64_t cuda_double_allocate(size_t bytes, int device);
/// Frees what cuda_double_allocate returned.
void cuda_double_release(uint64_t address);
/// Copies between host and device at once: operations that are still queued have not happened. 0, or -1 outside of a
/// block.
int cuda_double_read(void *target, uint64_t source, size_t bytes);
int cuda_double_write(uint64_t target, const void *source, size_t bytes);

/// What calls did wrong since this was last asked, one sentence a line; "" for nothing. Valid until the next call.
const char *cuda_double_violations(void);
/// Blocks that the driver's functions allocated and that are not freed, or not yet.
size_t cuda_double_live_blocks(void);
/// Operations that wait for their stream to be synchronized.
size_t cuda_double_pending(void);
/// Runs what a stream's queue holds, without counting as a call that synchronizes.
void cuda_double_run(void *stream);
/// Contexts on this thread's stack.
size_t cuda_double_context_depth(void);
/// How often a function, by its symbol, was called.
uint64_t cuda_double_calls(const char *symbol);
/// Makes one call of a function fail with a status: the next one, or with `after` the one after so many more.
void cuda_double_fail(const char *symbol, int after, int status);
/// Whether all streams are being captured into a graph, during which some calls are not allowed.
void cuda_double_capture(int is_capturing);

#ifdef __cplusplus
}
#endif

#endif
