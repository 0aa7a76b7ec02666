// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0

// What Swift users import: matrices in memory, the backend, the truncated factorisations, the adapters.
@_exported import LowRankAdapters
@_exported import LowRankBackends
@_exported import LowRankCore
@_exported import LowRankFactorizations
