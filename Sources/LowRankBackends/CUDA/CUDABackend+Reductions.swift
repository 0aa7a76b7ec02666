// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import CCUDA
import LowRankCore

// Each reduces to partial results of blocks whose number depends on the shape alone, then those in a fixed order.

extension CUDABackend {
    package func maxMagnitude(of source: MatrixView) -> Double { reduce(source, kind: LR_MAX_MAGNITUDE) }

    package func squaredNorm(of source: MatrixView) -> Double { reduce(source, kind: LR_SQUARED_NORM) }

    private func reduce(_ source: MatrixView, kind: Int) -> Double {
        if source.isEmpty { return 0 }
        return session.attempt(orElse: .nan) { () throws(LowRankError) in
            try withReduction(of: source, kind: kind) { (result) throws(LowRankError) in
                try readDoubles(result, count: 1)[0]
            }
        }
    }

    /// Runs the body with the address of a float64 on the device that will hold the reduction; nobody waits for it.
    func withReduction<Value>(
        of source: MatrixView, kind: Int, _ body: (UnsafeMutableRawPointer) throws(LowRankError) -> Value
    ) throws(LowRankError) -> Value {
        let source = source.runsAlongColumns ? source.transposed : source
        let blocks = reductionBlocks(of: source)
        return try session.withMemory(bytes: blocks * 8) { (partials) throws(LowRankError) in
            let first = lr_reduce_arguments(
                source: source.onDevice, partials: partials.cudaAddress, kind: Int32(kind), unused: 0)
            try session.launch(.reduce, first, blocks: (blocks, 1, 1))
            if blocks > 1 {
                let second = lr_reduce_partials_arguments(
                    partials: partials.cudaAddress, count: Int64(blocks), kind: Int32(kind), unused: 0)
                try session.launch(.reducePartials, second, blocks: (1, 1, 1))
            }
            return try body(partials)
        }
    }

    package func firstNonFinite(in source: MatrixView) -> (row: Int, column: Int)? {
        if source.isEmpty { return nil }
        let position = session.attempt(orElse: -1) { () throws(LowRankError) in try firstPositions(in: [source])[0] }
        return position < 0 ? nil : (position / source.columns, position % source.columns)
    }

    package func areFinite(_ views: [MatrixView]) -> Bool {
        let filled = views.filter { !$0.isEmpty }
        if filled.isEmpty { return true }
        return session.attempt(orElse: true) { () throws(LowRankError) in
            try firstPositions(in: filled).allSatisfy { $0 < 0 }
        }
    }

    /// The position, row * columns + column, of the first element of each view that is not finite; -1 for none.
    private func firstPositions(in views: [MatrixView]) throws(LowRankError) -> [Int] {
        let blocks = views.map(reductionBlocks)
        // What is read lies side by side, the partial results behind it.
        return try session.withMemory(bytes: (views.count + blocks.reduce(0, +)) * 8) { (memory) throws(LowRankError) in
            var partials = memory + views.count * 8
            for (i, view) in views.enumerated() {
                let isTransposed = view.runsAlongColumns
                let first = lr_find_non_finite_arguments(
                    source: (isTransposed ? view.transposed : view).onDevice, partials: partials.cudaAddress,
                    is_transposed: isTransposed ? 1 : 0, unused: 0)
                try session.launch(.findNonFinite, first, blocks: (blocks[i], 1, 1))
                let second = lr_first_of_partials_arguments(
                    partials: partials.cudaAddress, count: Int64(blocks[i]), result: (memory + i * 8).cudaAddress)
                try session.launch(.firstOfPartials, second, blocks: (1, 1, 1))
                partials += blocks[i] * 8
            }
            return try readDoubles(memory, count: views.count).map { Int(Int64(bitPattern: $0.bitPattern)) }
        }
    }

    private func reductionBlocks(of source: MatrixView) -> Int {
        let perBlock = Int(LR_THREADS) * 16
        return min((source.rows * source.columns + perBlock - 1) / perBlock, 1024)
    }

    package func writeColumnSigns(of matrix: MatrixView, to vector: MatrixView) {
        session.attempt(orElse: ()) { () throws(LowRankError) in
            if matrix.columns == 0 { return }
            let arguments = lr_column_signs_arguments(source: matrix.onDevice, target: vector.column.onDevice)
            try session.launch(.columnSigns, arguments, blocks: (matrix.columns, 1, 1))
        }
    }

    package func columnDots(_ a: MatrixView, _ b: MatrixView) -> [Double] {
        let nothing = [Double](repeating: .nan, count: a.columns)
        return session.attempt(orElse: nothing) { () throws(LowRankError) in
            if a.columns == 0 { return [] }
            return try session.withMemory(bytes: a.columns * 8) { (memory) throws(LowRankError) in
                let sums = MatrixView(
                    address: memory, type: .float64, rows: a.columns, columns: 1, rowStride: 1, columnStride: 1)
                try columnDots(a, b, scale: 1, into: sums)
                return try readDoubles(memory, count: a.columns)
            }
        }
    }

    package func columnDots(
        _ a: MatrixView, _ b: MatrixView, scale: Double, into target: MatrixView
    ) throws(LowRankError) {
        precondition(a.rows == b.rows && a.columns == b.columns, "shapes of a column product")
        if a.columns == 0 { return }
        // Without rows there is one chunk all the same, whose sums are zeros.
        let chunks = max(1, (a.rows + Int(LR_DOT_ROWS) - 1) / Int(LR_DOT_ROWS))
        let groups = (a.columns + Int(LR_DOT_COLUMNS) - 1) / Int(LR_DOT_COLUMNS)
        try session.withMemory(bytes: chunks * a.columns * 8) { (partials) throws(LowRankError) in
            let first = lr_column_dots_arguments(a: a.onDevice, b: b.onDevice, partials: partials.cudaAddress)
            try session.launch(.columnDots, first, blocks: (groups, chunks, 1))
            let second = lr_sum_chunks_arguments(
                target: target.column.onDevice, partials: partials.cudaAddress, chunks: Int64(chunks), alpha: scale)
            try session.launch(.sumChunks, second, elements: a.columns)
        }
    }
}
