// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
//
// Products of views of any types and strides. A block computes a tile of c, 4 x 4 elements a thread.

enum { LR_PER_THREAD = 4 };

/// Copies `tile[k][i] = view[first + i, depth + k]`, zeros outside of the view, along the direction in which memory runs.
template <class Scalar>
LR_DEVICE void lr_load_tile(
    Scalar (&tile)[LR_TILE_DEPTH][LR_TILE + 1], const lr_view &view, long long first, long long depth, long long end) {
  bool runs_along_depth = view.column_stride == 1;
  for (unsigned n = threadIdx.x; n < LR_TILE * LR_TILE_DEPTH; n += LR_THREADS) {
    unsigned i = runs_along_depth ? n / LR_TILE_DEPTH : n % LR_TILE;
    unsigned k = runs_along_depth ? n % LR_TILE_DEPTH : n / LR_TILE;
    bool is_inside = first + i < view.rows && depth + k < end;
    tile[k][i] = is_inside ? lr_load<Scalar>(view, first + i, depth + k) : (Scalar)0;
  }
}

LR_DEVICE lr_view lr_transposed(const lr_view &view) {
  lr_view result = view;
  result.rows = view.columns;
  result.columns = view.rows;
  result.row_stride = view.column_stride;
  result.column_stride = view.row_stride;
  return result;
}

/// Whether this is the last of a column of blocks to get here, which then sees what the others have written. Of each column
/// there is a counter, which is zero before and after.
LR_DEVICE bool lr_is_last_slice(unsigned long long counters) {
  __shared__ bool is_last;
  unsigned *counter = (unsigned *)counters + (blockIdx.y * gridDim.x + blockIdx.x), last = gridDim.z - 1;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) is_last = atomicInc(counter, last) == last;
  __syncthreads();
  __threadfence();
  return is_last;
}

template <class Scalar>
LR_DEVICE void lr_store_sum(const lr_multiply_arguments &arguments, long long i, long long j, Scalar sum) {
  const lr_view &c = arguments.c;
  Scalar value = (Scalar)arguments.alpha * sum;
  if (arguments.beta != 0) value += (Scalar)arguments.beta * lr_load<Scalar>(c, i, j);
  lr_store(c, i, j, value);
}

/// Writes a thread's elements of c, those of `place(n, m, i, j)` inside of it. Of several slices the parts are written, and
/// added in order by the block that is done last.
template <class Scalar, class Place>
LR_DEVICE void lr_store_sums(
    const lr_multiply_arguments &arguments, const Scalar (&sums)[LR_PER_THREAD][LR_PER_THREAD], const Place &place) {
  const lr_view &c = arguments.c;
  Scalar *parts = (Scalar *)arguments.partials;
  bool is_whole = gridDim.z == 1;
#pragma unroll
  for (unsigned n = 0; n < LR_PER_THREAD; n++) {
#pragma unroll
    for (unsigned m = 0; m < LR_PER_THREAD; m++) {
      long long i, j;
      place(n, m, i, j);
      if (i >= c.rows || j >= c.columns) continue;
      if (is_whole) {
        lr_store_sum(arguments, i, j, sums[n][m]);
      } else {
        parts[(blockIdx.z * c.rows + i) * c.columns + j] = sums[n][m];
      }
    }
  }
  if (is_whole || !lr_is_last_slice(arguments.counters)) return;
  for (unsigned n = 0; n < LR_PER_THREAD; n++) {
    for (unsigned m = 0; m < LR_PER_THREAD; m++) {
      long long i, j;
      place(n, m, i, j);
      if (i >= c.rows || j >= c.columns) continue;
      Scalar sum = 0;
      for (unsigned slice = 0; slice < gridDim.z; slice++) sum += parts[(slice * c.rows + i) * c.columns + j];
      lr_store_sum(arguments, i, j, sum);
    }
  }
}

template <class Scalar> LR_DEVICE void lr_multiply_tile(const lr_multiply_arguments &arguments) {
  __shared__ Scalar a_tile[LR_TILE_DEPTH][LR_TILE + 1], b_tile[LR_TILE_DEPTH][LR_TILE + 1];
  const lr_view &a = arguments.a;
  const lr_view b = lr_transposed(arguments.b);
  long long first_row = (long long)blockIdx.x * LR_TILE, first_column = (long long)blockIdx.y * LR_TILE;
  // A thread's elements lie 16 apart, so that neighbours read neighbours of the tiles and write neighbours of c.
  unsigned column = threadIdx.x % 16, row = threadIdx.x / 16;
  Scalar sums[LR_PER_THREAD][LR_PER_THREAD] = {};
  long long start = blockIdx.z * arguments.slice_depth;
  long long end = start + arguments.slice_depth < a.columns ? start + arguments.slice_depth : a.columns;
  for (long long depth = start; depth < end; depth += LR_TILE_DEPTH) {
    lr_load_tile(a_tile, a, first_row, depth, end);
    lr_load_tile(b_tile, b, first_column, depth, end);
    __syncthreads();
    for (unsigned k = 0; k < LR_TILE_DEPTH; k++) {
      for (unsigned i = 0; i < LR_PER_THREAD; i++) {
        for (unsigned j = 0; j < LR_PER_THREAD; j++) sums[i][j] += a_tile[k][row + 16 * i] * b_tile[k][column + 16 * j];
      }
    }
    __syncthreads();
  }
  lr_store_sums(arguments, sums, [&](unsigned n, unsigned m, long long &i, long long &j) {
    i = first_row + row + 16 * n;
    j = first_column + column + 16 * m;
  });
}

LR_KERNEL(lr_multiply_float32) { lr_multiply_tile<float>(arguments); }

LR_KERNEL(lr_multiply_float64) { lr_multiply_tile<double>(arguments); }

// MARK: A float32 block as 16-bit terms, for products with a 16-bit matrix on tensor cores

/// The power of two that moves a magnitude into [2^14, 2^15), below the largest float16; 1 for zero, for what is not finite, and
/// without an address.
LR_DEVICE double lr_term_scale(unsigned long long magnitude) {
  double value = magnitude == 0 ? 0 : *(const double *)magnitude;
  if (value == 0 || !lr_is_finite(value)) return 1;
  int exponent = (int)(__float_as_uint((float)value) >> 23) - 127;
  // The power may be beyond float32: as two factors.
  int shift = 14 - exponent, half = shift / 2;
  return (double)__uint_as_float((unsigned)(127 + half) << 23) * (double)__uint_as_float((unsigned)(127 + shift - half) << 23);
}

LR_KERNEL(lr_split_terms) {
  double scale = lr_term_scale(arguments.magnitude);
  LR_FOR_EACH_GROUP(arguments.source, i, j, count) {
    double values[LR_GROUP];
    float rest[LR_GROUP], terms[LR_GROUP];
    lr_load_group(values, arguments.source, i, j, count);
#pragma unroll
    for (int q = 0; q < LR_GROUP; q++) rest[q] = (float)(scale * values[q]);
    for (int t = 0; t < LR_TERMS; t++) {
#pragma unroll
      for (int q = 0; q < LR_GROUP; q++) {
        // Of bfloat16 the upper half: 8 of 24 bits a term, and no rounding up to infinity.
        float term = arguments.target.type == LR_BFLOAT16 ? __uint_as_float(__float_as_uint(rest[q]) & 0xffff0000u)
                                                          : lr_from_float16(lr_to_float16(rest[q]));
        terms[q] = lr_is_finite(rest[q]) ? term : rest[q];
        rest[q] = lr_is_finite(rest[q]) ? rest[q] - term : 0;
      }
      lr_store_group(arguments.target, i, j + t * arguments.step, count, terms);
    }
  }
}

// MARK: Sums of slices

template <class Scalar> LR_DEVICE void lr_sum_slices_of(const lr_sum_slices_arguments &arguments) {
  Scalar alpha = (Scalar)(arguments.alpha / lr_term_scale(arguments.magnitude)), beta = (Scalar)arguments.beta;
  LR_FOR_EACH_GROUP(arguments.c, i, j, count) {
    Scalar sums[LR_GROUP] = {}, others[LR_GROUP];
    // The terms of a number are added from the smallest one on.
    for (long long slice = arguments.slices - 1; slice >= 0; slice--) {
      lr_load_elements<Scalar>(others, arguments.slice, i, j + slice * arguments.step, count);
#pragma unroll
      for (int q = 0; q < LR_GROUP; q++) sums[q] += others[q];
    }
    lr_update_group(arguments.c, i, j, count, alpha, sums, beta);
  }
}

LR_KERNEL(lr_sum_slices) {
  if (arguments.slice.type == LR_FLOAT64) {
    lr_sum_slices_of<double>(arguments);
  } else {
    lr_sum_slices_of<float>(arguments);
  }
}
