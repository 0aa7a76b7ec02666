// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
//
// The C ABI of lowrank_swift. Written by hand: Swift implements exactly these declarations.
//
// Shapes: weight W [m, n] = [out, in]; up B [m, r]; core C none (NULL), [r] (diagonal) or [r, r]; down A [r, n].
// Every adapter is  delta W = scale * B C A,  y = x W^T + scale * ((x A^T) C^T) B^T.
//
// Rules for all functions
// - Tensors are borrowed for the call. Any strides, offsets and orders are accepted; dtype float32, float64, bfloat16 or
//   float16; device CPU (and CUDA host memory) or CUDA, the same for all tensors of a call. The caller promises that outputs
//   are writable memory and distinct from the inputs; what overlaps is refused (LR_STATUS_OVERLAP).
// - The result is a status; LR_STATUS_OK is 0. After a failure lr_last_error_message() on the same thread says which
//   argument, what was expected and what came. Tensors that were to be changed in place are unchanged after a failure;
//   pure outputs are unspecified.
// - Products accumulate in float32, or in float64 where an operand is float64. Results do not depend on the number of
//   threads. All functions may be called from several threads at once.
// - On a CUDA device the work is enqueued on the stream that lr_cuda_set_stream has set, and may not be done when a function
//   returns; what is returned through host memory is. The adapters' forward and backward never wait for the device. The first
//   CUDA tensor opens the CUDA driver, cuBLAS, cuSOLVER and NVRTC; BACKEND_UNAVAILABLE where one can't be used.
#ifndef LOWRANK_H
#define LOWRANK_H

#include <stdint.h>

#include "dlpack.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef int32_t lr_status_t;

enum {
  LR_STATUS_OK = 0,
  LR_STATUS_INVALID_SHAPE = 1,
  LR_STATUS_INVALID_ARGUMENT = 2,
  LR_STATUS_NON_FINITE = 3,
  LR_STATUS_READ_ONLY = 4,
  LR_STATUS_OVERLAP = 5,
  LR_STATUS_UNSUPPORTED_DTYPE = 6,
  LR_STATUS_UNSUPPORTED_DEVICE = 7,
  LR_STATUS_BACKEND_UNAVAILABLE = 8,
  LR_STATUS_NUMERICAL_FAILURE = 9,
  LR_STATUS_OUT_OF_MEMORY = 10,
  LR_STATUS_INTERNAL = 11
};

/// Version of this interface: major changes with a layout or a meaning, minor with an addition.
#define LR_ABI_VERSION_MAJOR 0
#define LR_ABI_VERSION_MINOR 3
int32_t lr_abi_version_major(void);
int32_t lr_abi_version_minor(void);

/// Text of the last failure on this thread; "" before the first. Valid until the thread's next failure.
const char *lr_last_error_message(void);

/// JSON object: release or debug build, vendor of the CPU, instruction set in use and those of the CPU, BLAS build string and
/// core, threads and the team they are of; cuda: null before the first CUDA tensor, then the libraries' paths and devices in use,
/// or why there are none.
/// Valid until this thread's next call of this function.
const char *lr_config(void);

/// Number of threads for the calls that follow, in all threads of the process; 0 returns to the default
/// (the OpenMP team's size where one is borrowed, else OMP_NUM_THREADS, else the processors this process may use).
/// INVALID_ARGUMENT below 0 or above 4096.
lr_status_t lr_set_num_threads(int32_t count);
int32_t lr_get_num_threads(void);

/// Checks that `weight` is a matrix that the factorisations accept and that 1 <= rank <= min(m, n); touches no data.
/// The same checks open every factorisation. UNSUPPORTED_DEVICE, UNSUPPORTED_DTYPE, INVALID_SHAPE, INVALID_ARGUMENT.
lr_status_t lr_check_weight(const DLTensor *weight, int64_t rank);

/// Truncated QR (Householder, LAPACK's signs): the first `rank` columns of Q [m, r] and rows of R [r, n] of W = Q R.
/// NON_FINITE if W holds a NaN or an infinity; NUMERICAL_FAILURE where finite entries overflow on the way.
lr_status_t lr_qr(const DLTensor *weight, int64_t rank, DLTensor *out_q, DLTensor *out_r);

/// Truncated LDU with row pivoting, W[perm, :] = L D U: L [m, r] unit lower, D [r], U [r, n] unit upper, perm [m] int64.
/// A pivot of at most eps * max|W[:, :r]| counts as zero: D_i = 0 and row i of U is the unit row e_i.
/// NON_FINITE only for entries of the first r columns or of the r pivot rows.
lr_status_t lr_ldu(const DLTensor *weight, int64_t rank, DLTensor *out_l, DLTensor *out_d, DLTensor *out_u,
                   DLTensor *out_perm);

/// What an SVD reports about itself.
typedef struct lr_svd_report {
  int64_t passes;   ///< Times that W was read for a product with a block of vectors; a product W^T W or a copy counts as one.
  double tol;       ///< The tolerance that was kept: the caller's, raised to 10 eps of the working precision, or in float64
                    ///< to what can be reached, which may be some ten eps.
  double residual;  ///< The largest ||W v - s u|| and ||W^T u - s v|| that were measured, over S[0].
} lr_svd_report_t;

/// Truncated SVD: U [m, r], S [r] descending, Vh [r, n]; ||W v - s u|| and ||W^T u - s v|| at most tol * S[0] for each
/// triplet, measured with products before returning; tol is raised to 10 eps of the working precision. The entry of largest
/// magnitude in each column of U is positive. The same seed gives the same bits. `out_report` may be NULL.
/// NON_FINITE, INVALID_ARGUMENT (tol), NUMERICAL_FAILURE (a residual that stays above tol * S[0], which the message states,
/// or a singular value beyond the range of out_s).
lr_status_t lr_svd(const DLTensor *weight, int64_t rank, double tol, uint64_t seed, DLTensor *out_u, DLTensor *out_s,
                   DLTensor *out_vh, lr_svd_report_t *out_report);

/// Leading singular values [r], descending, the Frobenius norm of W (one pass in float64; may be NULL), and the share of
/// its square that the values carry (may be NULL; 1 for W = 0). float32 and 16-bit weights with min(m, n) <= 1024 or
/// rank >= min(m, n) / 4 take the eigenvalues of W'W in float64, the others lr_svd's way, which alone reads tol and seed.
/// NON_FINITE, INVALID_ARGUMENT (tol), NUMERICAL_FAILURE (overflow on the way, or a value that does not fit `out_values`).
lr_status_t lr_spectrum(const DLTensor *weight, int64_t rank, double tol, uint64_t seed, DLTensor *out_values,
                        double *out_norm, double *out_share);

/// What LaMDA++ knows of a layer's weight.
typedef struct lr_layer_spectrum {
  const double *values;  ///< Leading singular values, descending.
  int64_t count;         ///< How many are known, at least rank_min.
  double norm;           ///< Frobenius norm of the weight.
  int64_t rank_max;      ///< The most rank that the layer may get, at most min(m, n).
  int64_t cost;          ///< What one rank step takes from the budget, at least 1.
} lr_layer_spectrum_t;

/// LaMDA++'s ranks: every layer starts at rank_min, and single rank steps are granted in increasing order of
/// (E_l(k), l, k) until the budget is spent, with l the index in `layers` (sort them by name), k the layer's rank so far
/// and E_l(k) the share of ||W_l||_F^2 in its first k singular values. A layer takes no more at rank_max, once E_l(k) is 1
/// (to 10 eps of float32), or if W = 0; a step that costs more than is left ends its layer's turn. `out_ranks` [layers],
/// `out_unspent`: what is left of the budget; `out_undecided`: -1, or the index of a layer of which more singular values
/// are needed to follow the rule to its end. INVALID_ARGUMENT for numbers out of range, or a budget below rank_min for
/// every layer.
lr_status_t lr_allocate_ranks(const lr_layer_spectrum_t *layers, int64_t layer_count, int64_t rank_min, int64_t budget,
                              int64_t *out_ranks, int64_t *out_unspent, int64_t *out_undecided);

/// What only some initialisers read; NULL in its place means these defaults.
typedef struct lr_initialize_options {
  double tol;            ///< SVD tolerance, default 1e-4. lamda, pissa, lora_xs.
  uint64_t seed;         ///< Default 0. lamda, pissa, lora_xs, loldu with a random diagonal.
  const char *diagonal;  ///< loldu: "ldu" (default, or NULL), "ones", "zeros", "mean", "uniform", "normal".
} lr_initialize_options_t;

/// Starting factors of a method: "olora" (no core), "loldu" (core [r]), "lamda" (core [r, r]), "pissa" (no core),
/// "lora_xs" (core [r, r] of zeros).
/// With `in_place` nonzero, W becomes the residual W - scale * B C A, from the factors as stored in the outputs, and only
/// after they are complete and finite. `scale` is finite. INVALID_ARGUMENT for an unknown method or option; otherwise as
/// the factorisation used. A factor that does not fit a 16-bit output, or a residual that does not fit W's dtype, is
/// NUMERICAL_FAILURE.
lr_status_t lr_initialize(const char *method, DLTensor *weight, int64_t rank, double scale,
                          const lr_initialize_options_t *options, int32_t in_place, DLTensor *out_up, DLTensor *out_core,
                          DLTensor *out_down);

/// out += scale * ((x A^T) C^T) B^T and out_h = x A^T. x [T, n], out [T, m], out_h [T, r]; T may be 0. core may be NULL.
/// Without down (NULL) the caller has made the down-projection itself: x [T, r] is h, and out_h is NULL.
lr_status_t lr_adapter_forward(const DLTensor *x, const DLTensor *down, const DLTensor *core, const DLTensor *up,
                               double scale, DLTensor *out, DLTensor *out_h);

/// Gradients of the forward for the upstream gradient `grad` [T, m]. An output that is NULL is not computed.
/// out_x [T, n] is added to; out_down [r, n], out_core (core's shape) and out_up [m, r] are overwritten. The first
/// `frozen_columns` columns of out_up are set to zero and not computed. `x` is needed for out_down alone, `h` for out_core
/// and out_up alone; each may be NULL where it is not needed. Without down (NULL), out_x [T, r] is the gradient of h, also
/// added to, and x and out_down are NULL.
lr_status_t lr_adapter_backward(const DLTensor *grad, const DLTensor *x, const DLTensor *h, const DLTensor *down,
                                const DLTensor *core, const DLTensor *up, double scale, int64_t frozen_columns,
                                DLTensor *out_x, DLTensor *out_down, DLTensor *out_core, DLTensor *out_up);

/// out = B C - start: the one [m, r] matrix by which an adapter with a frozen A differs from its start B0 C0.
/// `core` may be NULL (identity); `start` [m, r] may be NULL (zero).
lr_status_t lr_effective_up(const DLTensor *up, const DLTensor *core, const DLTensor *start, DLTensor *out);

/// Gradients of lr_effective_up for `grad` [m, r]: out_up = grad C^T (its first `frozen_columns` columns zero and not
/// computed), out_core = B^T grad (its diagonal for a diagonal core). An output that is NULL is not computed.
lr_status_t lr_effective_up_backward(const DLTensor *grad, const DLTensor *up, const DLTensor *core,
                                     int64_t frozen_columns, DLTensor *out_up, DLTensor *out_core);

/// out = x W^T, plus `bias` [m] in every row unless it is NULL: the product of a frozen layer, by OpenBLAS. x [T, n],
/// weight W [m, n], out [T, m], all float32 (else UNSUPPORTED_DTYPE); T, m and n may be 0. `weight` transposed gives the
/// gradient of x: g W. One-threaded calls of sgemm compute slices of `out`, which are cut by its shape and the machine's
/// processors; this library's threads share them.
lr_status_t lr_base_product(const DLTensor *x, const DLTensor *weight, const DLTensor *bias, DLTensor *out);

/// out += scale * x (B A - B0 A0)^T and out_h = x A^T: what an adapter both of whose factors train has changed since its
/// start. As one adapter of rank 2r, B (A - A0) + (B - B0) A0, whose factors are made anew: out keeps its values while the
/// factors have theirs. Shapes as in lr_adapter_forward; start_down [r, n], start_up [m, r].
lr_status_t lr_change_forward(const DLTensor *x, const DLTensor *down, const DLTensor *up, const DLTensor *start_down,
                              const DLTensor *start_up, double scale, DLTensor *out, DLTensor *out_h);

/// Gradients of lr_change_forward in x (added to), down and up (overwritten), as lr_adapter_backward.
lr_status_t lr_change_backward(const DLTensor *grad, const DLTensor *x, const DLTensor *h, const DLTensor *down,
                               const DLTensor *up, const DLTensor *start_down, const DLTensor *start_up, double scale,
                               DLTensor *out_x, DLTensor *out_down, DLTensor *out_up);

/// W += scale * B C A. Before any write: NON_FINITE where a factor holds a NaN or an infinity, NUMERICAL_FAILURE where a
/// finite entry of W would leave the range of its dtype. Entries of W that are not finite stay so.
lr_status_t lr_merge(DLTensor *weight, const DLTensor *down, const DLTensor *core, const DLTensor *up, double scale);

/// The stream (a CUstream or cudaStream_t; NULL is the default stream) of this thread's later calls on a CUDA device.
/// INVALID_ARGUMENT for a device outside 0...63. Opens nothing.
lr_status_t lr_cuda_set_stream(int32_t device, void *stream);

/// Where a framework has calls get their intermediate memory on CUDA devices. What `release` gets may still be in use by work on
/// the stream: the memory is for later work on that stream alone.
typedef struct lr_cuda_allocator {
  /// Returns 0, or another number for no memory. `out_block` is what `release` gets.
  int32_t (*allocate)(void *context, int32_t device, uint64_t bytes, void **out_memory, void **out_block);
  void (*release)(void *context, void *block);
  void *context;
} lr_cuda_allocator_t;

/// Sets the allocator of this thread's later calls; NULL is CUDA's own (cuMemAllocAsync on the stream). The functions are called
/// on this thread, during a call.
lr_status_t lr_cuda_set_allocator(const lr_cuda_allocator_t *allocator);

/// Does for a device and this thread's stream what first calls would: opens the libraries, compiles the kernels, makes
/// handles. Needed before calls are captured into a CUDA graph. BACKEND_UNAVAILABLE.
lr_status_t lr_cuda_warmup(int32_t device);

/// Waits until the work on this thread's stream of a device is done.
lr_status_t lr_cuda_synchronize(int32_t device);

/// Memory of zeros on a CUDA device, for callers without a framework, and its release, which waits for the device.
lr_status_t lr_cuda_allocate(int32_t device, uint64_t bytes, void **out_memory);
lr_status_t lr_cuda_free(int32_t device, void *memory);

/// Copies the elements of a matrix or vector on a CUDA device to host memory, row by row, and waits for them.
lr_status_t lr_cuda_read(const DLTensor *matrix, void *out);

/// For tests of callers: fails with `status` and a message, or succeeds for LR_STATUS_OK.
lr_status_t lr_test_status(lr_status_t status);

#ifdef __cplusplus
}
#endif

#endif
