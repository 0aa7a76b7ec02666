// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankAdapters
import LowRankBackends
import LowRankCore
import TestSupport

/// The three kinds of core.
enum CoreKind: String, CaseIterable, Sendable {
    case identity
    case diagonal
    case square
}

/// An adapter's factors in memory, with what they mean in float64.
struct TestAdapter {
    let up: TestMatrix
    let core: TestMatrix?
    let down: TestMatrix
    let kind: CoreKind
    let scale: Double

    init(
        up: RealMatrix, core: RealMatrix?, down: RealMatrix, kind: CoreKind, scale: Double, types: [ScalarType],
        layout: Layout
    ) {
        self.up = TestMatrix(up, types[0], layout)
        self.core = core.map { TestMatrix($0, types[1], layout) }
        self.down = TestMatrix(down, types[2], layout)
        self.kind = kind
        self.scale = scale
    }

    /// Factors [m, r], [r, n] of whole numbers, so that products are exact.
    init(
        integers m: Int, _ n: Int, rank r: Int, _ kind: CoreKind, scale: Double = 0.5, type: ScalarType = .float32,
        layout: Layout = .rowMajor, seed: UInt64 = 100
    ) {
        self.init(
            up: .integers(m, r, seed: seed, magnitude: 2),
            core: Self.core(kind, r) { .integers($0, $1, seed: seed + 1, magnitude: 2) },
            down: .integers(r, n, seed: seed + 2, magnitude: 2), kind: kind, scale: scale, types: [type, type, type],
            layout: layout)
    }

    init(
        gaussian m: Int, _ n: Int, rank r: Int, _ kind: CoreKind, scale: Double = 0.7,
        types: [ScalarType] = [.float32, .float32, .float32], seed: UInt64 = 200
    ) {
        self.init(
            up: .gaussian(m, r, seed: seed), core: Self.core(kind, r) { .gaussian($0, $1, seed: seed + 1) },
            down: .gaussian(r, n, seed: seed + 2), kind: kind, scale: scale, types: types, layout: .rowMajor)
    }

    private static func core(_ kind: CoreKind, _ rank: Int, _ make: (Int, Int) -> RealMatrix) -> RealMatrix? {
        switch kind {
        case .identity: nil
        case .diagonal: make(1, rank)
        case .square: make(rank, rank)
        }
    }

    var rank: Int { up.view.columns }

    var libraryCore: Core {
        switch (kind, core) {
        case (.diagonal, let core?): .diagonal(core.view)
        case (.square, let core?): .square(core.view)
        default: .identity
        }
    }

    func factors() throws(LowRankError) -> Factors {
        try Factors(up: up.view, core: libraryCore, down: down.view, scale: scale)
    }

    // MARK: The definitions

    var b: RealMatrix { up.values }
    var a: RealMatrix { down.values }
    /// C as an r x r matrix.
    var c: RealMatrix {
        switch (kind, core) {
        case (.diagonal, let core?): RealMatrix(diagonal: core.values.values)
        case (.square, let core?): core.values
        default: .identity(rank)
        }
    }

    /// s B C A.
    var delta: RealMatrix { scale * (b * c * a) }

    /// y + s ((x Aᵀ) Cᵀ) Bᵀ.
    func forward(_ x: RealMatrix, adding y: RealMatrix) -> RealMatrix {
        y + scale * (x * a.transposed * c.transposed * b.transposed)
    }

    /// The gradients for upstream g, with the core's as memory holds it.
    func gradients(_ g: RealMatrix, x: RealMatrix, h: RealMatrix) -> (
        x: RealMatrix, down: RealMatrix, core: RealMatrix, up: RealMatrix
    ) {
        let p = g * b
        let q = scale * (p * c)
        let dC = scale * (p.transposed * h)
        let core = kind == .diagonal ? RealMatrix(rows: 1, columns: rank, values: dC.diagonal) : dC
        return (q * a, q.transposed * x, core, scale * (g.transposed * (h * c.transposed)))
    }
}

/// Memory for the gradients of an adapter, all NaN but dx.
struct TestGradients {
    let x: TestMatrix
    let down: TestMatrix
    let core: TestMatrix?
    let up: TestMatrix

    init(of adapter: TestAdapter, adding dx: RealMatrix, type: ScalarType, layout: Layout = .rowMajor) {
        x = TestMatrix(dx, type, layout)
        down = TestMatrix(undefined: adapter.a.rows, adapter.a.columns, type, layout)
        core = adapter.core.map { TestMatrix(undefined: $0.view.rows, $0.view.columns, type, layout) }
        up = TestMatrix(undefined: adapter.b.rows, adapter.b.columns, type, layout)
    }

    func all(frozenColumns: Int = 0) -> Gradients {
        Gradients(x: x.view, down: down.view, core: core?.view, up: up.view, frozenColumns: frozenColumns)
    }
}
