// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import Glibc
import LowRankBackends
import LowRankCore
import LowRankFactorizations

/// LoLDU: B = P L_r, C = diag(d), A = U_r of `W = P L D U`.
///
/// Source: Shi et al. 2024, arXiv 2410.13618; the starting diagonals are those of the authors' code. The permutation is
/// folded into B.
public enum LoLDU: Initializer {
    public static let name = "loldu"

    /// What d starts from. The residual of the in-place form uses the value that d has.
    public enum StartingDiagonal: String, Sendable, CaseIterable {
        /// D of the factorisation.
        case ldu
        /// One everywhere.
        case ones
        /// Zero everywhere, so that the adapter starts as nothing.
        case zeros
        /// The mean of D everywhere.
        case mean
        /// Uniform in ± half of the mean's magnitude.
        case uniform
        /// Normal with D's mean and (population) standard deviation.
        case normal
    }

    public static func startingFactors(
        of weight: MatrixView, rank: Int, scale: Double, options: InitializerOptions, downIn target: MatrixView?,
        on backend: some Backend
    ) throws(LowRankError) -> StartingFactors {
        let (ldu, check) = try TruncatedLDU.started(of: weight, rank: rank, upperIn: target, on: backend)
        if options.diagonal != .ldu {
            let start = options.diagonal.values(replacing: ldu.pivots, stream: RandomStream(seed: options.seed))
            backend.setValues(start, of: ldu.diagonal.view)
        }
        return factors(ldu).checked(by: check.map(factors))
    }

    private static func factors(_ ldu: TruncatedLDU) -> StartingFactors {
        StartingFactors(
            up: ldu.lower, permutation: ldu.permutation, core: .diagonal(ldu.diagonal), down: ldu.upper)
    }
}

extension LoLDU.StartingDiagonal {
    /// The starting values for D's leading part.
    func values(replacing d: [Double], stream: RandomStream) -> [Double] {
        let count = Double(d.count)
        let mean = d.reduce(0, +) / count
        switch self {
        case .ldu: return d
        case .ones: return d.map { _ in 1 }
        case .zeros: return d.map { _ in 0 }
        case .mean: return d.map { _ in mean }
        case .uniform: return d.indices.map { stream.uniform($0) * mean.magnitude / 2 }
        case .normal:
            let deviation = (d.reduce(0) { $0 + ($1 - mean) * ($1 - mean) } / count).squareRoot()
            return d.indices.map { index in
                // Box and Muller 1958, from two uniform numbers; the first lies in (0, 1).
                let radius = (-2 * log(stream.uniform(2 * index).magnitude)).squareRoot()
                return mean + deviation * radius * cos(Double.pi * stream.uniform(2 * index + 1))
            }
        }
    }
}
