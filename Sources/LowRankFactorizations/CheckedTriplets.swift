// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankBackends
import LowRankCore

/// Singular triplets of a scaled weight with the residuals that products with it gave.
struct CheckedTriplets {
    /// [m, r] and [n, r], orthonormal columns.
    let left: Matrix
    let right: Matrix
    /// Descending.
    let s: [Double]
    /// The largest `‖W v − s u‖` and `‖Wᵀ u − s v‖`.
    let residual: Double

    /// Whether the residuals are at most `bound * s[0]`.
    func areWithin(_ bound: Double) -> Bool { residual <= bound * s[0] }

    /// The triplets of W restricted to the span of orthonormal `vectors` [n, r], in the type of those: `W V = U R` and the
    /// SVD of R. Takes two passes, which are the check as well.
    static func extracted<Device: Backend>(
        from vectors: Matrix, of weight: inout ScaledWeight<Device>, _ orthonormalizer: inout Orthonormalizer<Device>,
        on backend: Device
    ) throws(LowRankError) -> CheckedTriplets {
        var right = vectors
        var image = try weight.image(of: right.view)
        let none = try backend.makeMatrix(rows: image.rows, columns: 0, type: image.view.type, order: .columnMajor)
        let factored = try orthonormalizer.orthonormalize(image, against: none.view, vanishing: 0)
        var left = factored.block
        let squares = try backend.columnSquares(of: factored.triangle.view)
        let answers = backend.answers(to: [.elements(factored.triangle.view.diagonal), .elements(squares.view)])
        var s = answers[0]
        if !isDiagonal(s, columnSquares: answers[1], image.view.type) {
            let triangle = try backend.makeMatrix(rows: s.count, columns: s.count, type: .float64, order: .columnMajor)
            try backend.copy(factored.triangle.view, to: triangle.view)
            let (y, values, xh) = try backend.factorSVD(triangle)
            s = values
            left = try rotated(left, y.view, on: backend)
            right = try rotated(right, xh.view.transposed, on: backend)
            image = try rotated(image, xh.view.transposed, on: backend)
        }
        let back = try weight.adjointImage(of: left.view)
        return CheckedTriplets(
            left: left, right: right, s: s, residual: try residual(image, left, back, right, s, on: backend))
    }

    /// Triplets found in another way, with two passes for the check.
    static func measured<Device: Backend>(
        left: Matrix, s: [Double], right: Matrix, of weight: inout ScaledWeight<Device>, on backend: Device
    ) throws(LowRankError) -> CheckedTriplets {
        let (image, back) = (try weight.image(of: right.view), try weight.adjointImage(of: left.view))
        return CheckedTriplets(
            left: left, right: right, s: s, residual: try residual(image, left, back, right, s, on: backend))
    }

    /// Whether the diagonal descends and all else is rounding.
    private static func isDiagonal(_ diagonal: [Double], columnSquares squares: [Double], _ type: ScalarType) -> Bool {
        guard diagonal.allSatisfy({ $0 >= 0 }), zip(diagonal, diagonal.dropFirst()).allSatisfy({ $0 >= $1 }) else {
            return false
        }
        let limit = 8 * type.epsilon * diagonal[0]
        // The sum of squares above the diagonal, to the rounding of float64.
        return zip(squares, diagonal).allSatisfy { $0 - $1 * $1 <= limit * limit + 4 * ScalarType.float64.epsilon * $0 }
    }

    /// `block turn`, in the type of the block.
    private static func rotated(
        _ block: Matrix, _ turn: MatrixView, on backend: some Backend
    ) throws(LowRankError) -> Matrix {
        let parts = try backend.makeMatrix(rows: turn.rows, columns: turn.columns, type: block.view.type, order: .rowMajor)
        try backend.copy(turn, to: parts.view)
        return try backend.product(block.view, parts.view)
    }

    /// The largest column of `image − left diag(s)` and of `back − right diag(s)`.
    private static func residual(
        _ image: Matrix, _ left: Matrix, _ back: Matrix, _ right: Matrix, _ s: [Double], on backend: some Backend
    ) throws(LowRankError) -> Double {
        let differences = [try difference(image, left, s, on: backend), try difference(back, right, s, on: backend)]
        let answers = backend.answers(to: differences.map { .elements($0.view) })
        let largest = answers.map { $0.max().map { $0.squareRoot() } ?? 0 }
        return max(largest[0], largest[1])
    }

    /// The squared lengths of the columns of `image − block diag(s)`.
    private static func difference(
        _ image: Matrix, _ block: Matrix, _ s: [Double], on backend: some Backend
    ) throws(LowRankError) -> Matrix {
        let values = try backend.makeMatrix(rows: s.count, columns: 1, type: block.view.type, order: .columnMajor)
        backend.setValues(s, of: values.view)
        let scaled = try backend.makeMatrix(
            rows: block.rows, columns: block.columns, type: block.view.type, order: .rowMajor)
        try backend.copy(block.view, rowFactors: nil, columnFactors: values.view, to: scaled.view)
        try backend.accumulate(image.view, beta: -1, into: scaled.view)
        return try backend.columnSquares(of: scaled.view)
    }
}
