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
        let (result, check) = try Self.started(of: weight, rank: rank, upperIn: target, on: backend)
        self = try check.resolved(result, on: backend)
    }

    /// The factors, and what has still to be asked about them.
    package static func started(
        of weight: MatrixView, rank: Int, upperIn target: MatrixView? = nil, on backend: some Backend
    ) throws(LowRankError) -> (result: TruncatedQR, check: PendingCheck<TruncatedQR>) {
        try requireRank(rank, of: weight)
        let type = weight.type.computeType
        let result = TruncatedQR(
            q: try backend.makeMatrix(rows: weight.rows, columns: rank, type: type, order: .columnMajor),
            r: try backend.makeMatrix(rows: rank, columns: weight.columns, type: type, reusing: target))
        let (panel, triangle) = (weight[columns: 0..<rank], result.r.view[columns: 0..<rank])
        let status = try backend.startQR(of: panel, into: result.q, triangle: triangle)
        try result.project(weight, on: backend)
        let factors = [result.q.view, result.r.view]
        let isOpen = status.map { Question.elements($0) }
        let check = PendingCheck<TruncatedQR>(questions: [isOpen].compactMap(\.self) + factors.map { .isFinite($0) }) {
            (answers) throws(LowRankError) in
            var areFinite = answers.suffix(factors.count) == [[1], [1]]
            var other: TruncatedQR?
            if isOpen != nil, answers[0] != [0] {
                try backend.copy(panel, to: result.q.view)
                try backend.factorQR(result.q, triangle: triangle)
                try result.project(weight, on: backend)
                areFinite = backend.areFinite(factors)
                other = result
            }
            if !areFinite { throw nonFinite(resultOf: "qr", on: backend, dependingOn: [(weight, nil)]) }
            return other
        }
        return (result, check)
    }

    /// The other columns of R.
    private func project(_ weight: MatrixView, on backend: some Backend) throws(LowRankError) {
        let rest = q.columns..<weight.columns
        try backend.multiply(alpha: 1, q.view.transposed, weight[columns: rest], beta: 0, into: r.view[columns: rest])
    }
}
