// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import CCUDA
import LowRankCore

extension CUDABackend {
    /// In one reading of g where that is likely to take less time than two products by cuBLAS: where g is larger than what
    /// caches keep of it, 32 MiB, and a kernel for its type and the ranks exists. By types and shapes alone.
    package func multiplyPair(
        _ g: MatrixView, _ b: MatrixView, into p: MatrixView, alpha: Double, _ h: MatrixView, into d: MatrixView
    ) throws(LowRankError) {
        if g.rows * g.columns * g.type.size >= 32 << 20,
            try multiplyPairAtOnce(g, b, into: p, alpha: alpha, h, into: d)
        {
            return
        }
        try multiplyOneByOne(g, b, into: p, alpha: alpha, h, into: d)
    }

    /// In one reading of g. The parts of the sums depend on the shapes alone, and are added in order.
    /// - Returns: false, with nothing done, where there is no kernel for the operands.
    package func multiplyPairAtOnce(
        _ g: MatrixView, _ b: MatrixView, into p: MatrixView, alpha: Double, _ h: MatrixView, into d: MatrixView
    ) throws(LowRankError) -> Bool {
        precondition(g.columns == b.rows && g.rows == h.rows, "shapes of a pair of products")
        guard !g.isEmpty, !b.isEmpty, !h.isEmpty, let kernel = PairKernel(g, b, h) else { return false }
        let columnBlocks = (g.columns + kernel.columns - 1) / kernel.columns
        let rowBlocks = (g.rows + Int(LR_PAIR_ROWS) - 1) / Int(LR_PAIR_ROWS)
        if rowBlocks > 65535 { return false }
        let (pBytes, dBytes) = (
            columnBlocks * p.rows * p.columns * kernel.type.size, rowBlocks * d.rows * d.columns * kernel.type.size
        )
        try session.withMemory(bytes: pBytes) { (pParts) throws(LowRankError) in
            try session.withMemory(bytes: dBytes) { (dParts) throws(LowRankError) in
                let arguments = lr_multiply_pair_arguments(
                    g: g.onDevice, b: b.onDevice, h: h.onDevice, p_partials: pParts.cudaAddress,
                    d_partials: dParts.cudaAddress)
                try session.launch(kernel.kernel, arguments, blocks: (columnBlocks, rowBlocks, 1))
                for (parts, count, alpha, target) in [(pParts, columnBlocks, 1, p), (dParts, rowBlocks, alpha, d)] {
                    let part = MatrixView(
                        address: parts, type: kernel.type, rows: target.rows, columns: target.columns,
                        rowStride: target.columns, columnStride: 1, owner: nil)
                    try sumSlices(
                        part, count: count, step: target.rows * target.columns, alpha: alpha, beta: 0, into: target)
                }
            }
        }
        return true
    }
}

/// The kernel for a pair of products.
private struct PairKernel {
    let kernel: CUDAKernel
    /// What it sums in.
    let type: ScalarType
    /// Of g, that a block takes.
    let columns: Int

    /// nil where there is none. Tensor cores take 16-bit numbers alone. Without them more than a few columns of b take longer to
    /// multiply with than g takes to read twice.
    init?(_ g: MatrixView, _ b: MatrixView, _ h: MatrixView) {
        let (rank, side) = (max(b.columns, h.columns), 64)
        guard g.type.size == 2 else {
            guard rank <= Int(LR_PAIR_NARROW) else { return nil }
            type = [g.type, b.type, h.type].contains(.float64) ? .float64 : .float32
            kernel = type == .float64 ? .multiplyPairFloat64 : .multiplyPairFloat32
            columns = side * Int(type == .float64 ? LR_PAIR_CHUNKS_64 : LR_PAIR_CHUNKS_32)
            return
        }
        // Rows that are read 16 bytes at a time.
        let isAligned = g.columnStride == 1 && g.rowStride % 8 == 0 && UInt(bitPattern: g.address) % 16 == 0
        guard isAligned, h.type == g.type else { return nil }
        switch (b.type, rank) {
        case (g.type, ...32): (kernel, columns) = (.multiplyPair32, side * Int(LR_PAIR_SUMS) / 32)
        case (g.type, ...64): (kernel, columns) = (.multiplyPair64, side * Int(LR_PAIR_SUMS) / 64)
        // float16 has too few exponents for the terms of a float32 number.
        case (.float32, ...32) where g.type == .bfloat16:
            (kernel, columns) = (.multiplyPairTerms, side * Int(LR_PAIR_SUMS) / 32)
        default: return nil
        }
        type = .float32
    }
}
