// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankBackends
import LowRankCore
import TestSupport
import Testing

@Suite struct CPUBackendElementwiseTests {
    /// Below and above the size from which several threads work, and not a multiple of a thread's rows.
    private static let shapes = [(1, 1), (5, 11), (130, 300)]

    @Test(arguments: KernelTable.available, ScalarType.allCases)
    func copyScalesRowsAndColumns(table: KernelTable, type: ScalarType) throws {
        let backend = CPUBackend(kernels: table, threads: 2)
        for (rows, columns) in Self.shapes {
            for layout in [Layout.rowMajor, .columnMajor, .strided] {
                let source = TestMatrix(.integers(rows, columns, seed: 1), type, layout)
                // One factor a column vector, the other a row; both strided.
                let rowFactors = TestMatrix(.integers(rows, 1, seed: 2), type, .strided)
                let columnFactors = TestMatrix(.integers(1, columns, seed: 3), .float32, .reversed)
                let target = TestMatrix(undefined: rows, columns, type, .columnMajor)
                try backend.copy(
                    source.view, rowFactors: rowFactors.view, columnFactors: columnFactors.view, to: target.view)
                let expected = source.values.scalingRows(by: rowFactors.values.values)
                    .scalingColumns(by: columnFactors.values.values)
                let label = "\(table.name) \(type) \(rows)x\(columns) \(layout)"
                expectEqual(target.values, expected, label)
                try backend.copy(source.view, to: target.view)
                expectEqual(target.values, source.values, "\(label), no factors")
                expectIntactGuard(source, target, rowFactors, columnFactors, label: label)
            }
        }
    }

    @Test(arguments: KernelTable.available)
    func copyIsComputedInFloat64WhereOneViewIs(table: KernelTable) throws {
        let backend = CPUBackend(kernels: table, threads: 1)
        let source = TestMatrix(RealMatrix(1, 1, repeating: 3))
        let third = TestMatrix(RealMatrix(1, 1, repeating: 1.0 / 3), .float64)
        let target = TestMatrix(undefined: 1, 1)
        try backend.copy(source.view, rowFactors: third.view, columnFactors: nil, to: target.view)
        // float32's third is larger than a third: three of them round to 1 + 2^-23 or to 1, by way of float64 to 1.
        #expect(target.values[0, 0] == 1)
        let wide = TestMatrix(undefined: 1, 1, .float64)
        try backend.copy(source.view, rowFactors: third.view, columnFactors: third.view, to: wide.view)
        #expect(wide.values[0, 0] == 3 * ((1.0 / 3) * (1.0 / 3)))
    }

    @Test(arguments: KernelTable.available, ScalarType.allCases)
    func accumulateAddsAndCancels(table: KernelTable, type: ScalarType) throws {
        let backend = CPUBackend(kernels: table, threads: 2)
        for (rows, columns) in Self.shapes {
            let source = TestMatrix(.gaussian(rows, columns, seed: 4), type, .columnMajor)
            let target = TestMatrix(.integers(rows, columns, seed: 5), type, .paddedRows)
            let integers = TestMatrix(.integers(rows, columns, seed: 6), .float32)
            let old = target.values
            let label = "\(table.name) \(type) \(rows)x\(columns)"
            try backend.accumulate(integers.view, beta: 0.5, into: target.view)
            expectEqual(target.values, integers.values + 0.5 * old, label)
            try backend.copy(source.view, to: target.view)
            try backend.accumulate(source.view, beta: -1, into: target.view)
            expectEqual(target.values, RealMatrix(rows, columns, repeating: 0), "\(label): x - x")
            expectIntactGuard(target, label: label)
        }
    }

    @Test(arguments: KernelTable.available)
    func bitsDoNotDependOnThreads(table: KernelTable) throws {
        let source = TestMatrix(.gaussian(300, 200, seed: 7))
        let factors = TestMatrix(.gaussian(300, 1, seed: 8))
        let results = try threadCounts.map { threads in
            let backend = CPUBackend(kernels: table, threads: threads)
            let target = TestMatrix(undefined: 300, 200, .bfloat16)
            try backend.copy(source.view, rowFactors: factors.view, columnFactors: nil, to: target.view)
            try backend.accumulate(source.view, beta: 0.3, into: target.view)
            return target.bits
        }
        expectSameBits(results, cases: threadCounts.map { "\($0) threads" }, "\(table.name)")
    }

    @Test(arguments: KernelTable.available, ScalarType.allCases)
    func rowsAreGatheredAndScattered(table: KernelTable, type: ScalarType) throws {
        let backend = CPUBackend(kernels: table, threads: 1)
        let source = TestMatrix(.integers(6, 9, seed: 9), type, .columnMajor)
        let indices = [5, 0, 3, 3]
        let gathered = TestMatrix(undefined: 4, 9, .float64, .strided)
        try backend.gatherRows(indices[...], of: source.view, to: gathered.view)
        expectEqual(gathered.values, source.values.gatheringRows(indices), "\(table.name) \(type)")
        // A slice's indices do not begin at 0.
        try backend.gatherRows(indices[1..<3], of: source.view, to: gathered.view[rows: 0..<2])
        expectEqual(gathered.values.rows(0..<2), source.values.gatheringRows([0, 3]), "\(table.name) \(type), slice")

        let permutation = [2, 5, 0, 1, 4, 3]
        let scattered = TestMatrix(undefined: 6, 9, type, .paddedRows)
        try backend.scatterRows(source.view, to: permutation, of: scattered.view)
        expectEqual(scattered.values.gatheringRows(permutation), source.values, "\(table.name) \(type), scattered")
        expectIntactGuard(source, gathered, scattered, label: "\(table.name) \(type)")
    }

    @Test(arguments: ScalarType.allCases, Layout.allCases)
    func clearWritesZerosAndNothingElse(type: ScalarType, layout: Layout) {
        for (rows, columns) in [(0, 3), (1, 1), (4, 7)] {
            let matrix = TestMatrix(undefined: rows, columns, type, layout)
            CPUBackend.shared.clear(matrix.view)
            #expect(matrix.bits.allSatisfy { $0 == 0 })
            expectIntactGuard(matrix, label: "\(type) \(layout)")
        }
        let matrix = TestMatrix(.integers(5, 6, seed: 1), type, layout)
        CPUBackend.shared.clear(matrix.view[1..<3, 2..<5])
        let expected = RealMatrix(5, 6) { (1..<3).contains($0) && (2..<5).contains($1) ? 0 : matrix.values[$0, $1] }
        expectEqual(matrix.values, expected, "\(type) \(layout), block")
    }

    @Test(arguments: KernelTable.available, ScalarType.allCases)
    func uniformNumbersFollowTheStream(table: KernelTable, type: ScalarType) {
        let backend = CPUBackend(kernels: table, threads: 2)
        let stream = RandomStream(seed: 42)
        let expected = RealMatrix(7, 11) { stream.uniform($0 * 11 + $1) }
        for layout in Layout.allCases {
            let matrix = TestMatrix(undefined: 7, 11, type, layout)
            backend.fillUniform(matrix.view, from: stream)
            // The uniform numbers have 53 bits; 16-bit types get them by way of float32.
            let once = type.size == 2 ? expected.rounded(to: .float32) : expected
            expectEqual(matrix.values, once.rounded(to: type), "\(table.name) \(type) \(layout)")
            expectIntactGuard(matrix, label: "\(type) \(layout)")
        }
    }

    @Test(arguments: KernelTable.available, ScalarType.allCases)
    func vectorsAreReadAndWritten(table: KernelTable, type: ScalarType) {
        let backend = CPUBackend(kernels: table, threads: 1)
        for layout in Layout.allCases {
            for (rows, columns) in [(1, 9), (9, 1), (1, 1), (0, 1), (1, 0)] {
                let numbers = RealMatrix.integers(rows, columns, seed: 3)
                let vector = TestMatrix(undefined: rows, columns, type, layout)
                backend.setValues(numbers.values, of: vector.view)
                expectEqual(vector.values, numbers, "\(table.name) \(type) \(layout)")
                #expect(backend.values(of: vector.view) == numbers.values)
                expectIntactGuard(vector, label: "\(type) \(layout)")
            }
        }
        let matrix = TestMatrix(.integers(4, 6, seed: 4), type, .strided)
        #expect(backend.values(of: matrix.view.diagonal) == matrix.values.diagonal)
        backend.setValues([1, 2, 3, 4], of: matrix.view.diagonal)
        #expect(matrix.values.diagonal == [1, 2, 3, 4])
    }

    @Test(arguments: KernelTable.available, Layout.allCases)
    func reductionsKnowAllLayouts(table: KernelTable, layout: Layout) {
        let backend = CPUBackend(kernels: table, threads: 2)
        var numbers = RealMatrix.integers(6, 13, seed: 5)
        numbers[4, 2] = -9
        let matrix = TestMatrix(numbers, .float32, layout)
        #expect(backend.maxMagnitude(of: matrix.view) == 9)
        #expect(backend.firstNonFinite(in: matrix.view) == nil)
        #expect(backend.columnDots(matrix.view, matrix.view) == (numbers.transposed * numbers).diagonal)
        numbers[5, 0] = .nan
        numbers[3, 12] = .infinity
        matrix.values = numbers
        #expect(backend.maxMagnitude(of: matrix.view).isNaN)
        let found = backend.firstNonFinite(in: matrix.view)
        #expect(found?.row == 3 && found?.column == 12)
    }
}
