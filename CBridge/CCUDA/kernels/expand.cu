// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
//
// c = alpha * a middle b + beta * c with an a of few columns, which writes c once and keeps `a middle` in the block: see
// narrow.cu.

// MARK: Where 16-bit numbers are among them, on tensor cores

/// A block's 64 rows of c = alpha * a middle b + beta * c, for a of up to `groups` times LR_SPAN columns.
template <int groups> LR_DEVICE void lr_expand_in_matrices(const lr_expand_arguments &arguments) {
  enum { reads_ahead = groups == 1 };
  __shared__ lr_term_tile<groups, LR_TILE> tile;
  const lr_view &a = arguments.a, &c = arguments.c, &factors = arguments.middle;
  const lr_view b = lr_transposed(arguments.b);
  bool has_middle = factors.address != 0, is_square = has_middle && arguments.is_square;
  int a_terms = lr_term_count(a.type), b_terms = lr_term_count(b.type);
  unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, q = lane % 4;
  // Two warps share rows, and have half of the columns each.
  unsigned half = warp / 4 * 32;
  long long row = (long long)blockIdx.x * LR_TILE + warp % 4 * 16 + lane / 4;
  lr_quad left[groups][1][LR_TERMS][2];
#pragma unroll
  for (int n = 0; n < 2 * groups; n++) {
    long long depth = n / 2 * LR_SPAN + 8 * q;
    float rest[8];
    lr_decode(lr_read_line<2>(a, row + n % 2 * 8, depth), a.type, rest);
#pragma unroll
    for (int k = 0; k < 8; k++) {
      if (has_middle && !is_square && depth + k < a.columns) rest[k] *= lr_load<float>(factors, depth + k, 0);
    }
#pragma unroll
    for (int t = 0; t < LR_TERMS; t++) left[n / 2][0][t][n % 2] = lr_next_terms(rest);
  }
  if (is_square) {
    const lr_view middle = lr_transposed(arguments.middle);
    lr_line<2> lines[groups];
    lr_read_tile<groups, LR_TILE>(lines, middle, 0, 0);
    lr_store_tile(tile, lines, middle);
    __syncthreads();
    float sums[groups][1][4][4] = {};
#pragma unroll
    for (int j = 0; j < groups; j++) {
#pragma unroll
      for (int group = 0; group < groups; group++) {
        lr_add_group(sums[j], left[group], a_terms, tile, lr_term_count(middle.type), group, 32 * j);
      }
    }
    __syncthreads();
#pragma unroll
    for (int n = 0; n < 2 * groups; n++) {
      float rest[8];
      lr_line_of_sums(sums[n / 2][0], n % 2, rest);
#pragma unroll
      for (int t = 0; t < LR_TERMS; t++) left[n / 2][0][t][n % 2] = lr_next_terms(rest);
    }
  }
  if (has_middle) a_terms = LR_TERMS;
  long long column = blockIdx.y * arguments.columns;
  long long end = column + arguments.columns < c.columns ? column + arguments.columns : c.columns;
  lr_line<2> lines[groups];
  if (reads_ahead) lr_read_tile<groups, LR_TILE>(lines, b, column, 0);
  for (; column < end; column += LR_TILE) {
    long long j = column + half + 8 * q;
    if (!reads_ahead) lr_read_tile<groups, LR_TILE>(lines, b, column, 0);
    lr_line<2> old[2] = {};
    if (arguments.beta != 0) {
      old[0] = lr_read_line<2>(c, row, j);
      old[1] = lr_read_line<2>(c, row + 8, j);
    }
    lr_store_tile(tile, lines, b);
    __syncthreads();
    if (column + LR_TILE < end) {
      if (reads_ahead) lr_read_tile<groups, LR_TILE>(lines, b, column + LR_TILE, 0);
      if (arguments.beta != 0) {
        lr_prefetch(c, row, j + LR_TILE);
        lr_prefetch(c, row + 8, j + LR_TILE);
      }
    }
    float sums[1][4][4] = {};
#pragma unroll
    for (int group = 0; group < groups; group++) lr_add_group(sums, left[group], a_terms, tile, b_terms, group, half);
#pragma unroll
    for (int i = 0; i < 2; i++) {
      float line[8];
      lr_line_of_sums(sums[0], i, line);
      lr_update_line(c, row + 8 * i, j, arguments.alpha, line, arguments.beta, old[i]);
    }
    __syncthreads();
  }
}

LR_KERNEL(lr_expand_32) { lr_expand_in_matrices<1>(arguments); }

LR_KERNEL(lr_expand_64) { lr_expand_in_matrices<2>(arguments); }

// MARK: float32 and float64

/// Copies [rows, depth] elements from (row, column) on, zeros outside of the view, to the transposed tile.
template <int rows, class Scalar, int depth, int side>
LR_DEVICE void lr_load_transposed(Scalar (&tile)[depth][side], const lr_view &view, long long row, long long column) {
  enum { size = 16 / sizeof(Scalar) };
  for (unsigned n = threadIdx.x; n < rows * depth / size; n += LR_THREADS) {
    unsigned i = n % rows, k = n / rows * size;
    Scalar numbers[size];
    lr_load_group(numbers, view, row + i, column + k, lr_count_from(view, row + i, column + k));
#pragma unroll
    for (int m = 0; m < size; m++) tile[k + m][i] = numbers[m];
  }
}

/// As lr_expand_in_matrices, for a of up to LR_EXPAND_DEPTH columns. A thread has 4 rows and twice 16 bytes of columns.
template <class Scalar> LR_DEVICE void lr_expand_in_lines(const lr_expand_arguments &arguments) {
  enum { size = 16 / sizeof(Scalar), columns = 32 * size, depth = 16 };
  typedef lr_group<Scalar, size> group;
  __shared__ __align__(16) Scalar left[LR_EXPAND_DEPTH][LR_TILE + size], right[depth][columns + size];
  const lr_view &a = arguments.a, &c = arguments.c, &factors = arguments.middle;
  unsigned i = threadIdx.x / 16 * 4, j = threadIdx.x % 16 * size;
  long long row = (long long)blockIdx.x * LR_TILE;
  // sums = left times `columns` columns of a matrix.
  auto multiply = [&](Scalar (&sums)[4][2 * size], const lr_view &transpose, long long first) {
    for (long long start = 0; start < a.columns; start += depth) {
      lr_load_transposed<columns>(right, transpose, first, start);
      __syncthreads();
#pragma unroll 4
      for (unsigned k = 0; k < depth; k++) {
        Scalar of_left[4], of_right[2 * size];
#pragma unroll
        for (unsigned n = 0; n < 4; n++) of_left[n] = ((const group &)left[start + k][i + n / size * size]).at[n % size];
#pragma unroll
        for (unsigned m = 0; m < 2 * size; m++) {
          of_right[m] = ((const group &)right[k][j + m / size * 16 * size]).at[m % size];
        }
#pragma unroll
        for (unsigned n = 0; n < 4; n++) {
#pragma unroll
          for (unsigned m = 0; m < 2 * size; m++) sums[n][m] += of_left[n] * of_right[m];
        }
      }
      __syncthreads();
    }
  };
  lr_load_transposed<LR_TILE>(left, a, row, 0);
  if (factors.address != 0 && arguments.is_square) {
    const lr_view middle = lr_transposed(factors);
    Scalar sums[4][2 * size] = {};
    __syncthreads();
    multiply(sums, middle, 0);
#pragma unroll
    for (unsigned n = 0; n < 4; n++) {
#pragma unroll
      for (unsigned m = 0; m < 2 * size; m++) {
        unsigned k = j + m / size * 16 * size + m % size;
        if (k < LR_EXPAND_DEPTH) left[k][i + n] = sums[n][m];
      }
    }
  } else if (factors.address != 0) {
    __syncthreads();
    for (unsigned n = threadIdx.x; n < LR_TILE * a.columns; n += LR_THREADS) {
      left[n / LR_TILE][n % LR_TILE] *= lr_load<Scalar>(factors, n / LR_TILE, 0);
    }
  }
  __syncthreads();
  const lr_view b = lr_transposed(arguments.b);
  Scalar alpha = (Scalar)arguments.alpha, beta = (Scalar)arguments.beta;
  long long column = blockIdx.y * arguments.columns;
  long long end = column + arguments.columns < c.columns ? column + arguments.columns : c.columns;
  for (; column < end; column += columns) {
    if (beta != 0) {
      // What is read at the end.
      for (unsigned n = 0; n < 8; n++) lr_prefetch(c, row + i + n / 2, column + j + n % 2 * 16 * size);
    }
    Scalar sums[4][2 * size] = {};
    multiply(sums, b, column);
#pragma unroll
    for (unsigned n = 0; n < 8; n++) {
      long long ci = row + i + n / 2, cj = column + j + n % 2 * 16 * size;
      Scalar values[size];
#pragma unroll
      for (unsigned m = 0; m < size; m++) values[m] = sums[n / 2][n % 2 * size + m];
      lr_update_group(c, ci, cj, lr_count_from(c, ci, cj), alpha, values, beta);
    }
  }
}

LR_KERNEL(lr_expand_float32) { lr_expand_in_lines<float>(arguments); }

LR_KERNEL(lr_expand_float64) { lr_expand_in_lines<double>(arguments); }
