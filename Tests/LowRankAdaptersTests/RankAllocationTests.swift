// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankAdapters
import LowRankCore
import TestSupport
import Testing

/// A layer whose first singular values carry these shares of its energy, each for itself.
private func layer(_ shares: [Double], maxRank: Int? = nil, cost: Int = 1) -> RankAllocation.Layer {
    let spectrum = Spectrum(values: shares.map { $0.squareRoot() }, norm: 1)
    return .init(spectrum: spectrum, maxRank: maxRank ?? shares.count, cost: cost)
}

@Suite struct RankAllocationTests {
    @Test func theLayerThatHasCapturedLeastGoesFirst() throws {
        let concentrated = layer([0.75, 0.125, 0.0625, 0.03125])
        let spread = layer([0.25, 0.25, 0.25, 0.125])
        // Steps in order: spread at 0.25, 0.5; both at 0.75, the first layer before; spread at its end; the first at 0.875.
        let expected = [[1, 1], [1, 2], [1, 3], [2, 3], [2, 4], [3, 4], [4, 4], [4, 4]]
        for (extra, ranks) in expected.enumerated() {
            let result = try RankAllocation([concentrated, spread], minRank: 1, budget: 2 + extra)
            #expect(result.ranks == ranks, "budget \(2 + extra)")
            #expect(result.unspent == max(0, extra - 6) && result.undecided == nil)
        }
    }

    /// Bit for bit equal shares: the earlier layer first, then the lower rank.
    @Test func tiesGoToTheEarlierLayer() throws {
        let twins = [layer([0.25, 0.25, 0.25]), layer([0.25, 0.25, 0.25]), layer([0.25, 0.25, 0.25])]
        let order = try (3...9).map { try RankAllocation(twins, minRank: 1, budget: $0).ranks }
        #expect(order == [[1, 1, 1], [2, 1, 1], [2, 2, 1], [2, 2, 2], [3, 2, 2], [3, 3, 2], [3, 3, 3]])
        // A value of zero adds nothing: the same share at the next rank comes before the next layer's.
        let flat = try RankAllocation([layer([0.5, 0, 0, 0.5]), layer([0.5, 0.25, 0.125])], minRank: 1, budget: 4)
        #expect(flat.ranks == [3, 1])
    }

    @Test func layersThatTakeNoMore() throws {
        let zero = RankAllocation.Layer(spectrum: Spectrum(values: [0, 0, 0], norm: 0), maxRank: 3)
        let exhausted = layer([0.5, 0.5, 0, 0])
        let limited = layer([0.25, 0.25, 0.25, 0.25], maxRank: 2)
        let result = try RankAllocation([zero, exhausted, limited], minRank: 1, budget: 10)
        #expect(result.ranks == [1, 2, 2] && result.unspent == 5 && result.undecided == nil)
        // A share of 1 is told to 10 float32 units: less than that is left here, and more there.
        let nearly = try RankAllocation([layer([1 - 0x1p-21, 0x1p-22, 0x1p-22])], minRank: 1, budget: 3)
        let not = try RankAllocation([layer([1 - 0x1p-18, 0x1p-19, 0x1p-19])], minRank: 1, budget: 3)
        #expect(nearly.ranks == [1] && not.ranks == [2, 3].suffix(1))
    }

    @Test func everyLayerGetsTheLeastRank() throws {
        let layers = [layer([0.9, 0.05, 0.03, 0.02]), layer([0.1, 0.1, 0.1, 0.1])]
        #expect(try RankAllocation(layers, minRank: 2, budget: 5).ranks == [2, 3])
        #expect(try RankAllocation(layers, minRank: 4, budget: 9).ranks == [4, 4])
    }

    /// A step that costs more than is left ends its layer's turn; cheaper ones go on in their order.
    @Test func costs() throws {
        let dear = layer([0.1, 0.1, 0.1, 0.1], cost: 10)
        let cheap = layer([0.5, 0.2, 0.1, 0.1], cost: 3)
        let result = try RankAllocation([dear, cheap], minRank: 1, budget: 13 + 10 + 8)
        #expect(result.ranks == [2, 3] && result.unspent == 2)
    }

    /// The rule stops where it would have to know more, and only there.
    @Test func unknownSingularValues() throws {
        let known = layer([0.5, 0.25, 0.125])
        let partly = layer([0.25, 0.125], maxRank: 8)
        #expect(try RankAllocation([known, partly], minRank: 1, budget: 4).undecided == nil)
        #expect(try RankAllocation([known, partly], minRank: 1, budget: 4).ranks == [1, 3])
        #expect(try RankAllocation([known, partly], minRank: 1, budget: 5).undecided == 1)
        // With all singular values known, any number of them leads to the same ranks once nothing is undecided.
        let values = (0..<20).map { 1 / Double(3 + $0) }
        let norm = values.reduce(0) { $0 + $1 * $1 }.squareRoot()
        let steep = (0..<20).map { 1 / Double(1 + $0 * $0) }
        let steepNorm = steep.reduce(0) { $0 + $1 * $1 }.squareRoot()
        func layers(_ count: Int) -> [RankAllocation.Layer] {
            [(values, norm), (steep, steepNorm)].map {
                .init(spectrum: Spectrum(values: Array($0.0[..<count]), norm: $0.1), maxRank: 20)
            }
        }
        let all = try RankAllocation(layers(20), minRank: 1, budget: 16)
        #expect(all.undecided == nil && all.ranks.reduce(0, +) == 16)
        for count in 1...20 {
            let result = try RankAllocation(layers(count), minRank: 1, budget: 16)
            if result.undecided == nil { #expect(result.ranks == all.ranks, "\(count) values known") }
        }
    }

    @Test func wrongNumbers() {
        func message(_ layers: [RankAllocation.Layer], minRank: Int = 1, budget: Int = 100) -> String {
            do {
                _ = try RankAllocation(layers, minRank: minRank, budget: budget)
                return ""
            } catch { return error.description }
        }
        let good = layer([0.5, 0.25, 0.25])
        #expect(message([]) == "layers: expected at least one, got none")
        #expect(message([good], minRank: 0).hasPrefix("rank_min: expected 1 <= rank_min <= 3"))
        #expect(message([layer([0.5, 0.2], maxRank: 1)], minRank: 2).hasPrefix("rank_min: expected"))
        #expect(message([good, good], minRank: 2, budget: 3).hasPrefix("budget: expected at least 4"))
        #expect(message([layer([0.5], cost: 0)]).hasPrefix("costs: expected at least 1"))
        #expect(message([layer([0.5], cost: -3)]).hasPrefix("costs: expected"))
        #expect(message([layer([0.5, 0.1], cost: .max), good], minRank: 2).hasPrefix("costs: expected"))
        #expect(message([layer([0.5], cost: .max), layer([0.5], cost: .max)]).hasPrefix("costs: expected"))
        #expect(message([layer([])]).hasPrefix("singular_values: expected at least rank_min"))
        #expect(message([layer([.nan])]).hasPrefix("singular_values: expected"))
        #expect(message([.init(spectrum: Spectrum(values: [1], norm: .infinity), maxRank: 1)]).hasPrefix("singular_values"))
        #expect(message([.init(spectrum: Spectrum(values: [-1], norm: 1), maxRank: 1)]).hasPrefix("singular_values"))
    }
}
