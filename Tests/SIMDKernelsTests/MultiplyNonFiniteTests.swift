// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankBackends
import LowRankCore
import TestSupport
import Testing

/// A NaN or infinity reaches the entries of C whose sums hold it and no others: not those that share its register.
@Suite struct MultiplyNonFiniteTests {
    private static let shapes = [(1, 1, 1), (5, 7, 3), (7, 17, 9), (13, 35, 258)]

    private func check(
        _ table: KernelTable, _ a: RealMatrix, _ b: RealMatrix, _ type: ScalarType, layout: Layout, _ label: String
    ) {
        let left = TestMatrix(a, type, layout)
        let right = TestMatrix(b, type, layout)
        let c = TestMatrix(undefined: a.rows, b.columns, .float32, layout)
        table.multiply(1, left, right, beta: 0, into: c, label: label)
        expectEqual(c.values, a * b, label)
        expectIntactGuard(c, label: label)
    }

    @Test(arguments: KernelTable.multiplying, [Double.nan, .infinity, -.infinity])
    func entriesOfAReachTheirRow(table: KernelTable, value: Double) {
        for (rows, columns, depth) in Self.shapes {
            for (i, k) in [(0, 0), (rows - 1, depth - 1), (rows / 2, depth / 2)] {
                for type in ScalarType.allCases {
                    for layout in [Layout.rowMajor, .columnMajor] {
                        var a = RealMatrix.integers(rows, depth, seed: 1)
                        a[i, k] = value
                        let label =
                            "\(table.name) \(rows)x\(columns)x\(depth) \(type) \(layout), \(value) in A[\(i), \(k)]"
                        check(table, a, .integers(depth, columns, seed: 2), type, layout: layout, label)
                    }
                }
            }
        }
    }

    @Test(arguments: KernelTable.multiplying, [Double.nan, .infinity, -.infinity])
    func entriesOfBReachTheirColumn(table: KernelTable, value: Double) {
        for (rows, columns, depth) in Self.shapes {
            for (k, j) in [(0, 0), (depth - 1, columns - 1), (depth / 2, columns / 2)] {
                for type in ScalarType.allCases {
                    for layout in [Layout.rowMajor, .columnMajor] {
                        var b = RealMatrix.integers(depth, columns, seed: 2)
                        b[k, j] = value
                        let label =
                            "\(table.name) \(rows)x\(columns)x\(depth) \(type) \(layout), \(value) in B[\(k), \(j)]"
                        check(table, .integers(rows, depth, seed: 1), b, type, layout: layout, label)
                    }
                }
            }
        }
    }

    @Test(arguments: KernelTable.multiplying, ScalarType.allCases)
    func entriesOfCStayWhereTheyAre(table: KernelTable, type: ScalarType) {
        let (rows, columns, depth) = (13, 35, 9)
        let (a, b) = (RealMatrix.integers(rows, depth, seed: 1), RealMatrix.integers(depth, columns, seed: 2))
        for (i, j) in [(0, 0), (6, 16), (12, 34)] {
            var old = RealMatrix.integers(rows, columns, seed: 3)
            old[i, j] = .nan
            let c = TestMatrix(old, type)
            table.multiply(1, TestMatrix(a), TestMatrix(b), beta: 1, into: c, label: "\(table.name) \(type)")
            expectEqual(c.values, (a * b + old).rounded(to: type), "\(table.name) \(type), NaN in C[\(i), \(j)]")
        }
    }

    @Test(arguments: KernelTable.multiplying)
    func sumsBeyondTheRangeOfCBecomeInfinite(table: KernelTable) {
        let a = RealMatrix(1, 2, repeating: 300)
        let c = TestMatrix(undefined: 1, 1, .float16)
        table.multiply(1, TestMatrix(a), TestMatrix(a.transposed), beta: 0, into: c, label: table.name)
        #expect(c.values[0, 0] == .infinity)
    }
}
