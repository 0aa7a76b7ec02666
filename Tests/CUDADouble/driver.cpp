// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
//
// Device memory, streams and contexts: libcuda.so.1 without modules and kernels, which are in kernels.cpp.
#include "include/double.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <deque>
#include <map>
#include <utility>
#include <vector>

namespace cuda_double {
namespace {

enum { success = 0, invalidValue = 1, outOfMemory = 2, invalidDevice = 101, invalidContext = 201, notCapturable = 900 };
constexpr std::size_t deviceMemory = std::size_t(4) << 30;
constexpr char slack = 0x5a;

struct Block {
  Pages pages;
  std::size_t bytes;
  int device;
  bool isOfTests, isFreed;
};

// Never destroyed: libraries may be called until the process ends.
struct State {
  std::recursive_mutex lock;
  std::map<Address, Block> blocks;
  std::map<void *, std::deque<std::function<void()>>> streams;
  std::map<std::string, std::uint64_t> calls;
  std::map<std::string, std::pair<int, int>> failures; // calls to let pass, status
  std::string violations;
  int contexts[2] = {0, 1}; // the devices that they are of; a handle is an address
  bool isCapturing = false;
} &state = *new State;

thread_local std::vector<int *> contextStack;

/// Lets the host touch a block, or takes that away.
void open(const Pages &pages) { mprotect(pages.base, pages.mapped, PROT_READ | PROT_WRITE); }
void close(const Pages &pages) { mprotect(pages.base, pages.mapped, PROT_NONE); }

Block *blockAround(Address address, Address *start) {
  auto next = state.blocks.upper_bound(address);
  if (next == state.blocks.begin()) return nullptr;
  auto &[first, block] = *--next;
  *start = first;
  return address < first + block.bytes ? &block : nullptr;
}

Address allocate(std::size_t bytes, std::size_t alignment, int device, bool isOfTests) {
  Pages pages(bytes, alignment);
  poison(pages.start, std::min<std::size_t>(bytes, 1 << 20)); // more would only take time
  std::fill(pages.start + bytes, pages.base + pages.mapped, slack);
  close(pages);
  state.blocks.emplace(Address(pages.start), Block{pages, bytes, device, isOfTests, false});
  return Address(pages.start);
}

void release(Address address) {
  auto found = state.blocks.find(address);
  auto [pages, bytes, device, isOfTests, isFreed] = found->second;
  open(pages);
  bool isIntact = std::all_of(pages.start + bytes, pages.base + pages.mapped, [](char byte) { return byte == slack; });
  if (!isIntact) violation("memory after the end of a block of %zu bytes was written", bytes);
  pages.unmap();
  state.blocks.erase(found);
}

int allocate(const char *symbol, Address *address, std::size_t bytes, bool isCapturable) {
  NEED(isReady(symbol, isCapturable), invalidContext);
  NEED(bytes > 0, invalidValue);
  NEED(bytes <= deviceMemory, outOfMemory);
  *address = allocate(bytes, 256, currentDevice(), false);
  return success;
}

bool markFreed(const char *symbol, Address address) {
  auto found = state.blocks.find(address);
  bool isLive = found != state.blocks.end() && !found->second.isFreed && !found->second.isOfTests;
  if (!isLive) return violation("%s: %#lx is not the address of a live block", symbol, address);
  return found->second.isFreed = true;
}

void run(void *stream) {
  auto &queue = state.streams[stream];
  if (queue.empty()) return;
  for (auto &[_, block] : state.blocks) open(block.pages);
  for (; !queue.empty(); queue.pop_front()) queue.front()();
  for (auto &[_, block] : state.blocks) close(block.pages);
}

} // namespace

Pages::Pages(std::size_t bytes, std::size_t alignment) {
  std::size_t page = sysconf(_SC_PAGESIZE), rounded = (bytes + alignment - 1) / alignment * alignment;
  mapped = std::max<std::size_t>((rounded + page - 1) / page, 1) * page;
  base = static_cast<char *>(mmap(nullptr, mapped + page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (base == MAP_FAILED || mprotect(base, mapped, PROT_READ | PROT_WRITE) != 0) std::abort();
  start = base + mapped - rounded;
}

void Pages::unmap() { munmap(base, mapped + sysconf(_SC_PAGESIZE)); }

std::recursive_mutex &lock() { return state.lock; }

bool violation(const char *format, ...) {
  char line[400];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(line, sizeof line, format, arguments);
  va_end(arguments);
  state.violations += std::string(line) + "\n";
  return false;
}

int entered(const char *symbol) {
  state.calls[symbol]++;
  auto failure = state.failures.find(symbol);
  if (failure == state.failures.end() || failure->second.first-- > 0) return success;
  int status = failure->second.second;
  state.failures.erase(failure);
  return status;
}

int currentDevice() { return contextStack.empty() ? -1 : *contextStack.back(); }

bool isReady(const char *symbol, bool isCapturable) {
  if (currentDevice() < 0) return violation("%s: no context is current on this thread", symbol);
  if (state.isCapturing && !isCapturable) return violation("%s: not allowed while a stream is captured", symbol);
  return true;
}

bool isSpan(const char *symbol, const char *argument, Address address, std::size_t bytes, std::size_t alignment) {
  if (address % alignment != 0) return violation("%s: %s is not aligned to %zu bytes", symbol, argument, alignment);
  if (bytes == 0) return true;
  Address start;
  Block *block = blockAround(address, &start);
  if (!block || block->isFreed) return violation("%s: %s is in no live block of device memory", symbol, argument);
  if (address + bytes > start + block->bytes)
    return violation("%s: %s ends %zu bytes after its block", symbol, argument, address + bytes - start - block->bytes);
  int current = currentDevice();
  return block->device == current ||
         violation("%s: %s is on device %d, not %d", symbol, argument, block->device, current);
}

bool isMatrix(const char *symbol, const char *argument, Address address, std::int64_t rows, std::int64_t columns,
              std::int64_t stride, std::size_t size) {
  if (rows < 0 || columns < 0 || stride < std::max<std::int64_t>(1, rows))
    return violation("%s: %s [%ld, %ld] has leading dimension %ld", symbol, argument, long(rows), long(columns),
                     long(stride));
  std::size_t count = rows == 0 || columns == 0 ? 0 : (columns - 1) * stride + rows;
  return isSpan(symbol, argument, address, count * size, size);
}

void poison(void *memory, std::size_t bytes) { std::memset(memory, 0xff, bytes); }

void enqueue(void *stream, std::function<void()> operation) { state.streams[stream].push_back(std::move(operation)); }

} // namespace cuda_double

using namespace cuda_double;

// MARK: Devices and contexts

EXPORT int cuInit(unsigned flags) {
  ENTER;
  return flags == 0 ? success : invalidValue;
}

EXPORT int cuDriverGetVersion(int *version) {
  ENTER;
  *version = 13000;
  return success;
}

EXPORT int cuDeviceGetCount(int *count) {
  ENTER;
  *count = std::size(state.contexts);
  return success;
}

EXPORT int cuDeviceGet(int *device, int ordinal) {
  ENTER;
  *device = ordinal;
  return ordinal == 0 || ordinal == 1 ? success : invalidDevice;
}

/// Compute capability 9.0, with memory pools.
EXPORT int cuDeviceGetAttribute(int *value, int attribute, int device) {
  ENTER;
  static const std::map<int, int> values = {{75, 9}, {76, 0}, {115, 1}};
  auto found = values.find(attribute);
  NEED(device == 0 || device == 1, invalidDevice);
  NEED(found != values.end() || violation("%s: the double has no attribute %d", __func__, attribute), invalidValue);
  *value = found->second;
  return success;
}

EXPORT int cuDevicePrimaryCtxRetain(void **context, int device) {
  ENTER;
  NEED(device == 0 || device == 1, invalidDevice);
  *context = &state.contexts[device];
  return success;
}

EXPORT int cuCtxGetCurrent(void **context) {
  ENTER;
  *context = contextStack.empty() ? nullptr : contextStack.back();
  return success;
}

EXPORT int cuCtxPushCurrent_v2(void *context) {
  ENTER;
  NEED(context == &state.contexts[0] || context == &state.contexts[1], invalidContext);
  contextStack.push_back(static_cast<int *>(context));
  return success;
}

EXPORT int cuCtxPopCurrent_v2(void **context) {
  ENTER;
  NEED(!contextStack.empty(), invalidContext);
  if (context != nullptr) *context = contextStack.back();
  contextStack.pop_back();
  return success;
}

// MARK: Memory

EXPORT int cuMemAllocAsync(Address *address, std::size_t bytes, void *) {
  ENTER;
  return allocate(__func__, address, bytes, true);
}

EXPORT int cuMemAlloc_v2(Address *address, std::size_t bytes) {
  ENTER;
  return allocate(__func__, address, bytes, false);
}

EXPORT int cuMemFreeAsync(Address address, void *stream) {
  ENTER;
  NEED(isReady(__func__) && markFreed(__func__, address), invalidValue);
  enqueue(stream, [=] { release(address); });
  return success;
}

/// Waits for all streams, as the real one does.
EXPORT int cuMemFree_v2(Address address) {
  ENTER;
  NEED(isReady(__func__, false) && markFreed(__func__, address), invalidValue);
  for (auto &[stream, queue] : state.streams) run(stream);
  release(address);
  return success;
}

EXPORT int cuMemcpyDtoHAsync_v2(void *target, Address source, std::size_t bytes, void *stream) {
  ENTER;
  NEED(isReady(__func__, false) && isSpan(__func__, "source", source, bytes, 1), invalidValue);
  enqueue(stream, [=] { std::memcpy(target, host<char>(source), bytes); });
  return success;
}

/// The source, which is not page-locked, has been read when this returns.
EXPORT int cuMemcpyHtoDAsync_v2(Address target, const void *source, std::size_t bytes, void *stream) {
  ENTER;
  NEED(isReady(__func__, false) && isSpan(__func__, "target", target, bytes, 1), invalidValue);
  std::string staged(static_cast<const char *>(source), bytes);
  enqueue(stream, [=] { std::memcpy(host<char>(target), staged.data(), bytes); });
  return success;
}

// MARK: Streams and errors

EXPORT int cuStreamSynchronize(void *stream) {
  ENTER;
  NEED(isReady(__func__, false), notCapturable);
  run(stream);
  return success;
}

EXPORT int cuStreamIsCapturing(void *, int *status) {
  ENTER;
  *status = state.isCapturing ? 1 : 0;
  return success;
}

EXPORT int cuGetErrorString(int error, const char **text) {
  *text = error == outOfMemory ? "out of memory" : "an error of the double";
  return success;
}

// MARK: For tests

#define GUARD std::lock_guard<std::recursive_mutex> guard(lock())

/// A new block of device memory, aligned to 16 bytes, that ends as close to the forbidden page as that allows.
EXPORT std::uint64_t cuda_double_allocate(std::size_t bytes, int device) {
  GUARD;
  return allocate(bytes, 16, device, true);
}

/// Frees what cuda_double_allocate returned.
EXPORT void cuda_double_release(std::uint64_t address) {
  GUARD;
  release(address);
}

static int copyNow(Address address, std::size_t bytes, const std::function<void()> &copy) {
  GUARD;
  Address start;
  if (bytes == 0) return 0;
  Block *block = blockAround(address, &start);
  NEED(block && address + bytes <= start + block->bytes, -1);
  open(block->pages);
  copy();
  close(block->pages);
  return 0;
}

/// Copies from the device, and to it, at once: what is still queued has not happened. -1 outside of a block.
EXPORT int cuda_double_read(void *target, std::uint64_t source, std::size_t bytes) {
  return copyNow(source, bytes, [=] { std::memcpy(target, host<char>(source), bytes); });
}

EXPORT int cuda_double_write(std::uint64_t target, const void *source, std::size_t bytes) {
  return copyNow(target, bytes, [=] { std::memcpy(host<char>(target), source, bytes); });
}

/// What calls did wrong since this was last asked, one sentence a line; "" for nothing. Valid until the next call.
EXPORT const char *cuda_double_violations() {
  GUARD;
  static std::string answer;
  answer = std::exchange(state.violations, "");
  return answer.c_str();
}

/// Blocks that the driver's functions allocated and that are not freed, or not yet.
EXPORT std::size_t cuda_double_live_blocks() {
  GUARD;
  return std::count_if(state.blocks.begin(), state.blocks.end(), [](auto &block) { return !block.second.isOfTests; });
}

/// Operations that wait for their stream to be synchronized.
EXPORT std::size_t cuda_double_pending() {
  GUARD;
  std::size_t count = 0;
  for (auto &[stream, queue] : state.streams) count += queue.size();
  return count;
}

/// Runs what a stream's queue holds, without counting as a call that synchronizes.
EXPORT void cuda_double_run(void *stream) {
  GUARD;
  run(stream);
}

/// Contexts on this thread's stack.
EXPORT std::size_t cuda_double_context_depth() { return contextStack.size(); }

/// How often a function, by its symbol, was called.
EXPORT std::uint64_t cuda_double_calls(const char *symbol) {
  GUARD;
  return state.calls[symbol];
}

/// Makes one call of a function fail with a status: the next one, or with `after` the one after so many more.
EXPORT void cuda_double_fail(const char *symbol, int after, int status) {
  GUARD;
  state.failures[symbol] = {after, status};
}

/// Whether all streams are being captured into a graph, during which some calls are not allowed.
EXPORT void cuda_double_capture(int isCapturing) {
  GUARD;
  state.isCapturing = isCapturing != 0;
}
