// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
#include <float.h>
#include <math.h>
#include <stdio.h>

#include "lowrank.h"

enum { M = 6, N = 4, R = 2 };

/// A compact row-major float32 matrix on memory of the caller's.
static DLTensor matrix(float *data, int64_t shape[2]) {
  return (DLTensor){.data = data,
                    .device = {.device_type = kDLCPU},
                    .ndim = 2,
                    .dtype = {.code = kDLFloat, .bits = 32, .lanes = 1},
                    .shape = shape};
}

int main(void) {
  float w[M * N], up[M * R], down[R * N];
  for (int i = 0; i < M * N; i++) w[i] = 1.0f / (float)(i / N + i % N + 1);
  DLTensor weight = matrix(w, (int64_t[]){M, N});
  DLTensor out_up = matrix(up, (int64_t[]){M, R}), out_down = matrix(down, (int64_t[]){R, N});

  // OLoRA's starting factors; `in_place` makes the weight the residual W - scale * B A.
  const double scale = 1;
  const int32_t in_place = 1;
  lr_status_t status =
      lr_initialize("olora", &weight, R, scale, /* options: */ NULL, in_place, &out_up, /* no core: */ NULL, &out_down);
  if (status != LR_STATUS_OK) {
    fprintf(stderr, "status %d: %s\n", (int)status, lr_last_error_message());
    return 1;
  }
  // B A has the first R columns of W, so nothing but rounding is left of them.
  float largest = 0;
  for (int i = 0; i < M; i++) largest = fmaxf(largest, fabsf(w[i * N]));
  printf("residual of the first column: %s\n", largest < 30 * M * FLT_EPSILON ? "ok" : "wrong");

  status = lr_initialize("olora", &weight, 0, scale, NULL, in_place, &out_up, NULL, &out_down);
  printf("status %d: %s\n", (int)status, lr_last_error_message());
  return 0;
}
