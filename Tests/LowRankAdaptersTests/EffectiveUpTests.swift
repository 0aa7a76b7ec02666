// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankAdapters
import LowRankBackends
import LowRankCore
import TestSupport
import Testing

@Suite struct EffectiveUpTests {
    /// An adapter that has not been trained changes nothing, to the last bit. Ranks beyond 256 sum in several blocks.
    @Test(arguments: KernelTable.available, CoreKind.allCases)
    func isExactlyZeroAtItsStart(table: KernelTable, kind: CoreKind) throws {
        for rank in [1, 5, 33, 257, 300] {
            for types in [
                [ScalarType.float32, .float32, .float32], [.bfloat16, .float32, .float32],
                [.float16, .bfloat16, .float32],
                [.float64, .float64, .float64], [.float32, .float64, .float32],
            ] {
                let adapter = TestAdapter(gaussian: 40, 1, rank: rank, kind, types: types)
                let effective = try EffectiveUp(up: adapter.up.view, core: adapter.libraryCore)
                let isFloat64 = types[0] == .float64 || (kind != .identity && types[1] == .float64)
                let start = TestMatrix(undefined: 40, rank, isFloat64 ? .float64 : .float32, .paddedRows)
                // The start may be made on another number of threads, and in another order of memory.
                try effective.write(minus: nil, to: start.view, on: CPUBackend(kernels: table, threads: 1))
                for type in ScalarType.allCases {
                    for layout in [Layout.rowMajor, .columnMajor, .strided] {
                        let out = TestMatrix(undefined: 40, rank, type, layout)
                        try effective.write(minus: start.view, to: out.view, on: CPUBackend(kernels: table, threads: 3))
                        let label = "\(table.name) \(kind) rank \(rank) \(types) to \(type) \(layout)"
                        expectEqual(out.values, RealMatrix(40, rank, repeating: 0), label)
                        expectIntactGuard(out, start, label: label)
                    }
                }
            }
        }
    }

    @Test(arguments: KernelTable.available, CoreKind.allCases)
    func valuesAreExact(table: KernelTable, kind: CoreKind) throws {
        let backend = CPUBackend(kernels: table, threads: 2)
        for type in ScalarType.allCases {
            for layout in [Layout.rowMajor, .columnMajor, .reversed] {
                let adapter = TestAdapter(integers: 12, 1, rank: 5, kind, type: type, layout: layout)
                let effective = try EffectiveUp(up: adapter.up.view, core: adapter.libraryCore)
                let start = TestMatrix(.integers(12, 5, seed: 1), type, layout)
                let out = TestMatrix(undefined: 12, 5, type, layout)
                let label = "\(table.name) \(kind) \(type) \(layout)"
                try effective.write(minus: nil, to: out.view, on: backend)
                expectEqual(out.values, adapter.b * adapter.c, "\(label), no start")
                try effective.write(minus: start.view, to: out.view, on: backend)
                expectEqual(out.values, adapter.b * adapter.c - start.values, label)
                expectIntactGuard(out, start, label: label)

                let g = TestMatrix(.integers(12, 5, seed: 2), type, layout)
                for frozen in [0, 2, 5] {
                    let got = TestGradients(
                        of: adapter, adding: RealMatrix(1, 1, repeating: 0), type: type, layout: layout)
                    let gradients = Gradients(core: got.core?.view, up: got.up.view, frozenColumns: frozen)
                    try effective.backward(g.view, into: gradients, on: backend)
                    let dB = g.values * adapter.c.transposed
                    let expected = RealMatrix(12, 5) { $1 < frozen ? 0 : dB[$0, $1] }
                    expectEqual(got.up.values, expected, "\(label), dB, \(frozen) frozen")
                    expectIntactGuard(got.up, label: label)
                    guard let core = got.core else { continue }
                    let dC = adapter.b.transposed * g.values
                    let wanted = kind == .diagonal ? RealMatrix(rows: 1, columns: 5, values: dC.diagonal) : dC
                    expectEqual(core.values, wanted.rounded(to: type), "\(label), dC")
                    expectIntactGuard(core, label: label)
                }
            }
        }
    }

    /// What is subtracted is not rounded to the type of the result before.
    @Test func smallChangesSurviveANarrowResult() throws {
        let up = TestMatrix(RealMatrix(1, 1, repeating: 1 + 0x1p-20))
        let start = TestMatrix(RealMatrix(1, 1, repeating: 1))
        let out = TestMatrix(undefined: 1, 1, .bfloat16)
        let effective = try EffectiveUp(up: up.view, core: .identity)
        try effective.write(minus: start.view, to: out.view, on: CPUBackend.shared)
        #expect(out.values[0, 0] == 0x1p-20)
    }

    /// A core that is a column in memory is a core like one that is a row.
    @Test func diagonalMayBeAColumn() throws {
        let up = TestMatrix(.integers(6, 4, seed: 3))
        let core = TestMatrix(.integers(4, 1, seed: 4), .float32, .strided)
        let effective = try EffectiveUp(up: up.view, core: .diagonal(core.view))
        let out = TestMatrix(undefined: 6, 4)
        try effective.write(minus: nil, to: out.view, on: CPUBackend.shared)
        expectEqual(out.values, up.values.scalingColumns(by: core.values.values), "B C")
        let g = TestMatrix(.integers(6, 4, seed: 5))
        let (dB, dC) = (TestMatrix(undefined: 6, 4), TestMatrix(undefined: 4, 1))
        try effective.backward(
            g.view, into: Gradients(core: dC.view, up: dB.view, frozenColumns: 1), on: CPUBackend.shared)
        let scaled = g.values.scalingColumns(by: core.values.values)
        expectEqual(dB.values, RealMatrix(6, 4) { $1 < 1 ? 0 : scaled[$0, $1] }, "dB")
        #expect(dC.values.values == (up.values.transposed * g.values).diagonal)
    }
}
