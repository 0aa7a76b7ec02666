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
    /// Products of W or its transpose with a block of vectors, the final check included; 1 for the dense path.
    public let passes: Int
}

extension TruncatedSVD {
    /// What callers that say nothing get.
    public static let defaultTolerance = 1e-4

    /// How the triplets are found.
    package enum Path: Sendable {
        /// LAPACK's SVD of a copy in the working precision.
        case dense
        /// Products with W until the triplets have converged.
        case krylov

        /// The cheaper one. A copy is made of small matrices alone, or where the factors are as large as the matrix.
        init(rows: Int, columns: Int, rank: Int) {
            let shorter = min(rows, columns)
            // A Krylov space of few blocks would be the whole space, however long the other side is.
            let isSmall = shorter < 64 || (shorter <= 512 && rows * columns <= 1 << 20)
            self = isSmall || 4 * rank >= shorter ? .dense : .krylov
        }
    }

    /// Computes the leading `rank` triplets to a checked tolerance.
    ///
    /// For each triplet `‖W v − s u‖` and `‖Wᵀu − s v‖` are at most `tolerance * s[0]`, measured with explicit products
    /// before returning. Small matrices, ranks from a quarter of min(m, n) on, and weights whose Krylov space would have to
    /// grow to the whole space take a dense LAPACK SVD, which gives them to its working accuracy. The result is a function
    /// of the weight and the seed alone.
    ///
    /// - Parameters:
    ///   - weight: `[m, n]`, any type and strides. Read only.
    ///   - rank: `1...min(m, n)`.
    ///   - tolerance: Bound on the residuals over s[0], below 1; raised to 10 ε of the working precision.
    ///   - seed: Of the random starting block.
    /// - Throws: ``LowRankError/invalidArgument(argument:expected:got:)`` for a rank or tolerance out of range,
    ///   ``LowRankError/nonFinite(argument:row:column:)`` if W holds a NaN or infinity,
    ///   ``LowRankError/numericalFailure(operation:reason:)`` if finite entries overflow, `outOfMemory`.
    ///
    /// Accuracy: residuals as above; a singular value then errs by at most `tolerance * s[0]`, in practice by its square.
    /// Edge cases: for singular values that are zero U and V stay orthonormal. A Krylov space holds at most 16 vectors of one
    /// singular value, so of a value that is repeated more often the next smaller ones take the others' places.
    /// - Complexity: one pass over W per block of 16 vectors and side; workspace (m + n) K with K the dimension of the
    ///   Krylov space (a few times rank; min(m, n) at worst).
    /// Source: block Golub-Kahan-Lanczos with full reorthogonalisation (Golub, Luk, Overton 1981, "A block Lanczos method
    /// for computing the singular values and corresponding singular vectors of a matrix").
    public init(
        of weight: MatrixView, rank: Int, tolerance: Double = Self.defaultTolerance, seed: UInt64 = 0,
        on backend: some Backend
    ) throws(LowRankError) {
        try requireRank(rank, of: weight)
        let path = Path(rows: weight.rows, columns: weight.columns, rank: rank)
        try self.init(of: weight, rank: rank, tolerance: tolerance, seed: seed, path: path, on: backend)
    }

    /// The same on a path of the caller's choice; a Krylov path needs `min(m, n) >= 16`.
    package init(
        of weight: MatrixView, rank: Int, tolerance: Double = Self.defaultTolerance, seed: UInt64 = 0, path: Path,
        on backend: some Backend
    ) throws(LowRankError) {
        try requireRank(rank, of: weight)
        guard tolerance > 0, tolerance < 1 else {
            throw .invalidArgument(argument: "tol", expected: "0 < tol < 1", got: "\(tolerance)")
        }
        if path == .dense {
            self = try Self.dense(weight, rank: rank, passes: 1, on: backend)
            return
        }
        let bound = max(tolerance, 10 * weight.type.computeType.epsilon)
        // The shorter side is exhausted first, and the space with it.
        let isWide = weight.rows < weight.columns
        var space = try KrylovSpace(of: isWide ? weight.transposed : weight, weight: weight, seed: seed, on: backend)
        guard let triplets = try space.leadingTriplets(rank, bound: bound) else {
            self = try Self.dense(weight, rank: rank, passes: space.passes + 1, on: backend)
            return
        }
        let (left, right) = isWide ? (triplets.right, triplets.left) : (triplets.left, triplets.right)
        self = try Self.normalized(
            left: left.view, s: triplets.s, right: right.view.transposed, passes: space.passes, on: backend)
    }

    private static func dense(
        _ weight: MatrixView, rank: Int, passes: Int, on backend: some Backend
    ) throws(LowRankError) -> TruncatedSVD {
        let type = weight.type.computeType
        let copy = try backend.makeMatrix(rows: weight.rows, columns: weight.columns, type: type, order: .columnMajor)
        try backend.copy(weight, to: copy.view)
        // LAPACK's iteration need not end on a NaN.
        try requireFinite([copy.view], of: "svd", on: backend, dependingOn: [(weight, nil)])
        let (u, s, vh) = try backend.factorSVD(copy)
        try requireFinite([u.view, vh.view], of: "svd", on: backend, dependingOn: [])
        if !s.allSatisfy(\.isFinite) { throw overflow(of: "svd") }
        return try normalized(
            left: u.view[columns: 0..<rank], s: Array(s[..<rank]), right: vh.view[rows: 0..<rank],
            passes: passes, on: backend)
    }

    /// Copies the factors into their final layout, with the signs fixed.
    private static func normalized(
        left: MatrixView, s: [Double], right: MatrixView, passes: Int, on backend: some Backend
    ) throws(LowRankError) -> TruncatedSVD {
        let rank = s.count
        let u = try backend.makeMatrix(rows: left.rows, columns: rank, type: left.type, order: .columnMajor)
        let vh = try backend.makeMatrix(rows: rank, columns: right.columns, type: left.type, order: .rowMajor)
        let signs = (0..<rank).map { j in
            let column = backend.values(of: left[columns: j..<(j + 1)])
            let largest = column.reduce(0.0) { $1.magnitude > $0.magnitude ? $1 : $0 }
            return largest < 0 ? -1.0 : 1.0
        }
        let signVector = try backend.makeMatrix(rows: rank, columns: 1, type: left.type, order: .columnMajor)
        backend.setValues(signs, of: signVector.view)
        try backend.copy(left, rowFactors: nil, columnFactors: signVector.view, to: u.view)
        try backend.copy(right, rowFactors: signVector.view, columnFactors: nil, to: vh.view)
        return TruncatedSVD(u: u, s: s, vh: vh, passes: passes)
    }
}
