// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import CCUDA
import LowRankCore

// Each reduces to partial results of blocks whose number depends on the shape alone, then those in a fixed order, on the host
// where that asks for the result.

extension CUDABackend {
    package func maxMagnitude(of source: MatrixView) -> Double { answers(to: [.largestMagnitude(source)])[0][0] }

    package func squaredNorm(of source: MatrixView) -> Double { reduced([(source, LR_SQUARED_NORM)])[0].reduce(0, +) }

    package func areFinite(_ views: [MatrixView]) -> Bool {
        answers(to: views.map { .isFinite($0) }).allSatisfy { $0 == [1] }
    }

    package func answers(to questions: [Question]) -> [[Double]] {
        let parts = reduced(
            questions.map { question in
                switch question {
                case .elements(let view): (view, LR_ELEMENTS)
                case .isFinite(let view), .largestMagnitude(let view): (view, LR_MAX_MAGNITUDE)
                case .largestColumnSquare(let view): (view, LR_LARGEST_COLUMN_SQUARE)
                }
            })
        return zip(questions, parts).map { question, parts in
            // Of a matrix without elements there are no parts.
            let largest = parts.allSatisfy(\.isFinite) ? parts.max() ?? 0 : .nan
            return switch question {
            case .elements: parts
            case .isFinite: [largest.isFinite ? 1 : 0]
            case .largestMagnitude, .largestColumnSquare: [largest]
            }
        }
    }

    /// What blocks of lr_reduce find, which the host has to put together: a number of each block, and of LR_ELEMENTS all.
    private func reduced(_ requests: [(source: MatrixView, kind: Int)]) -> [[Double]] {
        let counts = requests.map { source, kind in
            source.isEmpty ? 0 : kind == LR_ELEMENTS ? source.rows * source.columns : reductionBlocks(of: source, kind)
        }
        let total = counts.reduce(0, +)
        let nothing = counts.map { [Double](repeating: .nan, count: $0) }
        if total == 0 { return nothing }
        return session.attempt(orElse: nothing) { () throws(LowRankError) in
            try session.withMemory(bytes: total * 8) { (memory) throws(LowRankError) in
                var place = 0
                var pending: [(source: MatrixView, kind: Int, result: UnsafeMutableRawPointer)] = []
                for (request, count) in zip(requests, counts) where count > 0 {
                    pending.append((request.source, request.kind, memory + place * 8))
                    place += count
                }
                let most = Int(LR_REDUCTIONS)
                for first in stride(from: 0, to: pending.count, by: most) {
                    try reduce(pending[first..<min(first + most, pending.count)])
                }
                var rest = try readDoubles(memory, count: total)[...]
                return counts.map { count in
                    defer { rest = rest.dropFirst(count) }
                    return Array(rest.prefix(count))
                }
            }
        }
    }

    /// One launch for up to LR_REDUCTIONS requests, whose results are as many as their blocks.
    func reduce(
        _ requests: ArraySlice<(source: MatrixView, kind: Int, result: UnsafeMutableRawPointer)>
    ) throws(LowRankError) {
        var arguments = lr_reduce_arguments()
        let blocks = requests.map { reductionBlocks(of: $0.source, $0.kind) }
        func fill<Tuple, Element>(_ tuple: inout Tuple, _ elements: [Element]) {
            withUnsafeMutableBytes(of: &tuple) { bytes in
                for (i, element) in elements.enumerated() { bytes.bindMemory(to: Element.self)[i] = element }
            }
        }
        // Neighbouring threads read neighbours in memory.
        fill(&arguments.sources, requests.map { $0.kind < LR_LARGEST_COLUMN_SQUARE ? $0.source.lines.onDevice : $0.source.onDevice })
        fill(&arguments.results, requests.map { $0.result.cudaAddress })
        fill(&arguments.kinds, requests.map { Int32($0.kind) })
        fill(&arguments.blocks, blocks.map { Int32($0) })
        try session.launch(.reduce, arguments, blocks: (blocks.max() ?? 0, requests.count, 1))
    }

    /// Runs the body with the address of a float64 on the device that will hold the reduction; nobody waits for it.
    func withReduction<Value>(
        of source: MatrixView, kind: Int, _ body: (UnsafeMutableRawPointer) throws(LowRankError) -> Value
    ) throws(LowRankError) -> Value {
        let blocks = reductionBlocks(of: source, kind)
        return try session.withMemory(bytes: blocks * 8) { (partials) throws(LowRankError) in
            try reduce([(source, kind, partials)])
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
        let blocks = reductionBlocks(of: source, LR_MAX_MAGNITUDE)
        let first = session.attempt(orElse: nil) { () throws(LowRankError) in
            try session.withMemory(bytes: blocks * 8) { (partials) throws(LowRankError) in
                let arguments = lr_find_non_finite_arguments(
                    source: source.lines.onDevice, partials: partials.cudaAddress,
                    is_transposed: source.runsAlongColumns ? 1 : 0, unused: 0)
                try session.launch(.findNonFinite, arguments, blocks: (blocks, 1, 1))
                let found = try readDoubles(partials, count: blocks).map { Int(Int64(bitPattern: $0.bitPattern)) }
                return found.filter { $0 >= 0 }.min()
            }
        }
        return first.map { ($0 / source.columns, $0 % source.columns) }
    }

    func reductionBlocks(of source: MatrixView, _ kind: Int) -> Int {
        let threads = Int(LR_THREADS)
        let work = kind == LR_LARGEST_COLUMN_SQUARE ? source.columns : (source.lines.groups + 1) / 2
        return min((work + threads - 1) / threads, 1024)
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
