// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankBackends
import LowRankCore

/// The first `rank` columns of Q and rows of R of `W = Q R`.
public struct TruncatedQR {
    /// `[m, rank]`, column-major, orthonormal columns.
    public let q: Matrix
    /// `[rank, n]`, upper trapezoidal.
    public let r: Matrix
}

extension TruncatedQR {
    /// Factors the leading `rank` columns by Householder's method and projects the others on their span.
    ///
    /// `W[:, :rank] = Q R[:, :rank]`, `R[:, rank:] = Q^T W[:, rank:]`. Column k of Q depends on the first k columns of W
    /// alone, so these are the factors of a full QR up to rounding, with LAPACK's signs.
    ///
    /// - Parameters:
    ///   - weight: `[m, n]`, any type and strides. Read only.
    ///   - rank: `1...min(m, n)`.
    ///   - target: Memory that R may lie in, which then has to outlive it; unspecified contents after an error.
    /// - Throws: ``LowRankError/invalidArgument(argument:expected:got:)`` for a rank out of range,
    ///   ``LowRankError/nonFinite(argument:row:column:)`` if W holds a NaN or infinity,
    ///   ``LowRankError/numericalFailure(operation:reason:)`` if finite entries overflow, `outOfMemory`.
    ///
    /// Accuracy: `‖QᵀQ − I‖ <= c m ε`, `‖W[:, :rank] − Q R[:, :rank]‖ <= c m ε ‖W‖`, ε of float32 (float64 for float64 W).
    /// Edge cases: a rank-deficient panel gives an orthonormal Q all the same and zeros on R's diagonal.
    /// - Complexity: 4 m rank² + 2 m n rank operations; W is read once; workspace (m + n) rank.
    /// Source: Golub, Van Loan, Matrix Computations, 5.2; the starting factors of OLoRA (Büyükakyüz 2024, arXiv 2406.01775).
    public init(
        of weight: MatrixView, rank: Int, upperIn target: MatrixView? = nil, on backend: some Backend
    ) throws(LowRankError) {
        try requireRank(rank, of: weight)
        let type = weight.type.computeType
        q = try backend.makeMatrix(rows: weight.rows, columns: rank, type: type, order: .columnMajor)
        r = try backend.makeMatrix(rows: rank, columns: weight.columns, type: type, reusing: target)
        try backend.copy(weight[columns: 0..<rank], to: q.view)
        try backend.factorQR(q, triangle: r.view[columns: 0..<rank])
        let rest = rank..<weight.columns
        try backend.multiply(alpha: 1, q.view.transposed, weight[columns: rest], beta: 0, into: r.view[columns: rest])
        try requireFinite([q.view, r.view], of: "qr", on: backend, dependingOn: [(weight, nil)])
    }
}
