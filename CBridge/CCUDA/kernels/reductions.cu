// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
//
// Reductions in float64 over trees that depend on shapes alone: the same numbers on every device and in every run.

LR_DEVICE double lr_reduced(int kind, double a, double b) {
  if (kind == LR_SQUARED_NORM) return a + b;
  // A NaN stays.
  return a > b || a != a ? a : b;
}

/// The reduction of one number of each thread, in thread 0.
LR_DEVICE double lr_reduce_block(int kind, double value) {
  __shared__ double values[LR_THREADS];
  values[threadIdx.x] = value;
  __syncthreads();
  for (unsigned half = LR_THREADS / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) values[threadIdx.x] = lr_reduced(kind, values[threadIdx.x], values[threadIdx.x + half]);
    __syncthreads();
  }
  return values[0];
}

/// The largest sum of squares of a column, where a thread takes columns.
template <class Element>
LR_DEVICE double lr_largest_column_square(const lr_view &view, long long thread, long long threads) {
  double largest = 0;
  for (long long j = thread; j < view.columns; j += threads) {
    const Element *first = (const Element *)view.address + j * view.column_stride;
    double sum = 0;
#pragma unroll 8
    for (long long i = 0; i < view.rows; i++) {
      double value = lr_value<double>(first[i * view.row_stride]);
      sum += value * value;
    }
    largest = lr_reduced(LR_MAX_MAGNITUDE, largest, sum);
  }
  return largest;
}

LR_KERNEL(lr_reduce) {
  const lr_view &source = arguments.sources[blockIdx.y];
  int kind = arguments.kinds[blockIdx.y], blocks = arguments.blocks[blockIdx.y];
  double *results = (double *)arguments.results[blockIdx.y];
  if ((int)blockIdx.x >= blocks) return;
  long long thread = lr_first_position(), threads = (long long)blocks * LR_THREADS;
  double result = 0;
  if (kind == LR_LARGEST_COLUMN_SQUARE) {
    LR_WITH_ELEMENT(source.type, result = lr_largest_column_square<Element>(source, thread, threads));
  } else {
    LR_FOR_EACH_GROUP_OF(source, i, j, count, thread, threads) {
      double values[LR_GROUP];
      lr_load_group(values, source, i, j, count);
#pragma unroll
      for (int q = 0; q < LR_GROUP; q++) {
        double value = values[q];
        if (kind == LR_ELEMENTS) {
          if (q < count) results[i * source.columns + j + q] = value;
        } else if (kind == LR_SQUARED_NORM) {
          result += value * value;
        } else {
          // The difference of two infinities is a NaN.
          result = lr_reduced(kind, result, lr_is_finite(value) ? (value < 0 ? -value : value) : value - value);
        }
      }
    }
    if (kind == LR_ELEMENTS) return;
  }
  result = lr_reduce_block(kind, result);
  if (threadIdx.x == 0) results[blockIdx.x] = result;
}

LR_KERNEL(lr_reduce_partials) {
  double *partials = (double *)arguments.partials;
  double result = 0;
  for (long long k = threadIdx.x; k < arguments.count; k += LR_THREADS) {
    result = lr_reduced(arguments.kind, result, partials[k]);
  }
  result = lr_reduce_block(arguments.kind, result);
  if (threadIdx.x == 0) partials[0] = result;
}

/// The earlier of two positions, where -1 is none.
LR_DEVICE long long lr_earlier(long long a, long long b) { return b < 0 || (a >= 0 && a < b) ? a : b; }

LR_DEVICE long long lr_first_of_block(long long position) {
  __shared__ long long positions[LR_THREADS];
  positions[threadIdx.x] = position;
  __syncthreads();
  for (unsigned half = LR_THREADS / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) positions[threadIdx.x] = lr_earlier(positions[threadIdx.x], positions[threadIdx.x + half]);
    __syncthreads();
  }
  return positions[0];
}

LR_KERNEL(lr_find_non_finite) {
  const lr_view &source = arguments.source;
  long long first = -1;
  LR_FOR_EACH_GROUP(source, i, j, count) {
    double values[LR_GROUP];
    lr_load_group(values, source, i, j, count);
#pragma unroll
    for (int q = 0; q < LR_GROUP; q++) {
      if (lr_is_finite(values[q])) continue;
      first = lr_earlier(first, arguments.is_transposed ? (j + q) * source.rows + i : i * source.columns + j + q);
    }
  }
  first = lr_first_of_block(first);
  if (threadIdx.x == 0) ((long long *)arguments.partials)[blockIdx.x] = first;
}

enum { LR_DOT_LANES = LR_THREADS / LR_DOT_COLUMNS };

// A block takes 32 columns and a chunk of the rows.
LR_KERNEL(lr_column_dots) {
  __shared__ double sums[LR_DOT_LANES][LR_DOT_COLUMNS];
  unsigned column = threadIdx.x % LR_DOT_COLUMNS, lane = threadIdx.x / LR_DOT_COLUMNS;
  long long j = (long long)blockIdx.x * LR_DOT_COLUMNS + column;
  long long first = (long long)blockIdx.y * LR_DOT_ROWS;
  double sum = 0;
  if (j < arguments.a.columns) {
    for (long long i = first + lane; i < first + LR_DOT_ROWS && i < arguments.a.rows; i += LR_DOT_LANES) {
      sum += lr_load<double>(arguments.a, i, j) * lr_load<double>(arguments.b, i, j);
    }
  }
  sums[lane][column] = sum;
  __syncthreads();
  if (lane != 0 || j >= arguments.a.columns) return;
  for (unsigned k = 1; k < LR_DOT_LANES; k++) sum += sums[k][column];
  ((double *)arguments.partials)[blockIdx.y * arguments.a.columns + j] = sum;
}

LR_KERNEL(lr_sum_chunks) {
  const double *partials = (const double *)arguments.partials;
  for (long long j = lr_first_position(); j < arguments.target.rows; j += lr_position_step()) {
    double sum = 0;
    for (long long chunk = 0; chunk < arguments.chunks; chunk++) sum += partials[chunk * arguments.target.rows + j];
    lr_store(arguments.target, j, 0, arguments.alpha * sum);
  }
}

LR_KERNEL(lr_column_signs) {
  __shared__ double values[LR_THREADS];
  __shared__ long long rows[LR_THREADS];
  long long j = blockIdx.x;
  double largest = 0;
  long long row = -1;
  for (long long i = threadIdx.x; i < arguments.source.rows; i += LR_THREADS) {
    double value = lr_load<double>(arguments.source, i, j);
    if (fabs(value) > fabs(largest)) {
      largest = value;
      row = i;
    }
  }
  values[threadIdx.x] = largest;
  rows[threadIdx.x] = row;
  __syncthreads();
  for (unsigned half = LR_THREADS / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) {
      double mine = fabs(values[threadIdx.x]), other = fabs(values[threadIdx.x + half]);
      if (other > mine || (other == mine && rows[threadIdx.x + half] == lr_earlier(rows[threadIdx.x], rows[threadIdx.x + half]))) {
        values[threadIdx.x] = values[threadIdx.x + half];
        rows[threadIdx.x] = rows[threadIdx.x + half];
      }
    }
    __syncthreads();
  }
  if (threadIdx.x == 0) lr_store(arguments.target, j, 0, values[0] < 0 ? -1.0 : 1.0);
}
