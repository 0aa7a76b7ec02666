// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import CLowRank
import LowRank
import TestSupport
import Testing

/// What DLPack allows beside plain strides.
@Suite struct TensorLayoutTests {
    /// Q and R of a weight, which must be those of the matrix.
    private func expectQR(_ weight: TestTensor, of values: RealMatrix, _ label: String) throws {
        let matrix = TestMatrix(values)
        let rank = 2
        let expected = try TruncatedQR(of: matrix.view, rank: rank, on: CPUBackend.shared)
        let (q, r) = (TestTensor(undefined: values.rows, rank), TestTensor(undefined: rank, values.columns))
        #expect(lr_qr(weight.pointer, Int64(rank), q.pointer, r.pointer) == .ok, "\(label): \(lastMessage)")
        expectEqual(q.values, expected.q.values, "\(label), Q")
        expectEqual(r.values, expected.r.values, "\(label), R")
    }

    @Test func absentStridesMeanRowMajor() throws {
        let values = RealMatrix.gaussian(6, 4, seed: 1)
        let weight = TestTensor(TestMatrix(values))
        weight.pointer.pointee.strides = nil
        try expectQR(weight, of: values, "no strides")
    }

    @Test func offsetsAreInBytes() throws {
        let values = RealMatrix.gaussian(6, 4, seed: 2)
        let weight = TestTensor(TestMatrix(values))
        weight.setShape([4, 4], strides: [4, 1])
        weight.pointer.pointee.byte_offset = 2 * 4 * 4
        try expectQR(weight, of: values.rows(2..<6), "offset of two rows")
    }

    @Test func pinnedHostMemoryIsCPUMemory() throws {
        let values = RealMatrix.gaussian(6, 4, seed: 3)
        let weight = TestTensor(TestMatrix(values))
        weight.pointer.pointee.device = DLDevice(device_type: Int32(kDLCUDAHost), device_id: 3)
        try expectQR(weight, of: values, "pinned")
    }

    @Test func inputsMayRepeatElements() throws {
        let weight = TestTensor(TestMatrix(.gaussian(1, 4, seed: 4)))
        weight.setShape([6, 4], strides: [0, 1])
        try expectQR(weight, of: RealMatrix(6, 4) { weight.values[0 * $0, $1] }, "stride 0")
        let diagonals = TestTensor(TestMatrix(.gaussian(1, 9, seed: 5)))
        diagonals.setShape([6, 4], strides: [1, 1])
        try expectQR(diagonals, of: RealMatrix(6, 4) { diagonals.values[0, $0 + $1] }, "strides 1, 1")
    }

    /// Strides of dimensions of one element lead nowhere and may hold anything.
    @Test(arguments: [0, -1, Int.max, Int.min, 1 << 62])
    func stridesOfSingleElements(stride: Int) {
        for (rows, columns) in [(1, 5), (5, 1), (1, 1)] {
            let values = RealMatrix.gaussian(rows, columns, seed: 6)
            let strides = [rows == 1 ? stride : columns, columns == 1 ? stride : 1]
            func tensor(_ matrix: TestMatrix) -> TestTensor {
                let tensor = TestTensor(matrix)
                tensor.setShape([matrix.view.rows, matrix.view.columns], strides: strides)
                return tensor
            }
            let q = TestTensor(undefined: rows, 1)
            let r = TestTensor(undefined: 1, columns)
            q.setShape([rows, 1], strides: [1, stride])
            r.setShape([1, columns], strides: [stride, 1])
            let label = "\(rows)x\(columns), stride \(stride)"
            let weight = tensor(TestMatrix(values))
            #expect(lr_qr(weight.pointer, 1, q.pointer, r.pointer) == .ok, "\(label): \(lastMessage)")
            expectSmall(
                (q.values * r.values - values).columns(0..<1).norm, size: 5, norm: values.norm, .float32, within: .qr,
                label)

            for method in ["olora", "pissa", "loldu"] {
                let weight = tensor(TestMatrix(values))
                let core = method == "loldu" ? TestTensor(undefined: 1, 1, dimensions: 1) : nil
                core?.setShape([1], strides: [stride])
                let status = lr_initialize(method, weight.pointer, 1, 1, nil, 1, q.pointer, core?.pointer, r.pointer)
                #expect(status == .ok, "\(method) \(label): \(lastMessage)")
                expectSmall(
                    weight.values.columns(0..<1).norm, size: 5, norm: values.norm, .float32, within: .product,
                    "\(method) \(label), residual")
            }
        }
    }

    /// So may those of tensors without elements: T = 0, rank 0.
    @Test(arguments: [0, -1, Int.max, Int.min, 1 << 62])
    func stridesOfEmptyTensors(stride: Int) {
        for (tokens, rank) in [(0, 3), (4, 0), (0, 0)] {
            func tensor(_ rows: Int, _ columns: Int) -> TestTensor {
                let tensor = TestTensor(TestMatrix(.integers(rows, columns, seed: 7)))
                if rows * columns == 0 {
                    tensor.setShape([rows, columns], strides: [stride, stride])
                    tensor.pointer.pointee.data = nil
                }
                return tensor
            }
            let (x, up, down) = (tensor(tokens, 5), tensor(6, rank), tensor(rank, 5))
            let (out, h, grad) = (tensor(tokens, 6), tensor(tokens, rank), tensor(tokens, 6))
            let label = "T \(tokens), rank \(rank), stride \(stride)"
            let before = out.bits
            let status = lr_adapter_forward(x.pointer, down.pointer, nil, up.pointer, 1, out.pointer, h.pointer)
            #expect(status == .ok, "\(label): \(lastMessage)")
            #expect(out.bits == before, "\(label)")
            let (dx, dDown, dUp) = (tensor(tokens, 5), tensor(rank, 5), tensor(6, rank))
            let backward = lr_adapter_backward(
                grad.pointer, x.pointer, h.pointer, down.pointer, nil, up.pointer, 1, 0, dx.pointer, dDown.pointer, nil,
                dUp.pointer)
            #expect(backward == .ok, "\(label): \(lastMessage)")
            // Sums over no tokens are zero.
            if tokens == 0 { #expect((dDown.bits + dUp.bits).allSatisfy { $0 == 0 }, "\(label)") }
            let weight = tensor(6, 5)
            #expect(lr_merge(weight.pointer, down.pointer, nil, up.pointer, 1) == .ok, "\(label): \(lastMessage)")
        }
    }
}
