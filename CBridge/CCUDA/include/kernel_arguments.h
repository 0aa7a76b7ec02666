// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
//
// What kernels are launched with: each takes one structure, `lr_<kernel>_arguments`. This text is compiled by C, imported by
// Swift, and stands at the head of the kernels' source, so that both sides have the same layout. Element types are the
// raw values of ScalarType.
#ifndef LOWRANK_KERNEL_ARGUMENTS_H
#define LOWRANK_KERNEL_ARGUMENTS_H

/// Threads of a block; columns and rows that a block of lr_column_dots takes; sides and depth of a tile of a product.
enum { LR_THREADS = 256, LR_DOT_COLUMNS = 32, LR_DOT_ROWS = 512, LR_TILE = 64, LR_TILE_DEPTH = 16 };

/// Neighbours in a row, which a thread takes at a time: 16 bytes or more of every type.
enum { LR_GROUP = 8 };

enum { LR_FLOAT32 = 0, LR_FLOAT64 = 1, LR_BFLOAT16 = 2, LR_FLOAT16 = 3 };

/// A matrix on the device; strides count elements.
typedef struct lr_view {
  unsigned long long address;
  long long rows, columns;
  long long row_stride, column_stride;
  int type;
  int unused;
} lr_view;

/// target = diag(row_factors) source diag(column_factors) + beta * other, which is not read where beta is 0. Factors are
/// a column [rows, 1] and a row [1, columns]; an address of 0 is ones.
typedef struct lr_combination {
  lr_view source, row_factors, column_factors, other, target;
  double beta;
} lr_combination;

enum { LR_COMBINATIONS = 4 };

/// A combination for each layer of blocks, none of which reads what another writes.
typedef struct lr_combine_arguments {
  lr_combination parts[LR_COMBINATIONS];
} lr_combine_arguments;

enum { LR_INDEX_CHUNK = 256, LR_VALUE_CHUNK = 256 };

/// target[to[i], :] = source[from[i], :] for `count` rows.
typedef struct lr_move_rows_arguments {
  lr_view source, target;
  int count, unused;
  int from[LR_INDEX_CHUNK], to[LR_INDEX_CHUNK];
} lr_move_rows_arguments;

/// target = 0
typedef struct lr_clear_arguments {
  lr_view target;
} lr_clear_arguments;

/// Element (i, j) becomes number i * columns + j of the uniform stream of a key.
typedef struct lr_fill_uniform_arguments {
  lr_view target;
  unsigned long long key;
} lr_fill_uniform_arguments;

/// target[first + i, 0] = values[i] for `count` values.
typedef struct lr_set_values_arguments {
  lr_view target;
  long long first;
  int count, unused;
  double values[LR_VALUE_CHUNK];
} lr_set_values_arguments;

/// target = the upper triangle of source, zeros below.
typedef struct lr_upper_triangle_arguments {
  lr_view source, target;
} lr_upper_triangle_arguments;

enum { LR_MAX_MAGNITUDE = 0, LR_SQUARED_NORM = 1, LR_LARGEST_COLUMN_SQUARE = 2, LR_ELEMENTS = 3, LR_REDUCTIONS = 8 };

/// For each layer of blocks: results[layer][block] = the largest magnitude (NaN where one is not finite), the sum of squares,
/// or the largest sum of squares of a column (not finite where an element is not) of what a block takes of a source; of
/// LR_ELEMENTS all of its elements, row by row. float64; a layer has `blocks` that do something.
typedef struct lr_reduce_arguments {
  lr_view sources[LR_REDUCTIONS];
  unsigned long long results[LR_REDUCTIONS];
  int kinds[LR_REDUCTIONS], blocks[LR_REDUCTIONS];
} lr_reduce_arguments;

/// partials[0] = the reduction of `count` partials.
typedef struct lr_reduce_partials_arguments {
  unsigned long long partials;
  long long count;
  int kind, unused;
} lr_reduce_partials_arguments;

/// partials[block] = the first position, row * columns + column, of an element that is not finite; -1 for none. With
/// `is_transposed` rows and columns are those of the source's transpose.
typedef struct lr_find_non_finite_arguments {
  lr_view source;
  unsigned long long partials;
  int is_transposed, unused;
} lr_find_non_finite_arguments;

/// partials[chunk, j] = the sum over a chunk of rows i of a[i, j] * b[i, j].
typedef struct lr_column_dots_arguments {
  lr_view a, b;
  unsigned long long partials;
} lr_column_dots_arguments;

/// target[j, 0] = the sign of the first entry of largest magnitude of column j, as 1 or -1; one block a column.
typedef struct lr_column_signs_arguments {
  lr_view source, target;
} lr_column_signs_arguments;

/// target[j, 0] = alpha * the sum over chunks of partials[chunk, j].
typedef struct lr_sum_chunks_arguments {
  lr_view target;
  unsigned long long partials;
  long long chunks;
  double alpha;
} lr_sum_chunks_arguments;

/// c = alpha * a b + beta * c; c is not read where beta is 0. lr_multiply_terms takes alpha * a diag(factors) b, where an
/// address of 0 is ones, and `factors` is a column. Each layer of blocks sums `slice_depth` terms. Where there are several,
/// `partials` has room for the sums of each, of the kernel's type, and of `counters`, 32-bit zeros that are zeros again
/// afterwards, there is one for each block of a layer. A block of lr_shrink_... takes all columns and 64 rows of c, or 128
/// where a is of 16 bits.
typedef struct lr_multiply_arguments {
  lr_view a, b, c, factors;
  double alpha, beta;
  unsigned long long partials, counters;
  long long slice_depth;
} lr_multiply_arguments;

typedef lr_multiply_arguments lr_multiply_float32_arguments;
typedef lr_multiply_arguments lr_multiply_float64_arguments;
typedef lr_multiply_arguments lr_multiply_terms_arguments;
typedef lr_multiply_arguments lr_shrink_32_arguments;
typedef lr_multiply_arguments lr_shrink_64_arguments;
typedef lr_multiply_arguments lr_shrink_float32_32_arguments;
typedef lr_multiply_arguments lr_shrink_float32_64_arguments;

/// What a block of lr_shrink_... takes of the depth at a time, and the most columns of a that lr_expand_... can have.
enum { LR_SHRINK_DEPTH = 64, LR_EXPAND_DEPTH = 64 };

/// c = alpha * a middle b + beta * c; c is not read where beta is 0. The middle is square, or the diagonal of a matrix as a
/// column; an address of 0 is the identity. A block takes LR_TILE rows of c, and `columns`, a multiple of LR_TILE and for
/// lr_expand_float32 of twice that.
typedef struct lr_expand_arguments {
  lr_view a, middle, b, c;
  double alpha, beta;
  long long columns;
  int is_square, unused;
} lr_expand_arguments;

typedef lr_expand_arguments lr_expand_32_arguments;
typedef lr_expand_arguments lr_expand_64_arguments;
typedef lr_expand_arguments lr_expand_float32_arguments;
typedef lr_expand_arguments lr_expand_float64_arguments;

enum { LR_TERMS = 3 };

/// target = the first of LR_TERMS terms of source * scale, and the others `step` columns further on each; they are of a 16-bit
/// type and add up to it. The scale is a power of two that moves `magnitude[0]`, the largest of source, to the upper end of
/// float16; 1 without an address.
typedef struct lr_split_terms_arguments {
  lr_view source, target;
  unsigned long long magnitude;
  long long step;
} lr_split_terms_arguments;

/// c = alpha / scale * the sum of `slices` slices + beta * c, with the scale of lr_split_terms. Slices are of float32 or
/// float64, and `step` columns apart.
typedef struct lr_sum_slices_arguments {
  lr_view c, slice;
  unsigned long long magnitude;
  long long slices, step;
  double alpha, beta;
} lr_sum_slices_arguments;

/// Rows of g that a block of lr_multiply_pair_... takes. Of columns of g it takes LR_PAIR_SUMS / width times 64 for 16-bit
/// numbers, where b and h have up to `width` columns; for others, up to LR_PAIR_NARROW columns, LR_PAIR_CHUNKS_.. times 64.
enum { LR_PAIR_ROWS = 256, LR_PAIR_SUMS = 256, LR_PAIR_NARROW = 8, LR_PAIR_CHUNKS_32 = 2, LR_PAIR_CHUNKS_64 = 1 };

/// p = g b and d = g' h, in parts: p_partials[block.x, i, j] is the sum over the columns, d_partials[block.y, i, j] that over
/// the rows of g that a block takes. Rows of a 16-bit g begin at multiples of 16 bytes and have no gaps.
typedef struct lr_multiply_pair_arguments {
  lr_view g, b, h;
  unsigned long long p_partials, d_partials;
} lr_multiply_pair_arguments;

typedef lr_multiply_pair_arguments lr_multiply_pair_32_arguments;
typedef lr_multiply_pair_arguments lr_multiply_pair_64_arguments;
typedef lr_multiply_pair_arguments lr_multiply_pair_terms_arguments;
typedef lr_multiply_pair_arguments lr_multiply_pair_float32_arguments;
typedef lr_multiply_pair_arguments lr_multiply_pair_float64_arguments;

/// Zeros above the diagonal and ones on it.
typedef struct lr_unit_lower_arguments {
  lr_view target;
} lr_unit_lower_arguments;

/// Columns of a panel whose small square matrices fit into a block's registers, or into a row of a warp's; numbers of a tile of
/// a panel's rows.
enum { LR_PANEL_COLUMNS = 64, LR_WIDE_COLUMNS = 256, LR_PANEL_TILE = 1024 };

/// A step of a QR of a panel, where a block takes `rows` of source. Without `parts`: next_grams[block] = X' X of a block's rows
/// X. Else target = source R^-1 for the Cholesky factor R of the sum of `parts` Gram matrices, r = R, and next_grams that of
/// target. Without next_grams, in the last step, target's columns have the signs of Householder's method, and triangle = their
/// R r; a block more than for the rows writes that, and source is row-major float64 without gaps. Gram matrices and r are
/// row-major float64 [n, n] without gaps, Gram matrices in their upper triangle only. status[0] becomes 0, or 1 where a pivot
/// is at most `smallest` times its diagonal element or a sign could be either: nothing else that is written is right then.
typedef struct lr_panel_arguments {
  lr_view source, target, triangle;
  unsigned long long grams, next_grams, r, status;
  long long rows;
  double smallest;
  int parts, unused;
} lr_panel_arguments;

/// Rows of a panel that a block of lr_lu_column takes.
enum { LR_LU_ROWS = 64 };

/// The pivot that a block proposes for a column: of its rows the one of largest magnitude, the first of such by its place.
typedef struct lr_lu_candidate {
  double value;
  int row, place;
} lr_lu_candidate;

/// A step of an LU of `panel` [m, n], whose rows stay where they are: places[i] is where row i of the panel belongs. Before
/// column 0 (column = -1) panel = source, which may be the same. For a column the row of the largest candidate becomes the
/// pivot row, pivots[column] its place before that, diagonal[column] its element, and the rows that have no place yet are
/// eliminated. Each block proposes a candidate for the column that follows.
typedef struct lr_lu_column_arguments {
  lr_view source, panel;
  unsigned long long candidates, next_candidates, places, pivots, diagonal;
  int column, unused;
} lr_lu_column_arguments;

/// target[places[i], :] = source[i, :]
typedef struct lr_place_rows_arguments {
  lr_view source, target;
  unsigned long long places;
} lr_place_rows_arguments;

/// Cholesky, by one block: factor is the upper triangular R with R' R = matrix, and inverse its inverse. All are row-major
/// float64 [n, n] without gaps; matrix is overwritten. status[0] becomes 1 where a pivot is at most `smallest` times its
/// diagonal element.
typedef struct lr_cholesky_arguments {
  unsigned long long matrix, factor, inverse, status;
  long long size;
  double smallest;
} lr_cholesky_arguments;

/// The signs that Householder's method gives the columns of the orthonormal `q`, whose first [n, n] rows are read, by one
/// block; `work` [n, n] is float64. status[0] becomes 1 where a sign could be either, status[1 + j] is the sign of column j.
typedef struct lr_householder_signs_arguments {
  lr_view q;
  unsigned long long work, status;
} lr_householder_signs_arguments;

#endif
