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
    /// What has still to be asked about them.
    private(set) var check: PendingCheck<StartingFactors>?

    /// Takes matrices whose shapes chain.
    public init(up: Matrix, permutation: [Int]? = nil, core: Core, down: Matrix) {
        self.up = up
        self.permutation = permutation
        self.core = core
        self.down = down
    }

    /// The same, to be asked about.
    func checked(by check: PendingCheck<StartingFactors>) -> StartingFactors {
        var result = self
        result.check = check
        return result
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
        var residual: Factors?
        if inPlace {
            residual = target
            residual?.scale = -target.scale
        }
        try finish(start, storedIn: target, subtracting: residual, from: weight, on: backend)
    }

    /// Stores the factors and changes the weight. The host waits once, for all that it has to know before that.
    private static func finish(
        _ start: StartingFactors, storedIn target: Factors, subtracting residual: Factors?, from weight: MatrixView,
        on backend: some Backend
    ) throws(LowRankError) {
        let stored = try store(start, to: target, on: backend)
        let merge = try residual?.startMerge(into: weight, on: backend)
        let aboutStart = start.check?.questions ?? []
        let answers = backend.answers(
            to: aboutStart + stored.map { .isFinite($0.view) } + (merge?.questions ?? []))
        if let other = try start.check?.resolve(Array(answers.prefix(aboutStart.count))) {
            return try finish(other, storedIn: target, subtracting: residual, from: weight, on: backend)
        }
        for (part, answer) in zip(stored, answers.dropFirst(aboutStart.count)) where answer != [1] {
            throw tooLarge(part.view, part.argument, on: backend)
        }
        if let residual, let merge {
            let aboutMerge = Array(answers.suffix(merge.questions.count))
            try residual.finish(merge, answers: aboutMerge, into: weight, on: backend)
        }
    }

    /// Copies the factors to where they go.
    ///
    /// - Returns: What may lie beyond the range of its type. What was computed in place is finite if the factorisation is.
    private static func store(
        _ start: StartingFactors, to target: Factors, on backend: some Backend
    ) throws(LowRankError) -> [(view: MatrixView, argument: String)] {
        var copies = [(start.up, target.up, "up"), (start.down, target.down, "down")]
        switch (start.core, target.core) {
        case (.identity, .identity): break
        case (.diagonal(let core), .diagonal(let view)):
            copies.append((core, view.rows == 1 ? view.transposed : view, "core"))
        case (.square(let core), .square(let view)): copies.append((core, view, "core"))
        case (let core, _):
            throw .invalidShape(
                argument: "core", expected: core.shape(rank: start.down.rows), got: target.core.view?.shape ?? "none")
        }
        var stored: [(view: MatrixView, argument: String)] = []
        for (source, view, argument) in copies {
            try requireShape(view, source.rows, source.columns, argument)
            if source.view.address == view.address { continue }
            if argument == "up", let permutation = start.permutation {
                try backend.scatterRows(source.view, to: permutation, of: view)
            } else {
                try backend.copy(source.view, to: view)
            }
            stored.append((view, argument))
        }
        return stored
    }

    private static func tooLarge(_ view: MatrixView, _ argument: String, on backend: some Backend) -> LowRankError {
        let at = backend.firstNonFinite(in: view) ?? (0, 0)
        return .numericalFailure(
            operation: name,
            reason: "\(argument)[\(at.row), \(at.column)] is beyond the range of \(view.type); ask for wider factors")
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
