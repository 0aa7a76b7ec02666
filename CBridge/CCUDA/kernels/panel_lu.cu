// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
//
// LU of a panel with partial pivoting.
//
// Rows are exchanged in name only, so that no block reads what another writes in the same launch. A launch takes one column: the
// next one needs every block's candidate.

enum { LR_LU_LANES = LR_THREADS / LR_LU_ROWS, LR_LU_BATCH = 8 };

LR_DEVICE bool lr_precedes(const lr_lu_candidate &a, const lr_lu_candidate &b) {
  double left = a.value < 0 ? -a.value : a.value, right = b.value < 0 ? -b.value : b.value;
  return left > right || (left == right && a.place < b.place);
}

/// The best of the threads' candidates, for all threads. A row of -1 is none.
LR_DEVICE lr_lu_candidate lr_best_candidate(const lr_lu_candidate &own) {
  __shared__ lr_lu_candidate candidates[LR_THREADS];
  __syncthreads();
  candidates[threadIdx.x] = own;
  __syncthreads();
  for (unsigned half = LR_THREADS / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) {
      const lr_lu_candidate &other = candidates[threadIdx.x + half];
      if (other.row >= 0 && (candidates[threadIdx.x].row < 0 || lr_precedes(other, candidates[threadIdx.x]))) {
        candidates[threadIdx.x] = other;
      }
    }
    __syncthreads();
  }
  return candidates[0];
}

/// Neighbouring threads have neighbouring rows, and of every LR_LU_LANES columns one.
template <class Element> LR_DEVICE void lr_eliminate_column(const lr_lu_column_arguments &arguments) {
  int column = arguments.column, lane = threadIdx.x / LR_LU_ROWS;
  int n = arguments.panel.columns, m = arguments.panel.rows, row = blockIdx.x * LR_LU_ROWS + threadIdx.x % LR_LU_ROWS;
  long long stride = arguments.panel.column_stride;
  Element *panel = (Element *)arguments.panel.address, *own = panel + row;
  int *places = (int *)arguments.places;
  const lr_lu_candidate none = {0, -1, 0};
  const lr_lu_candidate *proposed = (const lr_lu_candidate *)arguments.candidates;
  int place = row < m ? places[row] : -1;
  Element multiplier = row < m ? own[column * stride] : 0;
  lr_lu_candidate best = none;
  for (unsigned block = threadIdx.x; block < gridDim.x; block += LR_THREADS) {
    if (proposed[block].row >= 0 && (best.row < 0 || lr_precedes(proposed[block], best))) best = proposed[block];
  }
  // No thread goes on before all have read their multiplier, which one of a row overwrites.
  best = lr_best_candidate(best);
  const Element *line = panel + best.row;
  if (row == best.row) {
    place = column;
  } else if (place == column) {
    place = best.place;
  }
  Element next = 0;
  if (place > column) {
    multiplier = best.value == 0 ? (Element)0 : multiplier / (Element)best.value;
    for (int k = column + 1 + lane; k < n; k += LR_LU_LANES * LR_LU_BATCH) {
      Element values[LR_LU_BATCH], above[LR_LU_BATCH];
#pragma unroll
      for (int q = 0; q < LR_LU_BATCH; q++) {
        bool is_inside = k + q * LR_LU_LANES < n;
        values[q] = is_inside ? own[(k + q * LR_LU_LANES) * stride] : 0;
        above[q] = is_inside ? line[(k + q * LR_LU_LANES) * stride] : 0;
      }
#pragma unroll
      for (int q = 0; q < LR_LU_BATCH; q++) {
        values[q] -= multiplier * above[q];
        if (k + q * LR_LU_LANES < n) own[(k + q * LR_LU_LANES) * stride] = values[q];
      }
      if (k == column + 1) next = values[0];
    }
  }
  if (lane == 0 && row < m) {
    if (place > column) own[column * stride] = multiplier;
    places[row] = place;
  }
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    ((double *)arguments.pivots)[column] = best.place;
    ((double *)arguments.diagonal)[column] = best.value;
  }
  bool is_candidate = lane == 0 && place > column && column + 1 < n;
  best = lr_best_candidate(is_candidate ? lr_lu_candidate{(double)next, row, place} : none);
  if (threadIdx.x == 0) ((lr_lu_candidate *)arguments.next_candidates)[blockIdx.x] = best;
}

/// Copies the panel, and proposes rows for its first column.
template <class Element> LR_DEVICE void lr_start_lu(const lr_lu_column_arguments &arguments) {
  int lane = threadIdx.x / LR_LU_ROWS, n = arguments.panel.columns, m = arguments.panel.rows;
  int row = blockIdx.x * LR_LU_ROWS + threadIdx.x % LR_LU_ROWS;
  lr_lu_candidate own = {0, -1, 0};
  if (row < m) {
#pragma unroll 8
    for (int k = lane; k < n; k += LR_LU_LANES) {
      double value = lr_load<double>(arguments.source, row, k);
      ((Element *)arguments.panel.address)[row + k * arguments.panel.column_stride] = (Element)value;
      if (k == 0) own = {value, row, row};
    }
    if (lane == 0) ((int *)arguments.places)[row] = row;
  }
  own = lr_best_candidate(own);
  if (threadIdx.x == 0) ((lr_lu_candidate *)arguments.next_candidates)[blockIdx.x] = own;
}

LR_KERNEL(lr_lu_column) {
  bool is_wide = arguments.panel.type == LR_FLOAT64;
  if (arguments.column < 0) {
    if (is_wide) lr_start_lu<double>(arguments);
    else lr_start_lu<float>(arguments);
  } else if (is_wide) {
    lr_eliminate_column<double>(arguments);
  } else {
    lr_eliminate_column<float>(arguments);
  }
}

LR_KERNEL(lr_place_rows) {
  const lr_view &source = arguments.source;
  // Columns, along which the memory of both runs.
  long long count = source.rows * source.columns;
  for (long long position = lr_first_position(); position < count; position += lr_position_step()) {
    long long i, j;
    lr_split_position(position, source.rows, &j, &i);
    lr_store(arguments.target, ((const int *)arguments.places)[i], j, lr_load<double>(source, i, j));
  }
}
