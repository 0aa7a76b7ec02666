// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
//
// Products of 16-bit numbers on tensor cores, 16 x 8 x 16 by a warp at a time, and of numbers that are sums of such.

/// Four 8 x 8 matrices, transposed or not, whose rows are at the addresses that lanes 8i to 8i + 7 give. A lane gets two
/// numbers of each: those of row lane / 4 from column 2 (lane % 4) on.
template <bool is_transposed> LR_DEVICE void lr_load_matrices(unsigned (&to)[4], const unsigned short *row) {
#ifdef LR_HOST
  __shared__ const unsigned short *rows[LR_THREADS];
  if ((unsigned long long)row % 16 != 0) __builtin_trap();
  rows[threadIdx.x] = row;
  __syncthreads();
  unsigned lane = threadIdx.x % 32, first = threadIdx.x - lane, i = lane / 4, j = lane % 4 * 2;
  for (unsigned matrix = 0; matrix < 4; matrix++) {
    const unsigned short **lines = rows + first + 8 * matrix;
    to[matrix] = is_transposed ? lines[j][i] | (unsigned)lines[j + 1][i] << 16 : lines[i][j] | (unsigned)lines[i][j + 1] << 16;
  }
  __syncthreads();
#else
  unsigned address = (unsigned)__cvta_generic_to_shared(row);
  if (is_transposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
  }
#endif
}

/// c [16, 8] += a [16, 16] b [16, 8] by one warp. In units of two numbers: lane l has of a those at row l / 4 (+ 8 for the odd
/// ones) and columns 2 (l % 4) (+ 8 for the last two), of b those at column l / 4 and rows 2 (l % 4) (+ 8 for the second),
/// and of c those at row l / 4 (+ 8 for the last two) and columns 2 (l % 4).
LR_DEVICE void lr_multiply_matrices(bool is_bfloat16, float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
#ifdef LR_HOST
  __shared__ unsigned of_a[LR_THREADS][4], of_b[LR_THREADS][2];
  for (unsigned i = 0; i < 4; i++) of_a[threadIdx.x][i] = a[i];
  of_b[threadIdx.x][0] = b0;
  of_b[threadIdx.x][1] = b1;
  __syncthreads();
  unsigned lane = threadIdx.x % 32, first = threadIdx.x - lane;
  for (unsigned i = 0; i < 4; i++) {
    unsigned row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    for (unsigned k = 0; k < 16; k++) {
      unsigned pair = k % 8 / 2, shift = k % 2 * 16;
      unsigned short left = of_a[first + row % 8 * 4 + pair][row / 8 + k / 8 * 2] >> shift;
      unsigned short right = of_b[first + column * 4 + pair][k / 8] >> shift;
      c[i] += is_bfloat16 ? lr_from_bfloat16(left) * lr_from_bfloat16(right) : lr_from_float16(left) * lr_from_float16(right);
    }
  }
  __syncthreads();
#else
  if (is_bfloat16) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
#endif
}

/// The next bfloat16 of a sum that is a number, which becomes what is left of it.
LR_DEVICE unsigned short lr_next_term(float &rest) {
  // Of 24 bits the upper 8: no rounding up to infinity.
  unsigned upper = __float_as_uint(rest) & 0xffff0000u;
  // A NaN keeps a mark in its upper half; what is infinite is one term.
  if (rest != rest) upper |= 0x400000u;
  rest = lr_is_finite(rest) ? rest - __uint_as_float(upper) : 0;
  return upper >> 16;
}

/// How many bfloat16 terms a number of a type is.
LR_DEVICE int lr_term_count(int type) { return type == LR_BFLOAT16 ? 1 : type == LR_FLOAT16 ? 2 : LR_TERMS; }

enum { LR_MATRIX_DEPTH = 32 };

/// As lr_multiply_float32, of operands one of which at least is of 16 bits.
LR_KERNEL(lr_multiply_terms) {
  // Rows are a multiple of 16 bytes apart, and 8 of them in different banks.
  __shared__ __align__(16) unsigned short a_tile[LR_TERMS][LR_TILE][LR_MATRIX_DEPTH + 8];
  __shared__ __align__(16) unsigned short b_tile[LR_TERMS][LR_MATRIX_DEPTH][LR_TILE + 8];
  const lr_view &a = arguments.a, &b = arguments.b;
  bool has_factors = arguments.factors.address != 0;
  int a_terms = has_factors ? LR_TERMS : lr_term_count(a.type), b_terms = lr_term_count(b.type);
  unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = warp % 4 * 16, column = warp / 4 * 32;
  long long first_row = (long long)blockIdx.x * LR_TILE, first_column = (long long)blockIdx.y * LR_TILE;
  long long start = blockIdx.z * arguments.slice_depth;
  long long end = start + arguments.slice_depth < a.columns ? start + arguments.slice_depth : a.columns;
  float sums[4][4] = {};
  for (long long depth = start; depth < end; depth += LR_MATRIX_DEPTH) {
    for (unsigned n = threadIdx.x; n < LR_TILE * LR_MATRIX_DEPTH; n += LR_THREADS) {
      // Along the direction in which memory runs.
      unsigned i = a.column_stride == 1 ? n / LR_MATRIX_DEPTH : n % LR_TILE;
      unsigned k = a.column_stride == 1 ? n % LR_MATRIX_DEPTH : n / LR_TILE;
      bool is_inside = first_row + i < a.rows && depth + k < end;
      float rest = is_inside ? lr_load<float>(a, first_row + i, depth + k) : 0;
      if (has_factors && is_inside) rest *= lr_load<float>(arguments.factors, depth + k, 0);
      for (int t = 0; t < a_terms; t++) a_tile[t][i][k] = lr_next_term(rest);
    }
    for (unsigned n = threadIdx.x; n < LR_TILE * LR_MATRIX_DEPTH; n += LR_THREADS) {
      unsigned j = b.column_stride == 1 ? n % LR_TILE : n / LR_MATRIX_DEPTH;
      unsigned k = b.column_stride == 1 ? n / LR_TILE : n % LR_MATRIX_DEPTH;
      float rest = depth + k < end && first_column + j < b.columns ? lr_load<float>(b, depth + k, first_column + j) : 0;
      for (int t = 0; t < b_terms; t++) b_tile[t][k][j] = lr_next_term(rest);
    }
    __syncthreads();
    for (int t = 0; t < a_terms; t++) {
      unsigned left[2][4];
      for (unsigned half = 0; half < 2; half++) {
        lr_load_matrices<false>(left[half], &a_tile[t][row + lane % 16][16 * half + lane / 16 * 8]);
      }
      // What two later terms give is below the last bit.
      for (int u = 0; u < b_terms && t + u < LR_TERMS; u++) {
#pragma unroll
        for (unsigned j = 0; j < 4; j++) {
          unsigned right[4];
          lr_load_matrices<true>(right, &b_tile[u][lane][column + 8 * j]);
          lr_multiply_matrices(true, sums[j], left[0], right[0], right[1]);
          lr_multiply_matrices(true, sums[j], left[1], right[2], right[3]);
        }
      }
    }
    __syncthreads();
  }
  lr_store_sums(arguments, sums, [&](unsigned n, unsigned m, long long &i, long long &j) {
    i = first_row + row + lane / 4 + m / 2 * 8;
    j = first_column + column + 8 * n + lane % 4 * 2 + m % 2;
  });
}
