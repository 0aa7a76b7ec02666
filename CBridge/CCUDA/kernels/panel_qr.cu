// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
//
// QR of a panel from the Cholesky factors of Gram matrices, in float64.

// MARK: Up to LR_PANEL_COLUMNS columns

// The small square matrices lie in registers: of n <= 16 * per columns, thread 16 t + s has the elements (t + 16 u, s + 16 v).
// A step of an elimination publishes what it reads in shared memory, in two places by turns, so that it takes one barrier.

struct lr_panel_memory {
  // Rows of both have room for the padding that keeps columns in different banks.
  double square[LR_PANEL_COLUMNS * (LR_PANEL_COLUMNS + 1)], tile[LR_PANEL_TILE + LR_PANEL_COLUMNS];
  double lines[2][2][LR_PANEL_COLUMNS], diagonal[LR_PANEL_COLUMNS], scales[LR_PANEL_COLUMNS], signs[LR_PANEL_COLUMNS];
};

#define LR_FOR_EACH_OF_SQUARE(i, k, u, v)                                                                                 \
  _Pragma("unroll") for (unsigned u = 0, i = threadIdx.x / 16; u < per; u++, i += 16)                                     \
      _Pragma("unroll") for (unsigned v = 0, k = threadIdx.x % 16; v < per; v++, k += 16)

/// Eliminates the symmetric `a`, whose upper triangle is read: R = D^-1/2 a on and above the diagonal, where D is a's, and
/// below it a is the unit lower L^-1 with R^-1 = L^-T D^-1/2. The roots of 1 / D are `scales`.
/// Returns whether all pivots are larger than `smallest` times their diagonal elements.
template <unsigned per>
LR_DEVICE bool lr_eliminate_gram(double (&a)[per][per], unsigned n, double smallest, lr_panel_memory &memory) {
  LR_FOR_EACH_OF_SQUARE(i, k, u, v) {
    if (i == k) memory.diagonal[i] = a[u][v];
  }
  bool is_usable = true;
  for (unsigned j = 0; j < n; j++) {
    double *line = memory.lines[j % 2][0];
    LR_FOR_EACH_OF_SQUARE(i, k, u, v) {
      if (i == j) line[k] = a[u][v];
    }
    __syncthreads();
    double pivot = line[j];
    bool is_pivot = lr_is_finite(pivot) && pivot > smallest * memory.diagonal[j];
    is_usable = is_usable && is_pivot;
    double reciprocal = 1 / (is_pivot ? pivot : 1);
    LR_FOR_EACH_OF_SQUARE(i, k, u, v) {
      double multiplier = line[i] * reciprocal;
      if (i > j && (k >= i || k <= j)) a[u][v] -= multiplier * (k == j ? 1 : line[k]);
    }
  }
  LR_FOR_EACH_OF_SQUARE(i, k, u, v) {
    if (i == k) memory.scales[i] = a[u][v] > 0 ? 1 / sqrt(a[u][v]) : 1;
  }
  __syncthreads();
  return is_usable;
}

/// Column j of Q is sign_j times that of Householder's method, where Q - diag(sign) = L U without pivoting, and sign_j is
/// chosen against the pivot (Ballard et al. 2014, "Reconstructing Householder vectors from tall-skinny QR").
/// Returns whether all are certain: near 0 rounding decides; at 1 there is nothing to reflect, and LAPACK keeps the sign of
/// the entry.
LR_DEVICE bool lr_is_certain_sign(double pivot) {
  double magnitude = pivot < 0 ? -pivot : pivot;
  return magnitude > 1e-6 && magnitude < 1 - 1e-6;
}

LR_DEVICE double lr_householder_sign(double pivot) { return pivot < 0 ? 1 : -1; }

/// The signs for a's columns, of the first rows of Q, which are overwritten.
template <unsigned per>
LR_DEVICE bool lr_eliminate_signs(double (&a)[per][per], unsigned n, lr_panel_memory &memory) {
  bool are_certain = true;
  for (unsigned j = 0; j < n; j++) {
    double *line = memory.lines[j % 2][0], *column = memory.lines[j % 2][1];
    LR_FOR_EACH_OF_SQUARE(i, k, u, v) {
      if (i == j) line[k] = a[u][v];
      if (k == j) column[i] = a[u][v];
    }
    __syncthreads();
    double pivot = line[j], sign = lr_householder_sign(pivot);
    are_certain = are_certain && lr_is_certain_sign(pivot);
    if (threadIdx.x == 0) memory.signs[j] = sign;
    double reciprocal = 1 / (pivot - sign);
    LR_FOR_EACH_OF_SQUARE(i, k, u, v) {
      double multiplier = column[i] * reciprocal;
      if (i > j && k > j) a[u][v] -= multiplier * line[k];
    }
  }
  __syncthreads();
  return are_certain;
}

/// Numbers of a tile that a thread has.
enum { LR_PER_TILE = LR_PANEL_TILE / LR_THREADS };

/// The place in a tile, along the direction in which memory runs, of a thread's number q.
template <unsigned side>
LR_DEVICE void lr_place_in_tile(const lr_view &view, unsigned q, unsigned *row, unsigned *column) {
  unsigned position = threadIdx.x + q * LR_THREADS, rows = LR_PANEL_TILE / side;
  bool runs_along_columns = view.row_stride == 1;
  *row = runs_along_columns ? position % rows : position / side;
  *column = runs_along_columns ? position / rows : position % side;
}

/// A thread's numbers of the tile of rows from `first` on, zeros outside of the view and below `end`.
template <unsigned side, class Element>
LR_DEVICE void lr_load_panel(double (&values)[LR_PER_TILE], const lr_view &view, long long first, long long end) {
  const Element *elements = (const Element *)view.address;
#pragma unroll
  for (unsigned q = 0; q < LR_PER_TILE; q++) {
    unsigned i, k;
    lr_place_in_tile<side>(view, q, &i, &k);
    bool is_inside = first + i < end && k < view.columns;
    values[q] = is_inside ? lr_value<double>(elements[(first + i) * view.row_stride + k * view.column_stride]) : 0;
  }
}

/// R = signs R2 R1 for the second factor's D^1/2 R2 in `a` and the first factor, one of a step before.
template <unsigned per>
LR_DEVICE void lr_write_panel_triangle(
    const lr_panel_arguments &arguments, const double (&a)[per][per], lr_panel_memory &memory) {
  enum { side = 16 * per, stride = side + 1 };
  unsigned n = arguments.source.columns;
  const double *first = (const double *)arguments.r;
  __syncthreads();
  LR_FOR_EACH_OF_SQUARE(i, k, u, v) memory.square[i * stride + k] = k >= i ? a[u][v] * memory.scales[i] : 0;
  __syncthreads();
  double r[per][per] = {};
#pragma unroll 8
  for (unsigned l = 0; l < n; l++) {
    LR_FOR_EACH_OF_SQUARE(i, k, u, v) {
      if (i <= l && l <= k && k < n) r[u][v] += memory.square[i * stride + l] * first[l * n + k];
    }
  }
  LR_FOR_EACH_OF_SQUARE(i, k, u, v) {
    if (i < n && k < n) lr_store(arguments.triangle, i, k, k >= i ? memory.signs[i] * r[u][v] : 0.0);
  }
}

/// The Cholesky factor of the sum of the Gram matrices' parts, which every block finds for itself, and in memory.square its
/// inverse, with zeros below the diagonal. In the last step also the signs; one block more has no rows, but writes R.
/// Returns whether the block has rows.
template <unsigned per> LR_DEVICE bool lr_factor_panel_gram(const lr_panel_arguments &arguments, lr_panel_memory &memory) {
  enum { side = 16 * per, stride = side + 1 };
  unsigned n = arguments.source.columns;
  const double *grams = (const double *)arguments.grams;
  double a[per][per] = {};
#pragma unroll 8
  for (int part = 0; part < arguments.parts; part++) {
    LR_FOR_EACH_OF_SQUARE(i, k, u, v) {
      if (i <= k && k < n) a[u][v] += grams[((unsigned)part * n + i) * n + k];
    }
  }
  bool is_right = lr_eliminate_gram<per>(a, n, arguments.smallest, memory);
  LR_FOR_EACH_OF_SQUARE(i, k, u, v) {
    if (k < i) memory.square[k * stride + i] = a[u][v] * memory.scales[i];
    if (k < i) memory.square[i * stride + k] = 0;
    if (k == i) memory.square[i * stride + i] = memory.scales[i];
  }
  double *status = (double *)arguments.status;
  if (arguments.next_grams != 0) {
    if (blockIdx.x == 0) {
      LR_FOR_EACH_OF_SQUARE(i, k, u, v) {
        if (i < n && k < n) ((double *)arguments.r)[i * n + k] = k >= i ? a[u][v] * memory.scales[i] : 0;
      }
      if (threadIdx.x == 0) *status = is_right ? 0 : 1;
    }
    __syncthreads();
    return true;
  }
  __syncthreads();
  double top[per][per] = {};
  const double *q = (const double *)arguments.source.address;
#pragma unroll 8
  for (unsigned l = 0; l < n; l++) {
    LR_FOR_EACH_OF_SQUARE(i, k, u, v) {
      if (i < n) top[u][v] += q[i * n + l] * memory.square[l * stride + k];
    }
  }
  is_right = lr_eliminate_signs<per>(top, n, memory) && is_right;
  if (blockIdx.x + 1 < gridDim.x) return true;
  if (threadIdx.x == 0 && !is_right) *status = 1;
  lr_write_panel_triangle<per>(arguments, a, memory);
  return false;
}

template <unsigned per> LR_DEVICE void lr_step_of_panel(const lr_panel_arguments &arguments, lr_panel_memory &memory) {
  enum { side = 16 * per, stride = side + 1, tile_rows = LR_PANEL_TILE / side };
  const lr_view &source = arguments.source, &target = arguments.target;
  unsigned n = source.columns;
  long long row = blockIdx.x * arguments.rows, end = row + arguments.rows < source.rows ? row + arguments.rows : source.rows;
  double gram[per][per] = {}, values[LR_PER_TILE];
  LR_WITH_ELEMENT(source.type, lr_load_panel<side, Element>(values, source, row, end));
  if (arguments.parts > 0 && !lr_factor_panel_gram<per>(arguments, memory)) return;
  for (; row < end; row += tile_rows) {
#pragma unroll
    for (unsigned q = 0; q < LR_PER_TILE; q++) {
      unsigned i, k;
      lr_place_in_tile<side>(source, q, &i, &k);
      memory.tile[i * stride + k] = values[q];
    }
    __syncthreads();
    // The next ones arrive while these are worked on.
    LR_WITH_ELEMENT(source.type, lr_load_panel<side, Element>(values, source, row + tile_rows, end));
    if (arguments.parts > 0) {
      double products[LR_PER_TILE] = {};
      unsigned i = threadIdx.x / side, k = threadIdx.x % side;
#pragma unroll 4
      for (unsigned l = 0; l < n; l++) {
        double factor = memory.square[l * stride + k];
#pragma unroll
        for (unsigned q = 0; q < LR_PER_TILE; q++) {
          products[q] += memory.tile[(i + q * (LR_THREADS / side)) * stride + l] * factor;
        }
      }
      double sign = arguments.next_grams == 0 && k < n ? memory.signs[k] : 1;
      __syncthreads();
#pragma unroll
      for (unsigned q = 0; q < LR_PER_TILE; q++) memory.tile[(i + q * (LR_THREADS / side)) * stride + k] = sign * products[q];
      __syncthreads();
#pragma unroll
      for (unsigned q = 0; q < LR_PER_TILE; q++) {
        lr_place_in_tile<side>(target, q, &i, &k);
        if (row + i < end && k < n) lr_store(target, row + i, k, memory.tile[i * stride + k]);
      }
    }
    if (arguments.next_grams != 0) {
#pragma unroll 4
      for (unsigned l = 0; l < tile_rows; l++) {
        LR_FOR_EACH_OF_SQUARE(i, k, u, v) gram[u][v] += memory.tile[l * stride + i] * memory.tile[l * stride + k];
      }
    }
    __syncthreads();
  }
  if (arguments.next_grams == 0) return;
  double *part = (double *)arguments.next_grams + (unsigned long long)blockIdx.x * n * n;
  LR_FOR_EACH_OF_SQUARE(i, k, u, v) {
    if (i <= k && k < n) part[i * n + k] = gram[u][v];
  }
}

LR_KERNEL(lr_panel) {
  __shared__ lr_panel_memory memory;
  if (arguments.source.columns <= 16) {
    lr_step_of_panel<1>(arguments, memory);
  } else if (arguments.source.columns <= 32) {
    lr_step_of_panel<2>(arguments, memory);
  } else {
    lr_step_of_panel<4>(arguments, memory);
  }
}

// MARK: Up to LR_WIDE_COLUMNS columns, in the device's memory and by one block

// A warp takes a row, whose columns lane + 32 q its lanes keep in registers.
enum { LR_PER_LANE = LR_WIDE_COLUMNS / 32 };

#define LR_FOR_EACH_OF_LANE(k, q) \
  _Pragma("unroll") for (unsigned q = 0, k = threadIdx.x % 32; q < LR_PER_LANE; q++, k += 32)

#define LR_FOR_EACH_ROW_FROM(first, i, n) for (unsigned i = (first) + threadIdx.x / 32; i < (n); i += LR_THREADS / 32)

LR_DEVICE void lr_load_lane(double (&to)[LR_PER_LANE], const double *row, unsigned n) {
  LR_FOR_EACH_OF_LANE(k, q) to[q] = k < n ? row[k] : 0;
}

/// As lr_eliminate_gram, in place; `factor` gets R and `inverse` its inverse.
LR_KERNEL(lr_cholesky) {
  double *a = (double *)arguments.matrix, *factor = (double *)arguments.factor, *inverse = (double *)arguments.inverse;
  unsigned n = arguments.size;
  double line[LR_PER_LANE], row[LR_PER_LANE];
  // The diagonal as it was stands in the inverse meanwhile.
  for (unsigned j = threadIdx.x; j < n; j += LR_THREADS) inverse[j] = a[j * n + j];
  for (unsigned j = 0; j < n; j++) {
    __syncthreads();
    lr_load_lane(line, a + j * n, n);
    double pivot = a[j * n + j];
    bool is_pivot = lr_is_finite(pivot) && pivot > arguments.smallest * inverse[j];
    if (!is_pivot && threadIdx.x == 0) *(double *)arguments.status = 1;
    double reciprocal = 1 / (is_pivot ? pivot : 1);
    LR_FOR_EACH_ROW_FROM(j + 1, i, n) {
      lr_load_lane(row, a + i * n, n);
      double multiplier = a[j * n + i] * reciprocal;
      LR_FOR_EACH_OF_LANE(k, q) {
        if (k < n && (k <= j || k >= i)) a[i * n + k] = k == j ? -multiplier : row[q] - multiplier * line[q];
      }
    }
  }
  __syncthreads();
  LR_FOR_EACH_ROW_FROM(0, i, n) {
    lr_load_lane(row, a + i * n, n);
    double pivot = a[i * n + i], scale = pivot > 0 ? 1 / sqrt(pivot) : 1;
    LR_FOR_EACH_OF_LANE(k, q) {
      if (k >= n) continue;
      factor[i * n + k] = k < i ? 0 : row[q] * scale;
      if (k < i) inverse[i * n + k] = 0;
      if (k <= i) inverse[k * n + i] = k < i ? row[q] * scale : scale;
    }
  }
}

/// As lr_eliminate_signs.
LR_KERNEL(lr_householder_signs) {
  double *a = (double *)arguments.work, *status = (double *)arguments.status;
  unsigned n = arguments.q.columns;
  double line[LR_PER_LANE], row[LR_PER_LANE];
  LR_FOR_EACH_ROW_FROM(0, i, n) {
    LR_FOR_EACH_OF_LANE(k, q) {
      if (k < n) a[i * n + k] = lr_load<double>(arguments.q, i, k);
    }
  }
  for (unsigned j = 0; j < n; j++) {
    __syncthreads();
    lr_load_lane(line, a + j * n, n);
    double pivot = a[j * n + j], sign = lr_householder_sign(pivot), reciprocal = 1 / (pivot - sign);
    if (threadIdx.x == 0) {
      status[1 + j] = sign;
      if (!lr_is_certain_sign(pivot)) status[0] = 1;
    }
    LR_FOR_EACH_ROW_FROM(j + 1, i, n) {
      lr_load_lane(row, a + i * n, n);
      double multiplier = a[i * n + j] * reciprocal;
      LR_FOR_EACH_OF_LANE(k, q) {
        if (k < n && k > j) a[i * n + k] = row[q] - multiplier * line[q];
      }
    }
  }
}
