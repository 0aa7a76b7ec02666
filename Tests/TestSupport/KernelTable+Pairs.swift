// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankBackends
import PairKernels

extension KernelTable {
    /// The products of bfloat16 pairs, with their instruction modelled in plain code; else the baseline.
    package static let modelledPairs: KernelTable = {
        var table = baseline
        table.name = "modelled pairs"
        table.multipliesPairs = PairKernels.multipliesPairs()
        table.multiplyFloat32 = PairKernels.multiplyFloat32
        table.packFloat32 = PairKernels.packFloat32
        return table
    }()

    /// What this CPU runs, and the model of what it may not: for tests of products.
    package static let multiplying = available + [modelledPairs]

    /// The tables whose products of two bfloat16 operands take pairs.
    package static let ofPairs = multiplying.filter(\.multipliesPairs)
}
