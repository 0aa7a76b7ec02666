// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankBackends
import LowRankCore

/// The leading singular triplets of W.
public struct TruncatedSVD {
    /// Left singular vectors, `[m, rank]`, column-major. In each column the first entry of largest magnitude is positive.
    public let u: Matrix
    /// Singular values, descending.
    public let s: [Double]
    /// Right singular vectors, `[rank, n]`, row-major.
    public let vh: Matrix
    /// Times that W was read for a product with a block of vectors, the final check included; a product WᵀW or a copy of W
    /// counts as one.
    public let passes: Int
    /// The tolerance that was kept: the caller's, raised to 10 ε of the working precision, or to what LAPACK's SVD in
    /// float64 left, some ten ε, where the caller asked for less than 64.
    public let tolerance: Double
    /// The largest `‖W v − s u‖` and `‖Wᵀu − s v‖` that were measured, over s[0].
    public let residual: Double
}

extension TruncatedSVD {
    /// What callers that say nothing get.
    public static let defaultTolerance = 1e-4

    /// How the triplets are found.
    package enum Path: Sendable {
        /// LAPACK's SVD of a copy.
        case dense
        /// The eigenvectors of WᵀW in float64.
        case gram
        /// Products with W until the triplets have converged.
        case krylov

        /// Relative residuals down to which the eigenvectors of WᵀW in float64 will do.
        static let smallestGramBound = 0x1p-30

        /// The one that promises to be the cheapest.
        init(rows: Int, columns: Int, rank: Int, bound: Double) {
            let cost = SVDCost(rows: rows, columns: columns, rank: rank)
            let shorter = min(rows, columns)
            let exact: Path = shorter < 32 && cost.dense < 1e8 || 2 * rank > shorter ? .dense : .gram
            let isKrylov = 4 * rank < shorter && cost.likelyKrylov < (exact == .dense ? cost.dense : cost.gram)
            self = isKrylov ? .krylov : bound < Self.smallestGramBound ? .dense : exact
        }
    }

    /// Computes the leading `rank` triplets to a checked tolerance.
    ///
    /// For each triplet `‖W v − s u‖` and `‖Wᵀu − s v‖` are at most `tolerance * s[0]`, measured with explicit products
    /// before returning. The way there is chosen by its cost: a block Krylov space, the eigenvectors of WᵀW in float64, or
    /// LAPACK's SVD of a copy, for small weights and ranks above half of min(m, n), and where the others did not reach the
    /// tolerance. The result is a function of the weight and the seed alone.
    ///
    /// - Parameters:
    ///   - weight: `[m, n]`, any type and strides. Read only.
    ///   - rank: `1...min(m, n)`.
    ///   - tolerance: Bound on the residuals over s[0], below 1; raised to 10 ε of the working precision, and below 64 ε
    ///     of float64 to what can be reached.
    ///   - seed: Of the random starting block.
    /// - Throws: ``LowRankError/invalidArgument(argument:expected:got:)`` for a rank or tolerance out of range,
    ///   ``LowRankError/nonFinite(argument:row:column:)`` if W holds a NaN or infinity,
    ///   ``LowRankError/numericalFailure(operation:reason:)`` if the tolerance was not reached or a singular value is beyond
    ///   the range of float64, `outOfMemory`.
    ///
    /// Accuracy: residuals as above; a singular value then errs by at most `tolerance * s[0]`, in practice by its square.
    /// Edge cases: for singular values that are zero U and V stay orthonormal. A Krylov space started from 16 vectors holds
    /// 16 copies of one singular value at most; where it has found as many it goes on with 16 more.
    /// - Complexity: for the Krylov space one pass over W per 16 columns, workspace n K with K its dimension, a few times
    ///   rank and such that the basis holds at most half as many numbers as W (but 8 times rank at least). For WᵀW one
    ///   product, 4/3 n³ and workspace n² in float64, n = min(m, n).
    /// Source: the block Lanczos method for WᵀW (Golub, Underwood 1977, "The block Lanczos method for computing
    /// eigenvalues") with full orthogonalisation and thick restarts (Wu, Simon 2000, "Thick-restart Lanczos method for large
    /// symmetric eigenvalue problems"); the triplets are W's own, from its products with the Ritz vectors.
    public init(
        of weight: MatrixView, rank: Int, tolerance: Double = Self.defaultTolerance, seed: UInt64 = 0,
        on backend: some Backend
    ) throws(LowRankError) {
        try self.init(of: weight, rank: rank, tolerance: tolerance, seed: seed, path: nil, on: backend)
    }

    /// The same, beginning on a path of the caller's choice and going on to the exact ones where that does not lead there.
    package init(
        of weight: MatrixView, rank: Int, tolerance: Double = Self.defaultTolerance, seed: UInt64 = 0, path: Path?,
        on backend: some Backend
    ) throws(LowRankError) {
        try requireRank(rank, of: weight)
        try requireTolerance(tolerance)
        let bound = max(tolerance, 10 * weight.type.computeType.epsilon)
        var search = TripletSearch(of: weight, rank: rank, bound: bound, seed: seed, on: backend)
        let start = path ?? Path(rows: weight.rows, columns: weight.columns, rank: rank, bound: bound)
        let found = try search.triplets(startingOn: start, isFree: path == nil)
        let (left, right) = search.weight.isTransposed ? (found.right, found.left) : (found.left, found.right)
        let s = found.s.map { $0 / search.weight.scale }
        if !s.allSatisfy(\.isFinite) { throw overflow(of: "svd") }
        let residual = found.s[0] > 0 ? found.residual / found.s[0] : 0
        self = try Self.normalized(
            left: left.view, s: s, right: right.view.transposed, type: weight.type.computeType,
            report: (search.weight.passes, search.bound, residual), on: backend)
    }

    /// Copies the factors into their final layout and type, with the signs fixed.
    private static func normalized(
        left: MatrixView, s: [Double], right: MatrixView, type: ScalarType,
        report: (passes: Int, tolerance: Double, residual: Double), on backend: some Backend
    ) throws(LowRankError) -> TruncatedSVD {
        let rank = s.count
        let u = try backend.makeMatrix(rows: left.rows, columns: rank, type: type, order: .columnMajor)
        let vh = try backend.makeMatrix(rows: rank, columns: right.columns, type: type, order: .rowMajor)
        try backend.copy(left, to: u.view)
        try backend.copy(right, to: vh.view)
        // Of the vectors as they are returned: rounding decides between entries of nearly the same magnitude.
        let signVector = try backend.makeMatrix(rows: rank, columns: 1, type: type, order: .columnMajor)
        backend.writeColumnSigns(of: u.view, to: signVector.view)
        try backend.copy(u.view, rowFactors: nil, columnFactors: signVector.view, to: u.view)
        try backend.copy(vh.view, rowFactors: signVector.view, columnFactors: nil, to: vh.view)
        return TruncatedSVD(
            u: u, s: s, vh: vh, passes: report.passes, tolerance: report.tolerance, residual: report.residual)
    }
}
