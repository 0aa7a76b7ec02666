// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import Glibc
import LowRankCore

extension CPUBackend {
    public func multiply(
        alpha: Double, _ a: MatrixView, _ b: MatrixView, beta: Double, into c: MatrixView
    ) throws(LowRankError) {
        precondition(a.rows == c.rows && b.columns == c.columns && a.columns == b.rows, "shapes of a product")
        if c.isEmpty { return }
        let inFloat64 = computeType(a, b, c) == .float64
        let kernel = inFloat64 ? kernels.multiplyFloat64 : kernels.multiplyFloat32
        let plan = MultiplyPlan(a, b, c, lanes: inFloat64 ? kernels.floatLanes / 2 : kernels.floatLanes)
        // C = A B and its transpose give the same bits: each entry is one sum in one order.
        let (a, b, c) = plan.isTransposed ? (b.transposed, a.transposed, c.transposed) : (a, b, c)
        let rowBlocks = (c.rows + plan.blockRows - 1) / plan.blockRows
        let columnBlocks = (c.columns + plan.blockColumns - 1) / plan.blockColumns
        let blocks = rowBlocks * columnBlocks
        // Below about 50 microseconds of arithmetic waking a second thread costs more than it saves.
        let isSmall = Double(c.rows) * Double(c.columns) * Double(a.columns) < 0x1p20
        let workers = isSmall ? 1 : min(threads, blocks)
        let space = kernels.multiplyWorkspace(min(plan.blockRows, c.rows), min(plan.blockColumns, c.columns))
        let workspace = try allocate(bytes: workers * space)
        defer { free(workspace) }
        parallelFor(blocks, threads: workers) { block, worker in
            // Down the rows first: neighbours share the block of B.
            let i = block % rowBlocks * plan.blockRows
            let j = block / rowBlocks * plan.blockColumns
            let aBlock = a[rows: i..<min(i + plan.blockRows, c.rows)]
            let bBlock = b[columns: j..<min(j + plan.blockColumns, c.columns)]
            let cBlock = c[i..<(i + aBlock.rows), j..<(j + bBlock.columns)]
            kernel(
                plan.tileLines, cBlock.rows, cBlock.columns, a.columns, alpha,
                aBlock.address, a.type.rawValue, a.rowStride, a.columnStride,
                bBlock.address, b.type.rawValue, b.rowStride, b.columnStride,
                beta, cBlock.address, c.type.rawValue, c.rowStride, c.columnStride, workspace + worker * space)
        }
    }
}

/// How a product is computed, by shapes, strides and types alone.
private struct MultiplyPlan {
    /// Whether it is the transpose that is computed: `Cᵀ = Bᵀ Aᵀ`.
    var isTransposed = false
    /// Lines of a tile, 4 or 6.
    var tileLines = 6
    /// The blocks of C that are the units of parallel work, and share one packed block of B.
    var blockRows = 240
    var blockColumns = 240

    init(_ a: MatrixView, _ b: MatrixView, _ c: MatrixView, lanes: Int) {
        var best = Double.infinity
        for lines in [6, 4] {
            for transposes in [false, true] {
                let cost =
                    transposes
                    ? Self.cycles(b.transposed, a.transposed, c.transposed, tileLines: lines, lanes: lanes)
                    : Self.cycles(a, b, c, tileLines: lines, lanes: lanes)
                if cost < best {
                    best = cost
                    tileLines = lines
                    isTransposed = transposes
                }
            }
        }
        let (rows, columns) = isTransposed ? (c.columns, c.rows) : (c.rows, c.columns)
        // A shallow block of B leaves room for longer lines of C.
        if a.columns <= 64 { blockColumns = a.columns <= 32 ? 960 : 480 }
        // Work for several threads where there are few columns.
        let columnBlocks = (columns + blockColumns - 1) / blockColumns
        while blockRows > 60 && (rows + blockRows - 1) / blockRows * columnBlocks < 16 { blockRows /= 2 }
    }

    /// About how many cycles the kernel takes for `C = A B`.
    private static func cycles(_ a: MatrixView, _ b: MatrixView, _ c: MatrixView, tileLines: Int, lanes: Int) -> Double
    {
        // Measured per element with AVX2: copying along the lines, turning squares over in registers, single elements.
        let copied = 0.3
        let turned = 0.6
        let single = 1.5
        let (rows, columns, depth) = (Double(c.rows), Double(c.columns), Double(a.columns))
        let width = 2 * lanes
        let paddedRows = Double((c.rows + tileLines - 1) / tileLines * tileLines)
        let paddedColumns = Double((c.columns + width - 1) / width * width)
        // The sums of 4 lines wait for each other now and then.
        let sums = paddedRows * paddedColumns * depth / Double(2 * lanes) * (tileLines == 4 ? 1.1 : 1)
        // Lines that the tile reads where they are. Six lines side by side copy less well than whole vectors.
        let isRead = a.columnStride == 1 && a.type == c.type.computeType && c.columns <= 4 * width
        let packA = isRead ? 0 : (a.rowStride == 1 ? 2 * copied : a.columnStride == 1 ? turned : single)
        let packB = b.columnStride == 1 ? copied : b.rowStride == 1 ? turned : single
        // A line of C at a time, or every element on a cache line of its own.
        let storeC = c.columnStride == 1 ? copied : 4 * single
        // Each block packs its own parts of A and B.
        let blocksOfA = (columns / 240).rounded(.up)
        let blocksOfB = (rows / 240).rounded(.up)
        return sums + packA * rows * depth * blocksOfA + packB * columns * depth * blocksOfB
            + storeC * rows * columns
    }
}
