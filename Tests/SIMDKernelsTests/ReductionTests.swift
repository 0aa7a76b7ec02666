// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankBackends
import LowRankCore
import TestSupport
import Testing

@Suite struct ReductionTests {
    private static let shapes = [(1, 1), (1, 7), (3, 8), (2, 9), (5, 17), (17, 1), (4, 34)]
    private static let nonFinite = [Double.nan, .infinity, -.infinity]

    @Test(arguments: KernelTable.available, ScalarType.allCases)
    func maxMagnitudeIsTheLargest(table: KernelTable, type: ScalarType) {
        for (rows, columns) in Self.shapes {
            for layout in Layout.allCases {
                for (i, j) in [(0, 0), (rows - 1, columns - 1), (rows / 2, columns / 2)] {
                    var numbers = RealMatrix.integers(rows, columns, seed: 1)
                    numbers[i, j] = -7
                    let label = "\(table.name) \(type) \(rows)x\(columns) \(layout) [\(i), \(j)]"
                    #expect(table.maxMagnitude(of: TestMatrix(numbers, type, layout)) == 7, "\(label)")
                    for value in Self.nonFinite {
                        numbers[i, j] = value
                        #expect(table.maxMagnitude(of: TestMatrix(numbers, type, layout)).isNaN, "\(label) \(value)")
                    }
                }
            }
        }
    }

    @Test(arguments: KernelTable.available, ScalarType.allCases)
    func largestFiniteNumberIsFinite(table: KernelTable, type: ScalarType) {
        let largest = type.value(of: type.bits(of: .infinity) - 1)
        let matrix = TestMatrix(RealMatrix(3, 17, repeating: -largest), type)
        #expect(table.maxMagnitude(of: matrix) == largest)
        #expect(table.firstNonFinite(in: matrix) == -1)
    }

    @Test(arguments: KernelTable.available, ScalarType.allCases)
    func reductionsOfNothing(table: KernelTable, type: ScalarType) {
        for (rows, columns) in [(0, 0), (0, 5), (5, 0)] {
            let empty = TestMatrix(RealMatrix(rows, columns, repeating: 0), type)
            #expect(table.maxMagnitude(of: empty) == 0)
            #expect(table.firstNonFinite(in: empty) == -1)
            var sums = [Double](repeating: 3, count: columns)
            table.addColumnDots(empty, empty, to: &sums)
            #expect(sums == [Double](repeating: 3, count: columns))
        }
    }

    @Test(arguments: KernelTable.available, ScalarType.allCases)
    func firstNonFiniteIsFoundAnywhere(table: KernelTable, type: ScalarType) {
        for (rows, columns) in Self.shapes {
            for layout in [Layout.rowMajor, .columnMajor, .reversed] {
                let numbers = RealMatrix.integers(rows, columns, seed: 2)
                let matrix = TestMatrix(numbers, type, layout)
                #expect(table.firstNonFinite(in: matrix) == -1)
                let positions = 0..<(rows * columns)
                for value in Self.nonFinite {
                    let found = positions.map { position in
                        matrix.setBits(type.bits(of: value), position / columns, position % columns)
                        defer { matrix.setBits(0, position / columns, position % columns) }
                        return table.firstNonFinite(in: matrix)
                    }
                    #expect(found == Array(positions), "\(table.name) \(type) \(rows)x\(columns) \(layout) \(value)")
                }
            }
        }
    }

    @Test(arguments: KernelTable.available, ScalarType.allCases)
    func firstOfSeveralIsFirstInRowOrder(table: KernelTable, type: ScalarType) {
        for layout in Layout.allCases {
            var numbers = RealMatrix.integers(4, 19, seed: 3)
            numbers[3, 0] = .nan
            numbers[1, 17] = .infinity
            numbers[1, 18] = .nan
            numbers[2, 2] = -.infinity
            #expect(table.firstNonFinite(in: TestMatrix(numbers, type, layout)) == 19 + 17, "\(table.name) \(layout)")
        }
    }

    @Test(arguments: KernelTable.available, ScalarType.allCases)
    func columnDotsAreAdded(table: KernelTable, type: ScalarType) {
        for other in ScalarType.allCases {
            for (rows, columns) in Self.shapes {
                for layout in Layout.allCases {
                    let a = TestMatrix(.integers(rows, columns, seed: 4), type, layout)
                    let b = TestMatrix(.integers(rows, columns, seed: 5), other, .rowMajor)
                    var sums = (0..<columns).map { Double($0) }
                    table.addColumnDots(a, b, to: &sums)
                    let expected = (0..<columns).map { j in
                        zip(a.values.column(j), b.values.column(j)).reduce(Double(j)) { $0 + $1.0 * $1.1 }
                    }
                    #expect(sums == expected, "\(table.name) \(type) \(other) \(rows)x\(columns) \(layout)")
                }
            }
        }
    }

    @Test(arguments: KernelTable.available)
    func columnDotsOfFloat32AreSummedInFloat64(table: KernelTable) {
        // 1 would vanish beside 2^24 in float32.
        let a = TestMatrix(RealMatrix(column: [4096, 1, 1]))
        var sums = [0.0]
        table.addColumnDots(a, a, to: &sums)
        #expect(sums == [0x1p24 + 2])
    }

    @Test(arguments: KernelTable.available)
    func columnDotsPassNaNOn(table: KernelTable) {
        var numbers = RealMatrix.integers(5, 9, seed: 6)
        numbers[3, 4] = .nan
        let a = TestMatrix(numbers)
        var sums = [Double](repeating: 0, count: 9)
        table.addColumnDots(a, a, to: &sums)
        #expect(sums.indices.allSatisfy { sums[$0].isNaN == ($0 == 4) })
    }
}
