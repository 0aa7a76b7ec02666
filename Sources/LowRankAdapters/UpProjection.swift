// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankBackends
import LowRankCore

/// An adapter from its down-projection on, `y += s (h Cᵀ) Bᵀ`: for layers whose h is no product of matrices, such as an
/// embedding, whose h is a gather, and a convolution.
public struct UpProjection {
    /// B, `[m, r]`.
    public var up: MatrixView
    /// C.
    public var core: Core
    /// s.
    public var scale: Double

    /// - Throws: ``LowRankError/invalidShape(argument:expected:got:)`` where the shapes do not chain,
    ///   ``LowRankError/invalidArgument(argument:expected:got:)`` for a scale that is not finite.
    public init(up: MatrixView, core: Core, scale: Double) throws(LowRankError) {
        self.init(unchecked: up, core: core, scale: scale)
        try core.requireRank(rank)
        try requireScale(scale)
    }

    init(unchecked up: MatrixView, core: Core, scale: Double) {
        self.up = up
        self.core = core
        self.scale = scale
    }

    /// r.
    public var rank: Int { up.columns }

    /// Adds `s (h Cᵀ) Bᵀ`.
    ///
    /// - Parameters:
    ///   - h: `[T, r]`; T may be 0.
    ///   - y: `[T, m]`, added to.
    /// - Throws: ``LowRankError/invalidShape(argument:expected:got:)``, `outOfMemory`.
    ///
    /// Accuracy: sums in float32, float64 where an operand is; y is rounded once to its type.
    /// - Complexity: 2 T r m operations, and 2 T r² for a square core; workspace T r with a core.
    public func addForward(_ h: MatrixView, to y: MatrixView, on backend: some Backend) throws(LowRankError) {
        try requireShape(h, h.rows, rank, "x")
        try requireShape(y, h.rows, up.rows, "out")
        try core.transposed.multiply(alpha: scale, h, up.transposed, beta: 1, into: y, on: backend)
    }

    /// The gradients of ``addForward(_:to:on:)``: those of ``Factors``, with `dh += s p C` in place of dx and dA.
    ///
    /// - Parameters:
    ///   - g: Upstream gradient `[T, m]`.
    ///   - h: `[T, r]`, needed for dB and dC alone.
    ///   - gradients: Which gradients, and where to; `x` is dh `[T, r]`, `down` is nil.
    /// - Throws: ``LowRankError/invalidShape(argument:expected:got:)``,
    ///   ``LowRankError/invalidArgument(argument:expected:got:)`` where h is missing, `down` is asked for or
    ///   frozenColumns out of range, `outOfMemory`.
    ///
    /// - Complexity: 2 T r m for p, the same for dB; workspace up to 3 T r.
    public func backward(
        _ g: MatrixView, h: MatrixView?, into gradients: Gradients, on backend: some Backend
    ) throws(LowRankError) {
        if gradients.down != nil {
            throw .invalidArgument(argument: "out_down", expected: "none for an adapter without down", got: "a tensor")
        }
        if let dh = gradients.x { try requireShape(dh, g.rows, rank, "out_x") }
        try requireShapes(g, h: h, gradients)
        guard let p = try writeGradients(g, h: h, into: gradients, on: backend), let dh = gradients.x else { return }
        let q = try core.applied(toRightOf: p, on: backend)
        let scales = try backend.makeMatrix(rows: 1, columns: rank, type: q.type, order: .rowMajor).view
        backend.setValues(Array(repeating: scale, count: rank), of: scales)
        try backend.copy(q, rowFactors: nil, columnFactors: scales, to: q)
        try backend.accumulate(q, beta: 1, into: dh)
    }

    /// Writes dB and dC and returns p, where the gradient of x or of down is asked for.
    func writeGradients(
        _ g: MatrixView, h: MatrixView?, into gradients: Gradients, on backend: some Backend
    ) throws(LowRankError) -> MatrixView? {
        let needsP = gradients.core != nil || gradients.down != nil || gradients.x != nil
        let p = try needsP ? makeProduct(g, on: backend) : nil
        let trained = gradients.frozenColumns..<rank
        if let dUp = gradients.up { backend.clear(dUp[columns: 0..<gradients.frozenColumns]) }
        if let dUp = gradients.up?[columns: trained], let h, !trained.isEmpty {
            let between = try core.transposeApplied(toRightOf: h, on: backend)[columns: trained]
            if let p {
                try backend.multiplyPair(g, up, into: p.view, alpha: scale, between, into: dUp)
            } else {
                try backend.multiply(alpha: scale, g.transposed, between, beta: 0, into: dUp)
            }
        } else if let p {
            try backend.multiply(alpha: 1, g, up, beta: 0, into: p.view)
        }
        guard let p else { return nil }
        if let dCore = gradients.core, let h { try writeCoreGradient(p.view, h: h, to: dCore, on: backend) }
        return gradients.down == nil && gradients.x == nil ? nil : p.view
    }

    /// Memory for g B.
    private func makeProduct(_ g: MatrixView, on backend: some Backend) throws(LowRankError) -> Matrix {
        try backend.makeMatrix(rows: g.rows, columns: rank, type: backend.computeType(g, up), order: .rowMajor)
    }

    private func writeCoreGradient(
        _ p: MatrixView, h: MatrixView, to target: MatrixView, on backend: some Backend
    ) throws(LowRankError) {
        switch core {
        case .identity: break
        case .diagonal: try backend.columnDots(p, h, scale: scale, into: target)
        case .square: try backend.multiply(alpha: scale, p.transposed, h, beta: 0, into: target)
        }
    }

    func requireShapes(_ g: MatrixView, h: MatrixView?, _ gradients: Gradients) throws(LowRankError) {
        try requireShape(g, g.rows, up.rows, "grad")
        if let h { try requireShape(h, g.rows, rank, "h") }
        if let dUp = gradients.up { try requireShape(dUp, up.rows, rank, "out_up") }
        if let dCore = gradients.core { try core.requireGradient(dCore) }
        if h == nil && (gradients.up != nil || gradients.core != nil) {
            throw .invalidArgument(
                argument: "h", expected: "what the forward kept, which the gradients of up and core need", got: "none")
        }
        try requireFrozenColumns(gradients.frozenColumns, rank: rank)
    }
}
