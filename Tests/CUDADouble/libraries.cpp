// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
//
// cuBLAS and cuSOLVER: BLAS's and LAPACK's routines in float64, whose results are rounded to the matrices' types.
#include "include/double.hpp"

#include <cblas.h>
#include <cmath>

// OpenBLAS has no header for LAPACK's.
extern "C" {
void dgeqrf_(const int *m, const int *n, double *a, const int *lda, double *tau, double *work, const int *size,
             int *info);
void dorgqr_(const int *m, const int *n, const int *k, double *a, const int *lda, const double *tau, double *work,
             const int *size, int *info);
}

using namespace cuda_double;

namespace {

enum { R_32F = 0, R_64F = 1, R_16F = 2, R_16BF = 14, COMPUTE_32F = 68, COMPUTE_64F = 70, notSupported = 15 };

/// Of cuBLAS or of cuSOLVER.
struct Handle {
  int device;
  void *stream;
  bool hasWorkspace; // since the stream was set

  bool isReady() const {
    return cuda_double::isReady() && (device == currentDevice() || violation("the handle is of another device"));
  }
};

// No processor of today's rounds to it by itself.
struct BFloat16 {
  std::uint16_t bits;
  operator double() const { return __builtin_bit_cast(float, std::uint32_t(bits) << 16); }
  void operator=(double value) {
    auto wide = __builtin_bit_cast(std::uint32_t, float(value));
    bits = std::isnan(value) ? 0x7fff : (wide + 0x7fff + (wide >> 16 & 1)) >> 16;
  }
};

/// Calls the body with a pointer to elements of a type.
template <class Body> void withElements(void *memory, int type, Body body) {
  switch (type) {
  case R_64F: return body(static_cast<double *>(memory));
  case R_32F: return body(static_cast<float *>(memory));
  case R_16F: return body(static_cast<_Float16 *>(memory));
  default: return body(static_cast<BFloat16 *>(memory));
  }
}

/// Column-major, in device memory.
struct Matrix {
  Address address;
  int type, rows, columns, stride;

  std::int64_t size() const { return type == R_64F ? 8 : type == R_32F ? 4 : 2; }
  Address end() const { return address + ((columns - 1) * std::int64_t(stride) + rows) * size(); }

  bool isValid(const char *name) const {
    if (stride < std::max(1, rows))
      return violation(name, " [", rows, ", ", columns, "] has leading dimension ", stride);
    return isSpan(name, address, end() - address, size());
  }

  /// Whether the two share an element; those of one larger matrix may lie side by side.
  bool overlaps(const Matrix &other) const {
    if (address >= other.end() || other.address >= end()) return false;
    std::int64_t step = stride * size(), offset = ((other.address - address) % step + step) % step;
    return step != other.stride * other.size() || offset < rows * size() || offset + other.rows * other.size() > step;
  }

  /// Its columns, without gaps.
  std::vector<double> values() const {
    std::vector<double> result;
    withElements(address, type, [&](auto *column) {
      for (int j = 0; j < columns; j++, column += stride) result.insert(result.end(), column, column + rows);
    });
    return result;
  }

  void set(const std::vector<double> &values) const {
    withElements(address, type, [&](auto *column) {
      for (auto value = values.begin(); value != values.end(); value += rows, column += stride)
        std::copy(value, value + rows, column);
    });
  }
};

double number(void *value, int type) { return Matrix{static_cast<Address>(value), type, 1, 1, 1}.values()[0]; }
CBLAS_TRANSPOSE transposition(int op) { return op ? CblasTrans : CblasNoTrans; }

} // namespace

EXPORT int cublasCreate_v2(void **handle) {
  ENTER(isReady(false));
  return give(handle, new Handle{currentDevice(), nullptr, false});
}

/// Takes back the workspace, as the real one does.
EXPORT int cublasSetStream_v2(Handle *handle, void *stream) {
  ENTER(true);
  return give(&handle->hasWorkspace, false) + give(&handle->stream, stream);
}

EXPORT int cublasSetWorkspace_v2(Handle *handle, Address workspace, std::size_t bytes) {
  ENTER(handle->isReady() && isSpan("workspace", workspace, bytes, 256));
  return give(&handle->hasWorkspace, true);
}

/// CUBLAS_DEFAULT_MATH alone: no float32 product may become one of TF32.
EXPORT int cublasSetMathMode(Handle *, int mode) {
  ENTER(mode == 0 || violation("mode ", mode, " is not the default"));
  return success;
}

EXPORT const char *cublasGetStatusString(int) { return "a cuBLAS error of the double"; }
EXPORT int cublasDestroy_v2(Handle *handle) { return delete handle, success; }

EXPORT int cusolverDnCreate(void **handle) { return cublasCreate_v2(handle); }
EXPORT int cusolverDnDestroy(Handle *handle) { return cublasDestroy_v2(handle); }
EXPORT int cusolverDnSetStream(Handle *handle, void *stream) { return cublasSetStream_v2(handle, stream); }

EXPORT int cublasGemmEx(Handle *handle, int opA, int opB, int m, int n, int k, void *alpha, Address a, int aType,
                        int lda, Address b, int bType, int ldb, void *beta, Address c, int cType, int ldc,
                        int computeType, int) {
  ENTER(true);
  bool isDouble = computeType == COMPUTE_64F && aType == R_64F && cType == R_64F;
  bool isSingle = computeType == COMPUTE_32F && aType != R_64F && (cType == aType || cType == R_32F);
  if (aType != bType || !(isDouble || isSingle))
    return violation("types ", aType, ", ", bType, ", ", cType, ", compute type ", computeType), notSupported;
  Matrix left{a, aType, opA ? k : m, opA ? m : k, lda}, right{b, bType, opB ? n : k, opB ? k : n, ldb};
  Matrix target{c, cType, m, n, ldc};
  NEED(handle->isReady() && left.isValid("A") && right.isValid("B") && target.isValid("C"));
  NEED(handle->hasWorkspace || violation("no workspace since the stream was set"));
  NEED((!left.overlaps(target) && !right.overlaps(target)) || violation("C overlaps an operand"));
  double factor = number(alpha, isDouble ? R_64F : R_32F), share = number(beta, isDouble ? R_64F : R_32F);
  return enqueue(handle->stream, [=] {
    auto sums = target.values();
    cblas_dgemm(CblasColMajor, transposition(opA), transposition(opB), m, n, k, factor, left.values().data(), left.rows,
                right.values().data(), right.rows, share, sums.data(), m);
    target.set(sums);
  });
}

static int solve(Handle *handle, int side, int fill, int op, int diagonal, double factor, Matrix a, Matrix b) {
  NEED(handle->isReady() && a.isValid("A") && b.isValid("B"));
  return enqueue(handle->stream, [=] {
    auto values = b.values();
    cblas_dtrsm(CblasColMajor, side ? CblasRight : CblasLeft, fill ? CblasUpper : CblasLower, transposition(op),
                diagonal ? CblasUnit : CblasNonUnit, b.rows, b.columns, factor, a.values().data(), a.rows,
                values.data(), b.rows);
    b.set(values);
  });
}

/// A function for float32 and one for float64.
#define BOTH(Library, name, parameters, result)                                                                        \
  OF_TYPE(Library##S##name, parameters, R_32F, result)                                                                 \
  OF_TYPE(Library##D##name, parameters, R_64F, result)
#define OF_TYPE(function, parameters, elements, result)                                                                \
  EXPORT int function parameters {                                                                                     \
    [[maybe_unused]] const int type = elements;                                                                        \
    ENTER(true);                                                                                                       \
    return result;                                                                                                     \
  }

BOTH(cublas, trsm_v2,
     (Handle *handle, int side, int fill, int op, int diagonal, int m, int n, void *alpha, Address a, int lda,
      Address b, int ldb),
     solve(handle, side, fill, op, diagonal, number(alpha, type), {a, type, side ? n : m, side ? n : m, lda},
           {b, type, m, n, ldb}))

/// Checks and queues a routine of a matrix and its reflections' factors.
template <class Routine>
static int factor(Handle *handle, Matrix a, Matrix tau, Address workspace, int size, int needed, int *info,
                  Routine routine) {
  NEED(handle->isReady() && a.isValid("A") && tau.isValid("tau") && isSpan("info", Address(info), 4, 4));
  NEED(size >= needed || violation("workspace of ", size, " elements, ", needed, " are needed"));
  NEED(isSpan("workspace", workspace, size * a.size(), a.size()));
  return enqueue(handle->stream, [=] {
    auto matrix = a.values(), factors = tau.values();
    std::vector<double> work(64 * (a.rows + a.columns));
    routine(a.rows, a.columns, tau.rows, matrix.data(), factors.data(), work.data(), work.size(), info);
    a.set(matrix);
    tau.set(factors);
    poison(workspace, size * a.size());
  });
}

static void factorQR(int m, int n, int, double *a, double *tau, double *work, int size, int *info) {
  dgeqrf_(&m, &n, a, &m, tau, work, &size, info);
}

static void formQ(int m, int n, int k, double *a, double *tau, double *work, int size, int *info) {
  dorgqr_(&m, &n, &k, a, &m, tau, work, &size, info);
}

// Elements of a workspace for each column, which differ from each other.
enum { sizeQR = 32, sizeQ = 64 };

BOTH(cusolverDn, geqrf_bufferSize, (Handle *, int, int n, Address, int, int *size), give(size, sizeQR * n))
BOTH(cusolverDn, geqrf,
     (Handle *handle, int m, int n, Address a, int lda, Address tau, Address workspace, int size, int *info),
     factor(handle, {a, type, m, n, lda}, {tau, type, std::min(m, n), 1, m}, workspace, size, sizeQR * n, info,
            factorQR))
BOTH(cusolverDn, orgqr_bufferSize, (Handle *, int, int n, int, Address, int, Address, int *size), give(size, sizeQ * n))
BOTH(cusolverDn, orgqr,
     (Handle *handle, int m, int n, int k, Address a, int lda, Address tau, Address workspace, int size, int *info),
     factor(handle, {a, type, m, n, lda}, {tau, type, k, 1, m}, workspace, size, sizeQ * n, info, formQ))
