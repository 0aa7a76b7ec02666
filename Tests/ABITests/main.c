// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
//
// Calls the C ABI as a C program does: what it computes, every status, and what a wrong argument leaves untouched.
// Prints one line for each failed check, and at last "abi: N passed, N failed".
#include <math.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lowrank.h"

static int passed = 0, failed = 0;

static void check(bool holds, const char *what, int line) {
  if (holds) {
    passed += 1;
  } else {
    failed += 1;
    printf("main.c:%d: %s; last error: %s\n", line, what, lr_last_error_message());
  }
}

#define CHECK(condition) check((condition), #condition, __LINE__)
#define CHECK_FAILS(call, expected, words) \
  check((call) == (expected) && strstr(lr_last_error_message(), (words)) != NULL, #call " fails with " words, __LINE__)

/// A compact row-major tensor on memory of the caller. Lives as long as the array in it.
typedef struct {
  DLTensor tensor;
  int64_t shape[3];
} array;

static DLTensor *use(array *result, void *data, int ndim, int64_t rows, int64_t columns) {
  *result = (array){.shape = {rows, columns, 1}};
  result->tensor = (DLTensor){.data = data,
                              .device = {.device_type = kDLCPU},
                              .ndim = ndim,
                              .dtype = {.code = kDLFloat, .bits = 32, .lanes = 1},
                              .shape = result->shape};
  return &result->tensor;
}

enum { M = 5, N = 4, R = 2, T = 3 };

static void fill(float *values, int count, unsigned seed) {
  for (int i = 0; i < count; i++) {
    seed = seed * 1664525u + 1013904223u;
    values[i] = (float)(seed >> 8) / (1 << 23) - 1;
  }
}

static double largest_difference(const float *a, const double *b, int count) {
  double largest = 0;
  for (int i = 0; i < count; i++) largest = fmax(largest, fabs(a[i] - b[i]));
  return largest;
}

/// product [rows, columns] = a [rows, depth] b [depth, columns]
static void multiply(const float *a, const float *b, int rows, int depth, int columns, double *product) {
  for (int i = 0; i < rows; i++) {
    for (int j = 0; j < columns; j++) {
      double sum = 0;
      for (int k = 0; k < depth; k++) sum += (double)a[i * depth + k] * b[k * columns + j];
      product[i * columns + j] = sum;
    }
  }
}

// Entries are at most 1 and sums have at most 8 terms: float32 results err by a few units of 2^-24.
static const double tolerance = 32 * 0x1p-24;

static void test_versions(void) {
  CHECK(lr_abi_version_major() == LR_ABI_VERSION_MAJOR);
  CHECK(lr_abi_version_minor() == LR_ABI_VERSION_MINOR);
  CHECK(strstr(lr_config(), "\"instruction_set\"") != NULL);
}

static void test_initialize_in_place(void) {
  float w[M * N], original[M * N], up[M * R], down[R * N];
  fill(w, M * N, 1);
  memcpy(original, w, sizeof w);
  array weight, out_up, out_down;
  use(&weight, w, 2, M, N), use(&out_up, up, 2, M, R), use(&out_down, down, 2, R, N);
  CHECK(lr_check_weight(&weight.tensor, R) == LR_STATUS_OK);
  CHECK(lr_initialize("olora", &weight.tensor, R, 0.5, NULL, 1, &out_up.tensor, NULL, &out_down.tensor) == LR_STATUS_OK);
  double product[M * N], expected[M * N];
  multiply(up, down, M, R, N, product);
  for (int i = 0; i < M * N; i++) expected[i] = original[i] - 0.5 * product[i];
  CHECK(largest_difference(w, expected, M * N) < tolerance);
  // Columns of Q are orthonormal.
  for (int i = 0; i < R; i++) {
    for (int j = 0; j < R; j++) {
      double sum = 0;
      for (int k = 0; k < M; k++) sum += (double)up[k * R + i] * up[k * R + j];
      CHECK(fabs(sum - (i == j)) < tolerance);
    }
  }
  CHECK(lr_merge(&weight.tensor, &out_down.tensor, NULL, &out_up.tensor, 0.5) == LR_STATUS_OK);
  for (int i = 0; i < M * N; i++) expected[i] = original[i];
  CHECK(largest_difference(w, expected, M * N) < tolerance);
}

static void test_forward_and_backward(void) {
  float x[T * N], a[R * N], d[R], b[M * R], y[T * M], h[T * R], g[T * M], dx[T * N], dd[R];
  fill(x, T * N, 2), fill(a, R * N, 3), fill(d, R, 4), fill(b, M * R, 5), fill(g, T * M, 6);
  memset(y, 0, sizeof y), memset(dx, 0, sizeof dx);
  array tx, ta, td, tb, ty, th, tg, tdx, tdd;
  use(&tx, x, 2, T, N), use(&ta, a, 2, R, N), use(&td, d, 1, R, 1), use(&tb, b, 2, M, R), use(&ty, y, 2, T, M);
  use(&th, h, 2, T, R), use(&tg, g, 2, T, M), use(&tdx, dx, 2, T, N), use(&tdd, dd, 1, R, 1);
  CHECK(lr_adapter_forward(&tx.tensor, &ta.tensor, &td.tensor, &tb.tensor, 2, &ty.tensor, &th.tensor) == LR_STATUS_OK);
  CHECK(lr_adapter_backward(&tg.tensor, NULL, &th.tensor, &ta.tensor, &td.tensor, &tb.tensor, 2, 0, &tdx.tensor, NULL,
                            &tdd.tensor, NULL) == LR_STATUS_OK);
  double expected_y[T * M] = {0}, expected_dx[T * N] = {0}, expected_dd[R] = {0};
  for (int t = 0; t < T; t++) {
    for (int k = 0; k < R; k++) {
      double hidden = 0, p = 0;
      for (int j = 0; j < N; j++) hidden += (double)x[t * N + j] * a[k * N + j];
      for (int i = 0; i < M; i++) expected_y[t * M + i] += 2 * hidden * d[k] * b[i * R + k];
      for (int i = 0; i < M; i++) p += (double)g[t * M + i] * b[i * R + k];
      for (int j = 0; j < N; j++) expected_dx[t * N + j] += 2 * p * d[k] * a[k * N + j];
      expected_dd[k] += 2 * p * hidden;
    }
  }
  CHECK(largest_difference(y, expected_y, T * M) < 8 * tolerance);
  CHECK(largest_difference(dx, expected_dx, T * N) < 8 * tolerance);
  CHECK(largest_difference(dd, expected_dd, R) < 8 * tolerance);

  // The same from h, which the caller has: without down h takes x's place.
  float from_h[T * M] = {0}, dh[T * R] = {0};
  array tfrom_h, tdh;
  use(&tfrom_h, from_h, 2, T, M), use(&tdh, dh, 2, T, R);
  CHECK(lr_adapter_forward(&th.tensor, NULL, &td.tensor, &tb.tensor, 2, &tfrom_h.tensor, NULL) == LR_STATUS_OK);
  CHECK(largest_difference(from_h, expected_y, T * M) < 8 * tolerance);
  CHECK(lr_adapter_backward(&tg.tensor, NULL, NULL, NULL, &td.tensor, &tb.tensor, 2, 0, &tdh.tensor, NULL, NULL, NULL) ==
        LR_STATUS_OK);
  double through_h[T * N] = {0};
  for (int t = 0; t < T; t++) {
    for (int k = 0; k < R; k++) {
      for (int j = 0; j < N; j++) through_h[t * N + j] += (double)dh[t * R + k] * a[k * N + j];
    }
  }
  CHECK(largest_difference(dx, through_h, T * N) < 8 * tolerance);
  CHECK_FAILS(lr_adapter_forward(&th.tensor, NULL, &td.tensor, &tb.tensor, 2, &tfrom_h.tensor, &tdh.tensor),
              LR_STATUS_INVALID_ARGUMENT, "out_h");
  CHECK_FAILS(lr_adapter_backward(&tg.tensor, NULL, NULL, NULL, &td.tensor, &tb.tensor, 2, 0, NULL, &ta.tensor, NULL, NULL),
              LR_STATUS_INVALID_ARGUMENT, "out_down");
  CHECK_FAILS(lr_adapter_backward(&tg.tensor, &tx.tensor, NULL, NULL, &td.tensor, &tb.tensor, 2, 0, NULL, NULL, NULL, NULL),
              LR_STATUS_INVALID_ARGUMENT, "x: expected none");
}

static void test_base_product(void) {
  float x[T * N], w[M * N], bias[M], y[T * M], dx[T * N];
  fill(x, T * N, 8), fill(w, M * N, 9), fill(bias, M, 10);
  array tx, tw, tbias, ty, tdx;
  use(&tx, x, 2, T, N), use(&tw, w, 2, M, N), use(&tbias, bias, 1, M, 1), use(&ty, y, 2, T, M), use(&tdx, dx, 2, T, N);
  CHECK(lr_base_product(&tx.tensor, &tw.tensor, &tbias.tensor, &ty.tensor) == LR_STATUS_OK);
  double expected[T * M], gradient[T * N];
  for (int t = 0; t < T; t++) {
    for (int i = 0; i < M; i++) {
      expected[t * M + i] = bias[i];
      for (int j = 0; j < N; j++) expected[t * M + i] += (double)x[t * N + j] * w[i * N + j];
    }
  }
  CHECK(largest_difference(y, expected, T * M) < tolerance);
  // The gradient of x: the weight's transpose is the same memory with other strides.
  array transposed;
  int64_t strides[2] = {1, N};
  use(&transposed, w, 2, N, M)->strides = strides;
  CHECK(lr_base_product(&ty.tensor, &transposed.tensor, NULL, &tdx.tensor) == LR_STATUS_OK);
  multiply(y, w, T, M, N, gradient);
  CHECK(largest_difference(dx, gradient, T * N) < 8 * tolerance);
  CHECK_FAILS(lr_base_product(&ty.tensor, &tw.tensor, NULL, &tdx.tensor), LR_STATUS_INVALID_SHAPE, "x: expected shape [3, 4]");
  ty.tensor.dtype.bits = 64;
  CHECK_FAILS(lr_base_product(&tx.tensor, &tw.tensor, NULL, &ty.tensor), LR_STATUS_UNSUPPORTED_DTYPE, "out: expected float32");
}

static void test_ranks(void) {
  // Orthogonal rows of lengths 3, 2 and 0: singular values 3, 2, 0 and norm sqrt(13).
  float w[3 * N] = {3, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0}, values[3];
  double norm = 0, share = 0;
  array weight, out_values;
  use(&weight, w, 2, 3, N), use(&out_values, values, 1, 3, 1);
  CHECK(lr_spectrum(&weight.tensor, 3, 1e-4, 0, &out_values.tensor, &norm, &share) == LR_STATUS_OK);
  CHECK(fabs(values[0] - 3) < tolerance && fabs(values[1] - 2) < tolerance && fabs(values[2]) < tolerance);
  CHECK(fabs(norm - sqrt(13)) < 1e-14 && share == 1);
  use(&out_values, values, 1, 1, 1);
  CHECK(lr_spectrum(&weight.tensor, 1, 1e-4, 0, &out_values.tensor, NULL, &share) == LR_STATUS_OK);
  CHECK(fabs(share - 9.0 / 13) < 1e-14);
  CHECK_FAILS(lr_spectrum(&weight.tensor, 4, 1e-4, 0, &out_values.tensor, NULL, NULL), LR_STATUS_INVALID_ARGUMENT, "rank");

  double steep[] = {3, 2, 0}, flat[] = {1, 1, 1};
  lr_layer_spectrum_t layers[] = {{steep, 3, sqrt(13), 3, 1}, {flat, 3, sqrt(3), 3, 1}};
  int64_t ranks[2], unspent, undecided;
  CHECK(lr_allocate_ranks(layers, 2, 1, 3, ranks, &unspent, &undecided) == LR_STATUS_OK);
  CHECK(ranks[0] == 1 && ranks[1] == 2 && unspent == 0 && undecided == -1);
  CHECK(lr_allocate_ranks(layers, 2, 1, 9, ranks, &unspent, &undecided) == LR_STATUS_OK);
  CHECK(ranks[0] == 2 && ranks[1] == 3 && unspent == 4 && undecided == -1);
  layers[1].count = 1;
  CHECK(lr_allocate_ranks(layers, 2, 1, 9, ranks, &unspent, &undecided) == LR_STATUS_OK && undecided == 1);
  CHECK_FAILS(lr_allocate_ranks(layers, 2, 1, 1, ranks, &unspent, &undecided), LR_STATUS_INVALID_ARGUMENT, "budget");
}

static void test_statuses(void) {
  for (lr_status_t status = LR_STATUS_OK; status <= LR_STATUS_INTERNAL; status++) CHECK(lr_test_status(status) == status);
  CHECK_FAILS(lr_test_status(99), LR_STATUS_INVALID_ARGUMENT, "status");
}

static void test_wrong_arguments(void) {
  float w[M * N], original[M * N], q[M * R], r[R * N];
  fill(w, M * N, 7);
  memcpy(original, w, sizeof w);
  array weight, out_q, out_r;
  DLTensor *tw = use(&weight, w, 2, M, N), *tq = use(&out_q, q, 2, M, R), *tr = use(&out_r, r, 2, R, N);

  CHECK_FAILS(lr_qr(NULL, R, tq, tr), LR_STATUS_INVALID_ARGUMENT, "weight: expected a tensor, got a null pointer");
  CHECK_FAILS(lr_qr(tw, 0, tq, tr), LR_STATUS_INVALID_ARGUMENT, "rank: expected 1 <= rank <= min(m, n) = 4, got 0");
  CHECK_FAILS(lr_qr(tw, INT64_MAX, tq, tr), LR_STATUS_INVALID_ARGUMENT, "rank");
  CHECK_FAILS(lr_qr(tw, INT64_MIN, tq, tr), LR_STATUS_INVALID_ARGUMENT, "rank");
  CHECK_FAILS(lr_qr(tw, R, tr, tr), LR_STATUS_INVALID_SHAPE, "out_q");
  CHECK_FAILS(lr_qr(tw, R, tq, NULL), LR_STATUS_INVALID_ARGUMENT, "out_r");

  weight.tensor.ndim = 3;
  CHECK_FAILS(lr_check_weight(tw, R), LR_STATUS_INVALID_SHAPE, "weight: expected 2 dimensions, got 3");
  weight.tensor.ndim = INT32_MAX;
  CHECK_FAILS(lr_check_weight(tw, R), LR_STATUS_INVALID_SHAPE, "weight");
  weight.tensor.ndim = 2;
  weight.tensor.dtype.lanes = 2;
  CHECK_FAILS(lr_check_weight(tw, R), LR_STATUS_UNSUPPORTED_DTYPE, "weight");
  weight.tensor.dtype = (DLDataType){.code = kDLInt, .bits = 32, .lanes = 1};
  CHECK_FAILS(lr_check_weight(tw, R), LR_STATUS_UNSUPPORTED_DTYPE, "int32");
  use(&weight, w, 2, M, N)->device.device_type = 4;
  CHECK_FAILS(lr_check_weight(tw, R), LR_STATUS_UNSUPPORTED_DEVICE, "DLPack device (4, 0)");
  use(&weight, NULL, 2, M, N);
  CHECK_FAILS(lr_check_weight(tw, R), LR_STATUS_INVALID_ARGUMENT, "null");
  use(&weight, (char *)w + 1, 2, M, N);
  CHECK_FAILS(lr_check_weight(tw, R), LR_STATUS_INVALID_ARGUMENT, "aligned");
  use(&weight, w, 2, -1, N);
  CHECK_FAILS(lr_check_weight(tw, R), LR_STATUS_INVALID_SHAPE, "weight");
  use(&weight, w, 2, INT64_MAX, INT64_MAX);
  CHECK_FAILS(lr_check_weight(tw, R), LR_STATUS_INVALID_SHAPE, "weight");
  use(&weight, w, 2, M, N)->byte_offset = UINT64_MAX;
  CHECK_FAILS(lr_check_weight(tw, R), LR_STATUS_INVALID_SHAPE, "weight");
  use(&weight, w, 2, 0, N);
  CHECK_FAILS(lr_check_weight(tw, R), LR_STATUS_INVALID_SHAPE, "weight");
  use(&weight, w, 2, M, N);

  array same;
  use(&same, w, 2, M, R);
  CHECK_FAILS(lr_qr(tw, R, &same.tensor, tr), LR_STATUS_OVERLAP, "out_q");
  CHECK_FAILS(lr_initialize("olora", tw, R, NAN, NULL, 1, tq, NULL, tr), LR_STATUS_INVALID_ARGUMENT, "scale");
  CHECK_FAILS(lr_initialize("lora", tw, R, 1, NULL, 1, tq, NULL, tr), LR_STATUS_INVALID_ARGUMENT, "method");
  CHECK_FAILS(lr_initialize("pissa", tw, R, -1, NULL, 1, tq, NULL, tr), LR_STATUS_INVALID_ARGUMENT, "scale");
  CHECK_FAILS(lr_initialize("loldu", tw, R, 1, NULL, 1, tq, NULL, tr), LR_STATUS_INVALID_SHAPE, "core");
  CHECK(memcmp(w, original, sizeof w) == 0);
  w[2 * N + 3] = NAN;
  memcpy(original, w, sizeof w);
  CHECK_FAILS(lr_initialize("olora", tw, R, 1, NULL, 1, tq, NULL, tr), LR_STATUS_NON_FINITE, "[2, 3]");
  CHECK(memcmp(w, original, sizeof w) == 0);

  CHECK_FAILS(lr_set_num_threads(-1), LR_STATUS_INVALID_ARGUMENT, "count");
  CHECK(lr_set_num_threads(3) == LR_STATUS_OK && lr_get_num_threads() == 3);
  CHECK(lr_set_num_threads(0) == LR_STATUS_OK && lr_get_num_threads() >= 1);
}

static void *fail_elsewhere(void *message) {
  CHECK(strcmp(lr_last_error_message(), "") == 0);
  CHECK(lr_test_status(LR_STATUS_OVERLAP) == LR_STATUS_OVERLAP);
  CHECK(strcmp(lr_last_error_message(), message) != 0);
  return NULL;
}

static void test_messages_belong_to_threads(void) {
  CHECK(lr_test_status(LR_STATUS_NON_FINITE) == LR_STATUS_NON_FINITE);
  char message[256];
  snprintf(message, sizeof message, "%s", lr_last_error_message());
  pthread_t thread;
  pthread_create(&thread, NULL, fail_elsewhere, message);
  pthread_join(thread, NULL);
  CHECK(strcmp(lr_last_error_message(), message) == 0);
}

int main(void) {
  test_versions();
  test_initialize_in_place();
  test_forward_and_backward();
  test_base_product();
  test_ranks();
  test_statuses();
  test_wrong_arguments();
  test_messages_belong_to_threads();
  printf("abi: %d passed, %d failed\n", passed, failed);
  return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
