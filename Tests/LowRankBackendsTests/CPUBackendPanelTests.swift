// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankBackends
import LowRankCore
import TestSupport
import Testing

/// LU and QR of panels: sizes around the kernels' blocks of 6 and 96 columns and their steps of rows, and panels on which
/// pivots vanish, reflections are left out, or squares overflow.
@Suite struct CPUBackendPanelTests {
    private static let types = [ScalarType.float32, .float64]
    private static let shapes = [
        (1, 1), (5, 1), (7, 3), (5, 5), (6, 6), (7, 6), (7, 7), (13, 12), (16, 13), (17, 17), (22, 6), (23, 8), (40, 40),
        (39, 5), (200, 33), (130, 95), (96, 96), (97, 97), (260, 100), (210, 200),
    ]

    private func matrix(
        _ values: RealMatrix, _ type: ScalarType, on backend: CPUBackend, _ order: StorageOrder = .columnMajor
    ) throws -> Matrix {
        let source = TestMatrix(values, type)
        let result = try backend.makeMatrix(rows: values.rows, columns: values.columns, type: type, order: order)
        try backend.copy(source.view, to: result.view)
        return result
    }

    /// Panels of all kinds, by name.
    private func panels(_ m: Int, _ r: Int, _ type: ScalarType) -> [(name: String, values: RealMatrix)] {
        let start = RealMatrix.gaussian(m, r, seed: 1)
        let reach = type == .float32 ? 100 : 900
        func power(_ exponent: Int) -> Double { Double(sign: .plus, exponent: exponent, significand: 1) }
        return [
            ("gaussian", start),
            ("huge", start.map { $0 * power(reach) }),
            ("tiny", start.map { $0 * power(-reach) }),
            ("graded columns", start.scalingColumns(by: (0..<r).map { power(reach / 2 - reach * $0 / r) })),
            ("graded rows", start.scalingRows(by: (0..<m).map { power(reach / 2 - reach * $0 / m) })),
            ("identity", RealMatrix(m, r) { $0 == $1 ? 1 : 0 }),
            ("negative identity", RealMatrix(m, r) { $0 == $1 ? -1 : 0 }),
            ("triangular", RealMatrix(m, r) { $0 <= $1 ? start[$0, $1] : 0 }),
            ("zero", RealMatrix(m, r, repeating: 0)),
            ("zero columns", RealMatrix(m, r) { $1 % 3 == 1 ? 0 : start[$0, $1] }),
            ("equal columns", RealMatrix(m, r) { start[$0, $1 / 2] }),
            ("ties", .integers(m, r, seed: 2, magnitude: 1)),
        ]
    }

    @Test(arguments: KernelTable.available, types)
    func qr(table: KernelTable, type: ScalarType) throws {
        let backend = CPUBackend(kernels: table, threads: 2)
        for (m, r) in Self.shapes {
            for (name, values) in panels(m, r, type) {
                let panel = try matrix(values, type, on: backend)
                let start = panel.values
                let triangle = TestMatrix(undefined: r, r, type, .paddedRows)
                try backend.factorQR(panel, triangle: triangle.view)
                let (q, upper) = (panel.values, triangle.values)
                let label = "\(table.name) \(type) \(m)x\(r) \(name)"
                expectSmall((q.transposed * q - .identity(r)).norm, size: m, norm: 1, type, within: .qr, "\(label), Q'Q")
                let difference = q * upper - start
                for (j, length) in start.columnNorms.enumerated() {
                    // What is subnormal may be lost.
                    let floor = (type == .float32 ? 0x1p-126 : 0x1p-1022) / type.epsilon
                    expectSmall(
                        RealMatrix(column: difference.column(j)).norm, size: m, norm: max(length, floor), type, within: .qr,
                        "\(label), column \(j)")
                }
                for i in 0..<r {
                    #expect((0..<i).allSatisfy { upper[i, $0] == 0 }, "\(label): row \(i) of R below its diagonal")
                }
                expectIntactGuard(triangle, label: label)
            }
        }
    }

    /// R's diagonal has the other sign than what it was made from; where nothing stood below, there is no reflection.
    @Test(arguments: KernelTable.available, types)
    func signsAreThoseOfLAPACK(table: KernelTable, type: ScalarType) throws {
        let backend = CPUBackend(kernels: table, threads: 1)
        for (m, r) in Self.shapes {
            let full = RealMatrix.gaussian(m, r, seed: 3)
            let upper = RealMatrix(m, r) { $0 <= $1 ? full[$0, $1] : 0 }
            let triangle = TestMatrix(undefined: r, r, type)
            let panel = try matrix(upper, type, on: backend)
            let start = panel.values
            try backend.factorQR(panel, triangle: triangle.view)
            let label = "\(table.name) \(type) \(m)x\(r)"
            expectEqual(triangle.values, start.rows(0..<r), "\(label), R of a triangular panel")
            expectEqual(panel.values, RealMatrix(m, r) { $0 == $1 ? 1 : 0 }, "\(label), Q of a triangular panel")
        }
        // By hand: Householder's vectors for [3 4]' and [-3 4]' give -5 and 5, a last row keeps its sign.
        for (column, expected) in [([3.0, 4.0], -5.0), ([-3, 4], 5), ([0, 2], -2), ([-0.0, 2], 2), ([3, 0], 3), ([-3, 0], -3)] {
            let triangle = TestMatrix(undefined: 1, 1, type)
            try backend.factorQR(matrix(RealMatrix(column: column), type, on: backend), triangle: triangle.view)
            expectSmall(
                (triangle.values[0, 0] - expected).magnitude, size: 2, norm: 5, type, within: .qr,
                "\(table.name) \(type) \(column)")
        }
    }

    @Test(arguments: KernelTable.available, types)
    func luAndSolve(table: KernelTable, type: ScalarType) throws {
        let backend = CPUBackend(kernels: table, threads: 2)
        for (m, r) in Self.shapes {
            for (name, values) in panels(m, r, type) {
                let panel = try matrix(values, type, on: backend)
                let start = panel.values
                let permutation = try backend.factorLU(panel)
                let label = "\(table.name) \(type) \(m)x\(r) \(name)"
                #expect(permutation.sorted() == Array(0..<m), "\(label)")
                let both = panel.values
                let lower = RealMatrix(m, r) { $0 == $1 ? 1 : $0 > $1 ? both[$0, $1] : 0 }
                let upper = RealMatrix(r, r) { $0 <= $1 ? both[$0, $1] : 0 }
                #expect(lower.maxMagnitude <= 1, "\(label)")
                expectSmall(
                    (lower * upper - start.gatheringRows(permutation)).norm, size: m,
                    norm: max(lower.norm * upper.norm, start.norm), type, within: .ldu, label)

                let right = try matrix(.gaussian(r, 9, seed: 3), type, on: backend, .rowMajor)
                let b = right.values
                try backend.solveUnitLower(panel, right)
                let x = right.values
                let leading = lower.rows(0..<r)
                expectSmall(
                    (leading * x - b).norm, size: r, norm: leading.norm * x.norm, type, within: .ldu, "\(label), solve")
            }
        }
    }

    /// Of equal magnitudes the first is the pivot, as LAPACK has it.
    @Test(arguments: KernelTable.available, types)
    func firstOfEqualMagnitudesIsThePivot(table: KernelTable, type: ScalarType) throws {
        let backend = CPUBackend(kernels: table, threads: 1)
        for m in [2, 3, 9, 40, 300] {
            for at in 0..<m {
                let column = RealMatrix(m, 1) { i, _ in i < at ? 0.5 : i.isMultiple(of: 2) ? -2 : 2 }
                let permutation = try backend.factorLU(matrix(column, type, on: backend))
                #expect(permutation[0] == at, "\(table.name) \(type) \(m) rows, first of the largest at \(at)")
            }
        }
    }

    @Test(arguments: KernelTable.available, types)
    func luOfSingularPanelsHasZeroPivots(table: KernelTable, type: ScalarType) throws {
        let backend = CPUBackend(kernels: table, threads: 1)
        let panel = try matrix(RealMatrix(5, 3) { i, j in j == 1 ? 0 : Double((i + 1) * (j + 1)) }, type, on: backend)
        let permutation = try backend.factorLU(panel)
        #expect(permutation.sorted() == Array(0..<5))
        #expect(panel.values[1, 1] == 0)
        #expect(panel.values.values.allSatisfy { $0.isFinite })
    }

    /// Quotients by numbers whose reciprocals overflow.
    @Test(arguments: KernelTable.available, types)
    func subnormalPivotsDivide(table: KernelTable, type: ScalarType) throws {
        let backend = CPUBackend(kernels: table, threads: 1)
        let small = type == .float32 ? 0x1p-140 : 0x1p-1060
        let panel = try matrix(RealMatrix(20, 1) { i, _ in i == 7 ? 4 * small : small }, type, on: backend)
        _ = try backend.factorLU(panel)
        #expect(panel.values.values == [4 * small] + [Double](repeating: 0.25, count: 19), "\(table.name) \(type)")
    }

    @Test(arguments: KernelTable.available)
    func bitsDoNotDependOnTheThreads(table: KernelTable) throws {
        let values = RealMatrix.gaussian(400, 220, seed: 4)
        var results: [[UInt64]] = []
        for threads in threadCounts {
            let backend = CPUBackend(kernels: table, threads: threads)
            let (lu, qr) = (try matrix(values, .float32, on: backend), try matrix(values, .float32, on: backend))
            let triangle = TestMatrix(undefined: 220, 220)
            _ = try backend.factorLU(lu)
            try backend.factorQR(qr, triangle: triangle.view)
            let right = try matrix(.gaussian(220, 1100, seed: 5), .float32, on: backend, .rowMajor)
            try backend.solveUnitLower(lu, right)
            results.append(lu.view.bits + qr.view.bits + triangle.bits + right.view.bits)
        }
        expectSameBits(results, cases: threadCounts.map { "\($0) threads" }, table.name)
    }

    @Test func solveOfNothing() throws {
        let backend = CPUBackend.shared
        let panel = try matrix(.gaussian(4, 2, seed: 5), .float32, on: backend)
        let right = try matrix(RealMatrix(2, 0, repeating: 0), .float32, on: backend, .rowMajor)
        try backend.solveUnitLower(panel, right)
    }
}
