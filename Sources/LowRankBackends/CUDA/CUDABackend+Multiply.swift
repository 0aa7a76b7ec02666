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
        if try multiplyBeforeRounding(alpha: alpha, a, b, beta: beta, into: c) { return }
        if try multiplyInTerms(alpha: alpha, a, b, beta: beta, into: c) { return }
        try multiplyTiles(alpha: alpha, a, factors: nil, b, beta: beta, into: c)
    }

    /// In one launch where an own kernel computes the product anyway: one of 16-bit numbers and others.
    package func multiply(
        alpha: Double, _ a: MatrixView, scaledBy factors: MatrixView, _ b: MatrixView, beta: Double, into c: MatrixView
    ) throws(LowRankError) {
        precondition(a.rows == c.rows && b.columns == c.columns && a.columns == b.rows, "shapes of a product")
        precondition(factors.rows * factors.columns == a.columns, "length of a vector")
        if c.isEmpty { return try session.requireNoFailure() }
        let isMixed = a.type.size == 2 || b.type.size == 2
        if isMixed && computeType(a, factors, b) == .float32 && c.type != .float64 {
            return try multiplyTiles(alpha: alpha, a, factors: factors, b, beta: beta, into: c)
        }
        try multiplyCopy(alpha: alpha, a, scaledBy: factors, b, beta: beta, into: c)
    }

    /// The product of any types and strides; factors for 16-bit numbers alone. A c of few tiles is summed in slices of the
    /// depth, one after the other.
    private func multiplyTiles(
        alpha: Double, _ a: MatrixView, factors: MatrixView?, _ b: MatrixView, beta: Double, into c: MatrixView
    ) throws(LowRankError) {
        // Rows of c are the longer dimension of a grid, and neighbouring threads write along its columns.
        let (rows, columns) = (c.rows, c.columns)
        if columns > rows << 16 || (c.runsAlongColumns && rows < columns << 16) {
            return try multiplyTiles(
                alpha: alpha, b.transposed, factors: factors, a.transposed, beta: beta, into: c.transposed)
        }
        let (side, depth) = (Int(LR_TILE), Int(LR_TILE_DEPTH))
        let type = computeType(a, b, c)
        let kernel: CUDAKernel =
            switch type {
            case .float64: .multiplyFloat64
            default: a.type.size == 2 || b.type.size == 2 ? .multiplyTerms : .multiplyFloat32
            }
        let (tileRows, tileColumns) = ((c.rows + side - 1) / side, (c.columns + side - 1) / side)
        // Enough blocks for the largest devices, and slices of some length. By shapes alone, as the sums depend on it.
        let wanted = max(1, 512 / (tileRows * tileColumns))
        let sliceDepth = max(256, (a.columns / wanted + depth) / depth * depth)
        let slices = max(1, (a.columns + sliceDepth - 1) / sliceDepth)
        var arguments = lr_multiply_arguments(
            a: a.onDevice, b: b.onDevice, c: c.onDevice, factors: factors?.column.onDevice ?? lr_view(), alpha: alpha,
            beta: beta, partials: 0, slice_depth: Int64(sliceDepth))
        if slices == 1 {
            return try session.launch(kernel, arguments, blocks: (tileRows, tileColumns, 1))
        }
        try session.withMemory(bytes: slices * c.rows * c.columns * type.size) { (partials) throws(LowRankError) in
            arguments.partials = partials.cudaAddress
            try session.launch(kernel, arguments, blocks: (tileRows, tileColumns, slices))
            try sumSlices(partials, count: slices, type, alpha: alpha, beta: beta, into: c)
        }
    }

    /// `c = alpha * the sum of slices + beta * c`, for slices of c's shape, row-major and one after the other.
    func sumSlices(
        _ slices: UnsafeMutableRawPointer, count: Int, _ type: ScalarType, alpha: Double, beta: Double, into c: MatrixView
    ) throws(LowRankError) {
        let arguments = lr_sum_slices_arguments(
            c: c.onDevice, partials: slices.cudaAddress, slices: Int64(count), alpha: alpha, beta: beta,
            type: type.rawValue, unused: 0)
        try session.launch(.sumSlices, arguments, elements: c.rows * c.columns)
    }
}
