// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import Glibc
import LowRankCore

/// Blocks of C are the units of parallel work. Their size never depends on the number of threads.
private let blockRows = 120
private let blockColumns = 256

extension CPUBackend {
    public func multiply(
        alpha: Double, _ a: MatrixView, _ b: MatrixView, beta: Double, into c: MatrixView
    ) throws(LowRankError) {
        precondition(a.rows == c.rows && b.columns == c.columns && a.columns == b.rows, "shapes of a product")
        if c.isEmpty { return }
        // C = A B and its transpose give the same bits: each entry is one sum in one order.
        if copyingCost(b.transposed, a.transposed, c.transposed) < copyingCost(a, b, c) {
            try multiplyBlocks(alpha: alpha, b.transposed, a.transposed, beta: beta, into: c.transposed)
        } else {
            try multiplyBlocks(alpha: alpha, a, b, beta: beta, into: c)
        }
    }

    private func multiplyBlocks(
        alpha: Double, _ a: MatrixView, _ b: MatrixView, beta: Double, into c: MatrixView
    ) throws(LowRankError) {
        let inFloat64 = computeType(a, b, c) == .float64
        let kernel = inFloat64 ? kernels.multiplyFloat64 : kernels.multiplyFloat32
        let rowBlocks = (c.rows + blockRows - 1) / blockRows
        let columnBlocks = (c.columns + blockColumns - 1) / blockColumns
        let blocks = rowBlocks * columnBlocks
        // Below about 50 microseconds of arithmetic waking a second thread costs more than it saves.
        let isSmall = Double(c.rows) * Double(c.columns) * Double(a.columns) < 0x1p20
        let workers = isSmall ? 1 : min(threads, blocks)
        let space = kernels.multiplyWorkspace(min(blockRows, c.rows), min(blockColumns, c.columns))
        let workspace = try allocate(bytes: workers * space)
        defer { free(workspace) }
        parallelFor(blocks, threads: workers) { block, worker in
            // Down the rows first: neighbours share the block of B.
            let i = block % rowBlocks * blockRows
            let j = block / rowBlocks * blockColumns
            let aBlock = a[rows: i..<min(i + blockRows, c.rows)]
            let bBlock = b[columns: j..<min(j + blockColumns, c.columns)]
            let cBlock = c[i..<(i + aBlock.rows), j..<(j + bBlock.columns)]
            kernel(
                cBlock.rows, cBlock.columns, a.columns, alpha,
                aBlock.address, a.type.rawValue, a.rowStride, a.columnStride,
                bBlock.address, b.type.rawValue, b.rowStride, b.columnStride,
                beta, cBlock.address, c.type.rawValue, c.rowStride, c.columnStride, workspace + worker * space)
        }
    }

    /// About how many cycles the kernel spends on copying operands into packed blocks and on storing C, for `C = A B`.
    private func copyingCost(_ a: MatrixView, _ b: MatrixView, _ c: MatrixView) -> Double {
        // Measured per element with AVX2: packing along the vectors, across them, and 6 lines at a time.
        let along = 0.3
        let across = 1.5
        let sixLines = 1.0
        let type = computeType(a, b, c)
        let (rows, columns, depth) = (Double(c.rows), Double(c.columns), Double(a.columns))
        let readsA = a.type == type && a.columnStride == 1
        let costA = readsA ? 0 : (a.rowStride == 1 ? sixLines : across) * rows * depth
        let costB = (b.columnStride == 1 ? along : across) * columns * depth
        // A line of C at a time, converted where it is of another type; or every element on a cache line of its own.
        let costC = (c.columnStride == 1 ? (c.type == type ? along : 2 * along) : 4 * across) * rows * columns
        // Each block packs its own parts of A and B, and adds to C once in a depth of 256.
        let rowBlocks = (rows / Double(blockRows)).rounded(.up)
        let columnBlocks = (columns / Double(blockColumns)).rounded(.up)
        return costA * columnBlocks + costB * rowBlocks + costC * (depth / 256).rounded(.up)
    }
}
