// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
//
// c = alpha * a b + beta * c with a c of few columns, from one reading of a: see narrow.cu.

typedef lr_group<float, 4> lr_sums;

LR_DEVICE lr_sums lr_sums_of(const float (&sums)[4]) { return {{sums[0], sums[1], sums[2], sums[3]}}; }

LR_DEVICE void lr_add_sums(float (&sums)[4], const lr_sums &others) {
#pragma unroll
  for (int k = 0; k < 4; k++) sums[k] += others.at[k];
}

/// `tiles` times 64 rows of c = alpha * a b + beta * c in one block, for c of up to `width` columns and a of 16 bits, or of
/// float32 with two pieces.
template <int width, int tiles, int pieces> LR_DEVICE void lr_shrink_in_matrices(const lr_multiply_arguments &arguments) {
  // Fewer terms are all that 16 bits need. With more sums there are no registers for what comes next.
  enum { groups = 2, terms = pieces + 1, count = tiles * width / 8, at_once = count < 8 ? count : 8, reads_ahead = count <= 8 };
  __shared__ lr_term_tile<groups, width> tile;
  __shared__ lr_sums others[at_once][LR_THREADS / 2];
  const lr_view &a = arguments.a, &c = arguments.c;
  const lr_view b = lr_transposed(arguments.b);
  int a_terms = lr_term_count(a.type), b_terms = lr_term_count(b.type);
  // Two warps share rows, and have a group of the depth each.
  unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, group = warp / 4;
  long long row = blockIdx.x * (64LL * tiles) + warp % 4 * (16 * tiles) + lane / 4;
  long long depth = blockIdx.z * arguments.slice_depth;
  long long end = depth + arguments.slice_depth < a.columns ? depth + arguments.slice_depth : a.columns;
  float sums[width / 32][tiles][4][4] = {};
  lr_line<pieces> x[tiles][2];
  lr_line<2> lines[groups * width * 4 / LR_THREADS];
  auto read = [&](long long depth) {
#pragma unroll
    for (int i = 0; i < 2 * tiles; i++) {
      x[i / 2][i % 2] = lr_read_line<pieces>(a, row + 8 * i, depth + group * LR_SPAN + lane % 4 * 8);
    }
    lr_read_tile<groups, width>(lines, b, 0, depth);
  };
  if (reads_ahead) read(depth);
  for (; depth < end; depth += groups * LR_SPAN) {
    if (!reads_ahead) read(depth);
    lr_quad left[tiles][terms][2];
#pragma unroll
    for (int i = 0; i < 2 * tiles; i++) {
      lr_quad parts[terms];
      lr_split_line(x[i / 2][i % 2], a.type, parts);
#pragma unroll
      for (int t = 0; t < terms; t++) left[i / 2][t][i % 2] = parts[t];
    }
    lr_store_tile(tile, lines, b);
    __syncthreads();
    if (reads_ahead && depth + groups * LR_SPAN < end) read(depth + groups * LR_SPAN);
#pragma unroll
    for (int j = 0; j < width / 32; j++) lr_add_group(sums[j], left, a_terms, tile, b_terms, group, 32 * j);
    __syncthreads();
  }
  // The first half of the threads goes on with the sums of both.
  unsigned thread = threadIdx.x % (LR_THREADS / 2);
#pragma unroll
  for (int first = 0; first < count; first += at_once) {
#pragma unroll
    for (int n = first; n < first + at_once; n++) {
      if (group == 1) others[n - first][thread] = lr_sums_of(sums[n / 4 / tiles][n / 4 % tiles][n % 4]);
    }
    __syncthreads();
#pragma unroll
    for (int n = first; n < first + at_once; n++) {
      if (group == 0) lr_add_sums(sums[n / 4 / tiles][n / 4 % tiles][n % 4], others[n - first][thread]);
    }
    __syncthreads();
  }
  if (gridDim.z > 1) {
    typedef lr_sums lr_part[count][LR_THREADS / 2];
    lr_part *parts = (lr_part *)arguments.partials + (long long)blockIdx.x * gridDim.z;
#pragma unroll
    for (int n = 0; n < count; n++) {
      if (group == 0) parts[blockIdx.z][n][thread] = lr_sums_of(sums[n / 4 / tiles][n / 4 % tiles][n % 4]);
    }
    if (!lr_is_last_slice(arguments.counters)) return;
    // In order, whichever block is the last.
#pragma unroll
    for (int n = 0; n < 4 * count; n++) sums[n / 16 / tiles][n / 16 % tiles][n / 4 % 4][n % 4] = 0;
    for (unsigned slice = 0; slice < gridDim.z && group == 0; slice++) {
#pragma unroll
      for (int n = 0; n < count; n++) {
        lr_add_sums(sums[n / 4 / tiles][n / 4 % tiles][n % 4], parts[slice][n][thread]);
      }
    }
  }
  if (group == 1) return;
#pragma unroll
  for (int j = 0; j < width / 32; j++) {
#pragma unroll
    for (int i = 0; i < 2 * tiles; i++) {
      float line[8];
      lr_line_of_sums(sums[j][i / 2], i % 2, line);
      long long ci = row + 8 * i, cj = 32 * j + lane % 4 * 8;
      lr_line<2> old = {};
      if (arguments.beta != 0) old = lr_read_line<2>(c, ci, cj);
      lr_update_line(c, ci, cj, arguments.alpha, line, arguments.beta, old);
    }
  }
}

LR_KERNEL(lr_shrink_32) { lr_shrink_in_matrices<32, 2, 1>(arguments); }

LR_KERNEL(lr_shrink_64) { lr_shrink_in_matrices<64, 2, 1>(arguments); }

LR_KERNEL(lr_shrink_float32_32) { lr_shrink_in_matrices<32, 1, 2>(arguments); }

LR_KERNEL(lr_shrink_float32_64) { lr_shrink_in_matrices<64, 1, 2>(arguments); }
