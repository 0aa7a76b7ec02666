// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
//
// Products that read or write one large matrix and have a small rank, as the two of an adapter's forward: to `shrink`, c = a b
// with a c of few columns, and to `expand`, c = a middle b with an a of few columns. The large matrix goes between
// memory and registers, 16 bytes at a time where its rows allow it, and what is small is shared by a block.
//
// Sums go over the depth in any order, as long as both factors have the same: of each LR_SPAN numbers of a row, lane q
// of every four has the 8 from 8 q on, which are its part of two steps of 16 of the tensor cores. The columns of a product
// are put in such an order that it gets 8 that follow each other, too.

enum { LR_SPAN = 32 };

// MARK: Lines of 8 numbers

struct __align__(16) lr_piece {
  unsigned bits[4];
};

/// 8 numbers of a row as they lie in memory: those of 16 bits in one piece, of float32 in two.
template <int pieces> struct lr_line {
  lr_piece piece[pieces];
};

/// Whether each 16 bytes of a row, counted from its beginning, can be read at once.
LR_DEVICE bool lr_has_pieces(const lr_view &view) {
  int size = view.type == LR_FLOAT64 ? 8 : view.type == LR_FLOAT32 ? 4 : 2;
  return view.column_stride == 1 && view.address % 16 == 0 && (view.rows == 1 || view.row_stride * size % 16 == 0);
}

/// 16 bytes of global memory, which nothing else in a kernel writes.
LR_DEVICE lr_piece lr_read_piece(unsigned long long address) {
#ifdef LR_HOST
  if (address % 16 != 0) __builtin_trap();
  return *(const lr_piece *)address;
#else
  lr_piece piece;
  asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(piece.bits[0]), "=r"(piece.bits[1]), "=r"(piece.bits[2]), "=r"(piece.bits[3])
               : "l"(address));
  return piece;
#endif
}

LR_DEVICE void lr_write_piece(unsigned long long address, const lr_piece &piece) {
#ifdef LR_HOST
  if (address % 16 != 0) __builtin_trap();
  *(lr_piece *)address = piece;
#else
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(address), "r"(piece.bits[0]), "r"(piece.bits[1]),
               "r"(piece.bits[2]), "r"(piece.bits[3])
               : "memory");
#endif
}

/// Elements (i, j) to (i, j + 7) of a view that is not of float64, zeros outside of it.
template <int pieces>
LR_DEVICE lr_line<pieces> lr_read_line(const lr_view &view, bool has_pieces, long long i, long long j) {
  lr_line<pieces> line = {};
  if (i >= view.rows) return line;
  bool is_wide = pieces == 2 && view.type == LR_FLOAT32;
  unsigned long long address = view.address + (i * view.row_stride + j * view.column_stride) * (is_wide ? 4 : 2);
  if (has_pieces && j + 8 <= view.columns) {
    line.piece[0] = lr_read_piece(address);
    if (is_wide) line.piece[pieces - 1] = lr_read_piece(address + 16);
    return line;
  }
  unsigned numbers[8];
#pragma unroll
  for (int k = 0; k < 8; k++) {
    numbers[k] = 0;
    if (j + k < view.columns) numbers[k] = is_wide ? *(const unsigned *)address : *(const unsigned short *)address;
    address += view.column_stride * (is_wide ? 4 : 2);
  }
#pragma unroll
  for (int k = 0; k < 4; k++) {
    line.piece[0].bits[k] = is_wide ? numbers[k] : numbers[2 * k] | numbers[2 * k + 1] << 16;
    if (pieces == 2 && is_wide) line.piece[pieces - 1].bits[k] = numbers[4 + k];
  }
  return line;
}

/// What the numbers of a line are.
template <int pieces> LR_DEVICE void lr_decode(const lr_line<pieces> &line, int type, float (&to)[8]) {
#pragma unroll
  for (int k = 0; k < 8; k++) {
    if (pieces == 2 && type == LR_FLOAT32) {
      to[k] = __uint_as_float(line.piece[k / 4 % pieces].bits[k % 4]);
    } else {
      unsigned short bits = line.piece[0].bits[k / 2] >> k % 2 * 16;
      to[k] = type == LR_BFLOAT16 ? lr_from_bfloat16(bits) : lr_from_float16(bits);
    }
  }
}

/// Writes what of a line is inside of the view.
LR_DEVICE void lr_write_line(const lr_view &view, bool has_pieces, long long i, long long j, float (&values)[8]) {
  if (i >= view.rows) return;
  if (has_pieces && j + 8 <= view.columns && view.type != LR_FLOAT64) {
    bool is_wide = view.type == LR_FLOAT32;
    unsigned long long address = view.address + (i * view.row_stride + j) * (is_wide ? 4 : 2);
    lr_line<2> line;
#pragma unroll
    for (int k = 0; k < 8; k++) {
      if (is_wide) {
        line.piece[k / 4].bits[k % 4] = __float_as_uint(values[k]);
      } else {
        unsigned short bits = view.type == LR_BFLOAT16 ? lr_to_bfloat16(values[k]) : lr_to_float16(values[k]);
        line.piece[0].bits[k / 2] = k % 2 == 0 ? bits : line.piece[0].bits[k / 2] | (unsigned)bits << 16;
      }
    }
    lr_write_piece(address, line.piece[0]);
    if (is_wide) lr_write_piece(address + 16, line.piece[1]);
    return;
  }
#pragma unroll 1
  for (int k = 0; k < 8 && j + k < view.columns; k++) {
    lr_store(view, i, j + k, values[0]);
#pragma unroll
    for (int n = 0; n < 7; n++) values[n] = values[n + 1];
  }
}

/// The next bfloat16 terms of 8 numbers.
LR_DEVICE lr_piece lr_next_terms(float (&rest)[8]) {
  lr_piece terms;
#pragma unroll
  for (int k = 0; k < 4; k++) {
    unsigned lower = lr_next_term(rest[2 * k]);
    terms.bits[k] = lower | (unsigned)lr_next_term(rest[2 * k + 1]) << 16;
  }
  return terms;
}

/// The terms of a line: of bfloat16 it is the only one.
template <int pieces, int terms>
LR_DEVICE void lr_split_line(const lr_line<pieces> &line, int type, lr_piece (&to)[terms]) {
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
  int size = view.type == LR_FLOAT64 ? 8 : view.type == LR_FLOAT32 ? 4 : 2;
  asm volatile("prefetch.global.L2 [%0];" ::"l"(view.address + (i * view.row_stride + j * view.column_stride) * size));
#endif
}

// MARK: On tensor cores

/// Rows of the right factor's transpose, as terms, in the order of lr_row_of_slot.
template <int groups, int rows> struct lr_term_tile {
  lr_piece terms[LR_TERMS][groups][rows][LR_SPAN / 8];
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
    lr_line<2> (&lines)[groups * rows * 4 / LR_THREADS], const lr_view &view, bool has_pieces, long long row, long long column) {
#pragma unroll
  for (int n = 0; n < groups * rows * 4 / LR_THREADS; n++) {
    unsigned group, slot, q;
    lr_place_line<groups, rows>(view, threadIdx.x + n * LR_THREADS, group, slot, q);
    lines[n] = lr_read_line<2>(view, has_pieces, row + lr_row_of_slot(slot), column + group * LR_SPAN + 8 * q);
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
    lr_piece parts[LR_TERMS];
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
    float (&sums)[tiles][4][4], const lr_piece (&a)[tiles][terms][2], int a_terms, const lr_term_tile<groups, rows> &b,
    int b_terms, unsigned group, unsigned slot) {
  unsigned lane = threadIdx.x % 32;
#ifndef LR_HOST
  // Where lanes have read lines in different ways, they are to go on together.
  __syncwarp();
#endif
#pragma unroll 1
  for (int u = 0; u < b_terms; u++) {
    lr_piece right[4];
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
          const lr_piece(&line)[2] = a[n % tiles][t];
          unsigned left[4] = {line[0].bits[step], line[1].bits[step], line[0].bits[step + 1], line[1].bits[step + 1]};
          const lr_piece &other = right[n / tiles];
          lr_multiply_matrices(true, sums[n % tiles][n / tiles], left, other.bits[step], other.bits[step + 1]);
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

LR_DEVICE lr_piece lr_piece_of(const float (&sums)[4]) {
  return {__float_as_uint(sums[0]), __float_as_uint(sums[1]), __float_as_uint(sums[2]), __float_as_uint(sums[3])};
}

LR_DEVICE void lr_add_piece(float (&sums)[4], const lr_piece &piece) {
#pragma unroll
  for (int k = 0; k < 4; k++) sums[k] += __uint_as_float(piece.bits[k]);
}

/// c = alpha * sums + beta * c for a line of c, which is `old` where beta is not 0.
LR_DEVICE void lr_update_line(
    const lr_view &c, bool has_pieces, long long i, long long j, double alpha, float (&sums)[8], double beta,
    const lr_line<2> &old) {
  float numbers[8];
  lr_decode(old, c.type, numbers);
#pragma unroll
  for (int k = 0; k < 8; k++) {
    sums[k] *= (float)alpha;
    if (beta != 0) sums[k] += (float)beta * numbers[k];
  }
  lr_write_line(c, has_pieces, i, j, sums);
}

/// `tiles` times 64 rows of c = alpha * a b + beta * c in one block, for c of up to `width` columns and a of 16 bits, or of
/// float32 with two pieces.
template <int width, int tiles, int pieces> LR_DEVICE void lr_shrink_in_matrices(const lr_multiply_arguments &arguments) {
  // Fewer terms are all that 16 bits need. With more sums there are no registers for what comes next.
  enum { groups = 2, terms = pieces + 1, count = tiles * width / 8, at_once = count < 8 ? count : 8, reads_ahead = count <= 8 };
  __shared__ lr_term_tile<groups, width> tile;
  __shared__ lr_piece others[at_once][LR_THREADS / 2];
  const lr_view &a = arguments.a, &c = arguments.c;
  const lr_view b = lr_transposed(arguments.b);
  bool a_pieces = lr_has_pieces(a), b_pieces = lr_has_pieces(b);
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
      x[i / 2][i % 2] = lr_read_line<pieces>(a, a_pieces, row + 8 * i, depth + group * LR_SPAN + lane % 4 * 8);
    }
    lr_read_tile<groups, width>(lines, b, b_pieces, 0, depth);
  };
  if (reads_ahead) read(depth);
  for (; depth < end; depth += groups * LR_SPAN) {
    if (!reads_ahead) read(depth);
    lr_piece left[tiles][terms][2];
#pragma unroll
    for (int i = 0; i < 2 * tiles; i++) {
      lr_piece parts[terms];
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
      if (group == 1) others[n - first][thread] = lr_piece_of(sums[n / 4 / tiles][n / 4 % tiles][n % 4]);
    }
    __syncthreads();
#pragma unroll
    for (int n = first; n < first + at_once; n++) {
      if (group == 0) lr_add_piece(sums[n / 4 / tiles][n / 4 % tiles][n % 4], others[n - first][thread]);
    }
    __syncthreads();
  }
  if (gridDim.z > 1) {
    typedef lr_piece lr_part[count][LR_THREADS / 2];
    lr_part *parts = (lr_part *)arguments.partials + (long long)blockIdx.x * gridDim.z;
#pragma unroll
    for (int n = 0; n < count; n++) {
      if (group == 0) parts[blockIdx.z][n][thread] = lr_piece_of(sums[n / 4 / tiles][n / 4 % tiles][n % 4]);
    }
    if (!lr_is_last_slice(arguments.counters)) return;
    // In order, whichever block is the last.
#pragma unroll
    for (int n = 0; n < 4 * count; n++) sums[n / 16 / tiles][n / 16 % tiles][n / 4 % 4][n % 4] = 0;
    for (unsigned slice = 0; slice < gridDim.z && group == 0; slice++) {
#pragma unroll
      for (int n = 0; n < count; n++) {
        lr_add_piece(sums[n / 4 / tiles][n / 4 % tiles][n % 4], parts[slice][n][thread]);
      }
    }
  }
  if (group == 1) return;
  bool c_pieces = lr_has_pieces(c);
#pragma unroll
  for (int j = 0; j < width / 32; j++) {
#pragma unroll
    for (int i = 0; i < 2 * tiles; i++) {
      float line[8];
      lr_line_of_sums(sums[j][i / 2], i % 2, line);
      long long ci = row + 8 * i, cj = 32 * j + lane % 4 * 8;
      lr_line<2> old = {};
      if (arguments.beta != 0) old = lr_read_line<2>(c, c_pieces, ci, cj);
      lr_update_line(c, c_pieces, ci, cj, arguments.alpha, line, arguments.beta, old);
    }
  }
}

LR_KERNEL(lr_shrink_32) { lr_shrink_in_matrices<32, 2, 1>(arguments); }

LR_KERNEL(lr_shrink_64) { lr_shrink_in_matrices<64, 2, 1>(arguments); }

LR_KERNEL(lr_shrink_float32_32) { lr_shrink_in_matrices<32, 1, 2>(arguments); }

LR_KERNEL(lr_shrink_float32_64) { lr_shrink_in_matrices<64, 1, 2>(arguments); }

/// A block's 64 rows of c = alpha * a middle b + beta * c, for a of up to `groups` times LR_SPAN columns.
template <int groups> LR_DEVICE void lr_expand_in_matrices(const lr_expand_arguments &arguments) {
  enum { reads_ahead = groups == 1 };
  __shared__ lr_term_tile<groups, LR_TILE> tile;
  const lr_view &a = arguments.a, &c = arguments.c, &factors = arguments.middle;
  const lr_view b = lr_transposed(arguments.b);
  bool has_middle = factors.address != 0, is_square = has_middle && arguments.is_square;
  bool a_pieces = lr_has_pieces(a), b_pieces = lr_has_pieces(b), c_pieces = lr_has_pieces(c);
  int a_terms = lr_term_count(a.type), b_terms = lr_term_count(b.type);
  unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, q = lane % 4;
  // Two warps share rows, and have half of the columns each.
  unsigned half = warp / 4 * 32;
  long long row = (long long)blockIdx.x * LR_TILE + warp % 4 * 16 + lane / 4;
  lr_piece left[groups][1][LR_TERMS][2];
#pragma unroll
  for (int n = 0; n < 2 * groups; n++) {
    long long depth = n / 2 * LR_SPAN + 8 * q;
    float rest[8];
    lr_decode(lr_read_line<2>(a, a_pieces, row + n % 2 * 8, depth), a.type, rest);
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
    lr_read_tile<groups, LR_TILE>(lines, middle, lr_has_pieces(middle), 0, 0);
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
  if (reads_ahead) lr_read_tile<groups, LR_TILE>(lines, b, b_pieces, column, 0);
  for (; column < end; column += LR_TILE) {
    long long j = column + half + 8 * q;
    if (!reads_ahead) lr_read_tile<groups, LR_TILE>(lines, b, b_pieces, column, 0);
    lr_line<2> old[2] = {};
    if (arguments.beta != 0) {
      old[0] = lr_read_line<2>(c, c_pieces, row, j);
      old[1] = lr_read_line<2>(c, c_pieces, row + 8, j);
    }
    lr_store_tile(tile, lines, b);
    __syncthreads();
    if (column + LR_TILE < end) {
      if (reads_ahead) lr_read_tile<groups, LR_TILE>(lines, b, b_pieces, column + LR_TILE, 0);
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
      lr_update_line(c, c_pieces, row + 8 * i, j, arguments.alpha, line, arguments.beta, old[i]);
    }
    __syncthreads();
  }
}

LR_KERNEL(lr_expand_32) { lr_expand_in_matrices<1>(arguments); }

LR_KERNEL(lr_expand_64) { lr_expand_in_matrices<2>(arguments); }

// MARK: float32 and float64

/// Those of one piece.
template <class Scalar> struct __align__(16) lr_numbers {
  Scalar number[16 / sizeof(Scalar)];
};

template <class Scalar> LR_DEVICE const lr_numbers<Scalar> &lr_numbers_from(const Scalar &first) {
  return (const lr_numbers<Scalar> &)first;
}

template <class To, class From> LR_DEVICE To lr_same_bits(const From &from) {
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

template <class Scalar> LR_DEVICE bool lr_has_numbers(const lr_view &view) {
  return lr_has_pieces(view) && view.type == (sizeof(Scalar) == 8 ? LR_FLOAT64 : LR_FLOAT32);
}

/// Copies [rows, depth] elements from (row, column) on, zeros outside of the view, to the transposed tile.
template <int rows, class Scalar, int depth, int side>
LR_DEVICE void lr_load_transposed(
    Scalar (&tile)[depth][side], const lr_view &view, bool has_numbers, long long row, long long column) {
  enum { size = 16 / sizeof(Scalar) };
  for (unsigned n = threadIdx.x; n < rows * depth / size; n += LR_THREADS) {
    unsigned i = n % rows, k = n / rows * size;
    if (has_numbers && row + i < view.rows && column + k + size <= view.columns) {
      unsigned long long address = view.address + ((row + i) * view.row_stride + column + k) * sizeof(Scalar);
      auto numbers = lr_same_bits<lr_numbers<Scalar>>(lr_read_piece(address));
#pragma unroll
      for (int m = 0; m < size; m++) tile[k + m][i] = numbers.number[m];
      continue;
    }
#pragma unroll
    for (int m = 0; m < size; m++) {
      bool is_inside = row + i < view.rows && column + k + m < view.columns;
      tile[k + m][i] = is_inside ? lr_load<Scalar>(view, row + i, column + k + m) : (Scalar)0;
    }
  }
}

/// As lr_expand_in_matrices, for a of up to LR_EXPAND_DEPTH columns. A thread has 4 rows and twice 16 bytes of columns.
template <class Scalar> LR_DEVICE void lr_expand_in_lines(const lr_expand_arguments &arguments) {
  enum { size = 16 / sizeof(Scalar), columns = 32 * size, depth = 16 };
  __shared__ __align__(16) Scalar left[LR_EXPAND_DEPTH][LR_TILE + size], right[depth][columns + size];
  const lr_view &a = arguments.a, &c = arguments.c, &factors = arguments.middle;
  unsigned i = threadIdx.x / 16 * 4, j = threadIdx.x % 16 * size;
  long long row = (long long)blockIdx.x * LR_TILE;
  // sums = left times `columns` columns of a matrix.
  auto multiply = [&](Scalar (&sums)[4][2 * size], const lr_view &transpose, bool has_numbers, long long first) {
    for (long long start = 0; start < a.columns; start += depth) {
      lr_load_transposed<columns>(right, transpose, has_numbers, first, start);
      __syncthreads();
#pragma unroll 4
      for (unsigned k = 0; k < depth; k++) {
        Scalar of_left[4], of_right[2 * size];
#pragma unroll
        for (unsigned n = 0; n < 4; n++) of_left[n] = lr_numbers_from(left[start + k][i + n / size * size]).number[n % size];
#pragma unroll
        for (unsigned m = 0; m < 2 * size; m++) {
          of_right[m] = lr_numbers_from(right[k][j + m / size * 16 * size]).number[m % size];
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
  lr_load_transposed<LR_TILE>(left, a, lr_has_numbers<Scalar>(a), row, 0);
  if (factors.address != 0 && arguments.is_square) {
    const lr_view middle = lr_transposed(factors);
    Scalar sums[4][2 * size] = {};
    __syncthreads();
    multiply(sums, middle, lr_has_numbers<Scalar>(middle), 0);
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
  bool b_numbers = lr_has_numbers<Scalar>(b), c_numbers = lr_has_numbers<Scalar>(c);
  Scalar alpha = (Scalar)arguments.alpha, beta = (Scalar)arguments.beta;
  long long column = blockIdx.y * arguments.columns;
  long long end = column + arguments.columns < c.columns ? column + arguments.columns : c.columns;
  for (; column < end; column += columns) {
    if (beta != 0) {
      // What is read at the end.
      for (unsigned n = 0; n < 8; n++) lr_prefetch(c, row + i + n / 2, column + j + n % 2 * 16 * size);
    }
    Scalar sums[4][2 * size] = {};
    multiply(sums, b, b_numbers, column);
#pragma unroll
    for (unsigned n = 0; n < 8; n++) {
      long long ci = row + i + n / 2, cj = column + j + n % 2 * 16 * size;
      if (ci >= c.rows) continue;
      if (c_numbers && cj + size <= c.columns) {
        unsigned long long address = c.address + (ci * c.row_stride + cj) * sizeof(Scalar);
        lr_numbers<Scalar> values = {};
        if (beta != 0) values = lr_same_bits<lr_numbers<Scalar>>(lr_read_piece(address));
#pragma unroll
        for (unsigned m = 0; m < size; m++) {
          values.number[m] = alpha * sums[n / 2][n % 2 * size + m] + beta * values.number[m];
        }
        lr_write_piece(address, lr_same_bits<lr_piece>(values));
        continue;
      }
#pragma unroll
      for (unsigned m = 0; m < size; m++) {
        if (cj + m >= c.columns) continue;
        Scalar value = alpha * sums[n / 2][n % 2 * size + m];
        if (beta != 0) value += beta * lr_load<Scalar>(c, ci, cj + m);
        lr_store(c, ci, cj + m, value);
      }
    }
  }
}

LR_KERNEL(lr_expand_float32) { lr_expand_in_lines<float>(arguments); }

LR_KERNEL(lr_expand_float64) { lr_expand_in_lines<double>(arguments); }
