// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankBackends
import LowRankCore
import TestSupport
import Testing

@Suite struct CopyScaledTests {
    private struct Factors {
        var rows: [Double]?
        var columns: [Double]?
    }

    private func check(
        _ table: KernelTable, _ source: RealMatrix, from sourceType: ScalarType, _ sourceLayout: Layout,
        to targetType: ScalarType, _ targetLayout: Layout, factors: Factors = Factors(), beta: Double, inFloat64: Bool
    ) {
        let old = RealMatrix.integers(source.rows, source.columns, seed: 5, magnitude: 9)
        let from = TestMatrix(source, sourceType, sourceLayout)
        let to =
            beta == 0
            ? TestMatrix(undefined: source.rows, source.columns, targetType, targetLayout)
            : TestMatrix(old, targetType, targetLayout)
        table.copyScaled(
            from, rowFactors: factors.rows, columnFactors: factors.columns, beta: beta, to: to,
            inFloat64: inFloat64)
        var expected = source
        if let rows = factors.rows { expected = expected.scalingRows(by: rows) }
        if let columns = factors.columns { expected = expected.scalingColumns(by: columns) }
        if beta != 0 { expected = expected + beta * old }
        let label = """
            \(table.name) \(source.shape) \(sourceType) \(sourceLayout) to \(targetType) \(targetLayout), \(factors), \
            beta \(beta), \(inFloat64 ? "float64" : "float32")
            """
        expectEqual(to.values, expected.rounded(to: targetType), label)
        expectIntactGuard(from, to, label: label)
    }

    @Test(arguments: KernelTable.available, ScalarType.allCases)
    func allTypesFactorsAndBetas(table: KernelTable, sourceType: ScalarType) {
        let source = RealMatrix.integers(5, 11, seed: 1)
        let rows = RealMatrix.integers(1, 5, seed: 2).values
        let columns = RealMatrix.integers(1, 11, seed: 3).values
        for targetType in ScalarType.allCases {
            for factors in [Factors(), .init(rows: rows), .init(columns: columns), .init(rows: rows, columns: columns)]
            {
                for beta in [0, 1, -1, 0.5] {
                    for inFloat64 in [false, true] {
                        check(
                            table, source, from: sourceType, .rowMajor, to: targetType, .rowMajor, factors: factors,
                            beta: beta, inFloat64: inFloat64)
                    }
                }
            }
        }
    }

    @Test(arguments: KernelTable.available, Layout.allCases)
    func allLayoutsAndSizes(table: KernelTable, sourceLayout: Layout) {
        for targetLayout in Layout.allCases {
            for (rows, columns) in [(0, 3), (3, 0), (1, 1), (1, 17), (17, 1), (2, 8), (3, 34), (9, 15)] {
                for type in ScalarType.allCases {
                    check(
                        table, .integers(rows, columns, seed: 4), from: type, sourceLayout, to: .float32, targetLayout,
                        beta: 0, inFloat64: type == .float64)
                    check(
                        table, .integers(rows, columns, seed: 4), from: .float32, sourceLayout, to: type, targetLayout,
                        factors: Factors(columns: RealMatrix.integers(1, columns, seed: 6).values), beta: 1,
                        inFloat64: type == .float64)
                }
            }
        }
    }

    @Test(arguments: KernelTable.available, ScalarType.allCases)
    func targetMayBeTheSource(table: KernelTable, type: ScalarType) {
        let source = RealMatrix.integers(6, 19, seed: 7)
        let factors = RealMatrix.integers(1, 6, seed: 8).values
        let matrix = TestMatrix(source, type, .paddedRows)
        table.copyScaled(matrix, rowFactors: factors, to: matrix, inFloat64: type == .float64)
        expectEqual(matrix.values, source.scalingRows(by: factors), "\(table.name) \(type)")
        table.copyScaled(matrix, beta: -1, to: matrix, inFloat64: type == .float64)
        expectEqual(matrix.values, RealMatrix(6, 19, repeating: 0), "\(table.name) \(type): x - x")
        expectIntactGuard(matrix, label: "\(table.name) \(type)")
    }

    @Test(arguments: KernelTable.available)
    func nonFiniteEntriesStayAlone(table: KernelTable) {
        for (i, j) in [(0, 0), (2, 16), (1, 8)] {
            for value in [Double.nan, .infinity, -.infinity] {
                var source = RealMatrix.integers(3, 17, seed: 9)
                source[i, j] = value
                for type in ScalarType.allCases {
                    check(
                        table, source, from: type, .rowMajor, to: type, .rowMajor, beta: 0, inFloat64: type == .float64)
                }
            }
        }
    }
}
