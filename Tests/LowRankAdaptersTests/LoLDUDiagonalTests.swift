// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankAdapters
import LowRankBackends
import LowRankCore
import LowRankFactorizations
import TestSupport
import Testing

/// What LoLDU's diagonal starts from.
@Suite struct LoLDUDiagonalTests {
    private let weight = TestMatrix(RealMatrix.gaussian(330, 320, seed: 1), .float64)
    private let rank = 300

    /// The starting diagonal, and D of the factorisation.
    private func start(
        _ diagonal: LoLDU.StartingDiagonal, seed: UInt64 = 0, type: ScalarType = .float64
    ) throws -> (start: [Double], d: [Double]) {
        var options = InitializerOptions()
        options.diagonal = diagonal
        options.seed = seed
        let target = TestTarget(for: LoLDU.self, 330, 320, rank: rank, type: type)
        try LoLDU.initialize(
            weight.view, rank: rank, into: target.factors(scale: 1), inPlace: false, options: options,
            on: CPUBackend.shared)
        let ldu = try TruncatedLDU(of: weight.view, rank: rank, on: CPUBackend.shared)
        return (target.core?.values.values ?? [], ldu.diagonal.values.values)
    }

    private func mean(_ values: [Double]) -> Double { values.reduce(0, +) / Double(values.count) }

    private func deviation(_ values: [Double]) -> Double {
        let center = mean(values)
        return mean(values.map { ($0 - center) * ($0 - center) }).squareRoot()
    }

    @Test func namesAreThoseOfTheAuthors() {
        #expect(
            LoLDU.StartingDiagonal.allCases.map(\.rawValue) == ["ldu", "ones", "zeros", "mean", "uniform", "normal"])
    }

    @Test func valuesWithoutChance() throws {
        let d = try start(.ldu)
        #expect(d.start == d.d)
        #expect(try start(.ones).start == [Double](repeating: 1, count: rank))
        #expect(try start(.zeros).start == [Double](repeating: 0, count: rank))
        let means = try start(.mean)
        #expect(Set(means.start).count == 1)
        expectSmall(
            (means.start[0] - mean(means.d)).magnitude, size: rank, norm: means.d.map(\.magnitude).max() ?? 0, .float64,
            within: .product, "mean of D")
    }

    @Test(arguments: [0, 1, 2] as [UInt64])
    func uniformIsWithinHalfTheMean(seed: UInt64) throws {
        let (values, d) = try start(.uniform, seed: seed)
        let bound = mean(d).magnitude / 2
        #expect(values.allSatisfy { $0.magnitude <= bound })
        // Six standard errors of the mean and of the second moment of a uniform distribution.
        let count = Double(rank)
        #expect(mean(values).magnitude < 6 * bound / (3 * count).squareRoot(), "seed \(seed)")
        let second = mean(values.map { $0 * $0 }) / (bound * bound)
        #expect((second - 1 / 3).magnitude < 6 * ((1 / 5.0 - 1 / 9.0) / count).squareRoot(), "seed \(seed)")
    }

    @Test(arguments: [0, 1, 2] as [UInt64])
    func normalHasMeanAndDeviationOfD(seed: UInt64) throws {
        let (values, d) = try start(.normal, seed: seed)
        let (center, spread, count) = (mean(d), deviation(d), Double(rank))
        #expect((mean(values) - center).magnitude < 6 * spread / count.squareRoot(), "seed \(seed)")
        #expect((deviation(values) / spread - 1).magnitude < 6 / (2 * count).squareRoot(), "seed \(seed)")
        // Normal numbers leave one deviation a third of the time; uniform ones of this deviation 42%.
        let inside = mean(values.map { ($0 - center).magnitude < spread ? 1 : 0 })
        #expect((inside - 0.6827).magnitude < 6 * (0.6827 * 0.3173 / count).squareRoot(), "seed \(seed)")
    }

    @Test(arguments: [LoLDU.StartingDiagonal.uniform, .normal])
    func chanceIsTheSeeds(diagonal: LoLDU.StartingDiagonal) throws {
        let first = try start(diagonal, seed: 3).start
        #expect(try start(diagonal, seed: 3).start == first)
        let other = try start(diagonal, seed: 4).start
        #expect(zip(first, other).allSatisfy { $0 != $1 })
        #expect(Set(first).count == rank)
    }

    /// The residual uses the value that d has, so the adapted layer starts as the pretrained one whatever d is.
    @Test(arguments: LoLDU.StartingDiagonal.allCases)
    func residualUsesTheStartingValue(diagonal: LoLDU.StartingDiagonal) throws {
        var options = InitializerOptions()
        options.diagonal = diagonal
        let weight = TestMatrix(.gaussian(30, 22, seed: 5))
        let before = weight.values
        let target = TestTarget(for: LoLDU.self, 30, 22, rank: 6, type: .float32)
        try LoLDU.initialize(
            weight.view, rank: 6, into: target.factors(scale: 0.5), inPlace: true, options: options,
            on: CPUBackend.shared)
        let delta = 0.5 * target.product
        expectSmall(
            (weight.values + delta - before).norm, size: 30, norm: before.norm + delta.norm, .float32, within: .product,
            "\(diagonal)")
        #expect((delta.norm > 0) == (diagonal != .zeros))
        if diagonal == .zeros { expectEqual(weight.values, before, "zeros leave the weight") }
    }
}
