// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankAdapters
import LowRankBackends
import LowRankCore
import TestSupport
import Testing

/// Gradients against the library's own forward in float64. The loss is linear in each factor, so that a central
/// difference is the derivative up to rounding, whatever its step.
@Suite struct FiniteDifferenceTests {
    private static let types = [ScalarType.float64, .float64, .float64]

    /// The derivative of `loss` by each entry of `matrix`, which is restored.
    private func derivative(by matrix: TestMatrix, of loss: () throws -> Double) rethrows -> RealMatrix {
        let start = matrix.values
        defer { matrix.values = start }
        var result = RealMatrix(start.rows, start.columns, repeating: 0)
        for i in 0..<start.rows {
            for j in 0..<start.columns {
                var moved = start
                moved[i, j] += 0.5
                matrix.values = moved
                let above = try loss()
                moved[i, j] -= 1
                matrix.values = moved
                result[i, j] = above - (try loss())
            }
        }
        return result
    }

    private func dot(_ a: RealMatrix, _ b: RealMatrix) -> Double {
        zip(a.values, b.values).reduce(0) { $0 + $1.0 * $1.1 }
    }

    @Test(arguments: KernelTable.available, CoreKind.allCases)
    func adapter(table: KernelTable, kind: CoreKind) throws {
        let backend = CPUBackend(kernels: table, threads: 1)
        let (m, n, rank, tokens) = (5, 4, 3, 6)
        let adapter = TestAdapter(gaussian: m, n, rank: rank, kind, types: Self.types)
        let x = TestMatrix(.gaussian(tokens, n, seed: 1), .float64)
        let g = TestMatrix(.gaussian(tokens, m, seed: 2), .float64)
        let h = TestMatrix(undefined: tokens, rank, .float64)
        func loss() throws -> Double {
            let y = TestMatrix(RealMatrix(tokens, m, repeating: 0), .float64)
            try adapter.factors().addForward(x.view, to: y.view, keeping: h.view, on: backend)
            return dot(g.values, y.values)
        }
        _ = try loss()
        let got = TestGradients(of: adapter, adding: RealMatrix(tokens, n, repeating: 0), type: .float64)
        try adapter.factors().backward(g.view, x: x.view, h: h.view, into: got.all(), on: backend)
        var pairs = [
            ("dx", got.x.values, try derivative(by: x, of: loss)),
            ("dA", got.down.values, try derivative(by: adapter.down, of: loss)),
            ("dB", got.up.values, try derivative(by: adapter.up, of: loss)),
        ]
        if let core = adapter.core, let dC = got.core {
            pairs.append(("dC", dC.values, try derivative(by: core, of: loss)))
        }
        for (name, gradient, difference) in pairs {
            #expect(difference.norm > 0.1, "\(kind) \(name): the loss does not depend on it")
            expectSmall(
                (gradient - difference).norm, size: 10, norm: difference.norm, .float64, within: .product,
                "\(table.name) \(kind) \(name) seeds 1, 2")
        }
    }

    @Test(arguments: KernelTable.available, CoreKind.allCases)
    func effectiveUp(table: KernelTable, kind: CoreKind) throws {
        let backend = CPUBackend(kernels: table, threads: 1)
        let (m, rank) = (6, 4)
        let adapter = TestAdapter(gaussian: m, 1, rank: rank, kind, types: Self.types)
        let start = TestMatrix(.gaussian(m, rank, seed: 3), .float64)
        let g = TestMatrix(.gaussian(m, rank, seed: 4), .float64)
        let effective = try EffectiveUp(up: adapter.up.view, core: adapter.libraryCore)
        func loss() throws -> Double {
            let out = TestMatrix(undefined: m, rank, .float64)
            try effective.write(minus: start.view, to: out.view, on: backend)
            return dot(g.values, out.values)
        }
        let got = TestGradients(of: adapter, adding: RealMatrix(1, 1, repeating: 0), type: .float64)
        try effective.backward(g.view, into: Gradients(core: got.core?.view, up: got.up.view), on: backend)
        var pairs = [("dB", got.up.values, try derivative(by: adapter.up, of: loss))]
        if let core = adapter.core, let dC = got.core {
            pairs.append(("dC", dC.values, try derivative(by: core, of: loss)))
        }
        for (name, gradient, difference) in pairs {
            #expect(difference.norm > 0.1, "\(kind) \(name): the loss does not depend on it")
            expectSmall(
                (gradient - difference).norm, size: 10, norm: difference.norm, .float64, within: .product,
                "\(table.name) \(kind) \(name) seeds 3, 4")
        }
    }
}
