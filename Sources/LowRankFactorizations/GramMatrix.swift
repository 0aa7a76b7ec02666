// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankBackends
import LowRankCore

extension Backend {
    /// `WᵀW` in float64, column-major: the lower triangle, by blocks of columns, which is what LAPACK reads; some of the
    /// upper one stands in the blocks on the diagonal, the rest is undefined.
    package func gramMatrix(of weight: MatrixView) throws(LowRankError) -> Matrix {
        let n = weight.columns
        let gram = try makeMatrix(rows: n, columns: n, type: .float64, order: .columnMajor)
        for first in stride(from: 0, to: n, by: 128) {
            let columns = weight[columns: first..<min(first + 128, n)]
            let below = weight[columns: first..<n]
            try multiply(
                alpha: 1, below.transposed, columns, beta: 0,
                into: gram.view[first..<n, first..<(first + columns.columns)])
        }
        return gram
    }
}
