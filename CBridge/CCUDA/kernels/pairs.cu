// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
//
// The two products of a backward, p = g b and d = g' h, from one reading of g. A block takes LR_PAIR_ROWS rows and a
// kernel's number of columns of g, in tiles that both products read from shared memory, and writes its part of the sums of
// p and of d; lr_sum_slices adds the parts in order.

enum { LR_PAIR_SIDE = 64, LR_WARPS = LR_THREADS / 32 };

// MARK: 16-bit numbers, on tensor cores

/// Copies of 16 bytes to shared memory that go on until `wait`.
struct lr_copies {
#ifdef LR_HOST
  struct { void *to; const void *from; } waiting[8];
  int count = 0;
  void copy(void *to, const void *from) {
    if (count == 8) __builtin_trap();
    memset(to, 0xff, 16);
    waiting[count++] = {to, from};
  }
  void wait() {
    for (; count > 0; count--) memcpy(waiting[count - 1].to, waiting[count - 1].from, 16);
  }
#else
  __device__ __forceinline__ void copy(void *to, const void *from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"((unsigned)__cvta_generic_to_shared(to)), "l"(from)
                 : "memory");
  }
  __device__ __forceinline__ void wait() { asm volatile("cp.async.wait_all;" ::: "memory"); }
#endif
};

// Rows of tiles are a multiple of 16 bytes apart, and 8 of them in different banks.
enum { LR_PAIR_STRIDE = LR_PAIR_SIDE + 8 };

typedef unsigned short lr_pair_tile[LR_PAIR_SIDE][LR_PAIR_STRIDE];

/// Copies a tile of g, zeros outside of the view. The whole of it waits for `copies`.
LR_DEVICE void lr_start_pair_tile(lr_pair_tile &tile, const lr_view &g, long long row, long long column, lr_copies &copies) {
  const unsigned short *source = (const unsigned short *)g.address;
  for (unsigned n = threadIdx.x; n < LR_PAIR_SIDE * LR_PAIR_SIDE / 8; n += LR_THREADS) {
    unsigned i = n / (LR_PAIR_SIDE / 8), j = n % (LR_PAIR_SIDE / 8) * 8;
    if (row + i < g.rows && column + j + 8 <= g.columns) {
      copies.copy(&tile[i][j], source + (row + i) * g.row_stride + column + j);
      continue;
    }
    for (unsigned k = 0; k < 8; k++) {
      bool is_inside = row + i < g.rows && column + j + k < g.columns;
      tile[i][j + k] = is_inside ? source[(row + i) * g.row_stride + column + j + k] : 0;
    }
  }
}

/// Copies 64 rows of a narrow matrix, zeros outside of it; of float32 as bfloat16 terms that add up to it.
template <int terms, int width>
LR_DEVICE void lr_load_narrow_tile(
    unsigned short (&tile)[terms][LR_PAIR_SIDE][width + 8], const lr_view &view, long long row) {
  for (unsigned n = threadIdx.x; n < LR_PAIR_SIDE * width; n += LR_THREADS) {
    unsigned i = n / width, j = n % width;
    bool is_inside = row + i < view.rows && j < view.columns;
    long long offset = (row + i) * view.row_stride + j * view.column_stride;
    if (terms == 1) {
      tile[0][i][j] = is_inside ? ((const unsigned short *)view.address)[offset] : 0;
      continue;
    }
    float rest = is_inside ? ((const float *)view.address)[offset] : 0;
    for (int t = 0; t < terms; t++) tile[t][i][j] = lr_next_term(rest);
  }
}

/// sums += a b for 64 x 64 a, which is the tile or its transpose, and 64 x width b. A warp has 16 rows and half of the columns.
template <bool is_transposed, int width>
LR_DEVICE void lr_add_pair_product(
    bool is_bfloat16, float (&sums)[width / 16][4], const lr_pair_tile &tile,
    const unsigned short (&b)[LR_PAIR_SIDE][width + 8]) {
  unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = warp % 4 * 16, column = warp / 4 * (width / 2);
#pragma unroll
  for (unsigned depth = 0; depth < LR_PAIR_SIDE; depth += 32) {
    unsigned a[2][4];
#pragma unroll
    for (unsigned half = 0; half < 2; half++) {
      unsigned k = depth + 16 * half;
      if (is_transposed) {
        lr_load_matrices<true>(a[half], &tile[k + lane / 16 * 8 + lane % 8][row + lane / 8 % 2 * 8]);
      } else {
        lr_load_matrices<false>(a[half], &tile[row + lane % 16][k + lane / 16 * 8]);
      }
    }
#pragma unroll
    for (unsigned j = 0; j < width / 16; j++) {
      unsigned right[4];
      lr_load_matrices<true>(right, &b[depth + lane][column + 8 * j]);
      lr_multiply_matrices(is_bfloat16, sums[j], a[0], right[0], right[1]);
      lr_multiply_matrices(is_bfloat16, sums[j], a[1], right[2], right[3]);
    }
  }
}

/// Writes a warp's sums, of rows from `row` on, to a part [rows, columns].
template <int width>
LR_DEVICE void lr_store_pair_sums(
    float *part, long long rows, long long columns, long long row, const float (&sums)[width / 16][4]) {
  unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (unsigned j = 0; j < width / 16; j++) {
#pragma unroll
    for (unsigned i = 0; i < 4; i++) {
      long long r = row + warp % 4 * 16 + lane / 4 + i / 2 * 8, c = warp / 4 * (width / 2) + 8 * j + lane % 4 * 2 + i % 2;
      if (r < rows && c < columns) part[r * columns + c] = sums[j][i];
    }
  }
}

/// For b of up to `width` columns, of g's 16-bit type or, in three terms, of float32; h is of g's type.
template <int terms, int width> LR_DEVICE void lr_pair_in_matrices(const lr_multiply_pair_arguments &arguments) {
  enum { chunks = LR_PAIR_SUMS / width };
  __shared__ __align__(16) lr_pair_tile tiles[2];
  __shared__ __align__(16) unsigned short b_tile[terms][LR_PAIR_SIDE][width + 8], h_tile[1][LR_PAIR_SIDE][width + 8];
  const lr_view &g = arguments.g;
  bool is_bfloat16 = g.type == LR_BFLOAT16;
  long long column = (long long)blockIdx.x * chunks * LR_PAIR_SIDE, row = (long long)blockIdx.y * LR_PAIR_ROWS;
  long long end = row + LR_PAIR_ROWS < g.rows ? row + LR_PAIR_ROWS : g.rows;
  float d_sums[chunks][width / 16][4] = {};
  lr_copies copies;
  unsigned current = 0;
  lr_start_pair_tile(tiles[current], g, row, column, copies);
  for (; row < end; row += LR_PAIR_SIDE) {
    float p_sums[width / 16][4] = {};
    lr_load_narrow_tile<1, width>(h_tile, arguments.h, row);
#pragma unroll
    for (int chunk = 0; chunk < chunks; chunk++) {
      long long first = column + chunk * LR_PAIR_SIDE;
      if (first >= g.columns) continue;
      lr_load_narrow_tile<terms, width>(b_tile, arguments.b, first);
      copies.wait();
      __syncthreads();
      // The next one, in this row of tiles or the next.
      bool is_last = chunk == chunks - 1 || first + LR_PAIR_SIDE >= g.columns;
      long long next_row = is_last ? row + LR_PAIR_SIDE : row;
      if (next_row < end) {
        lr_start_pair_tile(tiles[1 - current], g, next_row, is_last ? column : first + LR_PAIR_SIDE, copies);
      }
#pragma unroll
      for (int t = 0; t < terms; t++) lr_add_pair_product<false, width>(is_bfloat16, p_sums, tiles[current], b_tile[t]);
      lr_add_pair_product<true, width>(is_bfloat16, d_sums[chunk], tiles[current], h_tile[0]);
      __syncthreads();
      current = 1 - current;
    }
    float *part = (float *)arguments.p_partials + blockIdx.x * g.rows * arguments.b.columns;
    lr_store_pair_sums<width>(part, g.rows, arguments.b.columns, row, p_sums);
  }
  float *part = (float *)arguments.d_partials + blockIdx.y * g.columns * arguments.h.columns;
#pragma unroll
  for (int chunk = 0; chunk < chunks; chunk++) {
    lr_store_pair_sums<width>(part, g.columns, arguments.h.columns, column + chunk * LR_PAIR_SIDE, d_sums[chunk]);
  }
}

LR_KERNEL(lr_multiply_pair_32) { lr_pair_in_matrices<1, 32>(arguments); }

LR_KERNEL(lr_multiply_pair_64) { lr_pair_in_matrices<1, 64>(arguments); }

LR_KERNEL(lr_multiply_pair_terms) { lr_pair_in_matrices<LR_TERMS, 32>(arguments); }

// MARK: float32 and float64, up to 8 columns

enum { LR_PAIR_LINES = 32 };

/// Adds the numbers that the warps have for the same lanes, in order; thread 8 i + j gets number j of lane i.
template <class Scalar> LR_DEVICE Scalar lr_sum_of_warps(const Scalar (&values)[LR_PAIR_NARROW]) {
  __shared__ Scalar all[LR_WARPS][32][LR_PAIR_NARROW + 1];
  unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (unsigned j = 0; j < LR_PAIR_NARROW; j++) all[warp][lane][j] = values[j];
  __syncthreads();
  Scalar sum = 0;
  for (unsigned k = 0; k < LR_WARPS; k++) sum += all[k][threadIdx.x / LR_PAIR_NARROW][threadIdx.x % LR_PAIR_NARROW];
  __syncthreads();
  return sum;
}

template <class Scalar, int rows>
LR_DEVICE void lr_load_narrow_lines(Scalar (&tile)[rows][LR_PAIR_NARROW], const lr_view &view, long long row) {
  for (unsigned n = threadIdx.x; n < rows * LR_PAIR_NARROW; n += LR_THREADS) {
    unsigned i = n / LR_PAIR_NARROW, j = n % LR_PAIR_NARROW;
    tile[i][j] = row + i < view.rows && j < view.columns ? lr_load<Scalar>(view, row + i, j) : (Scalar)0;
  }
}

/// A lane has a row of p and two columns of d, a warp a part of the sums.
template <class Scalar, int chunks> LR_DEVICE void lr_pair_in_lines(const lr_multiply_pair_arguments &arguments) {
  enum { per_thread = LR_PAIR_LINES * LR_PAIR_SIDE / LR_THREADS };
  __shared__ Scalar tile[LR_PAIR_LINES][LR_PAIR_SIDE + 1];
  __shared__ Scalar b_tile[LR_PAIR_SIDE][LR_PAIR_NARROW], h_tile[LR_PAIR_LINES][LR_PAIR_NARROW];
  const lr_view &g = arguments.g, &b = arguments.b, &h = arguments.h;
  unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  unsigned i = threadIdx.x / LR_PAIR_NARROW, j = threadIdx.x % LR_PAIR_NARROW;
  long long column = (long long)blockIdx.x * chunks * LR_PAIR_SIDE, row = (long long)blockIdx.y * LR_PAIR_ROWS;
  long long end = row + LR_PAIR_ROWS < g.rows ? row + LR_PAIR_ROWS : g.rows;
  Scalar *p_part = (Scalar *)arguments.p_partials + blockIdx.x * g.rows * b.columns;
  Scalar *d_part = (Scalar *)arguments.d_partials + blockIdx.y * g.columns * h.columns;
  Scalar d_sums[chunks][2][LR_PAIR_NARROW] = {};
  for (; row < end; row += LR_PAIR_LINES) {
    Scalar p_sums[LR_PAIR_NARROW] = {};
    lr_load_narrow_lines(h_tile, h, row);
#pragma unroll
    for (int chunk = 0; chunk < chunks; chunk++) {
      long long first = column + chunk * LR_PAIR_SIDE;
#pragma unroll
      for (unsigned n = 0; n < per_thread; n++) {
        unsigned at = threadIdx.x + n * LR_THREADS, r = at / LR_PAIR_SIDE, c = at % LR_PAIR_SIDE;
        bool is_inside = row + r < end && first + c < g.columns;
        tile[r][c] = is_inside ? lr_load<Scalar>(g, row + r, first + c) : (Scalar)0;
      }
      lr_load_narrow_lines(b_tile, b, first);
      __syncthreads();
      for (unsigned k = warp * (LR_PAIR_SIDE / LR_WARPS); k < (warp + 1) * (LR_PAIR_SIDE / LR_WARPS); k++) {
        for (unsigned n = 0; n < LR_PAIR_NARROW; n++) p_sums[n] += tile[lane][k] * b_tile[k][n];
      }
      for (unsigned k = warp * (LR_PAIR_LINES / LR_WARPS); k < (warp + 1) * (LR_PAIR_LINES / LR_WARPS); k++) {
        for (unsigned n = 0; n < LR_PAIR_NARROW; n++) {
          d_sums[chunk][0][n] += tile[k][lane] * h_tile[k][n];
          d_sums[chunk][1][n] += tile[k][lane + 32] * h_tile[k][n];
        }
      }
      __syncthreads();
    }
    Scalar sum = lr_sum_of_warps(p_sums);
    if (row + i < end && j < b.columns) p_part[(row + i) * b.columns + j] = sum;
  }
#pragma unroll
  for (int half = 0; half < 2 * chunks; half++) {
    long long c = column + half * 32 + i;
    Scalar sum = lr_sum_of_warps(d_sums[half / 2][half % 2]);
    if (c < g.columns && j < h.columns) d_part[c * h.columns + j] = sum;
  }
}

LR_KERNEL(lr_multiply_pair_float32) { lr_pair_in_lines<float, LR_PAIR_CHUNKS_32>(arguments); }

LR_KERNEL(lr_multiply_pair_float64) { lr_pair_in_lines<double, LR_PAIR_CHUNKS_64>(arguments); }
