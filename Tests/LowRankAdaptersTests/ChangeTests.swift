// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankAdapters
import LowRankBackends
import LowRankCore
import TestSupport
import Testing

/// `s (B A − B₀ A₀)` against its definition, two adapters of opposite signs.
@Suite struct ChangeTests {
    private func change(_ now: TestAdapter, less start: TestAdapter) throws -> Change {
        try Change(now.factors(), startUp: start.up.view, startDown: start.down.view)
    }

    @Test(arguments: KernelTable.available, ScalarType.allCases)
    func valuesAreExact(table: KernelTable, type: ScalarType) throws {
        let backend = CPUBackend(kernels: table, threads: 2)
        for (m, n, r, tokens) in [(1, 1, 1, 1), (7, 5, 3, 9), (20, 33, 4, 0), (20, 33, 4, 17)] {
            for layout in [Layout.rowMajor, .columnMajor, .strided, .reversed] {
                let now = TestAdapter(integers: m, n, rank: r, .identity, layout: layout)
                let start = TestAdapter(integers: m, n, rank: r, .identity, type: type, layout: layout, seed: 300)
                let x = TestMatrix(.integers(tokens, n, seed: 1, magnitude: 1), type, layout)
                let old = RealMatrix.integers(tokens, m, seed: 2)
                let (y, h) = (TestMatrix(old, type, layout), TestMatrix(undefined: tokens, r, .float32, layout))
                let change = try self.change(now, less: start)
                try change.addForward(x.view, to: y.view, keeping: h.view, on: backend)
                let label = "\(table.name) \(m)x\(n) rank \(r) T \(tokens) \(type) \(layout)"
                let taken = start.forward(x.values, adding: RealMatrix(tokens, m, repeating: 0))
                expectEqual(h.values, x.values * now.a.transposed, "\(label), h")
                expectEqual(y.values, (now.forward(x.values, adding: old) - taken).rounded(to: type), "\(label), y")

                let g = TestMatrix(.integers(tokens, m, seed: 3, magnitude: 1), type, layout)
                let expected = now.gradients(g.values, x: x.values, h: h.values)
                let dx = RealMatrix.integers(tokens, n, seed: 4)
                let without = start.gradients(g.values, x: x.values, h: h.values).x
                let got = TestGradients(of: now, adding: dx, type: type, layout: layout)
                try change.backward(g.view, x: x.view, h: h.view, into: got.all(), on: backend)
                expectEqual(got.x.values, (dx + expected.x - without).rounded(to: type), "\(label), dx")
                expectEqual(got.down.values, expected.down.rounded(to: type), "\(label), dA")
                expectEqual(got.up.values, expected.up.rounded(to: type), "\(label), dB")
                expectIntactGuard(x, y, h, g, got.x, got.down, got.up, label: label)
            }
        }
    }

    /// Each gradient alone has the bits, or the exact numbers, that it has among all.
    @Test func eachGradientAlone() throws {
        let (now, start) = (
            TestAdapter(integers: 7, 5, rank: 3, .identity), TestAdapter(integers: 7, 5, rank: 3, .identity, seed: 300)
        )
        let (x, h) = (TestMatrix(.integers(9, 5, seed: 1)), TestMatrix(.integers(9, 3, seed: 2)))
        let (g, dx) = (TestMatrix(.integers(9, 7, seed: 3)), RealMatrix.integers(9, 5, seed: 4))
        let change = try self.change(now, less: start)
        let all = TestGradients(of: now, adding: dx, type: .float32)
        try change.backward(g.view, x: x.view, h: h.view, into: all.all(), on: CPUBackend.shared)
        let alone = TestGradients(of: now, adding: dx, type: .float32)
        try change.backward(g.view, x: nil, h: nil, into: Gradients(x: alone.x.view), on: CPUBackend.shared)
        try change.backward(g.view, x: x.view, h: nil, into: Gradients(down: alone.down.view), on: CPUBackend.shared)
        try change.backward(g.view, x: nil, h: h.view, into: Gradients(up: alone.up.view), on: CPUBackend.shared)
        expectEqual(alone.x.values, all.x.values, "dx")
        expectEqual(alone.down.values, all.down.values, "dA")
        expectEqual(alone.up.values, all.up.values, "dB")
    }

    @Test(arguments: KernelTable.available, [ScalarType.float32, .bfloat16, .float16])
    func theStartChangesNoBit(table: KernelTable, type: ScalarType) throws {
        let backend = CPUBackend(kernels: table, threads: 2)
        let start = TestAdapter(gaussian: 90, 130, rank: 17, .identity, types: [type, type, type])
        let x = TestMatrix(.gaussian(40, 130, seed: 5), type)
        let (y, h) = (TestMatrix(.gaussian(40, 90, seed: 6), type), TestMatrix(undefined: 40, 17, type))
        let before = y.bits
        try change(start, less: start).addForward(x.view, to: y.view, keeping: h.view, on: backend)
        #expect(y.bits == before)
    }

    @Test(arguments: KernelTable.available)
    func bitsDoNotDependOnThreads(table: KernelTable) throws {
        let (now, start) = (
            TestAdapter(gaussian: 260, 300, rank: 16, .identity),
            TestAdapter(gaussian: 260, 300, rank: 16, .identity, seed: 300)
        )
        let (x, g) = (TestMatrix(.gaussian(600, 300, seed: 5)), TestMatrix(.gaussian(600, 260, seed: 6), .bfloat16))
        let results = try threadCounts.map { threads in
            let backend = CPUBackend(kernels: table, threads: threads)
            let (y, h) = (TestMatrix(.gaussian(600, 260, seed: 7), .bfloat16), TestMatrix(undefined: 600, 16))
            try self.change(now, less: start).addForward(x.view, to: y.view, keeping: h.view, on: backend)
            let got = TestGradients(of: now, adding: .gaussian(600, 300, seed: 8), type: .float32)
            try self.change(now, less: start).backward(g.view, x: x.view, h: h.view, into: got.all(), on: backend)
            return y.bits + h.bits + got.x.bits + got.down.bits + got.up.bits
        }
        expectSameBits(results, cases: threadCounts.map { "\($0) threads" }, table.name)
    }

    @Test func whatDoesNotFitIsAnError() throws {
        let (now, other) = (
            TestAdapter(integers: 6, 5, rank: 2, .identity), TestAdapter(integers: 6, 5, rank: 3, .identity)
        )
        #expect(throws: LowRankError.self) { try Change(now.factors(), startUp: other.up.view, startDown: now.down.view) }
        #expect(throws: LowRankError.self) { try Change(now.factors(), startUp: now.up.view, startDown: other.down.view) }
        let cored = TestAdapter(integers: 6, 5, rank: 2, .square)
        #expect(throws: LowRankError.self) { try self.change(cored, less: now) }
        let (g, h) = (TestMatrix(.integers(4, 6, seed: 1)), TestMatrix(.integers(4, 2, seed: 2)))
        let got = TestGradients(of: now, adding: .integers(4, 5, seed: 3), type: .float32)
        let change = try self.change(now, less: now)
        #expect(throws: LowRankError.self) {
            try change.backward(g.view, x: nil, h: h.view, into: got.all(), on: CPUBackend.shared)
        }
        #expect(throws: LowRankError.self) {
            let frozen = Gradients(x: got.x.view, up: got.up.view, frozenColumns: 1)
            try change.backward(g.view, x: nil, h: h.view, into: frozen, on: CPUBackend.shared)
        }
        #expect(throws: LowRankError.self) {
            try change.addForward(g.view, to: g.view, keeping: h.view, on: CPUBackend.shared)
        }
    }
}
