// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
//
// What kernels are launched with: each takes one structure, `lr_<kernel>_arguments`. This text is compiled by C, imported by
// Swift, and stands at the head of the kernels' source, so that both sides have the same layout. Element types are the
// raw values of ScalarType.
#ifndef LOWRANK_KERNEL_ARGUMENTS_H
#define LOWRANK_KERNEL_ARGUMENTS_H

/// Threads of a block; columns and rows that a block of lr_column_dots takes; sides and depth of a tile of a product.
enum { LR_THREADS = 256, LR_DOT_COLUMNS = 32, LR_DOT_ROWS = 512, LR_TILE = 64, LR_TILE_DEPTH = 16 };

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
/// columns [rows, 1] and [columns, 1]; an address of 0 is ones.
typedef struct lr_combine_arguments {
  lr_view source, row_factors, column_factors, other, target;
  double beta;
} lr_combine_arguments;

enum { LR_INDEX_CHUNK = 256, LR_VALUE_CHUNK = 256 };

/// target[i, :] = source[indices[i], :], or with `scatters` target[indices[i], :] = source[i, :], for `count` rows.
typedef struct lr_move_rows_arguments {
  lr_view source, target;
  int count, scatters;
  long long indices[LR_INDEX_CHUNK];
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

enum { LR_MAX_MAGNITUDE = 0, LR_SQUARED_NORM = 1 };

/// partials[block] = the largest magnitude (NaN where one is not finite) or the sum of squares of a block's elements.
typedef struct lr_reduce_arguments {
  lr_view source;
  unsigned long long partials;
  int kind, unused;
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

/// result[0] = the first of `count` positions; -1 for none.
typedef struct lr_first_of_partials_arguments {
  unsigned long long partials;
  long long count;
  unsigned long long result;
} lr_first_of_partials_arguments;

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

/// c = alpha * a b + beta * c; c is not read where beta is 0. lr_multiply_terms takes alpha * a diag(factors) b, where an address
/// of 0 is ones, and `factors` is a column. With `partials` each layer of blocks sums `slice_depth` terms into
/// partials[layer, i, j], of the kernel's type, instead.
typedef struct lr_multiply_arguments {
  lr_view a, b, c, factors;
  double alpha, beta;
  unsigned long long partials;
  long long slice_depth;
} lr_multiply_arguments;

typedef lr_multiply_arguments lr_multiply_float32_arguments;
typedef lr_multiply_arguments lr_multiply_float64_arguments;
typedef lr_multiply_arguments lr_multiply_terms_arguments;

/// c = alpha * the sum over slices of partials[slice, i, j] + beta * c.
typedef struct lr_sum_slices_arguments {
  lr_view c;
  unsigned long long partials;
  long long slices;
  double alpha, beta;
  int type, unused;
} lr_sum_slices_arguments;

enum { LR_TERMS = 3 };

/// target[i, t * columns + j] = term t of source[i, j] * scale, where the terms are of a 16-bit type and add up to it. The scale
/// is a power of two that moves `magnitude[0]`, the largest of source, to the upper end of float16; 1 without an address.
typedef struct lr_split_terms_arguments {
  lr_view source, target;
  unsigned long long magnitude;
} lr_split_terms_arguments;

/// c = alpha / scale * the sum over t of terms[i, t * columns + j] + beta * c, with the scale of lr_split_terms.
typedef struct lr_sum_terms_arguments {
  lr_view terms, c;
  unsigned long long magnitude;
  double alpha, beta;
} lr_sum_terms_arguments;

/// Rows of g that a block of lr_multiply_pair_... takes. Of columns of g it takes LR_PAIR_SUMS / width times 64 for 16-bit
/// numbers, where b and h have up to `width` columns; for others, up to LR_PAIR_NARROW columns, LR_PAIR_CHUNKS_.. times 64.
enum { LR_PAIR_ROWS = 256, LR_PAIR_SUMS = 256, LR_PAIR_NARROW = 8, LR_PAIR_CHUNKS_32 = 2, LR_PAIR_CHUNKS_64 = 1 };

/// p = g b and d = g' h, in parts: p_partials[block.x, i, j] is the sum over the columns, d_partials[block.y, i, j] that over the
/// rows of g that a block takes. Rows of a 16-bit g begin at multiples of 16 bytes and have no gaps.
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

/// Cholesky, by one block: matrix [n, n] becomes the upper triangular R with R' R = matrix, and inverse its inverse. Both are
/// row-major float64 without gaps. status[0] becomes 1 where a pivot is at most `smallest` times its diagonal element.
typedef struct lr_cholesky_arguments {
  unsigned long long matrix, inverse, status;
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
