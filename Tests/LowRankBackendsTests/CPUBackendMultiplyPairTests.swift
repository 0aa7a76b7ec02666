// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankBackends
import LowRankCore
import TestSupport
import Testing

/// `p = g b` and `d = alpha gᵀ h`, some rows of g at a time.
@Suite struct CPUBackendMultiplyPairTests {
    private static let rowsAtOnce = [1, 4, 7, 100]

    @Test(arguments: KernelTable.multiplying, ScalarType.allCases)
    func bothProducts(table: KernelTable, type: ScalarType) throws {
        for rows in [0, 1, 3, 4, 5, 8, 15] {
            for step in Self.rowsAtOnce {
                for (target, layout) in [(type, Layout.rowMajor), (type.computeType, .strided), (.float64, .reversed)] {
                    let g = TestMatrix(.integers(rows, 9, seed: 1), type, layout)
                    let b = TestMatrix(.integers(9, 3, seed: 2), type)
                    let h = TestMatrix(.integers(rows, 2, seed: 3), type, layout)
                    let p = TestMatrix(undefined: rows, 3, type.computeType)
                    let d = TestMatrix(undefined: 9, 2, target, layout)
                    try CPUBackend(kernels: table, threads: 2).multiplyPair(
                        g.view, b.view, into: p.view, alpha: 0.5, h.view, into: d.view, rowsAtOnce: step)
                    let label = "\(table.name) \(type) into \(target) \(layout), \(rows) rows, \(step) at once"
                    expectEqual(p.values, g.values * b.values, "p, \(label)")
                    expectEqual(d.values, (0.5 * (g.values.transposed * h.values)).rounded(to: target), "d, \(label)")
                    expectIntactGuard(g, b, h, p, d, label: label)
                }
            }
        }
    }

    /// A sum in a 16-bit type that is rounded after every part loses what is small beside it.
    @Test(arguments: KernelTable.multiplying, [ScalarType.bfloat16, .float16])
    func narrowSumsAreRoundedOnce(table: KernelTable, type: ScalarType) throws {
        let rows = 4097
        let ones = TestMatrix(RealMatrix(rows, 1) { _, _ in 1 }, type)
        let p = TestMatrix(undefined: rows, 1, .float32)
        let d = TestMatrix(undefined: 1, 1, type)
        let one = TestMatrix(RealMatrix(1, 1) { _, _ in 1 }, type)
        try CPUBackend(kernels: table).multiplyPair(
            ones.view, one.view, into: p.view, alpha: 1, ones.view, into: d.view, rowsAtOnce: 1)
        #expect(d.values[0, 0] == 4096)
    }

    @Test(arguments: KernelTable.multiplying, ScalarType.allCases)
    func bitsDoNotDependOnThreads(table: KernelTable, type: ScalarType) throws {
        let g = TestMatrix(.gaussian(520, 300, seed: 4), type)
        let b = TestMatrix(.gaussian(300, 8, seed: 5), type)
        let h = TestMatrix(.gaussian(520, 8, seed: 6), type)
        let results = try threadCounts.map { threads in
            let p = TestMatrix(undefined: 520, 8, type.computeType)
            let d = TestMatrix(undefined: 300, 8, type.computeType)
            try CPUBackend(kernels: table, threads: threads).multiplyPair(
                g.view, b.view, into: p.view, alpha: 0.3, h.view, into: d.view, rowsAtOnce: 256)
            return p.bits + d.bits
        }
        expectSameBits(results, cases: threadCounts.map { "\($0) threads" }, "\(table.name) \(type)")
    }
}
