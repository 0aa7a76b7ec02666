// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankAdapters
import LowRankBackends
import LowRankCore
import TestSupport
import Testing

@Suite struct BackwardTests {
    @Test(arguments: KernelTable.available, CoreKind.allCases)
    func valuesAreExact(table: KernelTable, kind: CoreKind) throws {
        let backend = CPUBackend(kernels: table, threads: 2)
        for (m, n, r) in [(1, 1, 1), (7, 5, 3), (20, 33, 4)] {
            for tokens in [0, 1, 9] {
                for type in ScalarType.allCases {
                    for layout in [Layout.rowMajor, .columnMajor, .strided, .reversed] {
                        let adapter = TestAdapter(integers: m, n, rank: r, kind, type: type, layout: layout)
                        let x = TestMatrix(.integers(tokens, n, seed: 1, magnitude: 1), type, layout)
                        let h = TestMatrix(.integers(tokens, r, seed: 2, magnitude: 2), .float32, layout)
                        let g = TestMatrix(.integers(tokens, m, seed: 3, magnitude: 1), type, layout)
                        let dx = RealMatrix.integers(tokens, n, seed: 4)
                        let got = TestGradients(of: adapter, adding: dx, type: type, layout: layout)
                        try adapter.factors().backward(g.view, x: x.view, h: h.view, into: got.all(), on: backend)
                        let expected = adapter.gradients(g.values, x: x.values, h: h.values)
                        let label = "\(table.name) \(kind) \(m)x\(n) rank \(r) T \(tokens) \(type) \(layout)"
                        expectEqual(got.x.values, (dx + expected.x).rounded(to: type), "\(label), dx")
                        expectEqual(got.down.values, expected.down.rounded(to: type), "\(label), dA")
                        expectEqual(got.up.values, expected.up.rounded(to: type), "\(label), dB")
                        expectIntactGuard(got.x, got.down, got.up, label: label)
                        if let core = got.core {
                            expectEqual(core.values, expected.core.rounded(to: type), "\(label), dC")
                            expectIntactGuard(core, label: label)
                        }
                    }
                }
            }
        }
    }

    /// One number each: x = 3, A = 2, C = 5, B = 7, s = 1/2, g = 4, h = 6. p = 28 and q = 70; dB = 60 (12 without the
    /// core, 120 without the scale), dC = 84, dA = 210 (42 without the core), dx = 1 + 140 (140 if overwritten).
    @Test(arguments: KernelTable.available, [CoreKind.diagonal, .square])
    func oneByOne(table: KernelTable, kind: CoreKind) throws {
        func one(_ value: Double) -> RealMatrix { RealMatrix(1, 1, repeating: value) }
        let adapter = TestAdapter(
            up: one(7), core: one(5), down: one(2), kind: kind, scale: 0.5, types: [.float32, .float32, .float32],
            layout: .rowMajor)
        let (x, h, g) = (TestMatrix(one(3)), TestMatrix(one(6)), TestMatrix(one(4)))
        let got = TestGradients(of: adapter, adding: one(1), type: .float32)
        let backend = CPUBackend(kernels: table, threads: 1)
        try adapter.factors().backward(g.view, x: x.view, h: h.view, into: got.all(), on: backend)
        #expect(got.up.values[0, 0] == 60)
        #expect(got.core?.values[0, 0] == 84)
        #expect(got.down.values[0, 0] == 210)
        #expect(got.x.values[0, 0] == 141)
    }

    @Test(arguments: KernelTable.available, CoreKind.allCases)
    func roundingIsThatOfTheTypes(table: KernelTable, kind: CoreKind) throws {
        let backend = CPUBackend(kernels: table, threads: 2)
        let (m, n, r, tokens) = (90, 130, 17, 60)
        for types in [
            [ScalarType.float32, .float32, .float32], [.float64, .float64, .float64], [.bfloat16, .float32, .float16],
        ] {
            let adapter = TestAdapter(gaussian: m, n, rank: r, kind, types: types)
            let precision: ScalarType = types[0] == .float64 ? .float64 : .float32
            let x = TestMatrix(.gaussian(tokens, n, seed: 5), types[2])
            let h = TestMatrix(.gaussian(tokens, r, seed: 6), types[1])
            let g = TestMatrix(.gaussian(tokens, m, seed: 7), types[0])
            let dx = TestMatrix(.gaussian(tokens, n, seed: 8), precision)
            let got = TestGradients(of: adapter, adding: dx.values, type: precision)
            try adapter.factors().backward(g.view, x: x.view, h: h.view, into: got.all(), on: backend)
            let expected = adapter.gradients(g.values, x: x.values, h: h.values)
            for (name, result, wanted) in [
                ("dx", got.x.values, dx.values + expected.x), ("dA", got.down.values, expected.down),
                ("dB", got.up.values, expected.up), ("dC", got.core?.values ?? expected.core, expected.core),
            ] {
                expectSmall(
                    (result - wanted).norm, size: n, norm: wanted.norm, precision, within: .product,
                    "\(table.name) \(kind) \(types) \(name)")
            }
        }
    }

    /// The columns that are frozen are zero, and the others have the bits that they have without frozen ones.
    @Test(arguments: KernelTable.available, CoreKind.allCases)
    func frozenColumnsAreZero(table: KernelTable, kind: CoreKind) throws {
        let backend = CPUBackend(kernels: table, threads: 2)
        let rank = 6
        let adapter = TestAdapter(gaussian: 40, 30, rank: rank, kind)
        let x = TestMatrix(.gaussian(12, 30, seed: 9))
        let h = TestMatrix(.gaussian(12, rank, seed: 10))
        let g = TestMatrix(.gaussian(12, 40, seed: 11))
        let zero = RealMatrix(12, 30, repeating: 0)
        let free = TestGradients(of: adapter, adding: zero, type: .float32)
        try adapter.factors().backward(g.view, x: x.view, h: h.view, into: free.all(), on: backend)
        for frozen in 0...rank {
            let got = TestGradients(of: adapter, adding: zero, type: .float32)
            try adapter.factors().backward(
                g.view, x: x.view, h: h.view, into: got.all(frozenColumns: frozen), on: backend)
            let expected = RealMatrix(40, rank) { $1 < frozen ? 0 : free.up.values[$0, $1] }
            expectEqual(got.up.values, expected, "\(table.name) \(kind) \(frozen) frozen")
            #expect(got.x.bits == free.x.bits && got.down.bits == free.down.bits && got.core?.bits == free.core?.bits)
        }
    }

    /// What is not asked for is not computed, and what it would have needed may be absent.
    @Test(arguments: CoreKind.allCases)
    func gradientsAreComputedOneByOne(kind: CoreKind) throws {
        let backend = CPUBackend.shared
        let adapter = TestAdapter(gaussian: 20, 15, rank: 4, kind)
        let factors = try adapter.factors()
        let x = TestMatrix(.gaussian(9, 15, seed: 12))
        let h = TestMatrix(.gaussian(9, 4, seed: 13))
        let g = TestMatrix(.gaussian(9, 20, seed: 14))
        let dx = RealMatrix.gaussian(9, 15, seed: 15)
        let all = TestGradients(of: adapter, adding: dx, type: .float32)
        try factors.backward(g.view, x: x.view, h: h.view, into: all.all(), on: backend)

        let one = TestGradients(of: adapter, adding: dx, type: .float32)
        try factors.backward(g.view, x: nil, h: nil, into: Gradients(), on: backend)
        try factors.backward(g.view, x: nil, h: nil, into: Gradients(x: one.x.view), on: backend)
        try factors.backward(g.view, x: x.view, h: nil, into: Gradients(down: one.down.view), on: backend)
        try factors.backward(g.view, x: nil, h: h.view, into: Gradients(core: one.core?.view), on: backend)
        #expect(one.up.values.values.allSatisfy { $0.isNaN }, "not asked for yet")
        try factors.backward(g.view, x: nil, h: h.view, into: Gradients(up: one.up.view), on: backend)
        #expect(one.x.bits == all.x.bits && one.down.bits == all.down.bits && one.up.bits == all.up.bits)
        #expect(one.core?.bits == all.core?.bits)
    }

    @Test(arguments: KernelTable.available, CoreKind.allCases)
    func bitsDoNotDependOnThreads(table: KernelTable, kind: CoreKind) throws {
        let adapter = TestAdapter(gaussian: 260, 300, rank: 16, kind)
        let x = TestMatrix(.gaussian(200, 300, seed: 16))
        let h = TestMatrix(.gaussian(200, 16, seed: 17))
        let g = TestMatrix(.gaussian(200, 260, seed: 18))
        let results = try threadCounts.map { threads in
            let got = TestGradients(of: adapter, adding: .gaussian(200, 300, seed: 19), type: .float32)
            let backend = CPUBackend(kernels: table, threads: threads)
            try adapter.factors().backward(g.view, x: x.view, h: h.view, into: got.all(), on: backend)
            return got.x.bits + got.down.bits + got.up.bits + (got.core?.bits ?? [])
        }
        expectSameBits(results, cases: threadCounts.map { "\($0) threads" }, "\(table.name) \(kind)")
    }
}
