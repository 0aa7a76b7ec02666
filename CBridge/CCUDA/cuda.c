// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>

#include "cuda_api.h"
#include "cuda_support.h"
#include "kernel_arguments.h"

const char *cuda_library_path(const void *address) {
  Dl_info information;
  return dladdr(address, &information) != 0 ? information.dli_fname : NULL;
}

static _Thread_local void *streams[LR_CUDA_MAX_DEVICES];

void *cuda_thread_stream(int device) { return streams[device]; }

void cuda_set_thread_stream(int device, void *stream) { streams[device] = stream; }

static _Thread_local cuda_allocator thread_allocator;

cuda_allocator cuda_thread_allocator(void) { return thread_allocator; }

void cuda_set_thread_allocator(cuda_allocator allocator) { thread_allocator = allocator; }

#pragma clang diagnostic ignored "-Wc23-extensions"

// One translation unit for NVRTC, which has no files: what both sides share comes first.
static const char kernel_source[] = {
#embed "include/kernel_arguments.h"
    , '\n',
#embed "kernels/common.cu"
    , '\n',
#embed "kernels/elementwise.cu"
    , '\n',
#embed "kernels/reductions.cu"
    , '\n',
#embed "kernels/multiply.cu"
    , '\n',
#embed "kernels/matrices.cu"
    , '\n',
#embed "kernels/narrow.cu"
    , '\n',
#embed "kernels/shrink.cu"
    , '\n',
#embed "kernels/expand.cu"
    , '\n',
#embed "kernels/pairs.cu"
    , '\n',
#embed "kernels/panel_lu.cu"
    , '\n',
#embed "kernels/panel_qr.cu"
    , '\0'};

const char *const cuda_kernel_source = kernel_source;
