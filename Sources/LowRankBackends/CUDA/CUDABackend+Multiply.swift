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
        if try multiplyInTerms(alpha: alpha, a, b, beta: beta, into: c) { return }
        // Rows of c are the longer dimension of a grid, and neighbouring threads write along its columns.
        if c.columns > c.rows * 65536 || (c.runsAlongColumns && c.rows < c.columns * 65536) {
            return try multiplyTiles(alpha: alpha, b.transposed, a.transposed, beta: beta, into: c.transposed)
        }
        try multiplyTiles(alpha: alpha, a, b, beta: beta, into: c)
    }

    /// The product of any types and strides. A c of few tiles is summed in slices of the depth, one after the other.
    private func multiplyTiles(
        alpha: Double, _ a: MatrixView, _ b: MatrixView, beta: Double, into c: MatrixView
    ) throws(LowRankError) {
        let (side, depth) = (Int(LR_TILE), Int(LR_TILE_DEPTH))
        let type = computeType(a, b, c)
        let kernel: CUDAKernel = type == .float64 ? .multiplyFloat64 : .multiplyFloat32
        let (tileRows, tileColumns) = ((c.rows + side - 1) / side, (c.columns + side - 1) / side)
        // Enough blocks for the largest devices, and slices of some length. By shapes alone, as the sums depend on it.
        let wanted = max(1, 512 / (tileRows * tileColumns))
        let sliceDepth = max(256, (a.columns / wanted + depth) / depth * depth)
        let slices = max(1, (a.columns + sliceDepth - 1) / sliceDepth)
        var arguments = lr_multiply_arguments(
            a: a.onDevice, b: b.onDevice, c: c.onDevice, alpha: alpha, beta: beta, partials: 0,
            slice_depth: Int64(sliceDepth))
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
