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
        let inPairs = kernels.multipliesPairs && a.type == .bfloat16 && b.type == .bfloat16 && !inFloat64
        let plan = MultiplyPlan(
            a, b, c, lanes: inFloat64 ? kernels.floatLanes / 2 : kernels.floatLanes, inPairs: inPairs)
        // C = A B and its transpose give the same bits: each entry is one sum in one order.
        let (a, b, c) = plan.isTransposed ? (b.transposed, a.transposed, c.transposed) : (a, b, c)
        let rowBlocks = (c.rows + plan.blockRows - 1) / plan.blockRows
        let columnBlocks = (c.columns + plan.blockColumns - 1) / plan.blockColumns
        let blocks = rowBlocks * columnBlocks
        let workers = Self.isForOneThread(c.rows, c.columns, a.columns) ? 1 : min(threads, blocks)
        // An operand that every block of C takes whole is packed once for all of them; lines of A that the kernel can read
        // where they are stay there.
        let packedA =
            rowBlocks == 1 && columnBlocks > 1 && !MultiplyPlan.readsLines(of: a, for: c, inPairs: inPairs)
            ? try packed(a, asStrips: false, with: b.type, inFloat64) : nil
        defer { free(packedA) }
        let packedB =
            columnBlocks == 1 && rowBlocks > 1 ? try packed(b.transposed, asStrips: true, with: a.type, inFloat64) : nil
        defer { free(packedB) }
        let space = kernels.multiplyWorkspace(
            min(plan.blockRows, c.rows), min(plan.blockColumns, c.columns), a.columns)
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
                cBlock.rows, cBlock.columns, a.columns, alpha,
                aBlock.address, a.type.rawValue, a.rowStride, a.columnStride, packedA,
                bBlock.address, b.type.rawValue, b.rowStride, b.columnStride, packedB,
                beta, cBlock.address, c.type.rawValue, c.rowStride, c.columnStride, workspace + worker * space)
        }
    }

    /// An operand of few lines as the kernels read it beside one of another type. `lines` is A, or the transpose of B,
    /// which makes strips.
    private func packed(
        _ lines: MatrixView, asStrips: Bool, with otherType: ScalarType, _ inFloat64: Bool
    ) throws(LowRankError) -> UnsafeMutableRawPointer {
        let pack = inFloat64 ? kernels.packFloat64 : kernels.packFloat32
        let blocks = (lines.columns + KernelTable.packedDepth - 1) / KernelTable.packedDepth
        let space = kernels.packedBytes(asStrips, lines.rows, inFloat64)
        let memory = try allocate(bytes: blocks * space)
        // Not worth a second thread below about 100 microseconds.
        parallelFor(blocks, threads: lines.rows * lines.columns < 1 << 18 ? 1 : threads) { block, _ in
            pack(
                asStrips, lines.rows, lines.columns, block, lines.address, lines.type.rawValue, otherType.rawValue,
                lines.rowStride, lines.columnStride, memory)
        }
        return memory
    }
}

/// How a product is computed, by shapes, strides and types alone.
private struct MultiplyPlan {
    /// Whether it is the transpose that is computed: `Cᵀ = Bᵀ Aᵀ`.
    var isTransposed = false
    /// The blocks of C that are the units of parallel work, and share one packed block of B.
    var blockRows = 240
    var blockColumns = 240

    init(_ a: MatrixView, _ b: MatrixView, _ c: MatrixView, lanes: Int, inPairs: Bool) {
        isTransposed =
            Self.cycles(b.transposed, a.transposed, c.transposed, lanes: lanes, inPairs: inPairs)
            < Self.cycles(a, b, c, lanes: lanes, inPairs: inPairs)
        let (rows, columns) = isTransposed ? (c.columns, c.rows) : (c.rows, c.columns)
        // A shallow block of B leaves room for longer lines of C.
        if a.columns <= 128 { blockColumns = a.columns <= 32 ? 2048 : a.columns <= 64 ? 1024 : 512 }
        // Work for several threads where there are few rows or columns.
        func blocks() -> Int { (rows + blockRows - 1) / blockRows * ((columns + blockColumns - 1) / blockColumns) }
        if rows <= blockRows {
            if a.columns > 128 { blockColumns = 192 }
            while blockColumns > 48 && blocks() < 16 { blockColumns /= 2 }
        } else {
            while blockRows > 60 && blocks() < 16 { blockRows /= 2 }
        }
        // Whole tiles, also of wide vectors.
        let width = 2 * lanes
        blockColumns = max(width, blockColumns / width * width)
    }

    /// Whether the kernel's tiles read the lines of A where they are: pairs, where none is half.
    static func readsLines(of a: MatrixView, for c: MatrixView, inPairs: Bool) -> Bool {
        a.columnStride == 1 && (inPairs ? (a.columns | a.rowStride) % 2 == 0 : a.type == c.type.computeType)
    }

    /// About how many cycles the kernel takes for `C = A B`.
    private static func cycles(
        _ a: MatrixView, _ b: MatrixView, _ c: MatrixView, lanes: Int, inPairs: Bool
    ) -> Double {
        // Measured per element with AVX2: copying along the lines, turning squares over in registers, single elements.
        let copied = 0.3
        let turned = 0.6
        let single = 1.5
        let (rows, columns, depth) = (Double(c.rows), Double(c.columns), Double(a.columns))
        let width = 2 * lanes
        let paddedRows = Double(max(4, (c.rows + 1) / 2 * 2))
        let paddedColumns = Double((c.columns + width - 1) / width * width)
        let sums = paddedRows * paddedColumns * depth / Double((inPairs ? 4 : 2) * lanes)
        let isRead = readsLines(of: a, for: c, inPairs: inPairs)
        let packA = isRead ? 0 : a.columnStride == 1 ? copied : a.rowStride == 1 ? turned : single
        let packB = b.columnStride == 1 ? copied : b.rowStride == 1 ? turned : single
        // A line of C at a time, or every element on a cache line of its own.
        let storeC = c.columnStride == 1 ? copied : 4 * single
        // Each block packs its own parts of A and B.
        let blocksOfA = c.rows <= 240 ? 1 : (columns / 240).rounded(.up)
        let blocksOfB = c.columns <= 240 ? 1 : (rows / 240).rounded(.up)
        return sums + packA * rows * depth * blocksOfA + packB * columns * depth * blocksOfB
            + storeC * rows * columns
    }
}
