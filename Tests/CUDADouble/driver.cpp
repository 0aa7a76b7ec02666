// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
//
// libcuda.so.1 without modules and kernels, which are in kernels.cpp, and what tests ask of the double.
#include "include/double.hpp"

using namespace cuda_double;

EXPORT Address cuda_double_allocate(std::size_t bytes, int device) {
  bytes = std::max<std::size_t>(bytes, 1);
  std::size_t page = sysconf(_SC_PAGESIZE), slack = -bytes % 16, mapped = (bytes + slack + page - 1) / page * page;
  auto base = static_cast<Address>(mmap(nullptr, mapped + page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (base == MAP_FAILED) std::abort();
  Address end = base + mapped - slack;
  Block block = {base, end - bytes, end, mapped, device, false};
  block.open(true);
  poison(block.start, std::min<std::size_t>(bytes, 1 << 20)); // more would only take time
  poison(end, slack);
  block.open(false);
  state.blocks[end] = block;
  return block.start;
}

EXPORT void cuda_double_release(Address address) {
  Block block = *blockAround(address);
  block.open(true);
  if (std::any_of(block.end, block.base + block.mapped, [](char byte) { return byte != char(0xff); }))
    violation("memory after the end of a block of ", block.end - block.start, " bytes was written");
  munmap(block.base, block.mapped + sysconf(_SC_PAGESIZE));
  state.blocks.erase(block.end);
}

/// Runs what is queued on a stream.
EXPORT void cuda_double_run(void *stream) {
  auto operations = std::exchange(state.queues[stream], {});
  if (operations.empty()) return;
  for (auto &[_, block] : state.blocks) block.open(true);
  for (auto &operation : operations) operation();
  for (auto &[_, block] : state.blocks) block.open(false);
}

/// Copies from the device or to it, at once: what is still queued has not happened.
EXPORT void cuda_double_copy(Address target, Address source, std::size_t bytes) {
  Block *from = blockAround(source), *block = from ? from : blockAround(target);
  block->open(true);
  std::memcpy(target, source, bytes);
  block->open(false);
}

/// What calls did wrong since this was last asked, one sentence a line; "" for nothing. Valid until the next call.
EXPORT const char *cuda_double_violations() {
  static std::string answer;
  answer = std::exchange(state.violations, "");
  return answer.c_str();
}

/// How often a function was called, by its symbol; or how many "blocks" are allocated, "operations" wait for their
/// stream to be synchronized, or "contexts" are on this thread's stack.
EXPORT std::size_t cuda_double_count(const char *what) {
  state.counts["operations"] = 0;
  for (auto &[_, queue] : state.queues) state.counts["operations"] += queue.size();
  state.counts["blocks"] = state.blocks.size();
  state.counts["contexts"] = contextStack.size();
  return state.counts[what];
}

/// Makes one call of a function fail with a status: the next one, or with `after` the one after so many more.
EXPORT void cuda_double_fail(const char *symbol, int after, int status) { state.failures[symbol] = {after, status}; }

/// Whether all streams are being captured into a graph, during which some calls are not allowed.
EXPORT void cuda_double_capture(bool isCapturing) { state.isCapturing = isCapturing; }

EXPORT int cuInit(unsigned) { return success; }
EXPORT int cuDriverGetVersion(int *version) { return give(version, 13000); }
EXPORT int cuDeviceGetCount(int *count) { return give(count, std::size(state.contexts)); }
EXPORT int cuDeviceGet(int *device, int ordinal) { return give(device, ordinal); }
EXPORT int cuDevicePrimaryCtxRetain(void **context, int device) { return give(context, &state.contexts[device]); }
EXPORT int cuCtxPushCurrent_v2(int *context) { return contextStack.push_back(context), success; }

/// Compute capability 9.0, with memory pools.
EXPORT int cuDeviceGetAttribute(int *value, int which, int) { return give(value, which == 75 ? 9 : which == 115); }

EXPORT int cuCtxGetCurrent(void **context) {
  return give(context, contextStack.empty() ? nullptr : contextStack.back());
}

EXPORT int cuCtxPopCurrent_v2(void **) {
  ENTER(isReady());
  return contextStack.pop_back(), success;
}

static bool markFreed(Address address) {
  Block *block = blockAround(address);
  if (!block || block->isFreed || block->start != address)
    return violation(static_cast<void *>(address), " is not the address of a live block");
  return block->isFreed = true;
}

EXPORT int cuMemAllocAsync(Address *address, std::size_t bytes, void *) {
  ENTER(isReady());
  return give(address, cuda_double_allocate(bytes, currentDevice()));
}

EXPORT int cuMemAlloc_v2(Address *address, std::size_t bytes) {
  ENTER(isReady(false));
  return give(address, cuda_double_allocate(bytes, currentDevice()));
}

EXPORT int cuMemFreeAsync(Address address, void *stream) {
  ENTER(isReady() && markFreed(address));
  return enqueue(stream, [=] { cuda_double_release(address); });
}

/// Waits for all streams, as the real one does.
EXPORT int cuMemFree_v2(Address address) {
  ENTER(isReady(false) && markFreed(address));
  for (auto &[stream, _] : state.queues) cuda_double_run(stream);
  return cuda_double_release(address), success;
}

EXPORT int cuMemcpyDtoHAsync_v2(void *target, Address source, std::size_t bytes, void *stream) {
  ENTER(isReady(false) && isSpan("source", source, bytes, 1));
  return enqueue(stream, [=] { std::memcpy(target, source, bytes); });
}

/// The source, which is not page-locked, has been read when this returns.
EXPORT int cuMemcpyHtoDAsync_v2(Address target, const char *source, std::size_t bytes, void *stream) {
  ENTER(isReady(false) && isSpan("target", target, bytes, 1));
  return enqueue(stream, [=, staged = std::string(source, bytes)] { staged.copy(target, bytes); });
}

EXPORT int cuStreamSynchronize(void *stream) {
  ENTER(isReady(false));
  return cuda_double_run(stream), success;
}

EXPORT int cuStreamIsCapturing(void *, int *status) { return give(status, state.isCapturing); }
EXPORT int cuGetErrorString(int, const char **text) { return give(text, "an error of the double"); }
