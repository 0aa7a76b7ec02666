// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankBackends
import LowRankCore

/// Where the gradients of an adapter go; what is nil is not computed.
public struct Gradients {
    /// `[T, n]`, added to.
    public var x: MatrixView?
    /// `[r, n]`, overwritten.
    public var down: MatrixView?
    /// The core's shape, overwritten.
    public var core: MatrixView?
    /// `[m, r]`, overwritten.
    public var up: MatrixView?
    /// The first columns of `up` that are frozen: set to zero, not computed.
    public var frozenColumns: Int

    /// Asks for the gradients that a view is given for.
    public init(
        x: MatrixView? = nil, down: MatrixView? = nil, core: MatrixView? = nil, up: MatrixView? = nil,
        frozenColumns: Int = 0
    ) {
        self.x = x
        self.down = down
        self.core = core
        self.up = up
        self.frozenColumns = frozenColumns
    }
}

extension Factors {
    /// The gradients of ``addForward(_:to:keeping:on:)``.
    ///
    ///     p  = g B            dB  = s gᵀ (h Cᵀ)
    ///     q  = s p C          dC  = s pᵀ h   (its diagonal for a diagonal core)
    ///     dx += q A           dA  = qᵀ x
    ///
    /// - Parameters:
    ///   - g: Upstream gradient `[T, m]`.
    ///   - x: Activations `[T, n]`, needed for dA alone.
    ///   - h: What the forward kept, `[T, r]`, needed for dB and dC alone.
    ///   - gradients: Which gradients, and where to.
    /// - Throws: ``LowRankError/invalidShape(argument:expected:got:)``,
    ///   ``LowRankError/invalidArgument(argument:expected:got:)`` where x or h is missing or frozenColumns out of range, `outOfMemory`.
    ///
    /// - Complexity: 2 T r m for p, the same for dB, 2 T r n each for dA and dx; workspace up to 3 T r.
    public func backward(
        _ g: MatrixView, x: MatrixView?, h: MatrixView?, into gradients: Gradients, on backend: some Backend
    ) throws(LowRankError) {
        try requireShapes(g, x: x, h: h, gradients)
        guard let p = try upProjection.writeGradients(g, h: h, into: gradients, on: backend) else { return }
        guard let dDown = gradients.down, let x else {
            guard let dx = gradients.x else { return }
            return try core.multiply(alpha: scale, p, down, beta: 1, into: dx, on: backend)
        }
        let q = try core.applied(toRightOf: p, on: backend)
        try backend.multiply(alpha: scale, q.transposed, x, beta: 0, into: dDown)
        if let dx = gradients.x { try backend.multiply(alpha: scale, q, down, beta: 1, into: dx) }
    }

    func requireShapes(
        _ g: MatrixView, x: MatrixView?, h: MatrixView?, _ gradients: Gradients
    ) throws(LowRankError) {
        try upProjection.requireShapes(g, h: h, gradients)
        if let x { try requireShape(x, g.rows, down.columns, "x") }
        if let dx = gradients.x { try requireShape(dx, g.rows, down.columns, "out_x") }
        guard let dDown = gradients.down else { return }
        try requireShape(dDown, rank, down.columns, "out_down")
        if x == nil {
            throw .invalidArgument(argument: "x", expected: "the activations, which the gradient of down needs", got: "none")
        }
    }
}

extension Core {
    /// Throws unless `gradient` has the core's shape.
    func requireGradient(_ gradient: MatrixView) throws(LowRankError) {
        guard let view else {
            throw .invalidArgument(argument: "out_core", expected: "none for an adapter without a core", got: gradient.shape)
        }
        if case .square = self { return try requireShape(gradient, view.rows, view.columns, "out_core") }
        let count = view.rows * view.columns
        if gradient.rows * gradient.columns != count || (gradient.rows != 1 && gradient.columns != 1) {
            throw .invalidShape(argument: "out_core", expected: "shape [\(count)]", got: gradient.shape)
        }
    }
}

func requireFrozenColumns(_ count: Int, rank: Int) throws(LowRankError) {
    if count < 0 || count > rank {
        throw .invalidArgument(argument: "frozen_columns", expected: "0 <= frozen_columns <= \(rank)", got: "\(count)")
    }
}
