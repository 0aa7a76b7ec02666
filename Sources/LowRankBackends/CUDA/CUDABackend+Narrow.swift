// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import CCUDA
import LowRankCore

// Products of one large matrix and a small rank, which are bound by memory: own kernels where cuBLAS has none.

extension CUDABackend {
    /// A product with up to 64 columns of 16-bit numbers and others, which reads a once.
    /// - Returns: false, with nothing done, where there is no kernel for the operands.
    func shrink(
        alpha: Double, _ a: MatrixView, _ b: MatrixView, beta: Double, into c: MatrixView
    ) throws(LowRankError) -> Bool {
        if a.rows < b.columns { return try shrinkRows(alpha: alpha, b.transposed, a.transposed, beta: beta, into: c.transposed) }
        return try shrinkRows(alpha: alpha, a, b, beta: beta, into: c)
    }

    private func shrinkRows(
        alpha: Double, _ a: MatrixView, _ b: MatrixView, beta: Double, into c: MatrixView
    ) throws(LowRankError) -> Bool {
        let depth = a.columns
        guard c.columns <= 64, c.columns <= depth, !a.runsAlongColumns, isOf16Bits(a, b, c) else { return false }
        let (isWide, isNarrow) = (a.type == .float32, c.columns <= 32)
        let kernel: CUDAKernel =
            switch (isWide, isNarrow) {
            case (false, true): .shrink32
            case (false, false): .shrink64
            case (true, true): .shrinkFloat32To32
            case (true, false): .shrinkFloat32To64
            }
        let rows = isWide ? 64 : 128
        let tiles = (c.rows + rows - 1) / rows
        // Two blocks of each multiprocessor are enough, as all read without a pause.
        let slices = Slices(of: depth, tiles: 2 * tiles, steps: Int(LR_SHRINK_DEPTH), atLeast: 2 * Int(LR_SHRINK_DEPTH))
        let arguments = lr_multiply_arguments(
            a: a.onDevice, b: b.onDevice, c: c.onDevice, factors: lr_view(), alpha: alpha, beta: beta, partials: 0,
            counters: 0, slice_depth: Int64(slices.depth))
        try launch(kernel, arguments, blocks: (tiles, 1), slices, bytes: tiles * rows * (isNarrow ? 32 : 64) * 4)
        return true
    }

    /// A product with up to 64 columns of a, which reads and writes c once and needs no memory for `a middle`.
    /// - Parameter blocks: About how many are enough. `a middle` is computed by each block anew.
    /// - Returns: false, with nothing done, where there is no kernel for the operands.
    package func expand(
        alpha: Double, _ a: MatrixView, _ middle: MiddleFactor?, _ b: MatrixView, beta: Double, into c: MatrixView,
        blocks: Int = 512
    ) throws(LowRankError) -> Bool {
        let rank = a.columns
        guard rank <= Int(LR_EXPAND_DEPTH) else { return false }
        // Neighbouring threads write along the rows of c, and its columns may be too many for a grid's second dimension.
        if c.runsAlongColumns {
            return try expand(
                alpha: alpha, b.transposed, middle?.transposed, a.transposed, beta: beta, into: c.transposed, blocks: blocks)
        }
        let kernel: CUDAKernel
        switch computeType(a, b, c, middle?.view ?? a) {
        case .float64: kernel = .expandFloat64
        default:
            kernel = isOf16Bits(a, b, c) ? (rank <= 32 ? .expand32 : .expand64) : .expandFloat32
        }
        let (side, step) = (Int(LR_TILE), Int(LR_TILE) * (kernel == .expandFloat32 ? 2 : 1))
        let (rowTiles, columnTiles) = ((c.rows + side - 1) / side, (c.columns + step - 1) / step)
        let perBlock = max(1, columnTiles * rowTiles / blocks)
        let columns = min(perBlock, columnTiles) * step
        var arguments = lr_expand_arguments(
            a: a.onDevice, middle: lr_view(), b: b.onDevice, c: c.onDevice, alpha: alpha, beta: beta,
            columns: Int64(columns), is_square: 0, unused: 0)
        switch middle {
        case nil: break
        case .diagonal(let factors): arguments.middle = factors.column.onDevice
        case .square(let matrix): (arguments.middle, arguments.is_square) = (matrix.onDevice, 1)
        }
        try session.launch(kernel, arguments, blocks: (rowTiles, (c.columns + columns - 1) / columns, 1))
        return true
    }

    /// Whether tensor cores are of use, which take 16-bit terms of all operands.
    private func isOf16Bits(_ a: MatrixView, _ b: MatrixView, _ c: MatrixView) -> Bool {
        computeType(a, b, c) == .float32 && [a, b, c].contains { $0.type.size == 2 }
    }
}
