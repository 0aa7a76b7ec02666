// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
//
// cuBLAS and cuSOLVER, column-major as they are. Products are summed in float64 here, factorisations are LAPACK's.
#include "include/double.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

// LAPACK's and BLAS's, which stand for cuSOLVER's and cuBLAS's.
extern "C" {
#define FACTORIZATIONS(s, T)                                                                                              \
  void s##geqrf_(const int32_t *m, const int32_t *n, T *a, const int32_t *lda, T *tau, T *work, const int32_t *lwork,     \
                 int32_t *info);                                                                                          \
  void s##orgqr_(const int32_t *m, const int32_t *n, const int32_t *k, T *a, const int32_t *lda, const T *tau, T *work,   \
                 const int32_t *lwork, int32_t *info);                                                                    \
  void s##getrf_(const int32_t *m, const int32_t *n, T *a, const int32_t *lda, int32_t *ipiv, int32_t *info);             \
  void s##trsm_(const char *side, const char *uplo, const char *transa, const char *diag, const int32_t *m,               \
                const int32_t *n, const T *alpha, const T *a, const int32_t *lda, T *b, const int32_t *ldb,               \
                size_t side_length, size_t uplo_length, size_t transa_length, size_t diag_length);
FACTORIZATIONS(s, float)
FACTORIZATIONS(d, double)
#undef FACTORIZATIONS
void dgemm_(const char *transa, const char *transb, const int32_t *m, const int32_t *n, const int32_t *k,
            const double *alpha, const double *a, const int32_t *lda, const double *b, const int32_t *ldb,
            const double *beta, double *c, const int32_t *ldc, size_t transa_length, size_t transb_length);
}

using namespace cuda_double;

namespace {

enum { success = 0, invalidValue = 7, notSupported = 15, invalidSolverValue = 3 };
enum { R_32F = 0, R_64F = 1, R_16F = 2, R_16BF = 14, COMPUTE_32F = 68, COMPUTE_64F = 70 };

struct Handle {
  int device;
  void *stream = nullptr;
  Address workspace = 0;
  std::size_t workspaceBytes = 0;
  bool hadWorkspace = false;
};

bool isReadyOn(const char *symbol, const Handle *handle) {
  if (!isReady(symbol)) return false;
  return handle->device == currentDevice() || violation("%s: the handle is of another device", symbol);
}

std::size_t sizeOf(int type) { return type == R_64F ? 8 : type == R_32F ? 4 : 2; }

double load(Address address, int type, std::size_t index) {
  if (type == R_64F) return host<double>(address)[index];
  if (type == R_32F) return host<float>(address)[index];
  if (type == R_16F) return host<_Float16>(address)[index];
  std::uint32_t bits = std::uint32_t(host<std::uint16_t>(address)[index]) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

void store(Address address, int type, std::size_t index, double value) {
  if (type == R_64F) host<double>(address)[index] = value;
  else if (type == R_32F) host<float>(address)[index] = float(value);
  else if (type == R_16F) host<_Float16>(address)[index] = _Float16(float(value));
  else {
    float rounded = float(value);
    std::uint32_t bits;
    std::memcpy(&bits, &rounded, 4);
    bits += std::isnan(rounded) ? 0 : 0x7fff + (bits >> 16 & 1);
    host<std::uint16_t>(address)[index] = bits >> 16;
  }
}

/// op(matrix) as columns of float64 without gaps.
std::vector<double> columns(Address address, int type, bool isTransposed, int rows, int count, std::size_t stride) {
  std::vector<double> result(std::size_t(rows) * count);
  for (int j = 0; j < count; j++)
    for (int i = 0; i < rows; i++)
      result[std::size_t(j) * rows + i] = load(address, type, isTransposed ? i * stride + j : j * stride + i);
  return result;
}

/// A matrix in memory, in bytes.
struct Region {
  Address start;
  std::int64_t rows, columns, stride;
};

/// Whether two matrices share an element; those of one larger matrix may lie side by side.
bool overlap(Region a, Region b) {
  if (a.start >= b.start + b.columns * b.stride || b.start >= a.start + a.columns * a.stride) return false;
  std::int64_t offset = std::int64_t(b.start - a.start) % a.stride;
  if (offset < 0) offset += a.stride;
  return a.stride != b.stride || offset < a.rows || offset + b.rows > a.stride;
}

} // namespace

// MARK: cuBLAS

static int create(const char *symbol, void **handle) {
  NEED(isReady(symbol, false), 1);
  *handle = new Handle{currentDevice()};
  return success;
}

EXPORT int cublasCreate_v2(void **handle) {
  ENTER;
  return create(__func__, handle);
}

EXPORT int cublasDestroy_v2(void *handle) {
  ENTER;
  delete static_cast<Handle *>(handle);
  return success;
}

EXPORT int cublasSetStream_v2(void *handle, void *stream) {
  ENTER;
  auto &[device, current, workspace, bytes, hadWorkspace] = *static_cast<Handle *>(handle);
  current = stream, workspace = 0, bytes = 0; // back to cuBLAS's own workspace
  return success;
}

EXPORT int cublasSetWorkspace_v2(void *handle, Address workspace, std::size_t bytes) {
  ENTER;
  auto &kept = *static_cast<Handle *>(handle);
  NEED(isReadyOn(__func__, &kept) && isSpan(__func__, "workspace", workspace, bytes, 256), invalidValue);
  kept.workspace = workspace, kept.workspaceBytes = bytes, kept.hadWorkspace = true;
  return success;
}

/// CUBLAS_DEFAULT_MATH alone: no float32 product may become one of TF32.
EXPORT int cublasSetMathMode(void *, int mode) {
  ENTER;
  return mode == 0 || violation("%s: mode %d is not the default", __func__, mode) ? success : notSupported;
}

EXPORT const char *cublasGetStatusString(int status) {
  return status == success ? "success" : "a cuBLAS error of the double";
}

EXPORT int cublasGemmEx(void *handle, int transA, int transB, int m, int n, int k, const void *alpha, Address a,
                        int aType, int lda, Address b, int bType, int ldb, const void *beta, Address c, int cType,
                        int ldc, int computeType, int) {
  ENTER;
  const Handle kept = *static_cast<Handle *>(handle);
  bool isHalf = aType == R_16F || aType == R_16BF;
  bool isCombination =
      aType == bType && (computeType == COMPUTE_64F ? aType == R_64F && cType == R_64F
                                                    : computeType == COMPUTE_32F && (isHalf || aType == R_32F) &&
                                                          (cType == aType || cType == R_32F));
  NEED(isCombination || violation("%s: types %d, %d, %d, compute type %d", __func__, aType, bType, cType, computeType),
       notSupported);
  NEED(isReadyOn(__func__, &kept), invalidValue);
  NEED(!kept.hadWorkspace || kept.workspace || violation("%s: setting the stream dropped the workspace", __func__),
       invalidValue);
  NEED(k >= 0 && isMatrix(__func__, "A", a, transA ? k : m, transA ? m : k, lda, sizeOf(aType)), invalidValue);
  NEED(isMatrix(__func__, "B", b, transB ? n : k, transB ? k : n, ldb, sizeOf(bType)), invalidValue);
  NEED(isMatrix(__func__, "C", c, m, n, ldc, sizeOf(cType)), invalidValue);
  auto region = [](Address start, int rows, int columns, int stride, int type) {
    std::int64_t size = sizeOf(type);
    return Region{start, rows * size, columns, stride * size};
  };
  Region target = region(c, m, n, ldc, cType);
  if (overlap(region(a, transA ? k : m, transA ? m : k, lda, aType), target) ||
      overlap(region(b, transB ? n : k, transB ? k : n, ldb, bType), target))
    violation("%s: C overlaps an operand", __func__);
  bool isDouble = computeType == COMPUTE_64F;
  double factor = isDouble ? *static_cast<const double *>(alpha) : *static_cast<const float *>(alpha);
  double share = isDouble ? *static_cast<const double *>(beta) : *static_cast<const float *>(beta);
  enqueue(kept.stream, [=] {
    poison(host<char>(kept.workspace), std::min<std::size_t>(kept.workspaceBytes, 1 << 16));
    auto left = columns(a, aType, transA, m, k, lda), right = columns(b, bType, transB, k, n, ldb);
    std::vector<double> sums(std::size_t(m) * n);
    double one = 1, zero = 0;
    int rows = std::max(1, m), depth = std::max(1, k);
    dgemm_("N", "N", &m, &n, &k, &one, left.data(), &rows, right.data(), &depth, &zero, sums.data(), &rows, 1, 1);
    for (std::size_t i = 0; i < sums.size(); i++) {
      std::size_t index = i / m * ldc + i % m;
      store(c, cType, index, factor * sums[i] + (share == 0 ? 0 : share * load(c, cType, index)));
    }
  });
  return success;
}

template <class T, class Solve>
static int solve(const char *symbol, void *handle, int side, int fill, int trans, int diagonal, int m, int n,
                 const T *alpha, Address a, int lda, Address b, int ldb, Solve routine) {
  const Handle kept = *static_cast<Handle *>(handle);
  int order = side == 0 ? m : n;
  NEED(isReadyOn(symbol, &kept) && isMatrix(symbol, "A", a, order, order, lda, sizeof(T)), invalidValue);
  NEED(isMatrix(symbol, "B", b, m, n, ldb, sizeof(T)), invalidValue);
  enqueue(kept.stream, [=, factor = *alpha] {
    routine(side == 0 ? "L" : "R", fill == 0 ? "L" : "U", trans == 0 ? "N" : "T", diagonal == 0 ? "N" : "U", &m, &n,
            &factor, host<T>(a), &lda, host<T>(b), &ldb, 1, 1, 1, 1);
  });
  return success;
}

// MARK: cuSOLVER

EXPORT int cusolverDnCreate(void **handle) {
  ENTER;
  return create(__func__, handle);
}

EXPORT int cusolverDnDestroy(void *handle) { return cublasDestroy_v2(handle); }

EXPORT int cusolverDnSetStream(void *handle, void *stream) {
  ENTER;
  static_cast<Handle *>(handle)->stream = stream;
  return success;
}

// Sizes of workspaces that differ from each other.
static int sizeQR(int n) { return 32 * n + 7; }
static int sizeQ(int n) { return 64 * n + 3; }
static int sizeLU(int m, int n) { return 2 * m + n + 1; }

/// Checks what all three factorisations have, and queues one with a workspace of its own on the host.
template <class T, class Routine>
static int factor(const char *symbol, void *handle, int m, int n, Address a, int lda, Address vector,
                  std::size_t vectorBytes, Address workspace, int count, int needed, Address info, Routine routine) {
  const Handle kept = *static_cast<Handle *>(handle);
  NEED(isReadyOn(symbol, &kept) && isMatrix(symbol, "A", a, m, n, lda, sizeof(T)), invalidSolverValue);
  NEED(count >= needed || violation("%s: workspace of %d elements, %d are needed", symbol, count, needed),
       invalidSolverValue);
  NEED(isSpan(symbol, "workspace", workspace, count * sizeof(T), sizeof(T)), invalidSolverValue);
  NEED(isSpan(symbol, "tau or pivots", vector, vectorBytes, 4) && isSpan(symbol, "info", info, 4, 4),
       invalidSolverValue);
  enqueue(kept.stream, [=] {
    std::vector<T> work(std::max(1, 64 * (m + n)));
    int workCount = int(work.size());
    routine(work.data(), &workCount, host<int>(info));
    poison(host<char>(workspace), count * sizeof(T));
  });
  return success;
}

#define LINEAR_ALGEBRA(T, S, s)                                                                                        \
  EXPORT int cublas##S##trsm_v2(void *handle, int side, int fill, int trans, int diagonal, int m, int n,               \
                                const T *alpha, Address a, int lda, Address b, int ldb) {                              \
    ENTER;                                                                                                             \
    return solve(__func__, handle, side, fill, trans, diagonal, m, n, alpha, a, lda, b, ldb, s##trsm_);                \
  }                                                                                                                    \
  EXPORT int cusolverDn##S##geqrf_bufferSize(void *, int, int n, Address, int, int *count) {                           \
    ENTER;                                                                                                             \
    return *count = sizeQR(n), success;                                                                                \
  }                                                                                                                    \
  EXPORT int cusolverDn##S##orgqr_bufferSize(void *, int, int n, int, Address, int, Address, int *count) {             \
    ENTER;                                                                                                             \
    return *count = sizeQ(n), success;                                                                                 \
  }                                                                                                                    \
  EXPORT int cusolverDn##S##getrf_bufferSize(void *, int m, int n, Address, int, int *count) {                         \
    ENTER;                                                                                                             \
    return *count = sizeLU(m, n), success;                                                                             \
  }                                                                                                                    \
  EXPORT int cusolverDn##S##geqrf(void *handle, int m, int n, Address a, int lda, Address tau, Address workspace,      \
                                  int count, Address info) {                                                           \
    ENTER;                                                                                                             \
    return factor<T>(__func__, handle, m, n, a, lda, tau, std::min(m, n) * sizeof(T), workspace, count, sizeQR(n),     \
                     info, [=](T *work, const int *size, int *result) {                                                \
                       s##geqrf_(&m, &n, host<T>(a), &lda, host<T>(tau), work, size, result);                          \
                     });                                                                                               \
  }                                                                                                                    \
  EXPORT int cusolverDn##S##orgqr(void *handle, int m, int n, int k, Address a, int lda, Address tau,                  \
                                  Address workspace, int count, Address info) {                                        \
    ENTER;                                                                                                             \
    return factor<T>(__func__, handle, m, n, a, lda, tau, k * sizeof(T), workspace, count, sizeQ(n), info,             \
                     [=](T *work, const int *size, int *result) {                                                      \
                       s##orgqr_(&m, &n, &k, host<T>(a), &lda, host<T>(tau), work, size, result);                      \
                     });                                                                                               \
  }                                                                                                                    \
  EXPORT int cusolverDn##S##getrf(void *handle, int m, int n, Address a, int lda, Address workspace, Address pivots,   \
                                  Address info) {                                                                      \
    ENTER;                                                                                                             \
    return factor<T>(                                                                                                  \
        __func__, handle, m, n, a, lda, pivots, std::min(m, n) * 4, workspace, sizeLU(m, n), sizeLU(m, n), info,       \
        [=](T *, const int *, int *result) { s##getrf_(&m, &n, host<T>(a), &lda, host<int>(pivots), result); });       \
  }

LINEAR_ALGEBRA(float, S, s)
LINEAR_ALGEBRA(double, D, d)
