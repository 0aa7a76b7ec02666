// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankBackends
import LowRankCore
import TestSupport
import Testing

/// Products of small whole numbers are exact in float32, in any order and fused or not, so results must be equal.
@Suite struct MultiplyKernelTests {
    /// Sizes around tiles of 4 and 6 lines, and of 4 to 16 columns.
    private static let sizes = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 15, 16, 17, 34, 66]

    private func check(
        _ table: KernelTable, rows: Int, columns: Int, depth: Int, alpha: Double = 1, beta: Double = 0,
        types: (a: ScalarType, b: ScalarType, c: ScalarType) = (.float32, .float32, .float32),
        layouts: (a: Layout, b: Layout, c: Layout) = (.rowMajor, .rowMajor, .rowMajor)
    ) {
        let seed = UInt64(rows * 1_000_000 + columns * 1000 + depth)
        let a = TestMatrix(.integers(rows, depth, seed: seed), types.a, layouts.a)
        let b = TestMatrix(.integers(depth, columns, seed: seed + 1), types.b, layouts.b)
        let old = RealMatrix.integers(rows, columns, seed: seed + 2, magnitude: 9)
        // Where beta is 0 the old C must not be read: it is all NaN.
        let product = alpha * (a.values * b.values)
        for packed in [(a: false, b: false), (true, false), (false, true), (true, true)] {
            let c =
                beta == 0
                ? TestMatrix(undefined: rows, columns, types.c, layouts.c) : TestMatrix(old, types.c, layouts.c)
            let label = """
                \(table.name) \(rows)x\(columns)x\(depth) packed \(packed) alpha \(alpha) beta \(beta) types \(types) \
                layouts \(layouts) seed \(seed)
                """
            table.multiply(alpha, a, b, beta: beta, into: c, packed: packed, label: label)
            expectEqual(c.values, (beta == 0 ? product : product + beta * old).rounded(to: types.c), label)
            expectIntactGuard(a, b, c, label: label)
        }
    }

    @Test(arguments: KernelTable.multiplying, [ScalarType.float32, .float64, .bfloat16])
    func sizesAroundTheTile(table: KernelTable, type: ScalarType) {
        for rows in Self.sizes {
            for columns in Self.sizes {
                for depth in [0, 1, 5] {
                    check(table, rows: rows, columns: columns, depth: depth, types: (type, type, type))
                }
            }
        }
    }

    @Test(arguments: KernelTable.multiplying, [0.0, 0.5])
    func depthsAroundTheBlock(table: KernelTable, beta: Double) {
        for depth in [0, 1, 2, 3, 17, 66, 255, 256, 257, 512, 513] {
            for (rows, columns) in [(1, 1), (6, 16), (7, 17), (13, 34)] {
                for type in [ScalarType.float32, .float64, .bfloat16] {
                    // With a C that sums can't be kept in they go through the workspace.
                    check(
                        table, rows: rows, columns: columns, depth: depth, beta: beta, types: (.float32, .float32, type)
                    )
                    check(
                        table, rows: rows, columns: columns, depth: depth, beta: beta, types: (type, type, type),
                        layouts: (.columnMajor, .columnMajor, .columnMajor))
                }
            }
        }
    }

    /// Few columns, of which a packed operand is read in runs of several depth blocks, and more of them than lines of A
    /// are read where they are for.
    @Test(arguments: KernelTable.multiplying, [ScalarType.float32, .float64, .bfloat16])
    func skinnyOperands(table: KernelTable, type: ScalarType) {
        for layout in [Layout.rowMajor, .columnMajor] {
            let layouts = (layout, layout, layout)
            check(table, rows: 9, columns: 61, depth: 2305, types: (type, .float32, .float32), layouts: layouts)
            check(table, rows: 3, columns: 7, depth: 16640, types: (type, type, .float32), layouts: layouts)
            for rows in [1, 5, 8, 16, 22] {
                check(table, rows: rows, columns: 131, depth: 515, types: (type, type, .float32), layouts: layouts)
                check(table, rows: rows, columns: 131, depth: 515, alpha: -1, beta: 1, types: (.float32, type, type))
            }
        }
    }

    @Test(arguments: KernelTable.multiplying, [0, 1, -1, 0.5])
    func factors(table: KernelTable, alpha: Double) {
        for beta in [0, 1, -1, 0.5] {
            for type in ScalarType.allCases {
                for layout in [Layout.rowMajor, .columnMajor] {
                    for depth in [7, 300] {
                        check(
                            table, rows: 13, columns: 21, depth: depth, alpha: alpha, beta: beta,
                            types: (.float32, .float32, type), layouts: (.rowMajor, .rowMajor, layout))
                    }
                }
            }
        }
    }

    @Test(arguments: KernelTable.multiplying, ScalarType.allCases)
    func typesMayDiffer(table: KernelTable, aType: ScalarType) {
        for bType in ScalarType.allCases {
            for cType in ScalarType.allCases {
                check(table, rows: 7, columns: 18, depth: 9, types: (aType, bType, cType))
                check(table, rows: 12, columns: 32, depth: 260, beta: -1, types: (aType, bType, cType))
            }
        }
    }

    @Test(arguments: KernelTable.multiplying, Layout.allCases)
    func layoutsMayDiffer(table: KernelTable, aLayout: Layout) {
        for bLayout in Layout.allCases {
            for cLayout in Layout.allCases {
                check(table, rows: 14, columns: 35, depth: 11, beta: 1, layouts: (aLayout, bLayout, cLayout))
            }
            for type in [ScalarType.float64, .bfloat16, .float16] {
                for depth in [6, 7] {
                    check(
                        table, rows: 8, columns: 19, depth: depth, types: (type, type, type),
                        layouts: (aLayout, bLayout, aLayout))
                }
            }
        }
    }

    @Test(arguments: KernelTable.multiplying)
    func largestBlock(table: KernelTable) {
        for (rows, columns) in [(239, 239), (240, 240), (64, 240), (241, 241)] {
            check(table, rows: rows, columns: columns, depth: 257, beta: 1)
        }
    }
}
