// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
#ifndef LOWRANK_BFLOAT16_PAIRS_H
#define LOWRANK_BFLOAT16_PAIRS_H

#if defined(__x86_64__)
#include <immintrin.h>

/// 16 float32 sums, or 16 pairs of bfloat16: Swift's SIMD16<Float>.
typedef float lowrank_float32x16 __attribute__((ext_vector_type(16)));

/// Adds the products of both halves of the pairs of a and b to the sums, the high halves first. Rounds each addition to
/// nearest, even; treats what is below the smallest normal number as zero.
static inline __attribute__((always_inline, target("avx512f,avx512bf16"))) lowrank_float32x16
add_products_of_pairs(lowrank_float32x16 sums, lowrank_float32x16 a, lowrank_float32x16 b) {
    return (lowrank_float32x16)_mm512_dpbf16_ps((__m512)sums, (__m512bh)a, (__m512bh)b);
}
#endif

#endif
