// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankBackends
import LowRankCore

/// The leading part of `W[permutation, :] = L D U` with row pivoting.
public struct TruncatedLDU {
    /// L, `[m, rank]`, column-major, unit lower trapezoidal, entries of magnitude at most 1.
    public let lower: Matrix
    /// D's diagonal, `[rank, 1]`.
    public let diagonal: Matrix
    /// U, `[rank, n]`, row-major, unit upper trapezoidal.
    public let upper: Matrix
    /// Row `i` of the permuted weight is row `permutation[i]` of the weight; all m rows.
    public let permutation: [Int]
    /// D on the host.
    package let pivots: [Double]
}

extension TruncatedLDU {
    /// Factors the leading `rank` columns by LU with partial pivoting; the other columns of U come from the `rank` pivot rows.
    ///
    /// No other entry of W is read. A pivot of at most `ε max|W[:, :rank]|` counts as zero: its D is 0 and its row of U
    /// the unit row, so that `L D U` then need not equal W even at full rank.
    ///
    /// - Parameters:
    ///   - weight: `[m, n]`, any type and strides. Read only.
    ///   - rank: `1...min(m, n)`.
    ///   - target: Memory that U may lie in, which then has to outlive it; unspecified contents after an error.
    /// - Throws: ``LowRankError/invalidArgument(argument:expected:got:)`` for a rank out of range,
    ///   ``LowRankError/nonFinite(argument:row:column:)`` for a NaN or infinity in the leading columns or in a pivot row,
    ///   ``LowRankError/numericalFailure(operation:reason:)`` if finite entries overflow or a float64 pivot is subnormal,
    ///   `outOfMemory`.
    ///
    /// Accuracy: `‖W[p, :rank] − (L D U)[:, :rank]‖ <= c m ε g ‖W‖` with g the growth of partial pivoting. Entries of U are
    /// quotients by pivots and can be large.
    /// - Complexity: m rank² + n rank² operations; `rank (m + n)` entries of W are read; workspace (m + n) rank.
    /// Source: Golub, Van Loan, Matrix Computations, 3.4; the starting factors of LoLDU (Shi et al. 2024, arXiv 2410.13618).
    public init(
        of weight: MatrixView, rank: Int, upperIn target: MatrixView? = nil, on backend: some Backend
    ) throws(LowRankError) {
        let (result, check) = try Self.started(of: weight, rank: rank, upperIn: target, on: backend)
        self = try check.resolved(result, on: backend)
    }

    /// The factors, and what has still to be asked about them.
    package static func started(
        of weight: MatrixView, rank: Int, upperIn target: MatrixView? = nil, on backend: some Backend
    ) throws(LowRankError) -> (result: TruncatedLDU, check: PendingCheck<TruncatedLDU>) {
        try requireRank(rank, of: weight)
        let type = weight.type.computeType
        let panel = weight[columns: 0..<rank]
        let lower = try backend.makeMatrix(rows: weight.rows, columns: rank, type: type, order: .columnMajor)
        let found = try backend.factorLU(of: panel, into: lower)
        // An infinite pivot divides its column to plausible zeros, so it is the panel itself that counts.
        if !found.largest.isFinite { throw nonFinite(resultOf: "ldu", on: backend, dependingOn: [(panel, nil)]) }
        let threshold = type.epsilon * found.largest
        let result = TruncatedLDU(
            lower: lower, diagonal: try backend.makeMatrix(rows: rank, columns: 1, type: type, order: .columnMajor),
            upper: try backend.makeMatrix(rows: rank, columns: weight.columns, type: type, reusing: target),
            permutation: found.permutation, pivots: found.diagonal.map { $0.magnitude <= threshold ? 0 : $0 })
        try result.writeUpper(of: weight, on: backend)
        let check = PendingCheck<TruncatedLDU>(questions: [.isFinite(lower.view), .isFinite(result.upper.view)]) {
            (answers) throws(LowRankError) in
            if answers == [[1], [1]] && result.pivots.allSatisfy(\.isFinite) { return nil }
            let pivotRows = result.permutation[..<rank].sorted()
            let dependence: [(MatrixView, [Int]?)] = [(panel, nil)] + pivotRows.map { (weight[rows: $0..<($0 + 1)], [$0]) }
            throw nonFinite(resultOf: "ldu", on: backend, dependingOn: dependence)
        }
        return (result, check)
    }

    /// D U from the pivot rows, then U by division. L's rows above the diagonal still hold D U's leading block.
    private func writeUpper(of weight: MatrixView, on backend: some Backend) throws(LowRankError) {
        try backend.gatherRows(permutation[..<pivots.count], of: weight, to: upper.view)
        try backend.solveUnitLower(lower, upper)
        let reciprocals = try backend.makeMatrix(rows: pivots.count, columns: 1, type: .float64, order: .columnMajor)
        backend.setValues(pivots.map { $0 == 0 ? 0 : 1 / $0 }, of: reciprocals.view)
        try backend.copy(upper.view, rowFactors: reciprocals.view, columnFactors: nil, to: upper.view)
        backend.setValues(pivots, of: diagonal.view)
        try writeTriangles(on: backend)
    }

    /// Exact zeros and ones where L and U have them.
    private func writeTriangles(on backend: some Backend) throws(LowRankError) {
        for (i, pivot) in pivots.enumerated() where pivot == 0 { backend.clear(upper.view[rows: i..<(i + 1)]) }
        backend.makeUnitLower(upper.view[columns: 0..<pivots.count].transposed)
        backend.makeUnitLower(lower.view)
    }
}
