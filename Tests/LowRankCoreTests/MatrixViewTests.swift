// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankCore
import TestSupport
import Testing

@Suite struct MatrixViewTests {
    private let numbers = RealMatrix(4, 6) { Double(10 * $0 + $1) }

    @Test(arguments: ScalarType.allCases, Layout.allCases)
    func partsAreTheSameMemory(type: ScalarType, layout: Layout) {
        let matrix = TestMatrix(numbers, type, layout)
        let view = matrix.view
        let label = "\(type) \(layout)"
        expectEqual(view.values, numbers, label)
        expectEqual(view.transposed.values, numbers.transposed, "\(label) transposed")
        expectEqual(view[1..<3, 2..<6].values, numbers.rows(1..<3).columns(2..<6), "\(label) block")
        expectEqual(view[rows: 3..<4].values, numbers.rows(3..<4), "\(label) rows")
        expectEqual(view[columns: 0..<2].values, numbers.columns(0..<2), "\(label) columns")
        expectEqual(view.diagonal.values, RealMatrix(column: [0, 11, 22, 33]), "\(label) diagonal")
        expectEqual(view.transposed[1..<5, 1..<2].diagonal.values, RealMatrix(column: [11]), "\(label) part's diagonal")
        expectIntactGuard(matrix, label: label)
    }

    @Test func emptyPartsHaveNoElements() {
        let view = TestMatrix(numbers).view
        #expect(view[2..<2, 0..<6].isEmpty)
        #expect(view[4..<4, 6..<6].isEmpty)
        #expect(!view.isEmpty)
        #expect(view[columns: 6..<6].diagonal.rows == 0)
    }

    @Test func sizesAreThoseOfTheShape() {
        let view = TestMatrix(numbers).view
        #expect(view.maxRank == 4)
        #expect(view.transposed.maxRank == 4)
        #expect(view.shape == "[4, 6]")
        #expect(view.transposed.shape == "[6, 4]")
    }

    @Test(arguments: [StorageOrder.rowMajor, .columnMajor])
    func viewsKeepAnOwnedMatrixAlive(order: StorageOrder) {
        let memory = UnsafeMutableRawPointer.allocate(byteCount: 64, alignment: 64)
        defer { memory.deallocate() }
        var released: [UnsafeMutableRawPointer] = []
        do {
            var parts: [MatrixView] = []
            do {
                let matrix = Matrix(adopting: memory, rows: 2, columns: 4, type: .float64, order: order) {
                    released.append($0)
                }
                #expect(matrix.rows == 2 && matrix.columns == 4)
                #expect(matrix.view.rowStride == (order == .rowMajor ? 4 : 1))
                #expect(matrix.view.columnStride == (order == .rowMajor ? 1 : 2))
                parts = [matrix.view.transposed, matrix.view[rows: 0..<1], matrix.view.diagonal]
            }
            for _ in parts.indices {
                #expect(released.isEmpty)
                parts.removeLast()
            }
        }
        #expect(released == [memory])
    }
}
