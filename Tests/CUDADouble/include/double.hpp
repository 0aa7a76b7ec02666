// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
//
// A double of the CUDA driver, cuBLAS, cuSOLVER and NVRTC, under the names of their functions, on the CPU, for tests.
// It is stricter than a GPU:
// - Device memory can't be read or written by the host, starts as NaNs and ends at a page that nobody may touch.
// - A stream is a queue: its operations run when it is synchronized and no earlier, in the order of the calls.
// - Every span, leading dimension, alignment, type and workspace that a call names is checked when it is made.
// - NVRTC compiles the kernels for the host. Threads of a block run one after the other between two barriers, in an
//   order that changes from block to block. Shared memory starts as NaNs.
// What its parts share follows: memory, streams and the list of violations. What tests ask of it is at the end of
// driver.cpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>

namespace cuda_double {

using Address = std::uint64_t;

/// One lock for everything.
std::recursive_mutex &lock();

/// Records something that a caller did wrong. False, for checks to return.
bool violation(const char *format, ...) __attribute__((format(printf, 1, 2)));

/// Counts a call, and returns the status that a test asked it to fail with, or 0.
int entered(const char *symbol);

/// The device of the current context, or -1.
int currentDevice();

/// Whether a context is current, and no capture forbids the call; a violation otherwise, as for all checks.
bool isReady(const char *symbol, bool isCapturable = true);

/// Whether the bytes are inside one live block of the current device, and aligned.
bool isSpan(const char *symbol, const char *argument, Address address, std::size_t bytes, std::size_t alignment);

/// Whether the columns of a column-major matrix of elements of a size are apart, and all of it inside one block.
bool isMatrix(const char *symbol, const char *argument, Address address, std::int64_t rows, std::int64_t columns,
              std::int64_t stride, std::size_t size);

/// Puts an operation at the end of a stream's queue.
void enqueue(void *stream, std::function<void()> operation);

/// Device memory as the host's, for operations.
template <class T> T *host(Address address) { return reinterpret_cast<T *>(address); }

/// Overwrites memory with NaNs, where what a call leaves there is undefined.
void poison(void *memory, std::size_t bytes);

/// Memory that ends close to a page that nobody may touch.
struct Pages {
  char *base, *start;
  std::size_t mapped;
  Pages(std::size_t bytes, std::size_t alignment);
  void unmap();
};

} // namespace cuda_double

#define EXPORT extern "C" __attribute__((visibility("default")))

/// Opens each exported function: takes the lock, counts, and fails where a test asked for it.
#define ENTER                                                                                                          \
  std::lock_guard<std::recursive_mutex> guard(cuda_double::lock());                                                    \
  if (int status = cuda_double::entered(__func__)) return status

/// Ends the function with a status unless a check holds.
#define NEED(check, status)                                                                                            \
  if (!(check)) return status
