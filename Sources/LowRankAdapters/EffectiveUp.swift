// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankBackends
import LowRankCore

/// `B C − start`, the one `[m, r]` matrix by which an adapter whose A is frozen differs from its start `B0 C0`.
///
/// An adapter that keeps the base weight intact computes `y = x Wᵀ + s h (B C − B0 C0)ᵀ`: with this as its up-projection
/// it is an ordinary adapter without a core, and needs no second product with B0.
public struct EffectiveUp {
    /// B, `[m, r]`.
    public var up: MatrixView
    /// C.
    public var core: Core

    /// - Throws: ``LowRankError/invalidShape(argument:expected:got:)`` where the shapes do not chain.
    public init(up: MatrixView, core: Core) throws(LowRankError) {
        self.up = up
        self.core = core
        try core.requireRank(up.columns)
    }

    /// Writes `B C − start`; exactly zero where start is an earlier `B C` of the same numbers in the compute type.
    ///
    /// - Parameters:
    ///   - start: `[m, r]`, nil for zero.
    ///   - target: `[m, r]`.
    /// - Complexity: m r operations, 2 m r² for a square core; workspace m r.
    public func write(
        minus start: MatrixView?, to target: MatrixView, on backend: some Backend
    ) throws(LowRankError) {
        try requireShape(target, up.rows, up.columns, "out")
        if let start { try requireShape(start, up.rows, up.columns, "start") }
        let product = try core.applied(toRightOf: up, on: backend)
        guard let start else { return try backend.copy(product, to: target) }
        try backend.add(product, beta: -1, start, to: target)
    }

    /// The gradients of ``write(minus:to:on:)``: `dB = dM Cᵀ` and `dC = Bᵀ dM` (its diagonal for a diagonal core).
    ///
    /// - Parameters:
    ///   - gradient: dM, `[m, r]`.
    ///   - gradients: `up` and `core` are written where they are not nil; the first `frozenColumns` columns of `up` are
    ///     zero and not computed.
    public func backward(
        _ gradient: MatrixView, into gradients: Gradients, on backend: some Backend
    ) throws(LowRankError) {
        try requireShape(gradient, up.rows, up.columns, "grad")
        try requireFrozenColumns(gradients.frozenColumns, rank: up.columns)
        if let dUp = gradients.up {
            try requireShape(dUp, up.rows, up.columns, "out_up")
            let trained = gradients.frozenColumns..<up.columns
            backend.clear(dUp[columns: 0..<gradients.frozenColumns])
            switch core {
            case .identity: try backend.copy(gradient[columns: trained], to: dUp[columns: trained])
            case .diagonal(let vector):
                let line = vector.rows == 1 ? vector : vector.transposed
                try backend.copy(
                    gradient[columns: trained], rowFactors: nil, columnFactors: line[columns: trained],
                    to: dUp[columns: trained])
            case .square(let matrix):
                try backend.multiply(
                    alpha: 1, gradient, matrix.transposed[columns: trained], beta: 0, into: dUp[columns: trained])
            }
        }
        guard let dCore = gradients.core else { return }
        try core.requireGradient(dCore)
        switch core {
        case .identity: break
        case .diagonal: try backend.columnDots(up, gradient, scale: 1, into: dCore)
        case .square: try backend.multiply(alpha: 1, up.transposed, gradient, beta: 0, into: dCore)
        }
    }
}
