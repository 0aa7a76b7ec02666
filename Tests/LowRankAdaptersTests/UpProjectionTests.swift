// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankAdapters
import LowRankBackends
import LowRankCore
import TestSupport
import Testing

/// Adapters that start from h: the definitions of ``Factors`` with A = I.
@Suite struct UpProjectionTests {
    private func upProjection(of adapter: TestAdapter) throws -> UpProjection {
        try UpProjection(up: adapter.up.view, core: adapter.libraryCore, scale: adapter.scale)
    }

    @Test(arguments: KernelTable.available, CoreKind.allCases)
    func valuesAreExact(table: KernelTable, kind: CoreKind) throws {
        let backend = CPUBackend(kernels: table, threads: 2)
        for (m, r) in [(1, 1), (7, 3), (20, 4)] {
            for tokens in [0, 1, 9] {
                for type in ScalarType.allCases {
                    for layout in [Layout.rowMajor, .columnMajor, .strided, .reversed] {
                        let adapter = TestAdapter(integers: m, r, rank: r, kind, type: type, layout: layout)
                        let h = TestMatrix(.integers(tokens, r, seed: 1, magnitude: 2), type, layout)
                        let old = RealMatrix.integers(tokens, m, seed: 2)
                        let y = TestMatrix(old, type, layout)
                        try upProjection(of: adapter).addForward(h.view, to: y.view, on: backend)
                        let (b, c) = (adapter.b, adapter.c)
                        let label = "\(table.name) \(kind) \(m) rank \(r) T \(tokens) \(type) \(layout)"
                        let sum = old + adapter.scale * (h.values * c.transposed * b.transposed)
                        expectEqual(y.values, sum.rounded(to: type), "\(label), y")

                        let g = TestMatrix(.integers(tokens, m, seed: 3, magnitude: 1), type, layout)
                        let oldH = RealMatrix.integers(tokens, r, seed: 4)
                        let got = TestGradients(of: adapter, adding: oldH, type: type, layout: layout)
                        var gradients = got.all(frozenColumns: 1)
                        gradients.down = nil
                        try upProjection(of: adapter).backward(g.view, h: h.view, into: gradients, on: backend)
                        let expected = adapter.gradients(g.values, x: h.values, h: h.values)
                        let dh = adapter.scale * (g.values * b * c)
                        expectEqual(got.x.values, (oldH + dh).rounded(to: type), "\(label), dh")
                        let dUp = RealMatrix(m, r) { $1 == 0 ? 0 : expected.up[$0, $1] }
                        expectEqual(got.up.values, dUp.rounded(to: type), "\(label), dB")
                        if let core = got.core {
                            expectEqual(core.values, expected.core.rounded(to: type), "\(label), dC")
                        }
                        expectIntactGuard(h, y, g, got.x, got.up, label: label)
                    }
                }
            }
        }
    }

    /// One number each: h = 6, C = 5, B = 7, s = 1/2, g = 4. y = 1 + 105; dh = 1 + 70, 141 without the scale.
    @Test(arguments: KernelTable.available, [CoreKind.diagonal, .square])
    func oneByOne(table: KernelTable, kind: CoreKind) throws {
        func one(_ value: Double) -> RealMatrix { RealMatrix(1, 1, repeating: value) }
        let adapter = TestAdapter(
            up: one(7), core: one(5), down: one(2), kind: kind, scale: 0.5, types: [.float32, .float32, .float32],
            layout: .rowMajor)
        let (h, y, g, dh) = (TestMatrix(one(6)), TestMatrix(one(1)), TestMatrix(one(4)), TestMatrix(one(1)))
        let backend = CPUBackend(kernels: table, threads: 1)
        try upProjection(of: adapter).addForward(h.view, to: y.view, on: backend)
        try upProjection(of: adapter).backward(g.view, h: nil, into: Gradients(x: dh.view), on: backend)
        #expect(y.values[0, 0] == 106 && dh.values[0, 0] == 71)
    }

    @Test func errors() throws {
        let adapter = TestAdapter(integers: 6, 5, rank: 2, .square)
        let (h, y) = (TestMatrix(.integers(4, 2, seed: 7)), TestMatrix(.integers(4, 6, seed: 8)))
        let wrong = TestMatrix(.integers(4, 5, seed: 9))
        func message(_ body: () throws -> Void) -> String {
            do { try body() } catch { return "\(error)" }
            return ""
        }
        let upProjection = try upProjection(of: adapter)
        let backend = CPUBackend.shared
        #expect(
            message { try upProjection.addForward(wrong.view, to: y.view, on: backend) }
                == "x: expected shape [4, 2], got [4, 5]")
        #expect(
            message { try upProjection.addForward(h.view, to: wrong.view, on: backend) }
                == "out: expected shape [4, 6], got [4, 5]")
        #expect(
            message { try upProjection.backward(y.view, h: h.view, into: Gradients(x: wrong.view), on: backend) }
                == "out_x: expected shape [4, 2], got [4, 5]")
        #expect(
            message { try upProjection.backward(y.view, h: h.view, into: Gradients(down: h.view), on: backend) }
                == "out_down: expected none for an adapter without down, got a tensor")
        #expect(
            message { try upProjection.backward(y.view, h: nil, into: Gradients(up: adapter.up.view), on: backend) }
                == "h: expected what the forward kept, which the gradients of up and core need, got none")
        #expect(
            message { _ = try UpProjection(up: adapter.up.view, core: .square(y.view), scale: 1) }
                == "core: expected shape [2, 2], got [4, 6]")
        #expect(
            message { _ = try UpProjection(up: adapter.up.view, core: .identity, scale: .nan) }
                == "scale: expected a finite number, got nan")
    }
}
