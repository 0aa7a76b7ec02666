// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
//
// NVRTC, modules and launches. A "cubin" is a shared library: the kernels' source, compiled for the host. A kernel
// takes one argument, a structure.
#include "include/double.hpp"

#include <algorithm>
#include <csetjmp>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <elf.h>
#include <filesystem>
#include <fstream>
#include <map>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>
#include <vector>

using namespace cuda_double;
namespace fs = std::filesystem;

namespace {

const char prelude[] =
#include "prelude.inc"
    ;

// What prelude.inc declares.
struct Dimensions {
  unsigned x, y, z;
};
struct KernelState {
  Dimensions threadIdx, blockIdx, blockDim, gridDim;
  void (*barrier)();
};
struct KernelTable {
  std::size_t bytes;
  void (*call)(const void *);
};

struct Function {
  std::string name;
  const KernelTable *table;
  KernelState *state;
  char **shared; // start and end of the whole module's static shared memory
};

// MARK: Running a block

/// A stack, on which one thread of a block runs until it is done.
struct Fiber {
  static constexpr std::size_t size = 64 << 10;
  ucontext_t context;
  jmp_buf resumption;
  bool isStarted = false, isDone = false;
  char *stack = Pages(size, 64).start;
};

/// The block that is running; there is one at a time.
struct {
  std::function<void()> kernel;
  std::vector<Fiber *> fibers; // of the threads that have started
  Fiber *current;
  jmp_buf scheduler;
} block;
std::vector<Fiber *> idleFibers;
std::string runningKernel = "(none)";

void switchToScheduler() {
  if (_setjmp(block.current->resumption) == 0) _longjmp(block.scheduler, 1);
}

void runFiber() {
  while (true) {
    block.kernel();
    block.current->isDone = true;
    switchToScheduler();
  }
}

/// Runs a thread to its next barrier or its end; true if it waits at a barrier.
bool runThread(unsigned thread, KernelState *state) {
  Dimensions size = state->blockDim;
  state->threadIdx = {thread % size.x, thread / size.x % size.y, thread / size.x / size.y};
  Fiber *&fiber = block.fibers[thread];
  if (!fiber) {
    if (idleFibers.empty()) idleFibers.push_back(new Fiber);
    fiber = idleFibers.back();
    fiber->isDone = false;
    idleFibers.pop_back();
  } else if (fiber->isDone) {
    return false;
  }
  block.current = fiber;
  if (_setjmp(block.scheduler) == 0) {
    if (fiber->isStarted) _longjmp(fiber->resumption, 1);
    fiber->isStarted = true;
    getcontext(&fiber->context);
    fiber->context.uc_stack.ss_sp = fiber->stack;
    fiber->context.uc_stack.ss_size = Fiber::size;
    makecontext(&fiber->context, runFiber, 0);
    setcontext(&fiber->context);
  }
  if (!block.current->isDone) return true;
  idleFibers.push_back(block.current);
  return false;
}

/// Runs all threads from barrier to barrier, forwards or backwards: reading what another writes before a barrier shows.
void runBlock(const Function &function, bool isBackwards) {
  poison(function.shared[0], function.shared[1] - function.shared[0]);
  unsigned count = function.state->blockDim.x * function.state->blockDim.y * function.state->blockDim.z;
  block.fibers.assign(count, nullptr);
  for (bool isWaiting = true; isWaiting;) {
    isWaiting = false;
    for (unsigned i = 0; i < count; i++) isWaiting |= runThread(isBackwards ? count - 1 - i : i, function.state);
  }
}

void explainCrash(int number) {
  std::string text = "\nCUDA double: the kernel " + runningKernel + " touched memory outside of its blocks\n";
  if (write(STDERR_FILENO, text.data(), text.size()) >= 0) signal(number, SIG_DFL);
}

void runGrid(const Function &function, Dimensions grid, Dimensions size, const std::string &argument) {
  static bool isBackwards = false;
  *function.state = {{}, {}, size, grid, [] { switchToScheduler(); }};
  block.kernel = [&] { function.table->call(argument.data()); };
  runningKernel = function.name;
  auto handler = signal(SIGSEGV, explainCrash);
  for (unsigned i = 0; i < grid.x * grid.y * grid.z; i++, isBackwards = !isBackwards) {
    function.state->blockIdx = {i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y};
    runBlock(function, isBackwards);
  }
  signal(SIGSEGV, handler);
}

// MARK: Compiling

struct Program {
  std::string source, log, image;
  bool isForDevice = false;
};

void replaceAll(std::string &text, const std::string &word, const std::string &with) {
  for (std::size_t at = 0; (at = text.find(word, at)) != std::string::npos; at += with.size())
    text.replace(at, word.size(), with);
}

/// Turns preprocessed CUDA into C++, with a table for each kernel.
std::string translated(std::string text) {
  replaceAll(text, "__shared__", "static __attribute__((section(\"lr_static\")))");
  std::string tables;
  for (std::size_t at = 0; (at = text.find("__global__ void ", at)) != std::string::npos;) {
    at += std::strlen("__global__ void ");
    std::string name = text.substr(at, text.find('(', at) - at);
    tables += "extern \"C\" const lr_kernel " + name + "_table = lr_caller<" + name + ">::table;\n";
  }
  return prelude + text + "\n" + tables;
}

std::string contents(const fs::path &path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// Compiles once for all processes, into the folder of the double.
bool compile(Program &program, const std::string &defines) {
  Dl_info info;
  dladdr(prelude, &info);
  const char *chosen = std::getenv("CUDA_DOUBLE_CXX");
  std::string compiler = chosen ? chosen : "clang++", key = prelude + program.source + defines + compiler;
  std::string base =
      fs::canonical(info.dli_fname).parent_path() / ("kernels-" + std::to_string(std::hash<std::string>()(key)));
  std::string image = base + ".so", work = base + "-" + std::to_string(getpid());
  auto run = [&](const std::string &arguments, const char *input, const char *output) {
    auto file = [&](const char *suffix) { return " '" + work + suffix + "'"; };
    std::string command =
        compiler + " -std=c++17 " + arguments + file(input) + " -o" + file(output) + " 2>" + file(".log");
    bool isDone = std::system(command.c_str()) == 0;
    program.log += contents(work + ".log");
    return isDone;
  };
  bool isDone = fs::exists(image);
  if (!isDone) {
    std::ofstream(work + ".cu") << program.source;
    isDone = run("-E -P -x c++ -DLR_HOST" + defines, ".cu", ".i");
    std::ofstream(work + ".cpp") << translated(contents(work + ".i"));
    isDone =
        isDone && run("-O1 -fPIC -shared -fno-strict-aliasing -fsanitize=bounds -fsanitize-undefined-trap-on-error -w",
                      ".cpp", ".so");
    if (isDone) fs::rename(work + ".so", image);
    for (const char *suffix : {".cu", ".i", ".cpp", ".log"}) fs::remove(work + suffix);
  }
  program.image = contents(image);
  return isDone;
}

} // namespace

// MARK: NVRTC

enum { success = 0, invalidOption = 5, compilation = 6 };

EXPORT int nvrtcVersion(int *major, int *minor) {
  ENTER;
  *major = 13, *minor = 0;
  return success;
}

EXPORT int nvrtcCreateProgram(void **program, const char *source, const char *, int, const char *const *,
                              const char *const *) {
  ENTER;
  *program = new Program{source, "", "", false};
  return success;
}

EXPORT int nvrtcCompileProgram(void *handle, int count, const char *const *options) {
  ENTER;
  auto program = static_cast<Program *>(handle);
  std::string defines;
  for (const std::string option : std::vector<std::string>(options, options + count)) {
    auto starts = [&](const char *with) { return option.rfind(with, 0) == 0; };
    if (starts("-D")) defines += " '" + option + "'";
    else if (starts("--gpu-architecture=")) program->isForDevice = starts("--gpu-architecture=sm_90");
    else if (!starts("--std="))
      return violation("%s: the double has no option %s", __func__, option.c_str()), invalidOption;
  }
  return compile(*program, defines) ? success : compilation;
}

EXPORT int nvrtcGetProgramLogSize(void *program, std::size_t *bytes) {
  ENTER;
  *bytes = static_cast<Program *>(program)->log.size() + 1;
  return success;
}

EXPORT int nvrtcGetProgramLog(void *program, char *log) {
  ENTER;
  std::strcpy(log, static_cast<Program *>(program)->log.c_str());
  return success;
}

EXPORT int nvrtcGetPTXSize(void *program, std::size_t *bytes) {
  ENTER;
  *bytes = static_cast<Program *>(program)->image.size();
  return success;
}

EXPORT int nvrtcGetPTX(void *program, char *image) {
  ENTER;
  std::memcpy(image, static_cast<Program *>(program)->image.data(), static_cast<Program *>(program)->image.size());
  return success;
}

/// A program for another architecture than a device's is PTX only.
EXPORT int nvrtcGetCUBINSize(void *program, std::size_t *bytes) {
  ENTER;
  *bytes = static_cast<Program *>(program)->isForDevice ? static_cast<Program *>(program)->image.size() : 0;
  return success;
}

EXPORT int nvrtcGetCUBIN(void *program, char *image) { return nvrtcGetPTX(program, image); }

EXPORT int nvrtcDestroyProgram(void **program) {
  ENTER;
  delete static_cast<Program *>(*program);
  return success;
}

EXPORT const char *nvrtcGetErrorString(int result) {
  return result == compilation ? "NVRTC_ERROR_COMPILATION" : "an NVRTC error of the double";
}

// MARK: Modules and launches

enum { invalidValue = 1, noBinaryForGPU = 209, notFound = 500 };

struct Module {
  void *library;
  std::map<std::string, Function> functions;
};

EXPORT int cuModuleLoadData(void **module, const void *image) {
  ENTER;
  NEED(isReady(__func__, false), invalidValue);
  auto header = static_cast<const Elf64_Ehdr *>(image);
  NEED(std::memcmp(header->e_ident, ELFMAG, SELFMAG) == 0, noBinaryForGPU);
  // An image has no size, but ends with its table of sections. Each module has a file, and variables, of its own; the
  // file stays open, as the loader knows libraries by their paths.
  std::size_t bytes = header->e_shoff + std::size_t(header->e_shnum) * header->e_shentsize;
  int file = memfd_create("kernels", 0);
  NEED(write(file, image, bytes) == ssize_t(bytes), noBinaryForGPU);
  void *library = dlopen(("/proc/self/fd/" + std::to_string(file)).c_str(), RTLD_NOW | RTLD_LOCAL);
  NEED(library || violation("%s: %s", __func__, dlerror()), noBinaryForGPU);
  *module = new Module{library, {}};
  return success;
}

EXPORT int cuModuleGetFunction(void **function, void *handle, const char *name) {
  ENTER;
  auto module = static_cast<Module *>(handle);
  auto symbol = [&](const std::string &name) { return dlsym(module->library, name.c_str()); };
  auto table = static_cast<const KernelTable *>(symbol(std::string(name) + "_table"));
  NEED(table, notFound);
  module->functions[name] = {name, table, static_cast<KernelState *>(symbol("lr_state")),
                             static_cast<char **>(symbol("lr_shared"))};
  *function = &module->functions[name];
  return success;
}

/// Launches that the kernels' LR_THREADS and a device's limits allow, without dynamic shared memory.
EXPORT int cuLaunchKernel(void *handle, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                          unsigned sharedBytes, void *stream, void **arguments, void **extra) {
  ENTER;
  auto function = *static_cast<Function *>(handle);
  bool isPossible = gx > 0 && gy > 0 && gz > 0 && gx <= 0x7fffffff && gy <= 65535 && gz <= 65535 && bx > 0 && by > 0 &&
                    bz > 0 && bx * by * bz <= 1024 && bz <= 64 && sharedBytes == 0 && !extra;
  if (!isPossible)
    violation("%s: %s with %u x %u x %u blocks of %u x %u x %u", __func__, function.name.c_str(), gx, gy, gz, bx, by,
              bz);
  NEED(isPossible && isReady(__func__), invalidValue);
  std::string argument(static_cast<const char *>(arguments[0]), function.table->bytes);
  enqueue(stream, [=] { runGrid(function, {gx, gy, gz}, {bx, by, bz}, argument); });
  return success;
}
