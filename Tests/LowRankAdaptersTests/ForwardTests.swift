// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankAdapters
import LowRankBackends
import LowRankCore
import TestSupport
import Testing

@Suite struct ForwardTests {
    /// Whole numbers: every product and sum is exact, so the result is the definition's, rounded once to its type.
    @Test(arguments: KernelTable.available, CoreKind.allCases)
    func valuesAreExact(table: KernelTable, kind: CoreKind) throws {
        let backend = CPUBackend(kernels: table, threads: 2)
        for (m, n, r) in [(1, 1, 1), (7, 5, 3), (20, 33, 4)] {
            for tokens in [0, 1, 9] {
                for type in ScalarType.allCases {
                    for layout in [Layout.rowMajor, .columnMajor, .strided, .reversed] {
                        let adapter = TestAdapter(integers: m, n, rank: r, kind, type: type, layout: layout)
                        let x = TestMatrix(.integers(tokens, n, seed: 1, magnitude: 2), type, layout)
                        let old = RealMatrix.integers(tokens, m, seed: 2)
                        let y = TestMatrix(old, type, layout)
                        let h = TestMatrix(undefined: tokens, r, .float32, layout)
                        try adapter.factors().addForward(x.view, to: y.view, keeping: h.view, on: backend)
                        let label = "\(table.name) \(kind) \(m)x\(n) rank \(r) T \(tokens) \(type) \(layout)"
                        expectEqual(h.values, x.values * adapter.a.transposed, "\(label), h")
                        expectEqual(y.values, adapter.forward(x.values, adding: old).rounded(to: type), "\(label), y")
                        expectIntactGuard(x, y, h, adapter.up, adapter.down, label: label)
                    }
                }
            }
        }
    }

    @Test(arguments: KernelTable.available, CoreKind.allCases)
    func roundingIsThatOfTheTypes(table: KernelTable, kind: CoreKind) throws {
        let backend = CPUBackend(kernels: table, threads: 2)
        let (m, n, r, tokens) = (90, 130, 17, 40)
        for types in [
            [ScalarType.float32, .float32, .float32], [.float64, .float64, .float64], [.bfloat16, .float32, .float16],
            [.float32, .float64, .bfloat16],
        ] {
            let adapter = TestAdapter(gaussian: m, n, rank: r, kind, types: types)
            let working: ScalarType =
                types.contains(.float64) && (kind != .identity || types[0] == .float64) ? .float64 : .float32
            let x = TestMatrix(.gaussian(tokens, n, seed: 3), types[2])
            let old = TestMatrix(.gaussian(tokens, m, seed: 4), working)
            let y = TestMatrix(old.values, working)
            let h = TestMatrix(undefined: tokens, r, working)
            try adapter.factors().addForward(x.view, to: y.view, keeping: h.view, on: backend)
            // h is summed in float32 at least where its operands are narrower than what follows.
            let precision: ScalarType = types.allSatisfy { $0 == .float64 } ? .float64 : .float32
            let expected = adapter.forward(x.values, adding: old.values)
            expectSmall(
                (y.values - expected).norm, size: n, norm: expected.norm, precision, within: .product,
                "\(table.name) \(kind) \(types)")
        }
    }

    /// One number each: x = 3, A = 2, C = 5, B = 7, s = 1/2, y = 1. h = 6 and y = 1 + 6 * 5 * 7 / 2 = 106; without the
    /// scale y is 211, with y overwritten 105, without the core 22.
    @Test(arguments: KernelTable.available, [CoreKind.diagonal, .square])
    func oneByOne(table: KernelTable, kind: CoreKind) throws {
        func one(_ value: Double) -> RealMatrix { RealMatrix(1, 1, repeating: value) }
        let adapter = TestAdapter(
            up: one(7), core: one(5), down: one(2), kind: kind, scale: 0.5, types: [.float32, .float32, .float32],
            layout: .rowMajor)
        let (x, y, h) = (TestMatrix(one(3)), TestMatrix(one(1)), TestMatrix(undefined: 1, 1))
        try adapter.factors().addForward(
            x.view, to: y.view, keeping: h.view, on: CPUBackend(kernels: table, threads: 1))
        #expect(h.values[0, 0] == 6 && y.values[0, 0] == 106)
    }

    @Test(arguments: KernelTable.available, CoreKind.allCases)
    func bitsDoNotDependOnThreads(table: KernelTable, kind: CoreKind) throws {
        let adapter = TestAdapter(gaussian: 260, 300, rank: 16, kind)
        let x = TestMatrix(.gaussian(200, 300, seed: 5))
        let results = try threadCounts.map { threads in
            let y = TestMatrix(.gaussian(200, 260, seed: 6), .bfloat16)
            let h = TestMatrix(undefined: 200, 16)
            let backend = CPUBackend(kernels: table, threads: threads)
            try adapter.factors().addForward(x.view, to: y.view, keeping: h.view, on: backend)
            return y.bits + h.bits
        }
        expectSameBits(results, cases: threadCounts.map { "\($0) threads" }, "\(table.name) \(kind)")
    }

    @Test func zeroScaleAddsNothing() throws {
        let adapter = TestAdapter(integers: 6, 5, rank: 2, .square, scale: 0)
        let x = TestMatrix(.integers(4, 5, seed: 7))
        let old = RealMatrix.integers(4, 6, seed: 8)
        let (y, h) = (TestMatrix(old), TestMatrix(undefined: 4, 2))
        try adapter.factors().addForward(x.view, to: y.view, keeping: h.view, on: CPUBackend.shared)
        expectEqual(y.values, old, "scale 0")
        expectEqual(h.values, x.values * adapter.a.transposed, "h")
    }

    @Test func rankZeroAddsNothing() throws {
        let (up, down) = (TestMatrix(RealMatrix(6, 0, repeating: 0)), TestMatrix(RealMatrix(0, 5, repeating: 0)))
        let factors = try Factors(up: up.view, core: .identity, down: down.view, scale: 1)
        let old = RealMatrix.integers(4, 6, seed: 8)
        let (x, y, h) = (TestMatrix(.integers(4, 5, seed: 7)), TestMatrix(old), TestMatrix(undefined: 4, 0))
        try factors.addForward(x.view, to: y.view, keeping: h.view, on: CPUBackend.shared)
        expectEqual(y.values, old, "rank 0")
    }
}
