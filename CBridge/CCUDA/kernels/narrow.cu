// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
//
// What products share that read or write one large matrix and have a small rank, as the two of an adapter's forward: to
// `shrink`, c = a b with a c of few columns, and to `expand`, c = a middle b with an a of few columns. The large matrix goes
// between memory and registers, 16 bytes at a time where its rows allow it, and what is small is shared by a block.
//
// Sums go over the depth in any order, as long as both factors have the same: of each LR_SPAN numbers of a row, lane q
// of every four has the 8 from 8 q on, which are its part of two steps of 16 of the tensor cores. The columns of a product
// are put in such an order that it gets 8 that follow each other, too.

enum { LR_SPAN = 32 };

// MARK: Lines of 8 numbers

/// 8 numbers of a row as they lie in memory: those of 16 bits are one piece, those of float32 two.
template <int pieces> struct lr_line {
  lr_quad piece[pieces];
};

/// Elements (i, j) to (i, j + 7) of a view that is not of float64, zeros outside of it.
template <int pieces> LR_DEVICE lr_line<pieces> lr_read_line(const lr_view &view, long long i, long long j) {
  lr_line<pieces> line = {};
  long long count = lr_count_from(view, i, j);
  if (pieces == 2 && view.type == LR_FLOAT32) {
    lr_read_group((lr_group<unsigned> &)line, view, i, j, count);
  } else {
    lr_read_group((lr_group<unsigned short> &)line, view, i, j, count);
  }
  return line;
}

/// What the numbers of a line are.
template <int pieces> LR_DEVICE void lr_decode(const lr_line<pieces> &line, int type, float (&to)[8]) {
#pragma unroll
  for (int k = 0; k < 8; k++) {
    if (pieces == 2 && type == LR_FLOAT32) {
      to[k] = __uint_as_float(line.piece[k / 4 % pieces].at[k % 4]);
    } else {
      unsigned short bits = line.piece[0].at[k / 2] >> k % 2 * 16;
      to[k] = type == LR_BFLOAT16 ? lr_from_bfloat16(bits) : lr_from_float16(bits);
    }
  }
}

/// The next bfloat16 terms of 8 numbers.
LR_DEVICE lr_quad lr_next_terms(float (&rest)[8]) {
  lr_quad terms;
#pragma unroll
  for (int k = 0; k < 4; k++) {
    unsigned lower = lr_next_term(rest[2 * k]);
    terms.at[k] = lower | (unsigned)lr_next_term(rest[2 * k + 1]) << 16;
  }
  return terms;
}

/// The terms of a line: of bfloat16 it is the only one.
template <int pieces, int terms>
LR_DEVICE void lr_split_line(const lr_line<pieces> &line, int type, lr_quad (&to)[terms]) {
  if (type == LR_BFLOAT16) {
    to[0] = line.piece[0];
    return;
  }
  float rest[8];
  lr_decode(line, type, rest);
#pragma unroll
  for (int t = 0; t < terms; t++) to[t] = lr_next_terms(rest);
}

/// Has the cache get what is to be read soon.
LR_DEVICE void lr_prefetch(const lr_view &view, long long i, long long j) {
#ifndef LR_HOST
  if (i >= view.rows || j >= view.columns) return;
  long long offset = (i * view.row_stride + j * view.column_stride) * lr_element_size(view.type);
  asm volatile("prefetch.global.L2 [%0];" ::"l"(view.address + offset));
#endif
}

// MARK: On tensor cores

/// Rows of the right factor's transpose, as terms, in the order of lr_row_of_slot.
template <int groups, int rows> struct lr_term_tile {
  lr_quad terms[LR_TERMS][groups][rows][LR_SPAN / 8];
};

/// Of 32 columns of a product lane q gets numbers 2 q and 2 q + 1 of each 8: they are columns 8 q to 8 q + 7.
LR_DEVICE unsigned lr_row_of_slot(unsigned slot) {
  return slot / 32 * 32 + slot % 8 / 2 * 8 + slot / 8 % 4 * 2 + slot % 2;
}

/// Where line n of a tile goes. Neighbouring threads read neighbours in memory.
template <int groups, int rows>
LR_DEVICE void lr_place_line(const lr_view &view, unsigned n, unsigned &group, unsigned &slot, unsigned &q) {
  bool runs_along_rows = view.row_stride == 1 && view.column_stride != 1;
  q = runs_along_rows ? n / rows % 4 : n % 4;
  slot = runs_along_rows ? n % rows : n / 4 % rows;
  group = n / (4 * rows);
}

/// Reads a thread's part of `rows` rows and `groups` times LR_SPAN columns.
template <int groups, int rows>
LR_DEVICE void lr_read_tile(
    lr_line<2> (&lines)[groups * rows * 4 / LR_THREADS], const lr_view &view, long long row, long long column) {
#pragma unroll
  for (int n = 0; n < groups * rows * 4 / LR_THREADS; n++) {
    unsigned group, slot, q;
    lr_place_line<groups, rows>(view, threadIdx.x + n * LR_THREADS, group, slot, q);
    lines[n] = lr_read_line<2>(view, row + lr_row_of_slot(slot), column + group * LR_SPAN + 8 * q);
  }
}

template <int groups, int rows>
LR_DEVICE void lr_store_tile(
    lr_term_tile<groups, rows> &tile, const lr_line<2> (&lines)[groups * rows * 4 / LR_THREADS], const lr_view &view) {
  int terms = lr_term_count(view.type);
#pragma unroll
  for (int n = 0; n < groups * rows * 4 / LR_THREADS; n++) {
    unsigned group, slot, q;
    lr_place_line<groups, rows>(view, threadIdx.x + n * LR_THREADS, group, slot, q);
    lr_quad parts[LR_TERMS];
    lr_split_line(lines[n], view.type, parts);
#pragma unroll
    for (int t = 0; t < LR_TERMS; t++) {
      if (t < terms) tile.terms[t][group][slot][q] = parts[t];
    }
  }
}

/// sums += a b for `tiles` times 16 rows and 32 columns, the tile's slots from `slot` on. A lane has of a, as terms, lines lane %
/// 4 of one group, of rows lane / 4 and 8 more.
template <int tiles, int terms, int groups, int rows>
LR_DEVICE void lr_add_group(
    float (&sums)[tiles][4][4], const lr_quad (&a)[tiles][terms][2], int a_terms, const lr_term_tile<groups, rows> &b,
    int b_terms, unsigned group, unsigned slot) {
  unsigned lane = threadIdx.x % 32;
#ifndef LR_HOST
  // Where lanes have read lines in different ways, they are to go on together.
  __syncwarp();
#endif
#pragma unroll 1
  for (int u = 0; u < b_terms; u++) {
    lr_quad right[4];
#pragma unroll
    for (int j = 0; j < 4; j++) right[j] = b.terms[u][group][slot + 8 * j + lane / 4][lane % 4];
    // What two later terms give is below the last bit.
#pragma unroll
    for (int t = 0; t < terms; t++) {
      if (t >= a_terms || t + u >= LR_TERMS) continue;
#pragma unroll
      for (int step = 0; step < 4; step += 2) {
        // Neighbours add to different sums, and need not wait for each other.
#pragma unroll
        for (int n = 0; n < 4 * tiles; n++) {
          const lr_quad(&line)[2] = a[n % tiles][t];
          unsigned left[4] = {line[0].at[step], line[1].at[step], line[0].at[step + 1], line[1].at[step + 1]};
          const lr_quad &other = right[n / tiles];
          lr_multiply_matrices(true, sums[n % tiles][n / tiles], left, other.at[step], other.at[step + 1]);
        }
      }
    }
  }
}

/// Of sums of 32 columns a lane's line in row lane / 4, or 8 more.
LR_DEVICE void lr_line_of_sums(const float (&sums)[4][4], int half, float (&line)[8]) {
#pragma unroll
  for (int k = 0; k < 8; k++) line[k] = sums[k / 2][2 * half + k % 2];
}

/// alpha * sums + beta * old for a line of c, which `old` is where beta is not 0.
LR_DEVICE void lr_update_line(
    const lr_view &c, long long i, long long j, double alpha, float (&sums)[8], double beta, const lr_line<2> &old) {
  float numbers[8];
  lr_decode(old, c.type, numbers);
#pragma unroll
  for (int k = 0; k < 8; k++) {
    sums[k] *= (float)alpha;
    if (beta != 0) sums[k] += (float)beta * numbers[k];
  }
  lr_store_group(c, i, j, lr_count_from(c, i, j), sums);
}
