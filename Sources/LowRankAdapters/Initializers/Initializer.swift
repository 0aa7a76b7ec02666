// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankBackends
import LowRankCore
import LowRankFactorizations

/// What some methods read beside the weight, the rank and the scale.
public struct InitializerOptions: Sendable {
    /// Residual bound of an SVD over the largest singular value.
    public var tolerance = TruncatedSVD.defaultTolerance
    /// Of everything random.
    public var seed: UInt64 = 0
    /// LoLDU's starting diagonal.
    public var diagonal = LoLDU.StartingDiagonal.ldu

    /// The defaults of the Python functions.
    public init() {}
}

/// Starting factors, in the working precision and in memory of their own.
public struct StartingFactors {
    /// C, which owns its memory.
    public enum Core {
        /// The identity.
        case identity
        /// A diagonal, as a vector of r elements.
        case diagonal(Matrix)
        /// `[r, r]`.
        case square(Matrix)
    }

    /// B, `[m, r]`, but for the order of its rows.
    public let up: Matrix
    /// Row `i` of ``up`` is row `permutation[i]` of B; nil where the rows are in order.
    public let permutation: [Int]?
    /// C.
    public let core: Core
    /// A, `[r, n]`.
    public let down: Matrix

    /// Takes matrices whose shapes chain.
    public init(up: Matrix, permutation: [Int]? = nil, core: Core, down: Matrix) {
        self.up = up
        self.permutation = permutation
        self.core = core
        self.down = down
    }
}

/// A method: which factorisation of the weight its adapter starts from.
public protocol Initializer {
    /// The name that callers know it by.
    static var name: String { get }

    /// The factors B, C and A of a weight, with nothing divided by `scale` unless the method says so.
    ///
    /// - Parameter target: Memory that A may lie in, which then has to outlive it; unspecified contents after an error.
    static func startingFactors(
        of weight: MatrixView, rank: Int, scale: Double, options: InitializerOptions, downIn target: MatrixView?,
        on backend: some Backend
    ) throws(LowRankError) -> StartingFactors
}

/// All methods.
public enum Initializers {
    /// Every method, in the order in which messages name them.
    public static var all: [any Initializer.Type] { [OLoRA.self, LoLDU.self, LaMDA.self, PiSSA.self, LoRAXS.self] }

    /// The method of a name.
    public static func named(_ name: String) throws(LowRankError) -> any Initializer.Type {
        if let method = all.first(where: { $0.name == name }) { return method }
        let names = all.map { "\"\($0.name)\"" }.joined(separator: ", ")
        throw .invalidArgument(argument: "method", expected: "one of \(names)", got: "\"\(name)\"")
    }
}

extension Initializer {
    /// Writes a method's starting factors, and with `inPlace` subtracts them from the weight.
    ///
    /// - Parameters:
    ///   - weight: `[m, n]`; with `inPlace` it becomes `W − s B C A` with the factors as stored in `target`, so that
    ///     nothing of their rounding is lost. Written only after all factors are complete and finite.
    ///   - rank: `1...min(m, n)`.
    ///   - target: Where the factors go; its scale is the adapter's.
    /// - Throws: as the method's factorisation; ``LowRankError/invalidShape(argument:expected:got:)`` for a target that does
    ///   not fit; ``LowRankError/numericalFailure(operation:reason:)`` for a factor beyond the range of the target's type.
    public static func initialize(
        _ weight: MatrixView, rank: Int, into target: Factors, inPlace: Bool, options: InitializerOptions = .init(),
        on backend: some Backend
    ) throws(LowRankError) {
        let start = try startingFactors(
            of: weight, rank: rank, scale: target.scale, options: options, downIn: target.down, on: backend)
        try store(start.up, permutation: start.permutation, to: target.up, "up", on: backend)
        try store(start.down, to: target.down, "down", on: backend)
        switch (start.core, target.core) {
        case (.identity, .identity): break
        case (.diagonal(let core), .diagonal(let view)):
            try store(core, to: view.rows == 1 ? view.transposed : view, "core", on: backend)
        case (.square(let core), .square(let view)): try store(core, to: view, "core", on: backend)
        case (let core, _):
            throw .invalidShape(argument: "core", expected: core.shape(rank: rank), got: target.core.view?.shape ?? "none")
        }
        guard inPlace else { return }
        var residual = target
        residual.scale = -target.scale
        try residual.merge(into: weight, on: backend)
    }

    private static func store(
        _ source: Matrix, permutation: [Int]? = nil, to target: MatrixView, _ argument: String, on backend: some Backend
    ) throws(LowRankError) {
        try requireShape(target, source.rows, source.columns, argument)
        // What was computed in place is complete and was found finite.
        if source.view.address == target.address { return }
        if let permutation {
            try backend.scatterRows(source.view, to: permutation, of: target)
        } else {
            try backend.copy(source.view, to: target)
        }
        if let at = backend.firstNonFinite(in: target) {
            throw .numericalFailure(
                operation: name,
                reason: "\(argument)[\(at.row), \(at.column)] is beyond the range of \(target.type); ask for wider factors")
        }
    }
}

extension StartingFactors.Core {
    fileprivate func shape(rank: Int) -> String {
        switch self {
        case .identity: "none"
        case .diagonal: "shape [\(rank)]"
        case .square: "shape [\(rank), \(rank)]"
        }
    }
}
