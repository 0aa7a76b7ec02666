// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import CCUDA
import LowRankCore

extension CUDABackend {
    package func multiply(
        alpha: Double, _ a: MatrixView, _ b: MatrixView, beta: Double, into c: MatrixView
    ) throws(LowRankError) {
        precondition(a.rows == c.rows && b.columns == c.columns && a.columns == b.rows, "shapes of a product")
        if c.isEmpty { return try session.requireNoFailure() }
        if try multiplyWithBLAS(alpha: alpha, a, b, beta: beta, into: c) { return }
        if try shrink(alpha: alpha, a, b, beta: beta, into: c) { return }
        if try expand(alpha: alpha, a, nil, b, beta: beta, into: c) { return }
        if try multiplyBeforeRounding(alpha: alpha, a, b, beta: beta, into: c) { return }
        if try multiplyInTerms(alpha: alpha, a, b, beta: beta, into: c) { return }
        try multiplyTiles(alpha: alpha, a, factors: nil, b, beta: beta, into: c)
    }

    /// In one launch where an own kernel has the rank, or computes the product anyway: one of 16-bit numbers and others.
    package func multiply(
        alpha: Double, _ a: MatrixView, _ middle: MiddleFactor, _ b: MatrixView, beta: Double, into c: MatrixView
    ) throws(LowRankError) {
        precondition(a.rows == c.rows && b.columns == c.columns && a.columns == b.rows, "shapes of a product")
        if c.isEmpty { return try session.requireNoFailure() }
        if try expand(alpha: alpha, a, middle, b, beta: beta, into: c) { return }
        if case .diagonal(let factors) = middle, a.type.size == 2 || b.type.size == 2,
            computeType(a, factors, b) == .float32, c.type != .float64
        {
            return try multiplyTiles(alpha: alpha, a, factors: factors, b, beta: beta, into: c)
        }
        try multiplyOneByOne(alpha: alpha, a, middle, b, beta: beta, into: c)
    }

    /// The product of any types and strides; factors for 16-bit numbers alone.
    private func multiplyTiles(
        alpha: Double, _ a: MatrixView, factors: MatrixView?, _ b: MatrixView, beta: Double, into c: MatrixView
    ) throws(LowRankError) {
        // Rows of c are the longer dimension of a grid, and neighbouring threads write along its columns.
        let (rows, columns) = (c.rows, c.columns)
        if columns > rows << 16 || (c.runsAlongColumns && rows < columns << 16) {
            return try multiplyTiles(
                alpha: alpha, b.transposed, factors: factors, a.transposed, beta: beta, into: c.transposed)
        }
        let type = computeType(a, b, c)
        let kernel: CUDAKernel =
            switch type {
            case .float64: .multiplyFloat64
            default: a.type.size == 2 || b.type.size == 2 ? .multiplyTerms : .multiplyFloat32
            }
        let side = Int(LR_TILE)
        let tiles = ((rows + side - 1) / side, (columns + side - 1) / side)
        let slices = Slices(of: a.columns, tiles: tiles.0 * tiles.1, steps: Int(LR_TILE_DEPTH))
        let arguments = lr_multiply_arguments(
            a: a.onDevice, b: b.onDevice, c: c.onDevice, factors: factors?.column.onDevice ?? lr_view(), alpha: alpha,
            beta: beta, partials: 0, counters: 0, slice_depth: Int64(slices.depth))
        try launch(kernel, arguments, blocks: tiles, slices, bytes: rows * columns * type.size)
    }

    /// A product whose depth is in slices, where each takes `bytes` for its sums.
    func launch(
        _ kernel: CUDAKernel, _ arguments: lr_multiply_arguments, blocks: (x: Int, y: Int), _ slices: Slices, bytes: Int
    ) throws(LowRankError) {
        if slices.count == 1 { return try session.launch(kernel, arguments, blocks: (blocks.x, blocks.y, 1)) }
        try session.withMemory(bytes: slices.count * bytes) { (partials) throws(LowRankError) in
            var arguments = arguments
            arguments.partials = partials.cudaAddress
            arguments.counters = session.isPlanning ? 0 : try session.libraryHandles().counters
            try session.launch(kernel, arguments, blocks: (blocks.x, blocks.y, slices.count))
        }
    }

    /// `c = alpha / scale * the sum of slices + beta * c`.
    /// - Parameters:
    ///   - slice: The first one, whose rows or columns have no gaps; the others are `step` elements further on each.
    ///   - magnitude: Of what has been split into terms that are summed, where a scale depends on it.
    func sumSlices(
        _ slice: MatrixView, count: Int, step: Int, magnitude: lr_cuda_address = 0, alpha: Double, beta: Double,
        into c: MatrixView
    ) throws(LowRankError) {
        // Neighbouring threads read along the rows of slices.
        let target = slice.runsAlongColumns ? c.transposed : c
        let arguments = lr_sum_slices_arguments(
            c: target.onDevice, slice: slice.lines.onDevice, magnitude: magnitude, slices: Int64(count), step: Int64(step),
            alpha: alpha, beta: beta)
        try session.launch(.sumSlices, arguments, elements: target.groups)
    }
}

/// How the depth of a product of few tiles is shared by blocks, whose sums are added one after the other. By shapes alone, as
/// the sums depend on it.
struct Slices {
    let count: Int
    let depth: Int

    /// - Parameter steps: What a block takes at a time.
    init(of depth: Int, tiles: Int, steps: Int, atLeast least: Int = 256) {
        // Enough blocks for the largest devices, and slices of some length.
        let wanted = max(1, CUDAHandles.counterCount / tiles)
        self.depth = max(least, (depth + wanted * steps - 1) / (wanted * steps) * steps)
        count = max(1, (depth + self.depth - 1) / self.depth)
    }
}
