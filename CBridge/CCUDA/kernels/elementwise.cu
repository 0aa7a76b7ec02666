// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0

template <class Scalar> LR_DEVICE void lr_combine_elements(const lr_combination &part) {
  const lr_view &target = part.target;
  LR_FOR_EACH_GROUP(target, i, j, count) {
    Scalar values[LR_GROUP], others[LR_GROUP];
    lr_load_group(values, part.source, i, j, count);
    if (part.row_factors.address != 0) {
      Scalar factor = lr_load<Scalar>(part.row_factors, i, 0);
#pragma unroll
      for (int q = 0; q < LR_GROUP; q++) values[q] *= factor;
    }
    if (part.column_factors.address != 0) {
      lr_load_group(others, part.column_factors, 0, j, count);
#pragma unroll
      for (int q = 0; q < LR_GROUP; q++) values[q] *= others[q];
    }
    if (part.beta != 0) {
      lr_load_group(others, part.other, i, j, count);
#pragma unroll
      for (int q = 0; q < LR_GROUP; q++) values[q] += (Scalar)part.beta * others[q];
    }
    lr_store_group(target, i, j, count, values);
  }
}

LR_KERNEL(lr_combine) {
  const lr_combination &part = arguments.parts[blockIdx.y];
  bool is_wide = part.source.type == LR_FLOAT64 || part.target.type == LR_FLOAT64 ||
                 (part.beta != 0 && part.other.type == LR_FLOAT64) ||
                 (part.row_factors.address != 0 && part.row_factors.type == LR_FLOAT64) ||
                 (part.column_factors.address != 0 && part.column_factors.type == LR_FLOAT64);
  if (is_wide) {
    lr_combine_elements<double>(part);
  } else {
    lr_combine_elements<float>(part);
  }
}

LR_KERNEL(lr_move_rows) {
  lr_view lines = arguments.target;
  lines.rows = arguments.count;
  LR_FOR_EACH_GROUP(lines, i, j, count) {
    double values[LR_GROUP];
    lr_load_group(values, arguments.source, arguments.from[i], j, count);
    lr_store_group(arguments.target, arguments.to[i], j, count, values);
  }
}

LR_KERNEL(lr_clear) {
  const float zeros[LR_GROUP] = {};
  LR_FOR_EACH_GROUP(arguments.target, i, j, count) { lr_store_group(arguments.target, i, j, count, zeros); }
}

LR_DEVICE unsigned long long lr_mixed(unsigned long long bits) {
  bits = (bits ^ (bits >> 30)) * 0xbf58476d1ce4e5b9ull;
  bits = (bits ^ (bits >> 27)) * 0x94d049bb133111ebull;
  return bits ^ (bits >> 31);
}

// RandomStream.uniform, bit for bit.
LR_KERNEL(lr_fill_uniform) {
  LR_FOR_EACH_ELEMENT(arguments.target, position, i, j) {
    unsigned long long bits = lr_mixed(arguments.key + (unsigned long long)position * 0x9e3779b97f4a7c15ull) >> 11;
    lr_store(arguments.target, i, j, ((double)bits + 0.5) * 0x1p-52 - 1);
  }
}

LR_KERNEL(lr_set_values) {
  for (long long i = lr_first_position(); i < arguments.count; i += lr_position_step()) {
    lr_store(arguments.target, arguments.first + i, 0, arguments.values[i]);
  }
}

LR_KERNEL(lr_upper_triangle) {
  LR_FOR_EACH_ELEMENT(arguments.target, position, i, j) {
    lr_store(arguments.target, i, j, i > j ? 0.0 : lr_load<double>(arguments.source, i, j));
  }
}

LR_KERNEL(lr_unit_lower) {
  LR_FOR_EACH_ELEMENT(arguments.target, position, i, j) {
    if (i <= j) lr_store(arguments.target, i, j, i == j ? 1.0f : 0.0f);
  }
}
