// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
#ifndef LOWRANK_CPU_FEATURES_H
#define LOWRANK_CPU_FEATURES_H

#include <stdbool.h>

/// Whether this CPU and its operating system run AVX2, FMA and F16C code. False on other architectures.
bool cpu_has_avx2(void);

/// Whether they run AVX-512 F, VL, BW and DQ code, and FMA and F16C.
bool cpu_has_avx512(void);

/// Whether they run all of that and AVX-512 BF16.
bool cpu_has_avx512bf16(void);

/// "amd", "intel" or "other".
const char *cpu_vendor(void);

/// Processors that this process may run on, at least 1.
int cpu_count(void);

#endif
