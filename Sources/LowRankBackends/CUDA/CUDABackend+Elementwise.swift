// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import CCUDA
import LowRankCore

extension CUDABackend {
    package func copy(
        _ source: MatrixView, rowFactors: MatrixView?, columnFactors: MatrixView?, to target: MatrixView
    ) throws(LowRankError) {
        try combine(source, rowFactors: rowFactors, columnFactors: columnFactors, beta: 0, target, into: target)
    }

    package func accumulate(_ source: MatrixView, beta: Double, into target: MatrixView) throws(LowRankError) {
        try combine(source, rowFactors: nil, columnFactors: nil, beta: beta, target, into: target)
    }

    package func add(_ a: MatrixView, beta: Double, _ b: MatrixView, to target: MatrixView) throws(LowRankError) {
        try combine(a, rowFactors: nil, columnFactors: nil, beta: beta, b, into: target)
    }

    private func combine(
        _ source: MatrixView, rowFactors: MatrixView?, columnFactors: MatrixView?, beta: Double, _ other: MatrixView,
        into target: MatrixView
    ) throws(LowRankError) {
        precondition(source.rows == target.rows && source.columns == target.columns, "shapes of a copy")
        precondition(other.rows == target.rows && other.columns == target.columns, "shapes of a sum")
        if target.isEmpty { return try session.requireNoFailure() }
        // Neighbouring threads write neighbours in memory.
        if target.runsAlongColumns {
            return try combine(
                source.transposed, rowFactors: columnFactors, columnFactors: rowFactors, beta: beta, other.transposed,
                into: target.transposed)
        }
        let arguments = lr_combine_arguments(
            source: source.onDevice, row_factors: rowFactors?.column.onDevice ?? lr_view(),
            column_factors: columnFactors?.column.onDevice ?? lr_view(), other: other.onDevice, target: target.onDevice,
            beta: beta)
        try session.launch(.combine, arguments, elements: target.rows * target.columns)
    }

    package func gatherRows(
        _ indices: ArraySlice<Int>, of source: MatrixView, to target: MatrixView
    ) throws(LowRankError) {
        try moveRows(Array(indices), source, target, scatters: false)
    }

    package func scatterRows(
        _ source: MatrixView, to indices: [Int], of target: MatrixView
    ) throws(LowRankError) {
        try moveRows(indices, source, target, scatters: true)
    }

    /// The indices are part of the launch, a chunk at a time: no copy from the host that would have to be waited for.
    private func moveRows(
        _ indices: [Int], _ source: MatrixView, _ target: MatrixView, scatters: Bool
    ) throws(LowRankError) {
        if source.columns == 0 { return }
        let chunk = Int(LR_INDEX_CHUNK)
        for first in stride(from: 0, to: indices.count, by: chunk) {
            let rows = first..<min(first + chunk, indices.count)
            var arguments = lr_move_rows_arguments()
            arguments.source = (scatters ? source[rows: rows] : source).onDevice
            arguments.target = (scatters ? target : target[rows: rows]).onDevice
            arguments.count = Int32(rows.count)
            arguments.scatters = scatters ? 1 : 0
            withUnsafeMutableBytes(of: &arguments.indices) { bytes in
                let slots = bytes.bindMemory(to: Int64.self)
                for (i, row) in rows.enumerated() { slots[i] = Int64(indices[row]) }
            }
            try session.launch(.moveRows, arguments, elements: rows.count * source.columns)
        }
    }

    package func clear(_ target: MatrixView) {
        session.attempt(orElse: ()) { () throws(LowRankError) in
            if target.isEmpty { return }
            let lines = target.runsAlongColumns ? target.transposed : target
            try session.launch(
                .clear, lr_clear_arguments(target: lines.onDevice), elements: target.rows * target.columns)
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

    package func values(of vector: MatrixView) -> [Double] {
        let column = vector.column
        let count = column.rows
        return session.attempt(orElse: [Double](repeating: .nan, count: count)) { () throws(LowRankError) in
            if count == 0 { return [] }
            return try session.withMemory(bytes: count * 8) { (memory) throws(LowRankError) in
                let target = MatrixView(
                    address: memory, type: .float64, rows: count, columns: 1, rowStride: 1, columnStride: 1)
                try copy(column, to: target)
                return try readDoubles(memory, count: count)
            }
        }
    }

    package func rows(of matrix: MatrixView) -> [[Double]] {
        let (rows, columns) = (matrix.rows, matrix.columns)
        let nothing = [Double](repeating: .nan, count: rows * columns)
        let elements = session.attempt(orElse: nothing) { () throws(LowRankError) in
            if matrix.isEmpty { return [] }
            let compact = try makeMatrix(rows: rows, columns: columns, type: .float64, order: .rowMajor)
            try copy(matrix, to: compact.view)
            return try readDoubles(compact.view.address, count: rows * columns)
        }
        return (0..<rows).map { Array(elements[($0 * columns)..<(($0 + 1) * columns)]) }
    }

    package func setRows(_ rows: [[Double]], of matrix: MatrixView) {
        session.attempt(orElse: ()) { () throws(LowRankError) in
            if matrix.isEmpty { return }
            let compact = try makeMatrix(rows: matrix.rows, columns: matrix.columns, type: .float64, order: .rowMajor)
            let count = matrix.rows * matrix.columns
            let line = MatrixView(
                address: compact.view.address, type: .float64, rows: 1, columns: count, rowStride: count, columnStride: 1)
            setValues(Array(rows.joined()), of: line)
            try copy(compact.view, to: matrix)
        }
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
