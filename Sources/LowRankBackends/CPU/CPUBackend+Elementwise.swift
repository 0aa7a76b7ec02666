// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import Glibc
import LowRankCore

extension CPUBackend {
    public func copy(
        _ source: MatrixView, rowFactors: MatrixView?, columnFactors: MatrixView?, to target: MatrixView
    ) throws(LowRankError) {
        try combine(source, rowFactors: rowFactors, columnFactors: columnFactors, beta: 0, into: target)
    }

    public func accumulate(_ source: MatrixView, beta: Double, into target: MatrixView) throws(LowRankError) {
        try combine(source, rowFactors: nil, columnFactors: nil, beta: beta, into: target)
    }

    /// `target = diag(rowFactors) source diag(columnFactors) + beta * target`.
    private func combine(
        _ source: MatrixView, rowFactors: MatrixView?, columnFactors: MatrixView?, beta: Double, into target: MatrixView
    ) throws(LowRankError) {
        precondition(source.rows == target.rows && source.columns == target.columns, "shapes of a copy")
        // Empty matrices may have a side as long as an integer can be, here and below.
        if target.isEmpty { return }
        // The inner loop runs along the target's lines.
        if target.columnStride != 1 && target.rowStride == 1 {
            return try combine(
                source.transposed, rowFactors: columnFactors, columnFactors: rowFactors, beta: beta,
                into: target.transposed)
        }
        let inFloat64 =
            source.type == .float64 || target.type == .float64 || rowFactors?.type == .float64
            || columnFactors?.type == .float64
        let type: ScalarType = inFloat64 ? .float64 : .float32
        let rowLine = try rowFactors.map { (view) throws(LowRankError) in try line(view, type: type) }
        defer { free(rowLine) }
        let columnLine = try columnFactors.map { (view) throws(LowRankError) in try line(view, type: type) }
        defer { free(columnLine) }

        // Blocks of some lines and of a part of their length, so that few long lines are work for several threads, too.
        let (blockRows, blockColumns) = (64, 1024)
        let rowBlocks = (source.rows + blockRows - 1) / blockRows
        let columnBlocks = (source.columns + blockColumns - 1) / blockColumns
        let isSmall = source.rows * source.columns < 1 << 15
        // A source that lies across the target's lines is read by cache lines: each serves the next lines, too. The plain
        // copy of such a one sees to that itself.
        let isPlain = rowFactors == nil && columnFactors == nil && beta == 0
        let chunk = source.columnStride == 1 || (isPlain && source.rowStride == 1) ? blockColumns : 16
        parallelFor(rowBlocks * columnBlocks, threads: isSmall ? 1 : threads) { block, _ in
            let first = block / columnBlocks * blockRows
            let left = block % columnBlocks * blockColumns
            let rows = first..<min(first + blockRows, source.rows)
            let right = min(left + blockColumns, source.columns)
            for start in stride(from: left, to: right, by: chunk) {
                let columns = start..<min(start + chunk, right)
                copyPart(
                    source[rows, columns], rowFactors: rowLine.map { $0 + first * type.size },
                    columnFactors: columnLine.map { $0 + start * type.size }, beta: beta, in: type,
                    to: target[rows, columns])
            }
        }
    }

    /// A vector's elements, contiguous and of the compute type. The caller frees them.
    private func line(_ vector: MatrixView, type: ScalarType) throws(LowRankError) -> UnsafeMutableRawPointer {
        let vector = vector.rows == 1 ? vector : vector.transposed
        let memory = try allocate(elements: vector.columns, type: type)
        let target = MatrixView(
            address: memory, type: type, rows: 1, columns: vector.columns, rowStride: vector.columns, columnStride: 1)
        do { try copy(vector, to: target) } catch {
            free(memory)
            throw error
        }
        return memory
    }

    public func gatherRows(
        _ indices: ArraySlice<Int>, of source: MatrixView, to target: MatrixView
    ) throws(LowRankError) {
        precondition(source.columns == target.columns && indices.count == target.rows, "shapes of a gathering copy")
        if target.isEmpty { return }
        let isSmall = target.rows * target.columns < 1 << 15
        parallelFor(target.rows, threads: isSmall ? 1 : threads) { row, _ in
            let index = indices[indices.startIndex + row]
            copyPlain(source[rows: index..<(index + 1)], to: target[rows: row..<(row + 1)])
        }
    }

    public func scatterRows(
        _ source: MatrixView, to indices: [Int], of target: MatrixView
    ) throws(LowRankError) {
        precondition(source.columns == target.columns && indices.count == source.rows, "shapes of a scattering copy")
        if source.isEmpty { return }
        // Lines that lie across the memory are turned over some at a time, in memory that stays in the cache.
        let blockRows = 32
        let blocks = (source.rows + blockRows - 1) / blockRows
        let workers = source.rows * source.columns < 1 << 15 ? 1 : min(threads, blocks)
        let isAcross = source.columnStride != 1
        let lineBytes = source.columns * source.type.size
        let workspace = try allocate(bytes: isAcross ? workers * blockRows * lineBytes : 0)
        defer { free(workspace) }
        parallelFor(blocks, threads: workers) { block, worker in
            let first = block * blockRows
            var lines = source[rows: first..<min(first + blockRows, source.rows)]
            if isAcross {
                let turned = MatrixView(
                    address: workspace + worker * blockRows * lineBytes, type: source.type, rows: lines.rows,
                    columns: lines.columns, rowStride: lines.columns, columnStride: 1)
                copyPlain(lines, to: turned)
                lines = turned
            }
            for i in 0..<lines.rows {
                copyPlain(lines[rows: i..<(i + 1)], to: target[rows: indices[first + i]..<(indices[first + i] + 1)])
            }
        }
    }

    /// `target = source` for a part of a matrix, on this thread.
    private func copyPlain(_ source: MatrixView, to target: MatrixView) {
        let inFloat64 = source.type == .float64 || target.type == .float64
        copyPart(
            source, rowFactors: nil, columnFactors: nil, beta: 0, in: inFloat64 ? .float64 : .float32, to: target)
    }

    /// The kernel of `combine` for a part of a matrix, on this thread; factors are contiguous and of the compute type.
    func copyPart(
        _ source: MatrixView, rowFactors: UnsafeMutableRawPointer?, columnFactors: UnsafeMutableRawPointer?,
        beta: Double, in type: ScalarType, to target: MatrixView
    ) {
        if type == .float64 {
            kernels.copyScaledFloat64(
                source.rows, source.columns, source.address, source.type.rawValue, source.rowStride, source.columnStride,
                rowFactors.map { UnsafePointer($0.assumingMemoryBound(to: Double.self)) },
                columnFactors.map { UnsafePointer($0.assumingMemoryBound(to: Double.self)) }, beta,
                target.address, target.type.rawValue, target.rowStride, target.columnStride)
        } else {
            kernels.copyScaledFloat32(
                source.rows, source.columns, source.address, source.type.rawValue, source.rowStride, source.columnStride,
                rowFactors.map { UnsafePointer($0.assumingMemoryBound(to: Float.self)) },
                columnFactors.map { UnsafePointer($0.assumingMemoryBound(to: Float.self)) }, beta,
                target.address, target.type.rawValue, target.rowStride, target.columnStride)
        }
    }

    public func clear(_ target: MatrixView) {
        if target.isEmpty { return }
        // All storage types write zero as zero bits.
        let target = inMemoryOrder(target)
        let size = target.type.size
        for i in 0..<target.rows {
            let line = target.address + i * target.rowStride * size
            if target.columnStride == 1 {
                memset(line, 0, target.columns * size)
            } else {
                for j in 0..<target.columns { memset(line + j * target.columnStride * size, 0, size) }
            }
        }
    }

    public func fillUniform(_ target: MatrixView, from stream: RandomStream) {
        for i in 0..<target.rows {
            let numbers = (0..<target.columns).map { stream.uniform(i * target.columns + $0) }
            setValues(numbers, of: target[rows: i..<(i + 1)])
        }
    }

    public func values(of vector: MatrixView) -> [Double] {
        let vector = vector.rows == 1 ? vector : vector.transposed
        return [Double](unsafeUninitializedCapacity: vector.columns) { buffer, count in
            count = vector.columns
            guard let target = buffer.baseAddress else { return }
            kernels.copyScaledFloat64(
                1, count, vector.address, vector.type.rawValue, vector.rowStride, vector.columnStride, nil, nil, 0,
                target, ScalarType.float64.rawValue, count, 1)
        }
    }

    public func setIndices(_ indices: [Int], of vector: MatrixView) {
        let stride = 8 * (vector.columns == 1 ? vector.rowStride : vector.columnStride)
        for (i, index) in indices.enumerated() {
            vector.address.storeBytes(of: Int64(index), toByteOffset: i * stride, as: Int64.self)
        }
    }

    public func setValues(_ values: [Double], of vector: MatrixView) {
        let vector = vector.rows == 1 ? vector : vector.transposed
        precondition(values.count == vector.columns, "length of a vector")
        values.withUnsafeBufferPointer { buffer in
            guard let source = buffer.baseAddress else { return }
            kernels.copyScaledFloat64(
                1, values.count, source, ScalarType.float64.rawValue, values.count, 1, nil, nil, 0,
                vector.address, vector.type.rawValue, vector.rowStride, vector.columnStride)
        }
    }

    public func maxMagnitude(of source: MatrixView) -> Double {
        if source.isEmpty { return 0 }
        let source = inMemoryOrder(source)
        return kernels.maxMagnitude(
            source.rows, source.columns, source.address, source.type.rawValue, source.rowStride, source.columnStride)
    }

    public func firstNonFinite(in source: MatrixView) -> (row: Int, column: Int)? {
        if source.isEmpty { return nil }
        // Along the memory first, which is far quicker where the lines are columns; most matrices are finite.
        if firstNonFinitePosition(in: inMemoryOrder(source)) < 0 { return nil }
        let position = firstNonFinitePosition(in: source)
        return (position / source.columns, position % source.columns)
    }

    private func firstNonFinitePosition(in source: MatrixView) -> Int {
        kernels.firstNonFinite(
            source.rows, source.columns, source.address, source.type.rawValue, source.rowStride, source.columnStride)
    }

    public func columnDots(_ a: MatrixView, _ b: MatrixView) -> [Double] {
        precondition(a.rows == b.rows && a.columns == b.columns, "shapes of a column product")
        var sums = [Double](repeating: 0, count: a.columns)
        if a.isEmpty { return sums }
        sums.withUnsafeMutableBufferPointer { buffer in
            guard let target = buffer.baseAddress else { return }
            kernels.columnDots(
                a.rows, a.columns, a.address, a.type.rawValue, a.rowStride, a.columnStride,
                b.address, b.type.rawValue, b.rowStride, b.columnStride, target)
        }
        return sums
    }

    public func squaredNorm(of source: MatrixView) -> Double {
        if source.isEmpty { return 0 }
        let source = inMemoryOrder(source)
        let blockRows = max(1, (1 << 16) / source.columns)
        let blocks = (source.rows + blockRows - 1) / blockRows
        return withUnsafeTemporaryAllocation(of: Double.self, capacity: blocks) { sums in
            parallelFor(blocks, threads: blocks == 1 ? 1 : threads) { block, _ in
                let first = block * blockRows
                let rows = source[rows: first..<min(first + blockRows, source.rows)]
                sums[block] = columnDots(rows, rows).reduce(0, +)
            }
            return sums.reduce(0, +)
        }
    }

    /// The view or its transpose, whichever has the shorter steps along its lines.
    private func inMemoryOrder(_ view: MatrixView) -> MatrixView {
        abs(view.columnStride) <= abs(view.rowStride) ? view : view.transposed
    }
}
