// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
#ifndef LOWRANK_PREFETCH_H
#define LOWRANK_PREFETCH_H

/// Asks for the cache line of an address that will be read or written soon. Any address may be given.
static inline __attribute__((always_inline)) void prefetch_line(const void *address) {
    __builtin_prefetch(address);
}

#endif
