// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import CCUDA
import LowRankCore

extension CUDABackend {
    /// QR of a float32 panel from the Cholesky factors of its Gram matrices in float64, twice, with the signs of Householder's
    /// method: a few products, where cuSOLVER works on column after column.
    ///
    /// Source: Yamamoto et al. 2015, "Roundoff error analysis of the CholeskyQR2 algorithm". In float64 the Gram matrix of a
    /// float32 panel is good up to a condition of some 1e7; beyond, and where a sign could be either (for one in square,
    /// triangular and sparse panels), nothing is written.
    /// - Returns: Whether the panel has been factored.
    func factorQRByCholesky(_ panel: MatrixView, triangle: MatrixView) throws(LowRankError) -> Bool {
        let (m, n) = (panel.rows, panel.columns)
        // One block does the small parts, at a time that grows with the cube of n.
        guard panel.type == .float32, m > n, n <= 256 else { return false }
        let state = try makeMatrix(rows: 1 + n, columns: 1, type: .float64, order: .columnMajor).view
        clear(state)
        let first = try orthonormalized(panel, smallestPivot: 0x1p-46, state)
        // What the first left is nearly orthonormal.
        let second = try orthonormalized(first.q.view, smallestPivot: 0.25, state)
        let work = try makeMatrix(rows: n, columns: n, type: .float64, order: .rowMajor)
        let signs = lr_householder_signs_arguments(
            q: second.q.view[rows: 0..<n].onDevice, work: work.view.address.cudaAddress, status: state.address.cudaAddress)
        try session.launch(.householderSigns, signs, blocks: (1, 1, 1))
        let r = try product(second.r.view, first.r.view)
        if values(of: state[rows: 0..<1]) != [0] {
            try session.requireNoFailure()
            return false
        }
        let columns = state[rows: 1..<(1 + n)]
        try copy(second.q.view, rowFactors: nil, columnFactors: columns, to: panel)
        try copy(r.view, rowFactors: columns, columnFactors: nil, to: triangle)
        return true
    }

    /// `q r = panel` with the upper triangular Cholesky factor r of the Gram matrix, in float64.
    private func orthonormalized(
        _ panel: MatrixView, smallestPivot: Double, _ state: MatrixView
    ) throws(LowRankError) -> (q: Matrix, r: Matrix) {
        let n = panel.columns
        let r = try makeMatrix(rows: n, columns: n, type: .float64, order: .rowMajor)
        let inverse = try makeMatrix(rows: n, columns: n, type: .float64, order: .rowMajor)
        try multiply(alpha: 1, panel.transposed, panel, beta: 0, into: r.view)
        let arguments = lr_cholesky_arguments(
            matrix: r.view.address.cudaAddress, inverse: inverse.view.address.cudaAddress,
            status: state.address.cudaAddress, size: Int64(n), smallest: smallestPivot)
        try session.launch(.cholesky, arguments, blocks: (1, 1, 1))
        let q = try makeMatrix(rows: panel.rows, columns: n, type: panel.type, order: .columnMajor)
        try multiply(alpha: 1, panel, inverse.view, beta: 0, into: q.view)
        return (q, r)
    }
}
