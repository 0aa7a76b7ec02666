// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankCore

/// What sits between the up- and the down-projection: C in `ΔW = s B C A`.
public enum Core {
    /// The identity.
    case identity
    /// A diagonal, as a vector of r elements.
    case diagonal(MatrixView)
    /// `[r, r]`.
    case square(MatrixView)

    /// The elements in memory, nil for the identity.
    public var view: MatrixView? {
        switch self {
        case .identity: nil
        case .diagonal(let view), .square(let view): view
        }
    }
}

/// The factors of an adapter, `ΔW = scale · up · core · down`, in memory that the caller owns. Element types may differ.
public struct Factors {
    /// B, `[m, r]`.
    public var up: MatrixView
    /// C.
    public var core: Core
    /// A, `[r, n]`.
    public var down: MatrixView
    /// s.
    public var scale: Double

    /// - Throws: ``LowRankError/invalidShape(argument:expected:got:)`` where the shapes do not chain,
    ///   ``LowRankError/invalidArgument(argument:expected:got:)`` for a scale that is not finite.
    public init(up: MatrixView, core: Core, down: MatrixView, scale: Double) throws(LowRankError) {
        self.up = up
        self.core = core
        self.down = down
        self.scale = scale
        guard down.rows == rank else {
            throw .invalidShape(argument: "down", expected: "shape [\(rank), n] to fit up \(up.shape)", got: down.shape)
        }
        try core.requireRank(rank)
        try requireScale(scale)
    }

    /// r.
    public var rank: Int { up.columns }

    /// The part that acts on h.
    var upProjection: UpProjection { UpProjection(unchecked: up, core: core, scale: scale) }
}

extension Core {
    func requireRank(_ rank: Int) throws(LowRankError) {
        switch self {
        case .identity: break
        case .diagonal(let vector):
            if vector.rows * vector.columns != rank || (vector.rows != 1 && vector.columns != 1) {
                throw .invalidShape(argument: "core", expected: "shape [\(rank)]", got: "[\(vector.rows * vector.columns)]")
            }
        case .square(let matrix):
            if matrix.rows != rank || matrix.columns != rank {
                throw .invalidShape(argument: "core", expected: "shape [\(rank), \(rank)]", got: matrix.shape)
            }
        }
    }
}

func requireScale(_ scale: Double) throws(LowRankError) {
    if !scale.isFinite { throw .invalidArgument(argument: "scale", expected: "a finite number", got: "\(scale)") }
}

func requireShape(
    _ view: MatrixView, _ rows: Int, _ columns: Int, _ argument: String
) throws(LowRankError) {
    if view.rows != rows || view.columns != columns {
        throw .invalidShape(argument: argument, expected: "shape [\(rows), \(columns)]", got: view.shape)
    }
}
