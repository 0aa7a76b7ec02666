// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import CCUDA
import LowRankCore

extension CUDABackend {
    package func factorLU(_ panel: Matrix) throws(LowRankError) -> [Int] {
        let source = try makeMatrix(rows: panel.rows, columns: panel.columns, type: panel.view.type, order: .columnMajor)
        try copy(panel.view, to: source.view)
        return try factorLU(of: source.view, into: panel).permutation
    }

    /// In parts of some columns, after each of which the rows are put into order and what is right of it is a product.
    package func factorLU(of source: MatrixView, into panel: Matrix) throws(LowRankError) -> PanelLU {
        let (m, n) = (source.rows, source.columns)
        precondition(m >= n && panel.rows == m && panel.columns == n, "shapes of an LU panel")
        guard Int32(exactly: m) != nil else {
            throw .invalidShape(argument: "weight", expected: "dimensions below 2^31", got: "\(m)")
        }
        // What the host reads: pivots, diagonal and the largest magnitudes of blocks.
        let count = 2 * n + reductionBlocks(of: source, LR_MAX_MAGNITUDE)
        let facts = try makeMatrix(rows: count, columns: 1, type: .float64, order: .columnMajor).view
        try reduce([(source, LR_MAX_MAGNITUDE, facts.address + 2 * n * 8)])
        var now = try makeMatrix(rows: m, columns: n, type: panel.view.type, order: .columnMajor).view
        var next = panel.view
        let width = 64
        if n > width { try copy(source, to: now) }
        for first in stride(from: 0, to: n, by: width) {
            let end = min(first + width, n)
            let part = now[first..<m, first..<end]
            let places = try eliminateColumns(
                of: n > width ? part : source, in: part, pivots: facts.address + first * 8,
                diagonal: facts.address + (n + first) * 8)
            try copy(now[rows: 0..<first], to: next[rows: 0..<first])
            let rows = now[rows: first..<m]
            let placing = lr_place_rows_arguments(
                source: rows.onDevice, target: next[rows: first..<m].onDevice, places: places.address.cudaAddress)
            try session.launch(.placeRows, placing, elements: rows.rows * n)
            (now, next) = (next, now)
            if end == n { break }
            let right = try makeMatrix(rows: end - first, columns: n - end, type: now.type, order: .rowMajor).view
            try copy(now[first..<end, end..<n], to: right)
            try solveUnitLower(now[first..<m, first..<end], right)
            try copy(right, to: now[first..<end, end..<n])
            try multiply(alpha: -1, now[end..<m, first..<end], right, beta: 1, into: now[end..<m, end..<n])
        }
        if now.address != panel.view.address { try copy(now, to: panel.view) }
        let found = try readDoubles(facts.address, count: count)
        let magnitudes = found[(2 * n)...]
        return PanelLU(
            permutation: try permutation(Array(found[..<n]), rows: m, width: width), diagonal: Array(found[n..<(2 * n)]),
            largest: magnitudes.allSatisfy(\.isFinite) ? magnitudes.max() ?? 0 : .nan)
    }

    /// In a launch for each column, which is what it takes to compare the rows of all blocks, and one more. The rows stay where
    /// they are.
    ///
    /// - Parameters:
    ///   - pivots: Receives a float64 for each column: the place of its pivot row before the exchange.
    ///   - diagonal: Likewise, of U.
    /// - Returns: The rows' places, as int32 numbers.
    private func eliminateColumns(
        of source: MatrixView, in part: MatrixView, pivots: UnsafeMutableRawPointer, diagonal: UnsafeMutableRawPointer
    ) throws(LowRankError) -> MatrixView {
        let blocks = (part.rows + Int(LR_LU_ROWS) - 1) / Int(LR_LU_ROWS)
        func numbers(bytes: Int) throws(LowRankError) -> MatrixView {
            try makeMatrix(rows: (bytes + 7) / 8, columns: 1, type: .float64, order: .columnMajor).view
        }
        let (places, size) = (try numbers(bytes: part.rows * 4), blocks * MemoryLayout<lr_lu_candidate>.stride)
        let candidates = [try numbers(bytes: size), try numbers(bytes: size)]
        var arguments = lr_lu_column_arguments()
        (arguments.source, arguments.panel, arguments.places) = (source.onDevice, part.onDevice, places.address.cudaAddress)
        (arguments.pivots, arguments.diagonal) = (pivots.cudaAddress, diagonal.cudaAddress)
        for column in -1..<part.columns {
            arguments.column = Int32(column)
            arguments.candidates = candidates[column & 1].address.cudaAddress
            arguments.next_candidates = candidates[~column & 1].address.cudaAddress
            try session.launch(.luColumn, arguments, blocks: (blocks, 1, 1))
        }
        return places
    }

    /// What the pivots of parts of some columns, each from its part's first row on, make of the rows' order.
    private func permutation(_ pivots: [Double], rows: Int, width: Int) throws(LowRankError) -> [Int] {
        var permutation = Array(0..<rows)
        for (i, pivot) in pivots.enumerated() {
            guard let place = Int(exactly: pivot + Double(i - i % width)), (i..<rows).contains(place) else {
                throw .internal("an LU gave the pivot \(pivot)")
            }
            permutation.swapAt(i, place)
        }
        return permutation
    }
}
