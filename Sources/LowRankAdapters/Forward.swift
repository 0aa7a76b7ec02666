// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankBackends
import LowRankCore

extension Factors {
    /// Adds the adapter's output to the frozen layer's.
    ///
    /// `h = x Aᵀ`, `y += s (h Cᵀ) Bᵀ`.
    ///
    /// - Parameters:
    ///   - x: Activations `[T, n]`; T may be 0.
    ///   - y: `[T, m]`, added to.
    ///   - h: `[T, r]`, written; what the backward needs.
    /// - Throws: ``LowRankError/invalidShape(argument:expected:got:)``, `outOfMemory`.
    ///
    /// Accuracy: sums in float32, float64 where an operand is; y and h are rounded once to their types.
    /// - Complexity: 2 T r (n + m) operations, and 2 T r² for a square core; workspace T r with a core.
    /// Source: Hu et al. 2021, arXiv 2106.09685, with a core between the projections.
    public func addForward(
        _ x: MatrixView, to y: MatrixView, keeping h: MatrixView, on backend: some Backend
    ) throws(LowRankError) {
        try requireShape(x, x.rows, down.columns, "x")
        try requireShape(y, x.rows, up.rows, "out")
        try requireShape(h, x.rows, rank, "out_h")
        try backend.multiply(alpha: 1, x, down.transposed, beta: 0, into: h)
        try upProjection.addForward(h, to: y, on: backend)
    }
}
