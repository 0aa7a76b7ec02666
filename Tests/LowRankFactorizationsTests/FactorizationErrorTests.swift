// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankBackends
import LowRankCore
import LowRankFactorizations
import TestSupport
import Testing

/// The factorisations by name, for what is said of all of them.
private enum Factorization: String, CaseIterable, Sendable {
    case qr
    case ldu
    case denseSVD
    case gramSVD
    case krylovSVD

    func run(_ weight: TestMatrix, rank: Int, on backend: CPUBackend = .shared) throws(LowRankError) {
        switch self {
        case .qr: _ = try TruncatedQR(of: weight.view, rank: rank, on: backend)
        case .ldu: _ = try TruncatedLDU(of: weight.view, rank: rank, on: backend)
        case .denseSVD: _ = try TruncatedSVD(of: weight.view, rank: rank, path: .dense, on: backend)
        case .gramSVD: _ = try TruncatedSVD(of: weight.view, rank: rank, path: .gram, on: backend)
        case .krylovSVD: _ = try TruncatedSVD(of: weight.view, rank: rank, path: .krylov, on: backend)
        }
    }
}

@Suite struct FactorizationErrorTests {
    @Test(arguments: Factorization.allCases, [0, -1, 18, Int.max, Int.min])
    private func ranksOutOfRange(factorization: Factorization, rank: Int) {
        for (m, n) in [(17, 40), (40, 17), (17, 17)] {
            let weight = TestMatrix(.gaussian(m, n, seed: 1))
            #expect(
                throws: LowRankError.invalidArgument(
                    argument: "rank", expected: "1 <= rank <= min(m, n) = 17", got: "\(rank)")
            ) { try factorization.run(weight, rank: rank) }
        }
    }

    @Test(arguments: Factorization.allCases)
    private func emptyWeights(factorization: Factorization) {
        for (m, n) in [(0, 3), (3, 0), (0, 0)] {
            let weight = TestMatrix(RealMatrix(m, n, repeating: 0))
            #expect(
                throws: LowRankError.invalidShape(
                    argument: "weight", expected: "a matrix with at least one entry", got: "shape [\(m), \(n)]")
            ) { try factorization.run(weight, rank: 1) }
        }
    }

    @Test(arguments: KernelTable.available, Factorization.allCases)
    private func nonFiniteEntriesAreNamed(table: KernelTable, factorization: Factorization) {
        let backend = CPUBackend(kernels: table, threads: 2)
        let rank = 3
        for (m, n) in [(40, 25), (25, 40)] {
            // LDU reads the leading columns of all rows; what else it reads is tested apart.
            for (i, j) in [(0, 0), (m - 1, 0), (7, 2)] + (factorization == .ldu ? [] : [(m - 1, n - 1), (11, 13)]) {
                for value in [Double.nan, .infinity, -.infinity] {
                    for type in [ScalarType.float32, .float64, .bfloat16, .float16] {
                        var values = RealMatrix.gaussian(m, n, seed: 2)
                        values[i, j] = value
                        let weight = TestMatrix(values, type, .paddedColumns)
                        #expect(
                            throws: LowRankError.nonFinite(argument: "weight", row: i, column: j),
                            "\(table.name) \(type) \(m)x\(n) \(value)"
                        ) { try factorization.run(weight, rank: rank, on: backend) }
                    }
                }
            }
        }
    }

    @Test(arguments: Factorization.allCases)
    private func firstOfSeveralNonFiniteEntries(factorization: Factorization) {
        var values = RealMatrix.gaussian(30, 25, seed: 3)
        values[20, 0] = .nan
        values[9, 2] = .infinity
        values[9, 1] = .nan
        values[10, 0] = -.infinity
        let weight = TestMatrix(values)
        #expect(throws: LowRankError.nonFinite(argument: "weight", row: 9, column: 1)) {
            try factorization.run(weight, rank: 3)
        }
    }

    @Test(arguments: KernelTable.available, [Double.nan, .infinity, -.infinity])
    func pivotRowsOfLDUMustBeFinite(table: KernelTable, value: Double) throws {
        let backend = CPUBackend(kernels: table, threads: 2)
        let start = RealMatrix.gaussian(15, 12, seed: 4)
        let clean = TestMatrix(start)
        let pivots = try TruncatedLDU(of: clean.view, rank: 3, on: backend).permutation.prefix(3)
        for row in pivots {
            var values = start
            values[row, 8] = value
            let weight = TestMatrix(values)
            #expect(throws: LowRankError.nonFinite(argument: "weight", row: row, column: 8), "\(table.name)") {
                try TruncatedLDU(of: weight.view, rank: 3, on: backend)
            }
        }
        // In all pivot rows: the first row of the weight, not of the permutation.
        var values = start
        for row in pivots { values[row, 8] = value }
        let weight = TestMatrix(values)
        #expect(throws: LowRankError.nonFinite(argument: "weight", row: pivots.min() ?? 0, column: 8), "\(table.name)")
        {
            try TruncatedLDU(of: weight.view, rank: 3, on: backend)
        }
    }

    /// Finite entries whose norm is beyond float32 must not come back as plausible numbers.
    @Test(arguments: KernelTable.available)
    func overflowIsAnError(table: KernelTable) {
        let backend = CPUBackend(kernels: table, threads: 2)
        let huge = TestMatrix(RealMatrix(40, 20) { i, j in (i + j) % 3 == 0 ? 3e38 : -3e38 })
        #expect(performing: { try Factorization.qr.run(huge, rank: 4, on: backend) }, throws: isNumericalFailure)
        // U = [1, 1e68].
        let quotient = TestMatrix(RealMatrix(rows: 1, columns: 2, values: [1e-34, 1e34]))
        #expect(performing: { try Factorization.ldu.run(quotient, rank: 1, on: backend) }, throws: isNumericalFailure)
        // The largest singular value is 28 times as large as an entry.
        let immense = TestMatrix(RealMatrix(40, 20, repeating: 1e308), .float64)
        for factorization in [Factorization.denseSVD, .gramSVD, .krylovSVD] {
            #expect(
                "\(table.name) \(factorization)", performing: { try factorization.run(immense, rank: 4, on: backend) },
                throws: isNumericalFailure)
        }
    }

    private func isNumericalFailure(_ error: any Error) -> Bool {
        if case .numericalFailure? = error as? LowRankError { true } else { false }
    }
}
