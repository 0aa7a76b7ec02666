// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import CCUDA
import LowRankCore

extension CUDABackend {
    /// QR of a panel that is computed in float32 from the Cholesky factors of its Gram matrices in float64, twice, with the signs of
    /// Householder's method: a few products, where cuSOLVER works on column after column.
    ///
    /// Source: Yamamoto et al. 2015, "Roundoff error analysis of the CholeskyQR2 algorithm". In float64 the Gram matrix of a
    /// float32 panel is good up to a condition of some 1e7; beyond, and where a sign could be either (for one in square,
    /// triangular and sparse panels), what is written is undefined.
    /// - Returns: One number, zero where the panel has been factored; nil where it has been by Householder's method.
    package func startQR(
        of source: MatrixView, into panel: Matrix, triangle: MatrixView
    ) throws(LowRankError) -> MatrixView? {
        let (m, n) = (source.rows, source.columns)
        precondition(m >= n && n == triangle.rows, "shapes of a QR panel")
        guard panel.view.type == .float32, source.type != .float64, m > n, n > 0, n <= Int(LR_WIDE_COLUMNS) else {
            try copy(source, to: panel.view)
            try factorQRByHouseholder(panel, triangle: triangle)
            return nil
        }
        if n <= Int(LR_PANEL_COLUMNS) { return try startNarrowQR(of: source, into: panel.view, triangle: triangle) }
        return try startWideQR(of: source, into: panel.view, triangle: triangle)
    }

    package func factorQR(_ panel: Matrix, triangle: MatrixView) throws(LowRankError) {
        // Cholesky's method leaves nothing of its panel where it fails.
        let source = try makeMatrix(rows: panel.rows, columns: panel.columns, type: panel.view.type, order: .columnMajor)
        try copy(panel.view, to: source.view)
        guard let status = try startQR(of: source.view, into: panel, triangle: triangle) else { return }
        if values(of: status) == [0] { return }
        try session.requireNoFailure()
        try copy(source.view, to: panel.view)
        try factorQRByHouseholder(panel, triangle: triangle)
    }

    // MARK: Up to LR_PANEL_COLUMNS columns

    /// In three launches: the Gram matrix; Q1 = panel R1^-1 and its Gram matrix; Q = Q1 R2^-1 and R = R2 R1. Every block of the
    /// second and third finds the small matrices for itself.
    private func startNarrowQR(
        of source: MatrixView, into panel: MatrixView, triangle: MatrixView
    ) throws(LowRankError) -> MatrixView {
        let (m, n) = (source.rows, source.columns)
        // Few parts of the Gram matrix, as each block adds them all up, and rows enough to keep a block busy.
        let rows = max(64, (m + 31) / 32)
        let parts = (m + rows - 1) / rows
        func square(_ count: Int) throws(LowRankError) -> MatrixView {
            try makeMatrix(rows: count * n, columns: n, type: .float64, order: .rowMajor).view
        }
        let (grams, nextGrams, r) = (try square(parts), try square(parts), try square(1))
        let status = try makeMatrix(rows: 1, columns: 1, type: .float64, order: .rowMajor).view
        let q = try makeMatrix(rows: m, columns: n, type: .float64, order: .rowMajor).view
        var arguments = lr_panel_arguments()
        (arguments.status, arguments.r, arguments.rows) = (status.address.cudaAddress, r.address.cudaAddress, Int64(rows))
        (arguments.source, arguments.next_grams) = (source.onDevice, grams.address.cudaAddress)
        try session.launch(.panel, arguments, blocks: (parts, 1, 1))
        (arguments.target, arguments.parts, arguments.smallest) = (q.onDevice, Int32(parts), Self.smallestPivot)
        (arguments.grams, arguments.next_grams) = (grams.address.cudaAddress, nextGrams.address.cudaAddress)
        try session.launch(.panel, arguments, blocks: (parts, 1, 1))
        (arguments.source, arguments.target, arguments.triangle) = (q.onDevice, panel.onDevice, triangle.onDevice)
        (arguments.grams, arguments.next_grams) = (nextGrams.address.cudaAddress, 0)
        (arguments.rows, arguments.smallest) = (32, Self.smallestSecondPivot)
        try session.launch(.panel, arguments, blocks: ((m + 31) / 32 + 1, 1, 1))
        return status
    }

    /// Relative to the diagonal. What the first factor leaves is nearly orthonormal.
    private static let (smallestPivot, smallestSecondPivot) = (0x1p-46, 0.25)

    // MARK: Up to LR_WIDE_COLUMNS columns

    /// Products of any size, and one block for the small square matrices.
    private func startWideQR(
        of source: MatrixView, into panel: MatrixView, triangle: MatrixView
    ) throws(LowRankError) -> MatrixView {
        let n = source.columns
        let state = try makeMatrix(rows: 1 + n, columns: 1, type: .float64, order: .columnMajor).view
        clear(state)
        let first = try orthonormalized(source, smallestPivot: Self.smallestPivot, state)
        let second = try orthonormalized(first.q.view, smallestPivot: Self.smallestSecondPivot, state)
        let work = try makeMatrix(rows: n, columns: n, type: .float64, order: .rowMajor)
        let signs = lr_householder_signs_arguments(
            q: second.q.view[rows: 0..<n].onDevice, work: work.view.address.cudaAddress, status: state.address.cudaAddress)
        try session.launch(.householderSigns, signs, blocks: (1, 1, 1))
        let r = try product(second.r.view, first.r.view)
        let columns = state[rows: 1..<(1 + n)]
        try copy(second.q.view, rowFactors: nil, columnFactors: columns, to: panel)
        try copy(r.view, rowFactors: columns, columnFactors: nil, to: triangle)
        return state[rows: 0..<1]
    }

    /// `q r = panel` with the upper triangular Cholesky factor r of the Gram matrix, in float64.
    private func orthonormalized(
        _ panel: MatrixView, smallestPivot: Double, _ state: MatrixView
    ) throws(LowRankError) -> (q: Matrix, r: Matrix) {
        let n = panel.columns
        func square() throws(LowRankError) -> Matrix {
            try makeMatrix(rows: n, columns: n, type: .float64, order: .rowMajor)
        }
        let (gram, r, inverse) = (try square(), try square(), try square())
        try multiply(alpha: 1, panel.transposed, panel, beta: 0, into: gram.view)
        let arguments = lr_cholesky_arguments(
            matrix: gram.view.address.cudaAddress, factor: r.view.address.cudaAddress,
            inverse: inverse.view.address.cudaAddress, status: state.address.cudaAddress, size: Int64(n),
            smallest: smallestPivot)
        try session.launch(.cholesky, arguments, blocks: (1, 1, 1))
        let q = try makeMatrix(rows: panel.rows, columns: n, type: .float32, order: .columnMajor)
        try multiply(alpha: 1, panel, inverse.view, beta: 0, into: q.view)
        return (q, r)
    }
}
