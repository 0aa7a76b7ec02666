// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankBackends
import LowRankCore

// Products with a core. All methods go through these, whatever their core.

extension Core {
    /// `x C`, in float64 where an operand or `type` is. The identity returns x itself.
    func applied(
        toRightOf x: MatrixView, in type: ScalarType = .float32, on backend: some Backend
    ) throws(LowRankError) -> MatrixView {
        try product(x, in: type, on: backend) { $0 }
    }

    /// `x Cᵀ`. The identity returns x itself.
    func transposeApplied(toRightOf x: MatrixView, on backend: some Backend) throws(LowRankError) -> MatrixView {
        try product(x, in: .float32, on: backend) { $0.transposed }
    }

    /// `c = alpha * x C b + beta * c`.
    func multiply(
        alpha: Double, _ x: MatrixView, _ b: MatrixView, beta: Double, into c: MatrixView, on backend: some Backend
    ) throws(LowRankError) {
        switch self {
        case .identity: try backend.multiply(alpha: alpha, x, b, beta: beta, into: c)
        case .diagonal(let vector): try backend.multiply(alpha: alpha, x, .diagonal(vector), b, beta: beta, into: c)
        case .square(let matrix): try backend.multiply(alpha: alpha, x, .square(matrix), b, beta: beta, into: c)
        }
    }

    /// Cᵀ.
    var transposed: Core {
        if case .square(let matrix) = self { .square(matrix.transposed) } else { self }
    }

    private func product(
        _ x: MatrixView, in type: ScalarType, on backend: some Backend, orientation: (MatrixView) -> MatrixView
    ) throws(LowRankError) -> MatrixView {
        guard let view else { return x }
        let type = type == .float64 ? type : backend.computeType(x, view)
        let result = try backend.makeMatrix(rows: x.rows, columns: x.columns, type: type, order: .rowMajor).view
        switch self {
        case .identity: break
        case .diagonal(let vector): try backend.copy(x, rowFactors: nil, columnFactors: vector, to: result)
        case .square(let matrix): try backend.multiply(alpha: 1, x, orientation(matrix), beta: 0, into: result)
        }
        return result
    }
}
