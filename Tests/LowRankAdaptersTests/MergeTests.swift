// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankAdapters
import LowRankBackends
import LowRankCore
import TestSupport
import Testing

@Suite struct MergeTests {
    @Test(arguments: KernelTable.available, CoreKind.allCases)
    func valuesAreExact(table: KernelTable, kind: CoreKind) throws {
        let backend = CPUBackend(kernels: table, threads: 2)
        for (m, n, r) in [(1, 1, 1), (7, 5, 3), (130, 33, 4)] {
            for type in ScalarType.allCases {
                for layout in [Layout.rowMajor, .columnMajor, .strided, .reversed] {
                    let adapter = TestAdapter(integers: m, n, rank: r, kind, type: type, layout: layout)
                    let old = RealMatrix.integers(m, n, seed: 1)
                    let weight = TestMatrix(old, type, layout)
                    try adapter.factors().merge(into: weight.view, on: backend)
                    let label = "\(table.name) \(kind) \(m)x\(n) rank \(r) \(type) \(layout)"
                    expectEqual(weight.values, (old + adapter.delta).rounded(to: type), label)
                    expectIntactGuard(weight, label: label)
                }
            }
        }
    }

    @Test(arguments: KernelTable.available, CoreKind.allCases)
    func layerWithTheMergedWeightIsTheAdaptedLayer(table: KernelTable, kind: CoreKind) throws {
        let backend = CPUBackend(kernels: table, threads: 2)
        let adapter = TestAdapter(gaussian: 40, 30, rank: 5, kind)
        let weight = TestMatrix(.gaussian(40, 30, seed: 2))
        let x = TestMatrix(.gaussian(20, 30, seed: 3))
        let (y, h) = (TestMatrix(x.values * weight.values.transposed), TestMatrix(undefined: 20, 5))
        try adapter.factors().addForward(x.view, to: y.view, keeping: h.view, on: backend)
        let before = weight.values
        try adapter.factors().merge(into: weight.view, on: backend)
        #expect((weight.values - before).norm > 1, "the merge changes the weight")
        let merged = x.values * weight.values.transposed
        expectSmall(
            (merged - y.values).norm, size: 40, norm: y.values.norm, .float32, within: .product, "\(table.name) \(kind)"
        )
    }

    @Test(arguments: [Double.nan, .infinity, -.infinity], CoreKind.allCases)
    func nonFiniteFactorsAreNamedBeforeAnyWrite(value: Double, kind: CoreKind) throws {
        for name in ["up", "core", "down"] {
            let adapter = TestAdapter(integers: 6, 5, rank: 3, kind)
            let matrix = name == "up" ? adapter.up : name == "down" ? adapter.down : adapter.core
            guard let matrix else { continue }
            let row = name == "core" && kind == .diagonal ? 0 : 2
            matrix.setBits(ScalarType.float32.bits(of: value), row, 1)
            let weight = TestMatrix(.integers(6, 5, seed: 4))
            let before = weight.bits
            #expect(throws: LowRankError.nonFinite(argument: name, row: row, column: 1), "\(kind) \(value)") {
                try adapter.factors().merge(into: weight.view, on: CPUBackend.shared)
            }
            #expect(weight.bits == before)
        }
    }

    @Test(arguments: KernelTable.available, CoreKind.allCases)
    func bitsDoNotDependOnThreads(table: KernelTable, kind: CoreKind) throws {
        let adapter = TestAdapter(gaussian: 300, 280, rank: 16, kind)
        let results = try threadCounts.map { threads in
            let weight = TestMatrix(.gaussian(300, 280, seed: 5), .bfloat16)
            try adapter.factors().merge(into: weight.view, on: CPUBackend(kernels: table, threads: threads))
            return weight.bits
        }
        expectSameBits(results, cases: threadCounts.map { "\($0) threads" }, "\(table.name) \(kind)")
    }

    /// The sum of one entry leaves the range of the weight's type, of all others it does not.
    @Test(arguments: KernelTable.available, ScalarType.allCases)
    func overflowIsAnErrorBeforeAnyWrite(table: KernelTable, type: ScalarType) throws {
        let backend = CPUBackend(kernels: table, threads: 2)
        let large = type.greatestFinite
        for (m, n, row, column) in [(1, 1, 0, 0), (130, 70, 0, 69), (130, 70, 129, 0), (130, 70, 64, 33)] {
            for layout in [Layout.rowMajor, .columnMajor, .reversed] {
                let up = TestMatrix(RealMatrix(m, 1) { i, _ in i == row ? 1 : 0 }, type)
                let down = TestMatrix(RealMatrix(1, n) { _, j in j == column ? 1 : 0 }, type)
                var values = RealMatrix.integers(m, n, seed: 2)
                values[row, column] = large
                let weight = TestMatrix(values, type, layout)
                var factors = try Factors(up: up.view, core: .identity, down: down.view, scale: large / 2)
                let before = weight.bits
                let label = "\(table.name) \(type) \(layout) [\(row), \(column)] of \(m)x\(n)"
                #expect("\(label)") { try factors.merge(into: weight.view, on: backend) } throws: { error in
                    guard case .numericalFailure("scale", let reason)? = error as? LowRankError else { return false }
                    return reason.hasSuffix("range of \(type), got one beyond it at [\(row), \(column)], where W is \(large)")
                }
                #expect(weight.bits == before, "\(label): the weight was written")
                // The other sign fits.
                factors.scale = -large / 2
                try factors.merge(into: weight.view, on: backend)
                #expect(weight.bits != before, "\(label): the weight was not written")
                expectIntactGuard(weight, label: label)
            }
        }
    }

    /// Where the bounds don't suffice but the sums fit, the merge is what it is otherwise, and what was not finite stays.
    @Test(arguments: KernelTable.available, ScalarType.allCases)
    func sumsNearTheEndOfTheRangePass(table: KernelTable, type: ScalarType) throws {
        let backend = CPUBackend(kernels: table, threads: 2)
        let half = type.greatestFinite / (2 - type.epsilon) / 2
        let (m, n) = (130, 9)
        // Each row of B meets the rows of A's one at a time, so that the norms bound nothing.
        let up = TestMatrix(RealMatrix(m, 2) { i, k in i % 2 == k ? 1 : 0 }, type)
        let down = TestMatrix(RealMatrix(2, n) { k, j in k == 0 ? 1 : -1 }, type)
        var values = RealMatrix(m, n) { i, _ in i % 2 == 0 ? -half : half }
        values[3, 4] = .infinity
        values[77, 0] = .nan
        let weight = TestMatrix(values, type, .columnMajor)
        let factors = try Factors(up: up.view, core: .identity, down: down.view, scale: 2 * half)
        try factors.merge(into: weight.view, on: backend)
        let delta = RealMatrix(m, n) { i, _ in i % 2 == 0 ? 2 * half : -2 * half }
        expectEqual(weight.values, values + delta, "\(table.name) \(type)")
    }

    @Test func overflowOfAProductOnTheWayIsAnError() throws {
        // B C overflows float32, although s B C A would not.
        let adapter = TestAdapter(integers: 6, 5, rank: 1, .square)
        adapter.up.values = RealMatrix(6, 1, repeating: 0x1p100)
        adapter.core?.values = RealMatrix(1, 1, repeating: 0x1p100)
        adapter.down.values = RealMatrix(1, 5, repeating: 0x1p-100)
        let weight = TestMatrix(.integers(6, 5, seed: 4))
        let before = weight.bits
        #expect(throws: LowRankError.self) { try adapter.factors().merge(into: weight.view, on: CPUBackend.shared) }
        #expect(weight.bits == before)
    }

    @Test func emptyWeightsAndRanksPass() throws {
        for (m, n, r) in [(0, 3, 2), (3, 0, 2), (3, 4, 0), (0, 0, 0)] {
            let (up, down) = (TestMatrix(.integers(m, r, seed: 1)), TestMatrix(.integers(r, n, seed: 2)))
            let weight = TestMatrix(.integers(m, n, seed: 3))
            let before = weight.bits
            for scale in r == 0 ? [1] : [1, 1e300] {
                let factors = try Factors(up: up.view, core: .identity, down: down.view, scale: scale)
                try factors.merge(into: weight.view, on: CPUBackend.shared)
            }
            #expect(weight.bits == before, "\(m)x\(n) rank \(r)")
        }
    }
}
