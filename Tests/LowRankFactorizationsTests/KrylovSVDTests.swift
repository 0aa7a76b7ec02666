// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankBackends
import LowRankCore
import LowRankFactorizations
import TestSupport
import Testing

/// The path that multiplies with W until the triplets have converged.
@Suite struct KrylovSVDTests {
    private struct Case: Sendable {
        let name: String
        let weight: RealMatrix
        let rank: Int
    }

    /// Spectra that are hard in different ways: flat, steep, in clusters, ending early.
    private static let cases: [Case] = {
        let decaying = (0..<60).map { Double(sign: .plus, exponent: -$0, significand: 1) }
        // From 1e20 to 1e-20: all but the first few are rounding of the first.
        let graded = (0..<41).map { Double(sign: .plus, exponent: 66 - 66 * $0 / 20, significand: 1) }
        let stepped = (0..<64).map { 1 / Double(1 + $0 / 8) }
        let powerLaw = (0..<100).map { 1 / Double(1 + $0) }
        let clustered = (0..<60).map { $0 < 15 ? 1.0 : $0 < 30 ? 0.5 : 0.1 }
        // Beside the square of the first few the others are rounding, or near it.
        let smallTail = (0..<100).map { $0 < 5 ? 1 : 3e-3 - 1e-5 * Double($0) }
        let outlier = (0..<100).map { $0 < 1 ? 1e4 : 1 - 5e-3 * Double($0) }
        let isolated = [100.0] + [Double](repeating: 1, count: 59)
        return [
            Case(name: "gaussian", weight: .gaussian(150, 110, seed: 1), rank: 9),
            Case(name: "gaussian, wide", weight: .gaussian(90, 160, seed: 2), rank: 9),
            Case(name: "gaussian, square", weight: .gaussian(120, 120, seed: 3), rank: 1),
            Case(name: "decaying", weight: .withSpectrum(decaying, 140, 100, seed: 4), rank: 12),
            Case(name: "graded", weight: .withSpectrum(graded, 120, 100, seed: 17), rank: 20),
            Case(name: "stepped", weight: .withSpectrum(stepped, 130, 120, seed: 18), rank: 20),
            Case(name: "power law", weight: .withSpectrum(powerLaw, 110, 130, seed: 19), rank: 25),
            Case(name: "clustered", weight: .withSpectrum(clustered, 100, 140, seed: 5), rank: 24),
            Case(name: "isolated", weight: .withSpectrum(isolated, 140, 100, seed: 6), rank: 5),
            Case(name: "small tail", weight: .withSpectrum(smallTail, 130, 110, seed: 20), rank: 12),
            Case(name: "outlier", weight: .withSpectrum(outlier, 110, 120, seed: 21), rank: 9),
            Case(name: "rank 4", weight: .gaussian(100, 4, seed: 7) * .gaussian(4, 130, seed: 8), rank: 10),
            Case(name: "equal columns", weight: RealMatrix(100, 90) { i, _ in Double(i % 7) - 3 }, rank: 6),
            Case(name: "zero matrix", weight: RealMatrix(100, 90, repeating: 0), rank: 7),
            Case(name: "identity", weight: RealMatrix(90, 80) { $0 == $1 ? 1 : 0 }, rank: 8),
            Case(name: "one block", weight: .gaussian(40, 16, seed: 9), rank: 3),
        ]
    }()

    @Test(arguments: KernelTable.available, cases.indices)
    func residualsAreWithinTheTolerance(table: KernelTable, index: Int) throws {
        for path in [TruncatedSVD.Path.krylov, .gram] { try checkResiduals(table: table, index: index, path: path) }
    }

    private func checkResiduals(table: KernelTable, index: Int, path: TruncatedSVD.Path) throws {
        let backend = CPUBackend(kernels: table, threads: 2)
        let (name, rank) = (Self.cases[index].name, Self.cases[index].rank)
        for (type, tolerance) in [
            (ScalarType.float32, 1e-4), (.float32, 1e-2), (.float64, 1e-9), (.bfloat16, 1e-4),
        ] {
            let weight = TestMatrix(Self.cases[index].weight, type, .paddedRows)
            let svd = try TruncatedSVD(
                of: weight.view, rank: rank, tolerance: tolerance, seed: 3, path: path, on: backend)
            let label = "\(table.name) \(path) \(name) \(type) rank \(rank) tol \(tolerance)"
            checkSVD(svd, of: weight.values, rank: rank, tolerance: tolerance, type.computeType, label)
            // A value differs from a singular value by at most its residual.
            let dense = try TruncatedSVD(of: weight.view, rank: rank, path: .dense, on: backend)
            let bound = max(tolerance, 10 * type.computeType.epsilon) * dense.s[0]
            let difference = zip(svd.s, dense.s).map { ($0 - $1).magnitude }.max() ?? 0
            #expect(difference <= bound, "\(label): S differs by \(difference) from the dense path's")
            expectIntactGuard(weight, label: label)
        }
    }

    /// Tolerances below what rounding allows are raised; the dense path may have to answer, to its own accuracy.
    @Test(arguments: KernelTable.available, cases.indices)
    func tolerancesBelowRounding(table: KernelTable, index: Int) throws {
        let weight = TestMatrix(Self.cases[index].weight)
        let rank = Self.cases[index].rank
        let svd = try TruncatedSVD(
            of: weight.view, rank: rank, tolerance: 1e-30, path: .krylov, on: CPUBackend(kernels: table, threads: 2))
        checkSVD(
            svd, of: weight.values, rank: rank, tolerance: nil, .float32,
            "\(table.name) \(Self.cases[index].name) tol 1e-30")
    }

    /// The rounding of the largest value's square is more than the others may err by: only what the checked triplets leave
    /// brings them to the tolerance.
    @Test(arguments: KernelTable.available.suffix(1), [1e-5, 8e-6])
    func smallValuesBesideTheSquareOfALargeOne(table: KernelTable, tolerance: Double) throws {
        let spectrum = (0..<200).map { $0 < 1 ? 1e4 : 1 - 2e-3 * Double($0) }
        let weight = TestMatrix(.withSpectrum(spectrum, 260, 220, seed: 22))
        let svd = try TruncatedSVD(
            of: weight.view, rank: 9, tolerance: tolerance, path: .krylov, on: CPUBackend(kernels: table, threads: 2))
        checkSVD(svd, of: weight.values, rank: 9, tolerance: tolerance, .float32, "\(table.name) tol \(tolerance)")
    }

    /// A start of 16 columns sees 16 copies of a singular value at most, so the space has to notice and start anew.
    @Test(arguments: [(17, 20), (20, 24), (20, 45), (40, 41), (50, 60)], [ScalarType.float32, .float64])
    func equalSingularValuesBeyondTheBlock(counts: (copies: Int, rank: Int), type: ScalarType) throws {
        let spectrum = (0..<120).map { $0 < counts.copies ? 1.0 : $0 < counts.copies + 25 ? 0.5 : 0.1 }
        let weight = TestMatrix(.withSpectrum(spectrum, 400, 360, seed: 15), type)
        let tolerance = type == .float64 ? 1e-10 : 1e-4
        let svd = try TruncatedSVD(
            of: weight.view, rank: counts.rank, tolerance: tolerance, path: .krylov, on: CPUBackend.shared)
        let label = "\(counts.copies) equal singular values, rank \(counts.rank), \(type)"
        checkSVD(svd, of: weight.values, rank: counts.rank, tolerance: tolerance, type, label)
        #expect(svd.s[counts.copies - 1] > 1 - tolerance, "\(label): S \(svd.s)")
        #expect(zip(svd.s, spectrum).allSatisfy { ($0 - $1).magnitude <= tolerance }, "\(label): S \(svd.s)")
    }

    /// A side too short for another start leaves it to an exact path.
    @Test func equalSingularValuesInAShortWeight() throws {
        let spectrum = (0..<60).map { $0 < 20 ? 1.0 : $0 < 40 ? 0.5 : 0.1 }
        let weight = TestMatrix(.withSpectrum(spectrum, 100, 140, seed: 15))
        let svd = try TruncatedSVD(of: weight.view, rank: 24, path: .krylov, on: CPUBackend.shared)
        checkSVD(svd, of: weight.values, rank: 24, tolerance: 1e-4, .float32, "20 equal singular values")
        #expect(zip(svd.s, spectrum).allSatisfy { ($0 - $1).magnitude <= 1e-4 }, "S \(svd.s)")
    }

    /// The basis holds 144 columns at most here, and convergence takes more.
    @Test(arguments: KernelTable.available.suffix(1), [ScalarType.float32, .float64])
    func restartsKeepTheMemoryBounded(table: KernelTable, type: ScalarType) throws {
        let weight = TestMatrix(.gaussian(420, 400, seed: 16), type)
        let tolerance = type == .float64 ? 1e-11 : 1e-5
        let svd = try TruncatedSVD(
            of: weight.view, rank: 2, tolerance: tolerance, path: .krylov, on: CPUBackend(kernels: table, threads: 2))
        let label = "\(table.name) \(type)"
        #expect((svd.passes - 2) * 16 > 144, "\(label): no restart in \(svd.passes) passes")
        checkSVD(svd, of: weight.values, rank: 2, tolerance: tolerance, type, label)
    }

    @Test(arguments: KernelTable.available)
    func largeWeightsTakeThisPath(table: KernelTable) throws {
        let spectrum = (0..<40).map { 1 / Double(1 + $0) }
        let values = RealMatrix.withSpectrum(spectrum, 560, 520, seed: 10)
        let weight = TestMatrix(values)
        let svd = try TruncatedSVD(of: weight.view, rank: 8, on: CPUBackend(kernels: table, threads: 2))
        #expect(svd.passes > 3, "\(table.name): the exact paths make three passes")
        checkSVD(svd, of: weight.values, rank: 8, tolerance: 1e-4, .float32, "\(table.name) 560x520 seed 10")
        let difference = zip(svd.s, spectrum).map { ($0 - $1).magnitude }.max() ?? 1
        #expect(difference <= 1e-4, "\(table.name): S differs by \(difference)")
    }

    /// Short sides that hold no block, one block and a few, beside a side so long that the weight is not small.
    @Test(arguments: [1, 8, 16, 20, 31, 32, 63])
    func longThinWeights(shorter: Int) throws {
        let longer = (1 << 20) / shorter + 7
        let rank = (shorter + 4) / 5
        for isWide in [false, true] {
            // Rows that repeat keep the oracle cheap: the singular values are those of one period, times a square root.
            let period = RealMatrix.gaussian(64, shorter, seed: 14)
            let values = RealMatrix(longer, shorter) { period[$0 % 64, $1] }
            let weight = TestMatrix(isWide ? values.transposed : values)
            let svd = try TruncatedSVD(of: weight.view, rank: rank, on: CPUBackend.shared)
            checkSVD(
                svd, of: weight.values, rank: rank, tolerance: 1e-4, .float32,
                "\(weight.values.shape) rank \(rank) seed 14")
        }
    }

    @Test(arguments: KernelTable.available)
    func bitsDependOnTheNumbersAndTheSeedAlone(table: KernelTable) throws {
        let values = RealMatrix.gaussian(300, 200, seed: 11)
        let cases = [(1, Layout.rowMajor), (2, .columnMajor), (3, .strided), (8, .reversed)]
        var results: [[UInt64]] = []
        for (threads, layout) in cases {
            let weight = TestMatrix(values, .float32, layout)
            let svd = try TruncatedSVD(
                of: weight.view, rank: 6, tolerance: 0.02, seed: 5, path: .krylov,
                on: CPUBackend(kernels: table, threads: threads))
            results.append(svd.u.view.bits + svd.vh.view.bits + svd.s.map(\.bitPattern))
        }
        expectSameBits(results, cases: cases.map { "\($0)" }, table.name)
    }

    @Test func seedsDifferWithinTheTolerance() throws {
        let weight = TestMatrix(.gaussian(140, 120, seed: 12), .float64)
        let results = try [0, 1, UInt64.max].map { seed in
            try TruncatedSVD(
                of: weight.view, rank: 3, tolerance: 0.05, seed: seed, path: .krylov, on: CPUBackend.shared)
        }
        for svd in results { checkSVD(svd, of: weight.values, rank: 3, tolerance: 0.05, .float64, "another seed") }
        #expect(results[0].u.values != results[1].u.values, "the seed is not used")
        #expect(results[1].u.values != results[2].u.values, "the seed is not used")
    }

    /// Powers of two change no significand, so vectors keep their bits and values are scaled.
    @Test(
        arguments: KernelTable.available,
        [(ScalarType.float32, 100), (.float32, -90), (.float64, 400), (.float64, -300)])
    func scaleDoesNotMatter(table: KernelTable, scaling: (type: ScalarType, exponent: Int)) throws {
        let backend = CPUBackend(kernels: table, threads: 2)
        let decaying = (0..<60).map { 1 / Double(1 + $0) }
        let values = RealMatrix.withSpectrum(decaying, 130, 100, seed: 13).rounded(to: scaling.type)
        let factor = Double(sign: .plus, exponent: scaling.exponent, significand: 1)
        let weight = TestMatrix(factor * values, scaling.type)
        let svd = try TruncatedSVD(of: weight.view, rank: 6, tolerance: 1e-5, path: .krylov, on: backend)
        let (u, s, v) = (svd.u.values, svd.s.map { $0 / factor }, svd.vh.values.transposed)
        for residual in [values * v - u.scalingColumns(by: s), values.transposed * u - v.scalingColumns(by: s)] {
            let largest = residual.columnNorms.max() ?? 1
            #expect(largest <= 1e-5 * s[0], "\(table.name) \(scaling): residual \(largest)")
        }
    }
}
