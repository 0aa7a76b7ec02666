// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankBackends
import LowRankCore
import TestSupport
import Testing

/// `z = aᵀ (a x)`, for which the CPU reads a once.
@Suite struct CPUBackendMultiplyGramTests {
    /// Around tiles, blocks of rows and of the depth, and parts; the sums of small whole numbers are exact.
    private static let shapes = [
        (0, 5, 3), (1, 1, 1), (3, 4, 16), (5, 6, 17), (95, 7, 2), (96, 255, 16), (97, 256, 15), (200, 257, 33), (513, 18, 16),
        (1030, 9, 5),
    ]

    @Test(arguments: KernelTable.available, ScalarType.allCases)
    func wholeNumbersAreExact(table: KernelTable, type: ScalarType) throws {
        for (rows, columns, width) in Self.shapes {
            for layout in [Layout.rowMajor, .paddedRows, .columnMajor, .strided, .reversed] {
                let a = TestMatrix(.integers(rows, columns, seed: 1), type, layout)
                let x = TestMatrix(.integers(columns, width, seed: 2), type, layout)
                let z = TestMatrix(undefined: columns, width, type.computeType, layout)
                try CPUBackend(kernels: table, threads: 2).multiplyGram(a.view, x.view, into: z.view)
                let label = "\(table.name) \(type) \(layout) \(rows)x\(columns) by \(width)"
                expectEqual(z.values, a.values.transposed * (a.values * x.values), label)
                expectIntactGuard(a, x, z, label: label)
            }
        }
    }

    /// Against float64: each of the two products rounds as a sum of its length does.
    @Test(arguments: KernelTable.available, ScalarType.allCases)
    func roundingIsThatOfTwoProducts(table: KernelTable, type: ScalarType) throws {
        let a = TestMatrix(.gaussian(700, 300, seed: 3), type)
        let x = TestMatrix(.gaussian(300, 16, seed: 4), type.computeType)
        let z = TestMatrix(undefined: 300, 16, type.computeType)
        try CPUBackend(kernels: table, threads: 2).multiplyGram(a.view, x.view, into: z.view)
        let exact = a.values.transposed * (a.values * x.values)
        let scale = a.values.norm * a.values.norm * x.values.norm
        let ratio = (z.values - exact).norm / (scale * 700 * type.computeType.epsilon)
        #expect(ratio < 30, "\(table.name) \(type): \(ratio)")
    }

    /// A NaN reaches the columns that it is multiplied with, and the empty parts of tiles none.
    @Test(arguments: KernelTable.available)
    func notFiniteElementsArePassedOn(table: KernelTable) throws {
        var values = RealMatrix.integers(101, 13, seed: 5)
        values[100, 12] = .nan
        let x = RealMatrix(13, 3) { i, j in i == 12 && j == 1 ? 1 : i < 12 ? 1 : 0 }
        let a = TestMatrix(values)
        let z = TestMatrix(undefined: 13, 3)
        try CPUBackend(kernels: table).multiplyGram(a.view, TestMatrix(x).view, into: z.view)
        #expect((0..<13).allSatisfy { z.values[$0, 1].isNaN }, "\(table.name)")
    }

    @Test(arguments: KernelTable.available, ScalarType.allCases)
    func bitsDependOnTheNumbersAlone(table: KernelTable, type: ScalarType) throws {
        let values = RealMatrix.gaussian(1300, 270, seed: 6)
        let x = TestMatrix(.gaussian(270, 16, seed: 7), type.computeType)
        let cases = [(1, Layout.rowMajor), (2, .columnMajor), (3, .strided), (8, .reversed), (2, .paddedRows)]
        let results = try cases.map { threads, layout in
            let a = TestMatrix(values, type, layout)
            let z = TestMatrix(undefined: 270, 16, type.computeType)
            try CPUBackend(kernels: table, threads: threads).multiplyGram(a.view, x.view, into: z.view)
            return z.bits
        }
        expectSameBits(results, cases: cases.map { "\($0)" }, "\(table.name) \(type)")
    }
}
