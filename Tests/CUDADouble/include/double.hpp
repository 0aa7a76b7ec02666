// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
//
// A double of the CUDA driver, cuBLAS, cuSOLVER and NVRTC, under the names of their functions, on the CPU, for tests.
// It is stricter than a GPU:
// - Device memory can't be read or written by the host, starts as NaNs and ends at a page that nobody may touch.
// - A stream is a queue: its operations run when it is synchronized and no earlier, in the order of the calls.
// - Every span, leading dimension, alignment, type and workspace that a call names is checked when it is made.
// - NVRTC compiles the kernels for the host. Threads of a block run one after the other between two barriers, in an
//   order that changes from barrier to barrier. Shared memory starts as NaNs.
// What its parts share follows: device memory, streams and checks. What tests ask of it is at the end of driver.cpp.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

namespace cuda_double {

using Address = char *; // of device memory

/// Of all libraries; other codes stand where the callers treat them differently.
enum { success = 0, refused = 1 };

/// Device memory that ends less than 16 bytes before a page that nobody may touch.
struct Block {
  Address base, start, end;
  std::size_t mapped;
  int device;
  bool isFreed;
  /// Whether the host may touch it.
  void open(bool isOpen) const { mprotect(base, mapped, isOpen ? PROT_READ | PROT_WRITE : PROT_NONE); }
};

struct State {
  std::recursive_mutex lock;
  std::map<Address, Block> blocks; // by where they end
  std::map<void *, std::vector<std::function<void()>>> queues;
  std::map<std::string, std::size_t> counts;
  std::map<std::string, std::pair<int, int>> failures; // calls to pass, status
  std::string symbol, violations;
  int contexts[2] = {0, 1}; // the devices that they are of; a handle is an address
  bool isCapturing = false;
};
// Never destroyed: libraries may be called until the process ends.
inline State &state = *new State;
inline thread_local std::vector<int *> contextStack;

/// Records something that the current call did wrong. False, for checks to return.
template <class... Words> bool violation(const Words &...words) {
  std::ostringstream line;
  (line << ... << words);
  state.violations += state.symbol + ": " + line.str() + "\n";
  return false;
}

/// Counts a call, and returns the status that a test asked it to fail with, or 0.
inline int entered(const char *symbol) {
  state.symbol = symbol;
  state.counts[symbol]++;
  auto &[callsToPass, status] = state.failures[symbol];
  return callsToPass-- == 0 ? status : success;
}

/// The device of the current context, or -1.
inline int currentDevice() { return contextStack.empty() ? -1 : *contextStack.back(); }

/// Whether a context is current, and no capture forbids the call; a violation otherwise, as for all checks.
inline bool isReady(bool isCapturable = true) {
  if (currentDevice() < 0) return violation("no context is current on this thread");
  return isCapturable || !state.isCapturing || violation("not allowed while a stream is captured");
}

inline Block *blockAround(Address address) {
  auto found = state.blocks.upper_bound(address);
  return found != state.blocks.end() && address >= found->second.start ? &found->second : nullptr;
}

/// Whether the bytes are inside one live block of the current device, and aligned.
inline bool isSpan(const char *argument, Address address, std::size_t bytes, std::size_t alignment) {
  if (std::uintptr_t(address) % alignment != 0) return violation(argument, " is not aligned to ", alignment, " bytes");
  if (bytes == 0) return true;
  const Block *block = blockAround(address);
  if (!block || block->isFreed) return violation(argument, " is in no live block of device memory");
  std::size_t rest = block->end - address;
  if (bytes > rest) return violation(argument, " ends ", bytes - rest, " bytes after its block");
  int current = currentDevice();
  return block->device == current || violation(argument, " is on device ", block->device, ", not ", current);
}

/// Puts an operation at the end of a stream's queue.
inline int enqueue(void *stream, std::function<void()> operation) {
  state.queues[stream].push_back(std::move(operation));
  return success;
}

/// Overwrites memory with NaNs, where what a call leaves there is undefined.
inline void poison(void *memory, std::size_t bytes) { std::memset(memory, 0xff, bytes); }

/// What a function that answers by way of a pointer does.
template <class T, class Value> int give(T *to, Value value) {
  *to = value;
  return success;
}

} // namespace cuda_double

#define EXPORT extern "C" __attribute__((visibility("default")))

/// Ends the function unless a check holds.
#define NEED(check)                                                                                                    \
  if (!(check)) return cuda_double::refused

/// Opens an exported function: takes the lock, counts, and fails where a test asked for it or a check does not hold.
#define ENTER(check)                                                                                                   \
  std::lock_guard<std::recursive_mutex> guard(cuda_double::state.lock);                                                \
  if (int status = cuda_double::entered(__func__)) return status;                                                      \
  NEED(check)
