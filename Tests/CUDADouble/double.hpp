// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
//
// What the parts of the double share: its memory, its streams and its list of violations.
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
