// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankBackends
import LowRankCore

/// What is thrown where a result is not finite: names the element of `weight` that is to blame, or says that finite
/// elements overflowed on the way. The weight is searched only now.
///
/// - Parameter dependence: The parts of the weight that the results depend on, with their first row's and column's index.
func nonFinite(
    resultOf operation: String, on backend: some Backend,
    dependingOn dependence: [(view: MatrixView, rowIndices: [Int]?)]
) -> LowRankError {
    var first: (row: Int, column: Int)?
    for part in dependence {
        guard var found = backend.firstNonFinite(in: part.view) else { continue }
        if let indices = part.rowIndices { found.row = indices[found.row] }
        if let earlier = first, (earlier.row, earlier.column) < (found.row, found.column) { continue }
        first = found
    }
    if let first { return .nonFinite(argument: "weight", row: first.row, column: first.column) }
    return overflow(of: operation)
}

/// What is thrown where finite entries have overflowed on the way.
package func overflow(of operation: String) -> LowRankError {
    .numericalFailure(
        operation: operation, reason: "finite entries of the weight overflowed the working precision; scale the weight down")
}

/// Throws unless `1 <= rank <= min(rows, columns)`.
package func requireRank(_ rank: Int, of weight: MatrixView) throws(LowRankError) {
    if weight.isEmpty {
        throw .invalidShape(argument: "weight", expected: "a matrix with at least one entry", got: "shape \(weight.shape)")
    }
    if rank < 1 || rank > weight.maxRank {
        throw .invalidArgument(
            argument: "rank", expected: "1 <= rank <= min(m, n) = \(weight.maxRank)", got: "\(rank)")
    }
}

/// Throws unless `0 < tol < 1`.
package func requireTolerance(_ tolerance: Double) throws(LowRankError) {
    guard tolerance > 0, tolerance < 1 else {
        throw .invalidArgument(argument: "tol", expected: "0 < tol < 1", got: "\(tolerance)")
    }
}
