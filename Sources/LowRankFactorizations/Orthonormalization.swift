// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankBackends
import LowRankCore

/// Replaces `block` [m, b] by orthonormal columns that are orthogonal to the orthonormal `basis` [m, K], K + b <= m.
///
/// With the returned factors `block = basis C + Q R` up to rounding. Directions that vanish (a rank-deficient block) are
/// replaced by random ones that carry no weight in R. Repeats the projection until it changes nothing that matters.
///
/// - Parameter draws: Number of random directions drawn so far; the next ones continue the stream.
/// - Returns: `coefficients` C [K, b] and `triangle` R [b, b], or nil where the block holds a NaN or infinity, or the
///   squares of its entries overflow or vanish.
func orthonormalize(
    _ block: Matrix, against basis: MatrixView, seed: UInt64, draws: inout UInt64, on backend: some Backend
) throws(LowRankError) -> (coefficients: Matrix, triangle: Matrix)? {
    let type = block.view.type
    let columns = block.columns
    let scale = backend.columnDots(block.view, block.view).reduce(0, +).squareRoot()
    // Residuals are far smaller than the block, and their squares must not vanish either.
    guard scale.isFinite, scale > 0x1p-400 || backend.maxMagnitude(of: block.view) == 0 else { return nil }
    let coefficients = try backend.makeMatrix(rows: basis.columns, columns: columns, type: type, order: .columnMajor)
    var triangle = try backend.makeMatrix(rows: columns, columns: columns, type: type, order: .columnMajor)
    backend.clear(coefficients.view)
    backend.clear(triangle.view)
    backend.setValues([Double](repeating: 1, count: columns), of: triangle.view.diagonal)

    // The first sweep finds vanishing directions; from the second on the columns are of unit length, so a diagonal near
    // one says that the projection took nothing off them.
    var isSettled = false
    var sweep = 0
    while !isSettled && sweep < 5 {
        let parts = try backend.product(basis.transposed, block.view, order: .columnMajor)
        try backend.multiply(alpha: -1, basis, parts.view, beta: 1, into: block.view)
        try backend.multiply(alpha: 1, parts.view, triangle.view, beta: 1, into: coefficients.view)
        let step = try backend.makeMatrix(rows: columns, columns: columns, type: type, order: .columnMajor)
        try backend.factorQR(block, triangle: step.view)
        let diagonal = backend.values(of: step.view.diagonal)
        let threshold = sweep == 0 ? 64 * type.epsilon * scale : 0
        isSettled = sweep > 0 && diagonal.allSatisfy { $0.magnitude > 0.5 }
        for (j, value) in diagonal.enumerated() where value.magnitude <= threshold {
            backend.clear(step.view[rows: j..<(j + 1)])
            backend.fillUniform(block.view[columns: j..<(j + 1)], from: RandomStream(seed: seed, stream: draws))
            draws += 1
            isSettled = false
        }
        triangle = try backend.product(step.view, triangle.view, order: .columnMajor)
        sweep += 1
    }
    if !isSettled { throw .internal("a block could not be made orthogonal") }
    return (coefficients, triangle)
}
