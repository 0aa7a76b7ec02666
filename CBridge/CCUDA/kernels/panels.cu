// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
//
// The small square parts of a QR by Cholesky, each in one block, in float64.

LR_KERNEL(lr_cholesky) {
  double *r = (double *)arguments.matrix, *inverse = (double *)arguments.inverse, *status = (double *)arguments.status;
  long long n = arguments.size;
  for (long long j = threadIdx.x; j < n; j += LR_THREADS) inverse[j * n + j] = r[j * n + j];
  for (long long j = 0; j < n; j++) {
    __syncthreads();
    double pivot = r[j * n + j];
    bool is_usable = lr_is_finite(pivot) && pivot > arguments.smallest * inverse[j * n + j];
    double diagonal = is_usable ? sqrt(pivot) : 1;
    __syncthreads();
    for (long long k = j + threadIdx.x; k < n; k += LR_THREADS) r[j * n + k] = k == j ? diagonal : r[j * n + k] / diagonal;
    if (!is_usable && threadIdx.x == 0) status[0] = 1;
    __syncthreads();
    long long rest = n - j - 1;
    for (long long position = threadIdx.x; position < rest * rest; position += LR_THREADS) {
      long long i = j + 1 + position / rest, k = j + 1 + position % rest;
      if (k >= i) r[i * n + k] -= r[j * n + i] * r[j * n + k];
    }
  }
  __syncthreads();
  for (long long position = threadIdx.x; position < n * n; position += LR_THREADS) {
    if (position / n > position % n) r[position] = inverse[position] = 0;
  }
  // A thread finds a column, from its diagonal upwards.
  for (long long k = threadIdx.x; k < n; k += LR_THREADS) {
    for (long long i = k; i >= 0; i--) {
      double sum = i == k ? 1 : 0;
      for (long long l = i + 1; l <= k; l++) sum -= r[i * n + l] * inverse[l * n + k];
      inverse[i * n + k] = sum / r[i * n + i];
    }
  }
}

// Column j of Q is sign_j times that of Householder's method, where Q - diag(sign) = L U without pivoting, and sign_j is
// chosen against the pivot (Ballard et al. 2014, "Reconstructing Householder vectors from tall-skinny QR").
LR_KERNEL(lr_householder_signs) {
  double *a = (double *)arguments.work, *status = (double *)arguments.status;
  long long n = arguments.q.columns;
  for (long long position = threadIdx.x; position < n * n; position += LR_THREADS) {
    a[position] = lr_load<double>(arguments.q, position / n, position % n);
  }
  for (long long j = 0; j < n; j++) {
    __syncthreads();
    double pivot = a[j * n + j], magnitude = pivot < 0 ? -pivot : pivot;
    double sign = pivot < 0 ? 1 : -1;
    // Near 0 rounding decides; at 1 there is nothing to reflect, and LAPACK keeps the sign of the entry.
    bool is_certain = magnitude > 1e-6 && magnitude < 1 - 1e-6;
    if (threadIdx.x == 0) {
      status[1 + j] = sign;
      if (!is_certain) status[0] = 1;
    }
    double diagonal = pivot - sign;
    long long rest = n - j - 1;
    for (long long position = threadIdx.x; position < rest * rest; position += LR_THREADS) {
      long long i = j + 1 + position / rest, k = j + 1 + position % rest;
      a[i * n + k] -= a[i * n + j] / diagonal * a[j * n + k];
    }
  }
}
