// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankCore

/// LaMDA++: a rank for each layer, from how the energy of its weight is spread over the singular values.
///
/// Every layer starts at `minRank`. Single rank steps are granted in increasing order of (E_l(k), l, k), with k the layer's
/// rank so far and `E_l(k)` the share of `‖W_l‖_F²` in its first k singular values: the layer that has captured least goes
/// first. A layer takes no more at its `maxRank`, once `E_l(k)` is 1, or if W = 0. A step that costs more than is left ends
/// its layer's turn, and the others go on.
///
/// Source: the rule is this project's reading of LaMDA++ (Azizi, Kundu, Pedram 2024, arXiv 2406.12832).
public struct RankAllocation: Sendable {
    /// What the rule knows of a layer.
    public struct Layer: Sendable {
        /// Its leading singular values, as many as are known: at most `maxRank` are looked at.
        public let spectrum: Spectrum
        /// The most that it may get.
        public let maxRank: Int
        /// What one rank step takes from the budget.
        public let cost: Int

        /// A layer; every step costs the same unless it is said.
        public init(spectrum: Spectrum, maxRank: Int, cost: Int = 1) {
            self.spectrum = spectrum
            self.maxRank = maxRank
            self.cost = cost
        }
    }

    /// The layers' ranks, in their order.
    public let ranks: [Int]
    /// What is left of the budget.
    public let unspent: Int
    /// A layer whose known singular values end before the rule can be followed to its end; then the ranks are not those of
    /// the rule yet. Nil once they are.
    public let undecided: Int?

    /// A share of 1 is told from a smaller one as well as singular values in float32 allow.
    private static let fullShare = 1 - 10 * ScalarType.float32.epsilon

    /// Follows the rule.
    ///
    /// - Parameters:
    ///   - layers: In the order that breaks ties, which is that of their names.
    ///   - minRank: `1...` the least `maxRank`.
    ///   - budget: What the layers' ranks may cost together, those they start with included.
    /// - Throws: ``LowRankError/invalidArgument(argument:expected:got:)`` for numbers out of range, or a budget that does not
    ///   cover `minRank` everywhere.
    /// - Complexity: O(s log s) for s singular values.
    public init(_ layers: [Layer], minRank: Int, budget: Int) throws(LowRankError) {
        let start = try Self.startingCost(layers, minRank: minRank)
        guard budget >= start else {
            throw .invalidArgument(
                argument: "budget", expected: "at least \(start), rank_min = \(minRank) for every layer", got: "\(budget)")
        }
        var ranks = [Int](repeating: minRank, count: layers.count)
        var isOpen = [Bool](repeating: true, count: layers.count)
        var left = budget - start
        var undecided: Int?
        for step in Self.steps(layers, minRank: minRank) where isOpen[step.layer] {
            let layer = layers[step.layer]
            if layer.cost > left {
                isOpen[step.layer] = false
                continue
            }
            left -= layer.cost
            ranks[step.layer] = step.rank + 1
            if step.rank == layer.spectrum.values.count && step.rank + 1 < layer.maxRank && left > 0 {
                undecided = step.layer
                break
            }
        }
        self.ranks = ranks
        self.unspent = left
        self.undecided = undecided
    }

    private struct Step {
        let share: Double
        let layer: Int
        /// The rank that it starts from.
        let rank: Int
    }

    /// All steps that the known shares allow, in the order in which they are granted.
    private static func steps(_ layers: [Layer], minRank: Int) -> [Step] {
        var steps: [Step] = []
        for (index, layer) in layers.enumerated() {
            for (i, share) in layer.spectrum.shares.enumerated() {
                let rank = i + 1
                if rank >= layer.maxRank || share >= fullShare { break }
                if rank >= minRank { steps.append(Step(share: share, layer: index, rank: rank)) }
            }
        }
        return steps.sorted { ($0.share, $0.layer, $0.rank) < ($1.share, $1.layer, $1.rank) }
    }

    /// What `minRank` everywhere costs; checks the layers.
    private static func startingCost(_ layers: [Layer], minRank: Int) throws(LowRankError) -> Int {
        if layers.isEmpty { throw .invalidArgument(argument: "layers", expected: "at least one", got: "none") }
        var total = 0
        for (index, layer) in layers.enumerated() {
            let numbers = layer.spectrum.values + [layer.spectrum.norm]
            guard layer.spectrum.values.count >= max(minRank, 1), numbers.allSatisfy({ $0.isFinite && $0 >= 0 }) else {
                throw .invalidArgument(
                    argument: "singular_values", expected: "at least rank_min of them, finite and not negative",
                    got: "others for layer \(index)")
            }
            guard minRank >= 1, minRank <= layer.maxRank else {
                throw .invalidArgument(
                    argument: "rank_min", expected: "1 <= rank_min <= \(layer.maxRank), the largest rank of layer \(index)",
                    got: "\(minRank)")
            }
            let (cost, overflows) = minRank.multipliedReportingOverflow(by: layer.cost)
            let (sum, sumOverflows) = total.addingReportingOverflow(cost)
            guard layer.cost >= 1, !overflows, !sumOverflows else {
                throw .invalidArgument(
                    argument: "costs", expected: "at least 1, and a sum that fits 64 bits", got: "\(layer.cost)")
            }
            total = sum
        }
        return total
    }
}
