// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import CCUDA
import LowRankCore

extension CUDABackend {
    package func copy(
        _ source: MatrixView, rowFactors: MatrixView?, columnFactors: MatrixView?, to target: MatrixView
    ) throws(LowRankError) {
        try combine([Combination(MatrixSum(source, to: target), rowFactors: rowFactors, columnFactors: columnFactors)])
    }

    package func accumulate(_ source: MatrixView, beta: Double, into target: MatrixView) throws(LowRankError) {
        try add(source, beta: beta, target, to: target)
    }

    package func add(_ a: MatrixView, beta: Double, _ b: MatrixView, to target: MatrixView) throws(LowRankError) {
        try add([MatrixSum(a, beta: beta, b, to: target)])
    }

    package func add(_ sums: [MatrixSum]) throws(LowRankError) { try combine(sums.map { Combination($0) }) }

    /// In one launch, or one for each LR_COMBINATIONS.
    private func combine(_ combinations: [Combination]) throws(LowRankError) {
        for combination in combinations { combination.requireShapes() }
        let combinations = combinations.filter { !$0.sum.target.isEmpty }
        if combinations.isEmpty { return try session.requireNoFailure() }
        for first in stride(from: 0, to: combinations.count, by: Int(LR_COMBINATIONS)) {
            let layers = combinations[first..<min(first + Int(LR_COMBINATIONS), combinations.count)]
            var arguments = lr_combine_arguments()
            withUnsafeMutableBytes(of: &arguments.parts) { parts in
                for (i, layer) in layers.enumerated() { parts.bindMemory(to: lr_combination.self)[i] = layer.lines.onDevice }
            }
            let groups = layers.map(\.sum.target.lines.groups).max() ?? 0
            try session.launch(.combine, arguments, elements: groups, layers: layers.count)
        }
    }

    package func gatherRows(
        _ indices: ArraySlice<Int>, of source: MatrixView, to target: MatrixView
    ) throws(LowRankError) {
        try moveRows(indices.enumerated().map { ($1, $0) }, source, target)
    }

    package func scatterRows(
        _ source: MatrixView, to indices: [Int], of target: MatrixView
    ) throws(LowRankError) {
        let moves = indices.enumerated().map { ($0, $1) }
        // Of a permutation that moves few rows, all rows are copied first to where they are.
        let moved = moves.filter { $0 != $1 }
        guard moved.count <= indices.count / 2, Set(moved.map(\.0)) == Set(moved.map(\.1)) else {
            return try moveRows(moves, source, target)
        }
        try copy(source[rows: 0..<indices.count], to: target[rows: 0..<indices.count])
        try moveRows(moved, source, target)
    }

    /// The indices are part of the launch, a chunk at a time: no copy from the host that would have to be waited for.
    private func moveRows(
        _ moves: [(from: Int, to: Int)], _ source: MatrixView, _ target: MatrixView
    ) throws(LowRankError) {
        if source.columns == 0 { return }
        guard let rows = Int32(exactly: max(source.rows, target.rows)) else {
            throw .invalidShape(argument: "weight", expected: "dimensions below 2^31", got: "\(max(source.rows, target.rows))")
        }
        precondition(moves.allSatisfy { 0..<rows ~= Int32($0.from) && 0..<rows ~= Int32($0.to) }, "rows of a matrix")
        let chunk = Int(LR_INDEX_CHUNK)
        for first in stride(from: 0, to: moves.count, by: chunk) {
            let part = moves[first..<min(first + chunk, moves.count)]
            var arguments = lr_move_rows_arguments()
            (arguments.source, arguments.target, arguments.count) = (source.onDevice, target.onDevice, Int32(part.count))
            withUnsafeMutableBytes(of: &arguments.from) { from in
                withUnsafeMutableBytes(of: &arguments.to) { to in
                    for (i, move) in part.enumerated() {
                        from.bindMemory(to: Int32.self)[i] = Int32(move.from)
                        to.bindMemory(to: Int32.self)[i] = Int32(move.to)
                    }
                }
            }
            try session.launch(.moveRows, arguments, elements: part.count * target[rows: 0..<1].groups)
        }
    }

    package func clear(_ target: MatrixView) {
        session.attempt(orElse: ()) { () throws(LowRankError) in
            if target.isEmpty { return }
            let lines = target.runsAlongColumns ? target.transposed : target
            try session.launch(
                .clear, lr_clear_arguments(target: lines.onDevice), elements: lines.groups)
        }
    }

    package func makeUnitLower(_ target: MatrixView) {
        session.attempt(orElse: ()) { () throws(LowRankError) in
            if target.isEmpty { return }
            let part = target[rows: 0..<target.maxRank]
            try session.launch(.unitLower, lr_unit_lower_arguments(target: part.onDevice), elements: part.rows * part.columns)
        }
    }

    package func fillUniform(_ target: MatrixView, from stream: RandomStream) {
        session.attempt(orElse: ()) { () throws(LowRankError) in
            if target.isEmpty { return }
            let arguments = lr_fill_uniform_arguments(target: target.onDevice, key: stream.key)
            try session.launch(.fillUniform, arguments, elements: target.rows * target.columns)
        }
    }

    package func values(of vector: MatrixView) -> [Double] { answers(to: [.elements(vector)])[0] }

    package func rows(of matrix: MatrixView) -> [[Double]] {
        let elements = values(of: matrix)
        return (0..<matrix.rows).map { Array(elements[($0 * matrix.columns)..<(($0 + 1) * matrix.columns)]) }
    }

    package func setRows(_ rows: [[Double]], of matrix: MatrixView) {
        if matrix.columnStride != 1 || matrix.rowStride != matrix.columns {
            for (i, row) in rows.enumerated() { setValues(row, of: matrix[rows: i..<(i + 1)]) }
            return
        }
        // Without gaps a matrix is one row.
        let count = matrix.rows * matrix.columns
        let line = MatrixView(
            address: matrix.address, type: matrix.type, rows: 1, columns: count, rowStride: count, columnStride: 1)
        setValues(rows.flatMap(\.self), of: line)
    }

    /// Waits for float64 numbers that the device has.
    func readDoubles(_ memory: UnsafeMutableRawPointer, count: Int) throws(LowRankError) -> [Double] {
        var result = [Double](repeating: 0, count: count)
        var failure: LowRankError?
        result.withUnsafeMutableBytes { bytes in
            guard let target = bytes.baseAddress else { return }
            do throws(LowRankError) { try session.read(memory, to: target, bytes: bytes.count) } catch { failure = error }
        }
        if let failure { throw failure }
        return result
    }

    package func setIndices(_ indices: [Int], of vector: MatrixView) throws(LowRankError) {
        let numbers = indices.map { Int64($0) }
        try session.withMemory(bytes: numbers.count * 8) { (memory) throws(LowRankError) in
            try session.write(numbers, to: memory, bytes: numbers.count * 8)
            let source = MatrixView(
                address: memory, type: .float64, rows: numbers.count, columns: 1, rowStride: 1, columnStride: 1)
            // Numbers that are only loaded and stored keep their bits.
            try copy(source, to: vector.column)
        }
    }

    /// The values are part of the launch, a chunk at a time.
    package func setValues(_ values: [Double], of vector: MatrixView) {
        let column = vector.column
        precondition(values.count == column.rows, "length of a vector")
        session.attempt(orElse: ()) { () throws(LowRankError) in
            let chunk = Int(LR_VALUE_CHUNK)
            for first in stride(from: 0, to: values.count, by: chunk) {
                let count = min(chunk, values.count - first)
                var arguments = lr_set_values_arguments()
                arguments.target = column.onDevice
                arguments.first = Int64(first)
                arguments.count = Int32(count)
                withUnsafeMutableBytes(of: &arguments.values) { bytes in
                    let slots = bytes.bindMemory(to: Double.self)
                    for i in 0..<count { slots[i] = values[first + i] }
                }
                try session.launch(.setValues, arguments, elements: count)
            }
        }
    }
}

/// `target = diag(rowFactors) a diag(columnFactors) + beta * b`.
private struct Combination {
    let sum: MatrixSum
    let rowFactors: MatrixView?
    let columnFactors: MatrixView?

    init(_ sum: MatrixSum, rowFactors: MatrixView? = nil, columnFactors: MatrixView? = nil) {
        (self.sum, self.rowFactors, self.columnFactors) = (sum, rowFactors, columnFactors)
    }

    func requireShapes() {
        for view in [sum.a, sum.b ?? sum.a] {
            precondition(view.rows == sum.target.rows && view.columns == sum.target.columns, "shapes of a sum")
        }
    }

    /// The same, so that neighbouring threads write neighbours in memory.
    var lines: Self {
        sum.target.runsAlongColumns
            ? Self(sum.transposed, rowFactors: columnFactors, columnFactors: rowFactors) : self
    }

    var onDevice: lr_combination {
        lr_combination(
            source: sum.a.onDevice, row_factors: rowFactors?.column.onDevice ?? lr_view(),
            column_factors: columnFactors?.column.transposed.onDevice ?? lr_view(), other: sum.b?.onDevice ?? lr_view(),
            target: sum.target.onDevice, beta: sum.b == nil ? 0 : sum.beta)
    }
}
