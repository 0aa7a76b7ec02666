// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankBackends
import LowRankCore

/// What an adapter both of whose factors train has changed since its start, `s (B A − B₀ A₀)`.
///
/// Computed as one adapter of rank 2r, `s (B (A − A₀) + (B − B₀) A₀)`: x, y and the upstream gradient are gone over once,
/// and what has not changed yet is exactly zero.
public struct Change {
    /// A, B and s; without a core.
    public var factors: Factors
    /// B₀, `[m, r]`.
    public var startUp: MatrixView
    /// A₀, `[r, n]`.
    public var startDown: MatrixView

    /// - Throws: ``LowRankError/invalidShape(argument:expected:got:)`` where the start has other shapes than the factors,
    ///   ``LowRankError/invalidArgument(argument:expected:got:)`` for a core.
    public init(_ factors: Factors, startUp: MatrixView, startDown: MatrixView) throws(LowRankError) {
        self.factors = factors
        self.startUp = startUp
        self.startDown = startDown
        try requireShape(startUp, factors.up.rows, factors.rank, "start_up")
        try requireShape(startDown, factors.rank, factors.down.columns, "start_down")
        if let core = factors.core.view {
            throw .invalidArgument(argument: "core", expected: "none for factors that both train", got: core.shape)
        }
    }

    /// Adds `s x (B A − B₀ A₀)ᵀ`.
    ///
    /// - Parameters:
    ///   - x: Activations `[T, n]`; T may be 0.
    ///   - y: `[T, m]`, added to.
    ///   - h: `x Aᵀ`, `[T, r]`, written; what the backward needs.
    /// - Throws: ``LowRankError/invalidShape(argument:expected:got:)``, `outOfMemory`.
    ///
    /// Accuracy: sums in float32, float64 where an operand is; y and h are rounded once to their types. Exact for B = B₀
    /// and A = A₀: y keeps its bits, but for the sign of zero.
    /// - Complexity: 4 T r (n + m) operations; workspace 2 r (T + n + m).
    public func addForward(
        _ x: MatrixView, to y: MatrixView, keeping h: MatrixView, on backend: some Backend
    ) throws(LowRankError) {
        try requireShape(x, x.rows, factors.down.columns, "x")
        try requireShape(y, x.rows, factors.up.rows, "out")
        try requireShape(h, x.rows, factors.rank, "out_h")
        let stacks = try Stacks(self, on: backend)
        let both = try backend.product(x, stacks.down.view.transposed).view
        try backend.multiply(alpha: factors.scale, both, stacks.up.view.transposed, beta: 1, into: y)
        let (change, start) = (both[columns: 0..<factors.rank], both[columns: factors.rank..<2 * factors.rank])
        try backend.add(change, beta: 1, start, to: h)
    }

    /// The gradients of ``addForward(_:to:keeping:on:)`` in x, A and B.
    ///
    /// - Parameters:
    ///   - g: Upstream gradient `[T, m]`.
    ///   - x: Activations `[T, n]`, needed for dA alone.
    ///   - h: What the forward kept, `[T, r]`, needed for dB alone.
    ///   - gradients: Which gradients, and where to; no columns are frozen.
    /// - Throws: As ``Factors/backward(_:x:h:into:on:)``.
    ///
    /// - Complexity: 4 T r (m + n) for dx, 2 T r m for dB, 2 T r n for dA; workspace 2 r (T + n + m).
    public func backward(
        _ g: MatrixView, x: MatrixView?, h: MatrixView?, into gradients: Gradients, on backend: some Backend
    ) throws(LowRankError) {
        try factors.requireShapes(g, x: x, h: h, gradients)
        if gradients.frozenColumns != 0 {
            throw .invalidArgument(argument: "frozen_columns", expected: "0", got: "\(gradients.frozenColumns)")
        }
        guard let dx = gradients.x else {
            return try factors.backward(g, x: x, h: h, into: gradients, on: backend)
        }
        let stacks = try Stacks(self, on: backend)
        let (up, down) = (stacks.up.view, stacks.down.view)
        let type = backend.computeType(g, up)
        let p = try backend.makeMatrix(rows: g.rows, columns: up.columns, type: type, order: .rowMajor).view
        if let dUp = gradients.up, let h {
            try backend.multiplyPair(g, up, into: p, alpha: factors.scale, h, into: dUp)
        } else {
            try backend.multiply(alpha: 1, g, up, beta: 0, into: p)
        }
        if let dDown = gradients.down, let x {
            let trained = p[columns: 0..<factors.rank]
            try backend.multiply(alpha: factors.scale, trained.transposed, x, beta: 0, into: dDown)
        }
        try backend.multiply(alpha: factors.scale, p, down, beta: 1, into: dx)
    }
}

/// The factors of a change as those of one adapter.
private struct Stacks {
    /// `[B, B − B₀]`.
    let up: Matrix
    /// `[A − A₀; A₀]`.
    let down: Matrix

    init(_ change: Change, on backend: some Backend) throws(LowRankError) {
        let (up, down, rank) = (change.factors.up, change.factors.down, change.factors.rank)
        self.up = try backend.makeMatrix(
            rows: up.rows, columns: 2 * rank, type: backend.computeType(up, change.startUp), order: .rowMajor)
        self.down = try backend.makeMatrix(
            rows: 2 * rank, columns: down.columns, type: backend.computeType(down, change.startDown), order: .rowMajor)
        let (ups, downs) = (self.up.view, self.down.view)
        try backend.add([
            MatrixSum(up, to: ups[columns: 0..<rank]),
            MatrixSum(up, beta: -1, change.startUp, to: ups[columns: rank..<2 * rank]),
            MatrixSum(down, beta: -1, change.startDown, to: downs[rows: 0..<rank]),
            MatrixSum(change.startDown, to: downs[rows: rank..<2 * rank]),
        ])
    }
}
