// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankBackends
import LowRankCore

// Products with a core from the right. All methods go through these two, whatever their core.

extension Core {
    /// `x C`. The identity returns x itself.
    func applied(toRightOf x: MatrixView, on backend: some Backend) throws(LowRankError) -> MatrixView {
        try product(x, on: backend) { $0 }
    }

    /// `x Cᵀ`. The identity returns x itself.
    func transposeApplied(toRightOf x: MatrixView, on backend: some Backend) throws(LowRankError) -> MatrixView {
        try product(x, on: backend) { $0.transposed }
    }

    private func product(
        _ x: MatrixView, on backend: some Backend, orientation: (MatrixView) -> MatrixView
    ) throws(LowRankError) -> MatrixView {
        switch self {
        case .identity:
            return x
        case .diagonal(let vector):
            let type = backend.computeType(x, vector)
            let result = try backend.makeMatrix(rows: x.rows, columns: x.columns, type: type, order: .rowMajor)
            try backend.copy(x, rowFactors: nil, columnFactors: vector, to: result.view)
            return result.view
        case .square(let matrix):
            return try backend.product(x, orientation(matrix)).view
        }
    }
}
