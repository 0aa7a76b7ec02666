// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
//
// The part of the CUDA driver, cuBLAS, cuSOLVER and NVRTC that this project calls, as types of functions that are looked up
// at run time: `pfn_<symbol>` is the type of the exported symbol <symbol>. Written by hand from NVIDIA's documentation;
// the C ABI of these functions is the same for CUDA 12 and 13.
//
// - The names are those of the exported symbols, where the headers of CUDA hide a version behind a macro (cuMemAlloc_v2).
// - Handles (contexts, streams, modules, functions, programs) are `void *`.
// - Addresses on a device are `lr_cuda_address`, an integer: the host can't read through one by mistake.
// - Enumerations are `int`; the values that are used follow below.
#ifndef LOWRANK_CCUDA_H
#define LOWRANK_CCUDA_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef uint64_t lr_cuda_address;

// MARK: The driver, libcuda.so.1

enum {
  LR_CUDA_SUCCESS = 0,
  LR_CUDA_ERROR_OUT_OF_MEMORY = 2,
  LR_CUDA_ERROR_NO_DEVICE = 100,
  LR_CUDA_ERROR_NO_BINARY_FOR_GPU = 209,
  LR_CUDA_ERROR_UNSUPPORTED_PTX_VERSION = 222
};

// CUdevice_attribute
enum {
  LR_CUDA_COMPUTE_CAPABILITY_MAJOR = 75,
  LR_CUDA_COMPUTE_CAPABILITY_MINOR = 76,
  LR_CUDA_MEMORY_POOLS_SUPPORTED = 115
};

typedef int (*pfn_cuInit)(unsigned int flags);
typedef int (*pfn_cuDriverGetVersion)(int *version);
typedef int (*pfn_cuDeviceGet)(int *device, int ordinal);
typedef int (*pfn_cuDeviceGetCount)(int *count);
typedef int (*pfn_cuDeviceGetAttribute)(int *value, int attribute, int device);
typedef int (*pfn_cuDevicePrimaryCtxRetain)(void **context, int device);
typedef int (*pfn_cuCtxGetCurrent)(void **context);
typedef int (*pfn_cuCtxPushCurrent_v2)(void *context);
typedef int (*pfn_cuCtxPopCurrent_v2)(void **context);
typedef int (*pfn_cuMemAllocAsync)(lr_cuda_address *address, size_t bytes, void *stream);
typedef int (*pfn_cuMemFreeAsync)(lr_cuda_address address, void *stream);
typedef int (*pfn_cuMemAlloc_v2)(lr_cuda_address *address, size_t bytes);
typedef int (*pfn_cuMemFree_v2)(lr_cuda_address address);
typedef int (*pfn_cuMemcpyDtoHAsync_v2)(void *target, lr_cuda_address source, size_t bytes, void *stream);
typedef int (*pfn_cuMemcpyHtoDAsync_v2)(lr_cuda_address target, const void *source, size_t bytes, void *stream);
typedef int (*pfn_cuStreamSynchronize)(void *stream);
typedef int (*pfn_cuStreamIsCapturing)(void *stream, int *status);  // 0: it is not
typedef int (*pfn_cuModuleLoadData)(void **module, const void *image);
typedef int (*pfn_cuModuleGetFunction)(void **function, void *module, const char *name);
typedef int (*pfn_cuLaunchKernel)(void *function, unsigned int grid_x, unsigned int grid_y, unsigned int grid_z,
                                  unsigned int block_x, unsigned int block_y, unsigned int block_z,
                                  unsigned int shared_bytes, void *stream, void **parameters, void **extra);
typedef int (*pfn_cuGetErrorString)(int error, const char **text);

// MARK: cuBLAS, libcublas.so.12 or .13

// cublasOperation_t, cublasSideMode_t, cublasFillMode_t, cublasDiagType_t
enum { LR_CUBLAS_OP_N = 0, LR_CUBLAS_OP_T = 1 };
enum { LR_CUBLAS_SIDE_LEFT = 0, LR_CUBLAS_SIDE_RIGHT = 1 };
enum { LR_CUBLAS_FILL_LOWER = 0, LR_CUBLAS_FILL_UPPER = 1 };
enum { LR_CUBLAS_DIAG_NON_UNIT = 0, LR_CUBLAS_DIAG_UNIT = 1 };
// cublasMath_t: float32 products in float32, never in TF32.
enum { LR_CUBLAS_DEFAULT_MATH = 0 };
// cudaDataType_t
enum { LR_CUDA_R_32F = 0, LR_CUDA_R_64F = 1, LR_CUDA_R_16F = 2, LR_CUDA_R_16BF = 14 };
// cublasComputeType_t and cublasGemmAlgo_t
enum { LR_CUBLAS_COMPUTE_32F = 68, LR_CUBLAS_COMPUTE_64F = 70 };
enum { LR_CUBLAS_GEMM_DEFAULT = -1 };
// cublasStatus_t
enum { LR_CUBLAS_STATUS_NOT_SUPPORTED = 15 };

typedef int (*pfn_cublasCreate_v2)(void **handle);
typedef int (*pfn_cublasDestroy_v2)(void *handle);
typedef int (*pfn_cublasSetStream_v2)(void *handle, void *stream);
typedef int (*pfn_cublasSetWorkspace_v2)(void *handle, lr_cuda_address workspace, size_t bytes);
typedef int (*pfn_cublasSetMathMode)(void *handle, int mode);
typedef int (*pfn_cublasGemmEx)(void *handle, int transpose_a, int transpose_b, int m, int n, int k, const void *alpha,
                                lr_cuda_address a, int a_type, int lda, lr_cuda_address b, int b_type, int ldb,
                                const void *beta, lr_cuda_address c, int c_type, int ldc, int compute_type, int algorithm);
typedef int (*pfn_cublasStrsm_v2)(void *handle, int side, int fill, int transpose, int diagonal, int m, int n,
                                  const float *alpha, lr_cuda_address a, int lda, lr_cuda_address b, int ldb);
typedef int (*pfn_cublasDtrsm_v2)(void *handle, int side, int fill, int transpose, int diagonal, int m, int n,
                                  const double *alpha, lr_cuda_address a, int lda, lr_cuda_address b, int ldb);
typedef const char *(*pfn_cublasGetStatusString)(int status);

// MARK: cuSOLVER, libcusolver.so.11 (CUDA 12) or .12 (CUDA 13)

typedef int (*pfn_cusolverDnCreate)(void **handle);
typedef int (*pfn_cusolverDnDestroy)(void *handle);
typedef int (*pfn_cusolverDnSetStream)(void *handle, void *stream);

// Sizes of workspaces count elements.
typedef int (*pfn_cusolverDnSgeqrf_bufferSize)(void *handle, int m, int n, lr_cuda_address a, int lda, int *count);
typedef int (*pfn_cusolverDnDgeqrf_bufferSize)(void *handle, int m, int n, lr_cuda_address a, int lda, int *count);
typedef int (*pfn_cusolverDnSgeqrf)(void *handle, int m, int n, lr_cuda_address a, int lda, lr_cuda_address tau,
                                    lr_cuda_address workspace, int count, lr_cuda_address info);
typedef int (*pfn_cusolverDnDgeqrf)(void *handle, int m, int n, lr_cuda_address a, int lda, lr_cuda_address tau,
                                    lr_cuda_address workspace, int count, lr_cuda_address info);
typedef int (*pfn_cusolverDnSorgqr_bufferSize)(void *handle, int m, int n, int k, lr_cuda_address a, int lda,
                                               lr_cuda_address tau, int *count);
typedef int (*pfn_cusolverDnDorgqr_bufferSize)(void *handle, int m, int n, int k, lr_cuda_address a, int lda,
                                               lr_cuda_address tau, int *count);
typedef int (*pfn_cusolverDnSorgqr)(void *handle, int m, int n, int k, lr_cuda_address a, int lda, lr_cuda_address tau,
                                    lr_cuda_address workspace, int count, lr_cuda_address info);
typedef int (*pfn_cusolverDnDorgqr)(void *handle, int m, int n, int k, lr_cuda_address a, int lda, lr_cuda_address tau,
                                    lr_cuda_address workspace, int count, lr_cuda_address info);
// Pivots are int32 and count from 1.

// MARK: NVRTC, libnvrtc.so.12 or .13

enum { LR_NVRTC_SUCCESS = 0, LR_NVRTC_ERROR_INVALID_OPTION = 5, LR_NVRTC_ERROR_COMPILATION = 6 };

typedef int (*pfn_nvrtcVersion)(int *major, int *minor);
typedef int (*pfn_nvrtcCreateProgram)(void **program, const char *source, const char *name, int header_count,
                                      const char *const *headers, const char *const *include_names);
typedef int (*pfn_nvrtcCompileProgram)(void *program, int option_count, const char *const *options);
typedef int (*pfn_nvrtcGetProgramLogSize)(void *program, size_t *bytes);
typedef int (*pfn_nvrtcGetProgramLog)(void *program, char *log);
typedef int (*pfn_nvrtcGetCUBINSize)(void *program, size_t *bytes);
typedef int (*pfn_nvrtcGetCUBIN)(void *program, char *image);
typedef int (*pfn_nvrtcGetPTXSize)(void *program, size_t *bytes);
typedef int (*pfn_nvrtcGetPTX)(void *program, char *image);
typedef int (*pfn_nvrtcDestroyProgram)(void **program);
typedef const char *(*pfn_nvrtcGetErrorString)(int result);

#ifdef __cplusplus
}
#endif

#endif
