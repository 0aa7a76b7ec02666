// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
//
// NVRTC, modules and launches. What stands for machine code is the path of a shared library: the kernels' source,
// compiled for the host. A kernel takes one argument, a structure.
#include "include/double.hpp"

#include <csetjmp>
#include <dlfcn.h>
#include <fstream>
#include <ucontext.h>

using namespace cuda_double;

namespace {

const char prelude[] =
#include "prelude.inc"
    ;

// What prelude.inc declares.
struct Dimensions { unsigned x, y, z; };
struct KernelState {
  Dimensions threadIdx, blockIdx, blockDim, gridDim;
  void (*barrier)();
  char *shared, *sharedEnd;
};

struct Function {
  void (*call)(const void *argument);
  std::size_t bytes; // of the argument
  KernelState *state;
};

/// One thread of every block in turn, on a stack of its own. There is one block at a time.
struct Fiber {
  jmp_buf position;
  bool isDone = false;
  char stack[64 << 10];
} *current;
jmp_buf scheduler;
std::function<void()> kernel;

/// Makes no system call, as swapcontext does.
void switchTo(jmp_buf &next, jmp_buf &here) {
  if (_setjmp(here) == 0) _longjmp(next, 1);
}

/// What a thread does at a barrier.
void waitAtBarrier() { switchTo(scheduler, current->position); }

void runFiber() {
  for (;; current->isDone = true) {
    waitAtBarrier();
    kernel();
  }
}

Fiber *newFiber() {
  current = new Fiber;
  ucontext_t start;
  getcontext(&start);
  start.uc_stack.ss_sp = current->stack;
  start.uc_stack.ss_size = sizeof current->stack;
  makecontext(&start, runFiber, 0);
  if (_setjmp(scheduler) == 0) setcontext(&start);
  return current;
}

/// Runs threads from barrier to barrier, each time forwards or backwards as random bits say: reading what another
/// thread writes before a barrier shows.
void runGrid(const Function &function, Dimensions grid, unsigned threads, const std::string &argument) {
  static std::vector<Fiber *> fibers;
  static std::uint32_t random = 0;
  while (fibers.size() < threads) fibers.push_back(newFiber());
  KernelState *state = function.state;
  *state = {{}, {}, {threads, 1, 1}, grid, waitAtBarrier, state->shared, state->sharedEnd};
  kernel = [&] { function.call(argument.data()); };
  for (unsigned block = 0; block < grid.x * grid.y * grid.z; block++) {
    state->blockIdx = {block % grid.x, block / grid.x % grid.y, block / grid.x / grid.y};
    poison(state->shared, state->sharedEnd - state->shared);
    for (unsigned i = 0; i < threads; i++) fibers[i]->isDone = false;
    for (bool isWaiting = true; isWaiting;) {
      isWaiting = false;
      random = random * 1664525 + 1013904223;
      for (unsigned i = 0; i < threads; i++) {
        state->threadIdx.x = random >> 31 ? threads - 1 - i : i;
        current = fibers[state->threadIdx.x];
        if (!current->isDone) switchTo(current->position, scheduler);
        isWaiting |= !current->isDone;
      }
    }
  }
}

/// Compiles once for all processes, beside the double. The compiler's errors are on stderr.
/// - Returns: The path of the library, which is not there where there were errors.
std::string compile(const std::string &source, const std::string &options) {
  std::string command = "clang++ -std=c++17 -O1 -w -fPIC -shared -fno-strict-aliasing -fsanitize=bounds "
                        "-fsanitize-undefined-trap-on-error" + options;
  Dl_info info;
  dladdr(prelude, &info);
  std::size_t key = std::hash<std::string>()(prelude + source + command);
  std::string library = info.dli_fname + std::string("-kernels-") + std::to_string(key) + ".so";
  if (access(library.c_str(), R_OK) == 0) return library;
  std::string work = library + "-" + std::to_string(getpid()), text = work + ".cpp";
  std::ofstream(text) << prelude << source;
  if (std::system((command + " '" + text + "' -o '" + work + "'").c_str()) == 0) rename(work.c_str(), library.c_str());
  unlink(text.c_str());
  return library;
}

} // namespace

enum { invalidOption = 5, compilation = 6, noBinaryForGPU = 209, notFound = 500 };

struct Program {
  std::string source, ptx, cubin, log = "see stderr";
};

EXPORT int nvrtcVersion(int *major, int *minor) { return give(major, 13) + give(minor, 0); }
EXPORT const char *nvrtcGetErrorString(int) { return "an NVRTC error of the double"; }
EXPORT int nvrtcDestroyProgram(Program **program) { return delete *program, success; }

EXPORT int nvrtcCreateProgram(void **program, const char *source, const char *, int, const void *, const void *) {
  return give(program, new Program{source, "", ""});
}

EXPORT int nvrtcCompileProgram(Program *program, int count, const char *const *options) {
  ENTER(true);
  std::string defines, architecture;
  for (const std::string &option : std::vector<std::string>(options, options + count)) {
    if (option.rfind("-D", 0) == 0) defines += " '" + option + "'";
    else if (option.rfind("--gpu-architecture=", 0) == 0) architecture = option.substr(19);
    else if (option.rfind("--std=", 0) != 0) return violation("unknown option ", option), invalidOption;
  }
  program->ptx = compile(program->source, defines) + '\0';
  // A program for another architecture than a device's is PTX only.
  program->cubin = architecture == "sm_90" ? program->ptx : "";
  return access(program->ptx.c_str(), R_OK) == 0 ? success : compilation;
}

#define GETTERS(Name, part)                                                                                            \
  EXPORT int nvrtcGet##Name##Size(Program *program, std::size_t *bytes) { return give(bytes, program->part.size()); }  \
  EXPORT int nvrtcGet##Name(Program *program, char *to) {                                                              \
    return program->part.copy(to, std::string::npos), success;                                                         \
  }

GETTERS(ProgramLog, log)
GETTERS(PTX, ptx)
GETTERS(CUBIN, cubin)

EXPORT int cuModuleLoadData(void **module, const char *image) {
  ENTER(isReady(false));
  void *library = dlopen(image, RTLD_NOW | RTLD_LOCAL);
  return library ? give(module, library) : noBinaryForGPU;
}

EXPORT int cuModuleGetFunction(void **function, void *module, const char *name) {
  ENTER(true);
  auto symbol = [=](const std::string &name) { return dlsym(module, name.c_str()); };
  auto bytes = static_cast<const std::size_t *>(symbol(std::string(name) + "_bytes"));
  if (!bytes) return notFound;
  auto call = reinterpret_cast<void (*)(const void *)>(symbol(name));
  return give(function, new Function{call, *bytes, static_cast<KernelState *>(symbol("lr_state"))});
}

/// Launches that a device's limits allow, of threads along x and without dynamic shared memory.
EXPORT int cuLaunchKernel(const Function *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                          unsigned bz, unsigned sharedBytes, void *stream, void **arguments, void **) {
  ENTER(isReady());
  bool isPossible = gx > 0 && gx <= 0x7fffffff && gy > 0 && gy <= 65535 && gz > 0 && gz <= 65535 && bx > 0 &&
                    bx <= 1024 && by == 1 && bz == 1 && sharedBytes == 0;
  NEED(isPossible || violation("no device runs ", gx, " x ", gy, " x ", gz, " blocks of ", bx, " threads"));
  std::string argument(static_cast<const char *>(arguments[0]), function->bytes);
  return enqueue(stream, [=] { runGrid(*function, {gx, gy, gz}, bx, argument); });
}
