// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankBackends
import LowRankCore
import LowRankFactorizations
import TestSupport
import Testing

/// A pivot of at most eps * max|panel| counts as zero: its D is 0 and its row of U the unit row.
@Suite struct ZeroPivotTests {
    private func ldu(_ values: RealMatrix, _ type: ScalarType, rank: Int, _ table: KernelTable) throws -> LDUParts {
        let weight = TestMatrix(values, type)
        return LDUParts(try TruncatedLDU(of: weight.view, rank: rank, on: CPUBackend(kernels: table, threads: 2)))
    }

    /// Finite factors with exact unit rows where D is zero.
    private func check(_ parts: LDUParts, zeros: Set<Int>, _ label: String) {
        let all = parts.lower.values + parts.diagonal + parts.upper.values
        #expect(all.allSatisfy { $0.isFinite }, "\(label)")
        #expect(parts.permutation.sorted() == Array(parts.permutation.indices), "\(label)")
        #expect(
            Set(parts.diagonal.indices.filter { parts.diagonal[$0] == 0 }) == zeros, "\(label): D \(parts.diagonal)")
        for i in zeros where i < parts.upper.rows {
            #expect(parts.upper.row(i) == (0..<parts.upper.columns).map { $0 == i ? 1 : 0 }, "\(label): row \(i) of U")
        }
        for i in parts.diagonal.indices {
            #expect(
                parts.lower[i, i] == 1 && (0..<i).allSatisfy { parts.lower[$0, i] == 0 }, "\(label): column \(i) of L")
        }
    }

    @Test(arguments: KernelTable.available, ScalarType.allCases)
    func zeroMatrix(table: KernelTable, type: ScalarType) throws {
        for (m, n, rank) in [(4, 6, 3), (6, 4, 4), (1, 3, 1), (3, 1, 1)] {
            let parts = try ldu(RealMatrix(m, n, repeating: 0), type, rank: rank, table)
            check(parts, zeros: Set(0..<rank), "\(table.name) \(type) zero \(m)x\(n)")
            #expect(parts.lower == RealMatrix(m, rank) { $0 == $1 ? 1 : 0 })
        }
    }

    @Test(arguments: KernelTable.available, ScalarType.allCases)
    func zeroAndRepeatedColumns(table: KernelTable, type: ScalarType) throws {
        let start = RealMatrix.integers(8, 7, seed: 1)
        let label = "\(table.name) \(type)"
        check(
            try ldu(RealMatrix(8, 7) { $1 == 2 ? 0 : start[$0, $1] }, type, rank: 5, table), zeros: [2],
            "\(label) zero column")
        check(
            try ldu(RealMatrix(8, 7) { start[$0, $1 == 1 ? 0 : $1] }, type, rank: 5, table), zeros: [1],
            "\(label) equal columns")
        check(
            try ldu(RealMatrix(8, 7) { $1 == 0 ? 0 : start[$0, $1] }, type, rank: 1, table), zeros: [0],
            "\(label) zero panel")
    }

    @Test(arguments: KernelTable.available, ScalarType.allCases)
    func repeatedRows(table: KernelTable, type: ScalarType) throws {
        // Powers of two are eliminated exactly: rows 0, 1 and 2 times a common row leave nothing to pivot on.
        let values = RealMatrix(6, 5) { i, j in i < 3 ? Double(1 << i) * Double(1 << j) : 0 }
        let parts = try ldu(values, type, rank: 3, table)
        check(parts, zeros: [1, 2], "\(table.name) \(type) multiples of one row")
        #expect(parts.permutation[0] == 2 && parts.diagonal[0] == 4)
        expectEqual(
            parts.product, values.gatheringRows(parts.permutation), "\(table.name) \(type): rank 1 is reproduced")
    }

    @Test(arguments: KernelTable.available, [ScalarType.float32, .float64, .bfloat16, .float16])
    func thresholdIsEpsilonTimesTheLargest(table: KernelTable, type: ScalarType) throws {
        let epsilon = type.computeType.epsilon
        for factor in [1, 1024.0] {
            let label = "\(table.name) \(type) factor \(factor)"
            let at = try ldu(RealMatrix(diagonal: [factor, epsilon * factor]), type, rank: 2, table)
            check(at, zeros: [1], "\(label), at the threshold")
            let above = try ldu(RealMatrix(diagonal: [factor, 1.5 * epsilon * factor]), type, rank: 2, table)
            check(above, zeros: [], "\(label), above the threshold")
            #expect(above.diagonal == [factor, 1.5 * epsilon * factor])
        }
    }

    /// The threshold looks at the leading columns alone: a huge entry elsewhere makes no pivot small.
    @Test(arguments: KernelTable.available)
    func thresholdLooksAtThePanel(table: KernelTable) throws {
        var values = RealMatrix(2, 3, repeating: 0)
        values[0, 0] = 1
        values[1, 1] = 0x1p-10
        values[0, 2] = 0x1p60
        check(try ldu(values, .float32, rank: 2, table), zeros: [], table.name)
    }

    @Test(arguments: KernelTable.available, [ScalarType.float32, .float64])
    func singleRows(table: KernelTable, type: ScalarType) throws {
        let parts = try ldu(RealMatrix(rows: 1, columns: 3, values: [0, 5, 7]), type, rank: 1, table)
        check(parts, zeros: [0], "\(table.name) \(type) [0, 5, 7]")
        let other = try ldu(RealMatrix(rows: 1, columns: 3, values: [2, 5, 7]), type, rank: 1, table)
        #expect(other.diagonal == [2] && other.upper.values == [1, 2.5, 3.5] && other.lower.values == [1])
    }

    /// What the definition says, and what no reconstruction holds for: a zero pivot with entries to its right.
    @Test(arguments: KernelTable.available)
    func productNeedNotEqualTheWeight(table: KernelTable) throws {
        let parts = try ldu(RealMatrix(rows: 2, columns: 2, values: [0, 3, 0, 4]), .float32, rank: 2, table)
        check(parts, zeros: [0], table.name)
        #expect(parts.diagonal[1] != 0)
    }

    /// Numbers whose reciprocal overflows: below eps times the largest they count as zero like any other.
    @Test(arguments: KernelTable.available, [ScalarType.float32, .bfloat16])
    func subnormalColumnsCountAsZero(table: KernelTable, type: ScalarType) throws {
        let start = RealMatrix.integers(8, 7, seed: 2)
        let values = RealMatrix(8, 7) { $1 == 2 ? 0x1p-131 * start[$0, $1] : start[$0, $1] }
        check(try ldu(values, type, rank: 5, table), zeros: [2], "\(table.name) \(type) subnormal column, seed 2")
    }

    @Test(
        arguments: KernelTable.available,
        [(ScalarType.float32, -130), (.float32, -149), (.bfloat16, -130), (.float64, -1000)])
    func pivotsMayBeTinyNumbers(table: KernelTable, scale: (type: ScalarType, exponent: Int)) throws {
        let small = Double(sign: .plus, exponent: scale.exponent, significand: 1)
        let parts = try ldu(
            RealMatrix(rows: 2, columns: 2, values: [small, small, 0, small]), scale.type, rank: 2, table)
        check(parts, zeros: [], "\(table.name) \(scale)")
        #expect(parts.diagonal == [small, small] && parts.upper.values == [1, 1, 0, 1])
    }

    /// There is no wider type to divide in.
    @Test(arguments: KernelTable.available)
    func subnormalPivotsOfFloat64AreAnError(table: KernelTable) {
        let small = 0x1p-1060
        #expect {
            _ = try ldu(RealMatrix(rows: 2, columns: 2, values: [small, small, 0, small]), .float64, rank: 2, table)
        } throws: { error in
            if case .numericalFailure("ldu", _)? = error as? LowRankError { true } else { false }
        }
    }
}
