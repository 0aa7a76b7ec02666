// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankBackends
import LowRankCore
import LowRankFactorizations

/// The leading singular values of a weight, and how much of it they carry.
public struct Spectrum: Sendable {
    /// σ_1 ≥ σ_2 ≥ ..., `rank` of them.
    public let values: [Double]
    /// `‖W‖_F`, from one pass over the weight in float64.
    public let norm: Double

    /// Takes numbers that are known already: descending singular values, and the norm of the whole weight.
    public init(values: [Double], norm: Double) {
        self.values = values
        self.norm = norm
    }

    /// `E(k)` for k = 1, 2, ...: the share of `‖W‖_F²` that the first k singular values carry; 1 throughout for W = 0.
    public var shares: [Double] {
        var sum = 0.0
        return values.map { value in
            if norm == 0 { return 1 }
            sum += (value / norm) * (value / norm)
            return min(sum, 1)
        }
    }
}

extension Spectrum {
    /// Up to this length of the shorter side all singular values cost no more than a few dozen singular triplets.
    private static let largestGram = 1024

    /// Computes the leading `rank` singular values, without the vectors where that is cheaper.
    ///
    /// A weight that is not float64 and has a short side, or of which a quarter of the values or more is asked for, takes
    /// the eigenvalues of `WᵀW`, formed in float64, which all are found; the others take ``TruncatedSVD``.
    ///
    /// - Parameters:
    ///   - weight: `[m, n]`, any type and strides. Read only.
    ///   - rank: `1...min(m, n)`.
    ///   - tolerance, seed: As for ``TruncatedSVD``, where that is used.
    /// - Throws: ``LowRankError/invalidArgument(argument:expected:got:)`` for a rank or tolerance out of range,
    ///   ``LowRankError/nonFinite(argument:row:column:)`` if W holds a NaN or infinity,
    ///   ``LowRankError/numericalFailure(operation:reason:)`` if finite entries overflow, `outOfMemory`.
    ///
    /// Accuracy: of eigenvalues of `WᵀW`, `|σ² − σ̂²| ≤ c n ε σ_1²` with ε of float64, so that σ errs by less than float32's
    /// rounding of σ_1 however small it is; of a truncated SVD, the square of its tolerance in practice.
    /// Edge cases: for W = 0 all values are 0. float64 weights whose squares leave float64's range are scaled first.
    /// - Complexity: m n min(m, n) + (4/3) min(m, n)³ flops and 8 min(m, n)² bytes, or those of the SVD.
    /// Source: the denominator of LaMDA++'s normalised energy (Azizi, Kundu, Pedram 2024, arXiv 2406.12832).
    public init(
        of weight: MatrixView, rank: Int, tolerance: Double = TruncatedSVD.defaultTolerance, seed: UInt64 = 0,
        on backend: some Backend
    ) throws(LowRankError) {
        try requireRank(rank, of: weight)
        try requireTolerance(tolerance)
        let squared = backend.squaredNorm(of: weight)
        if weight.type == .float64 && !(squared > 0x1p-900 && squared < 0x1p900) {
            self = try Self.scaled(weight, rank: rank, tolerance: tolerance, seed: seed, on: backend)
            return
        }
        if !squared.isFinite { throw Self.nonFinite(weight, on: backend) }
        norm = squared.squareRoot()
        let shorter = weight.maxRank
        if weight.type != .float64 && (shorter <= Self.largestGram || 4 * rank >= shorter) {
            let tall = weight.rows < weight.columns ? weight.transposed : weight
            let gram = try backend.gramMatrix(of: tall)
            values = try backend.symmetricEigenvalues(gram).suffix(rank).reversed().map { max($0, 0).squareRoot() }
        } else {
            values = try TruncatedSVD(of: weight, rank: rank, tolerance: tolerance, seed: seed, on: backend).s
        }
    }

    /// The same of a float64 weight whose squares may overflow or vanish: by way of a copy with entries of about 1.
    private static func scaled(
        _ weight: MatrixView, rank: Int, tolerance: Double, seed: UInt64, on backend: some Backend
    ) throws(LowRankError) -> Spectrum {
        let largest = backend.maxMagnitude(of: weight)
        if !largest.isFinite { throw nonFinite(weight, on: backend) }
        if largest == 0 { return Spectrum(values: [Double](repeating: 0, count: rank), norm: 0) }
        let unit = largest.isNormal ? largest.binade : .leastNormalMagnitude
        let factors = try backend.makeMatrix(rows: weight.rows, columns: 1, type: .float64, order: .columnMajor)
        backend.setValues([Double](repeating: 1 / unit, count: weight.rows), of: factors.view)
        let copy = try backend.makeMatrix(rows: weight.rows, columns: weight.columns, type: .float64, order: .rowMajor)
        try backend.copy(weight, rowFactors: factors.view, columnFactors: nil, to: copy.view)
        let spectrum = try Spectrum(of: copy.view, rank: rank, tolerance: tolerance, seed: seed, on: backend)
        let result = Spectrum(values: spectrum.values.map { $0 * unit }, norm: spectrum.norm * unit)
        if !result.norm.isFinite { throw overflow(of: "spectrum") }
        return result
    }

    private static func nonFinite(_ weight: MatrixView, on backend: some Backend) -> LowRankError {
        guard let at = backend.firstNonFinite(in: weight) else { return overflow(of: "spectrum") }
        return .nonFinite(argument: "weight", row: at.row, column: at.column)
    }
}
