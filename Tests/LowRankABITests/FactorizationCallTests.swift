// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import CLowRank
import LowRank
import TestSupport
import Testing

/// The factorisations through C: the results are those of the Swift functions, in the caller's memory and type.
@Suite struct FactorizationCallTests {
    private static let layouts = [Layout.rowMajor, .columnMajor, .strided, .reversed]

    private func weight(_ type: ScalarType, _ layout: Layout = .rowMajor, m: Int = 20, n: Int = 14) -> TestTensor {
        TestTensor(TestMatrix(.gaussian(m, n, seed: 1), type, layout))
    }

    @Test(arguments: ScalarType.allCases, layouts)
    func qr(type: ScalarType, layout: Layout) throws {
        let weight = weight(type, layout)
        let expected = try TruncatedQR(of: weight.matrix.view, rank: 4, on: CPUBackend.shared)
        for outType in ScalarType.allCases {
            let q = TestTensor(undefined: 20, 4, outType, layout)
            let r = TestTensor(undefined: 4, 14, outType, layout)
            #expect(lr_qr(weight.pointer, 4, q.pointer, r.pointer) == .ok, "\(lastMessage)")
            let label = "\(type) to \(outType), \(layout)"
            expectEqual(q.values, expected.q.values.rounded(to: outType), "\(label), Q")
            expectEqual(r.values, expected.r.values.rounded(to: outType), "\(label), R")
            expectIntactGuard(q.matrix, r.matrix, label: label)
        }
    }

    @Test(arguments: ScalarType.allCases, layouts)
    func ldu(type: ScalarType, layout: Layout) throws {
        let weight = weight(type, layout)
        let expected = try TruncatedLDU(of: weight.matrix.view, rank: 4, on: CPUBackend.shared)
        let l = TestTensor(undefined: 20, 4, .float64, layout)
        let d = TestTensor(undefined: 1, 4, .float64, layout, dimensions: 1)
        let u = TestTensor(undefined: 4, 14, .float64, layout)
        let permutation = TestTensor.indices(20, layout: layout)
        #expect(
            lr_ldu(weight.pointer, 4, l.pointer, d.pointer, u.pointer, permutation.pointer) == .ok, "\(lastMessage)")
        let label = "\(type) \(layout)"
        expectEqual(l.values, expected.lower.values, "\(label), L")
        #expect(d.values.values == expected.diagonal.values.values, "\(label), D")
        expectEqual(u.values, expected.upper.values, "\(label), U")
        #expect(permutation.indices == expected.permutation, "\(label), permutation")
        expectIntactGuard(l.matrix, d.matrix, u.matrix, permutation.matrix, label: label)
    }

    @Test(arguments: ScalarType.allCases, layouts)
    func svd(type: ScalarType, layout: Layout) throws {
        let weight = weight(type, layout)
        let expected = try TruncatedSVD(
            of: weight.matrix.view, rank: 4, tolerance: 1e-3, seed: 5, on: CPUBackend.shared)
        let u = TestTensor(undefined: 20, 4, .float64, layout)
        let s = TestTensor(undefined: 1, 4, .float64, layout, dimensions: 1)
        let vh = TestTensor(undefined: 4, 14, .float64, layout)
        #expect(lr_svd(weight.pointer, 4, 1e-3, 5, u.pointer, s.pointer, vh.pointer, nil) == .ok, "\(lastMessage)")
        var report = lr_svd_report_t()
        #expect(lr_svd(weight.pointer, 4, 1e-3, 5, u.pointer, s.pointer, vh.pointer, &report) == .ok, "\(lastMessage)")
        #expect(report.passes == Int64(expected.passes))
        #expect(report.tol == 1e-3 && report.residual == expected.residual)
        let label = "\(type) \(layout)"
        expectEqual(u.values, expected.u.values, "\(label), U")
        #expect(s.values.values == expected.s, "\(label), S")
        expectEqual(vh.values, expected.vh.values, "\(label), V'")
        expectIntactGuard(u.matrix, s.matrix, vh.matrix, label: label)
    }

    @Test(arguments: [0, -1, 15, Int64.max, Int64.min])
    func ranksOutOfRange(rank: Int64) {
        let message = "rank: expected 1 <= rank <= min(m, n) = 14, got \(rank)"
        let weight = weight(.float32)
        let (left, vector) = (TestTensor(undefined: 20, 1), TestTensor(undefined: 1, 1, dimensions: 1))
        let (right, permutation) = (TestTensor(undefined: 1, 14), TestTensor.indices(20))
        let statuses = [
            lr_check_weight(weight.pointer, rank), lr_qr(weight.pointer, rank, left.pointer, right.pointer),
            lr_ldu(weight.pointer, rank, left.pointer, vector.pointer, right.pointer, permutation.pointer),
            lr_svd(weight.pointer, rank, 1e-4, 0, left.pointer, vector.pointer, right.pointer, nil),
            lr_initialize("olora", weight.pointer, rank, 1, nil, 0, left.pointer, nil, right.pointer),
        ]
        #expect(statuses == [lr_status_t](repeating: .invalidArgument, count: 5))
        #expect(lastMessage == message)
    }

    @Test(arguments: [(0, 3), (3, 0), (0, 0)])
    func emptyWeights(shape: (Int, Int)) {
        let weight = TestTensor(undefined: shape.0, shape.1)
        #expect(lr_check_weight(weight.pointer, 1) == .invalidShape)
        #expect(lastMessage == "weight: expected a matrix with at least one entry, got shape [\(shape.0), \(shape.1)]")
    }

    /// The checks of a weight look at no element.
    @Test func checkWeightTouchesNoData() {
        let weight = weight(.float32)
        weight.pointer.pointee.data = UnsafeMutableRawPointer(bitPattern: 1 << 40)
        #expect(lr_check_weight(weight.pointer, 14) == .ok, "\(lastMessage)")
    }

    @Test(arguments: [0, 1, -0.5, .nan, .infinity])
    func tolerancesOutOfRange(tolerance: Double) {
        let weight = weight(.float32)
        let (u, vh) = (TestTensor(undefined: 20, 2), TestTensor(undefined: 2, 14))
        let s = TestTensor(undefined: 1, 2, dimensions: 1)
        #expect(lr_svd(weight.pointer, 2, tolerance, 0, u.pointer, s.pointer, vh.pointer, nil) == .invalidArgument)
        #expect(lastMessage == "tol: expected 0 < tol < 1, got \(tolerance)")
    }

    @Test(arguments: ["lr_qr", "lr_ldu", "lr_svd", "lr_spectrum", "lr_initialize olora", "lr_initialize loldu", "lr_initialize lamda"])
    func nonFiniteWeights(name: String) throws {
        for value in [Double.nan, .infinity] {
            let call = try TestCall.named(name)
            let weight = try call("weight").matrix
            weight.setBits(ScalarType.float32.bits(of: value), 4, 2)
            let before = weight.bits
            #expect(call() == .nonFinite)
            #expect(lastMessage == "weight: expected finite values, got a NaN or infinity, the first one at [4, 2]")
            #expect(weight.bits == before)
        }
    }

    /// Results that are finite in the working precision and not in the caller's type.
    @Test func resultsBeyondTheirType() {
        let weight = TestTensor(TestMatrix(RealMatrix(rows: 1, columns: 2, values: [0x1p-10, 0x1p20])))
        let one = TestTensor(undefined: 1, 1)
        let (row, vector) = (
            TestTensor(undefined: 1, 2, .float16), TestTensor(undefined: 1, 1, .float16, dimensions: 1)
        )
        let permutation = TestTensor.indices(1)
        #expect(lr_qr(weight.pointer, 1, one.pointer, row.pointer) == .numericalFailure)
        #expect(lastMessage == "out_r: entry [0, 1] is beyond the range of float16; ask for a wider dtype")
        #expect(
            lr_ldu(weight.pointer, 1, one.pointer, vector.pointer, row.pointer, permutation.pointer)
                == .numericalFailure)
        #expect(lastMessage == "out_u: entry [0, 1] is beyond the range of float16; ask for a wider dtype")
        let right = TestTensor(undefined: 1, 2)
        #expect(
            lr_svd(weight.pointer, 1, 1e-4, 0, one.pointer, vector.pointer, right.pointer, nil) == .numericalFailure)
        #expect(lastMessage == "out_s: entry [0, 0] is beyond the range of float16; ask for a wider dtype")
    }

    /// More memory than a process can address; the tensors that claim it are never touched.
    @Test func refusedMemory() {
        let weight = weight(.float32, m: 1, n: 1)
        weight.setShape([1 << 46, 1], strides: [0, 1])
        let q = TestTensor(undefined: 1, 1)
        q.setShape([1 << 46, 1], strides: [1, 1])
        q.pointer.pointee.data = UnsafeMutableRawPointer(bitPattern: 1 << 60)
        let r = TestTensor(undefined: 1, 1)
        #expect(lr_qr(weight.pointer, 1, q.pointer, r.pointer) == .outOfMemory)
        #expect(lastMessage == "could not allocate \(1 << 48) bytes for intermediate results")
    }
}
