// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import CLowRank
import LowRank

// Each entry point validates everything, then calls one function. The contracts are in lowrank.h.

/// The weight of a factorisation and its rank: the checks that open every factorisation.
func checkedWeight(
    _ tensor: UnsafePointer<DLTensor>?, _ rank: Int64
) throws(LowRankError) -> (tensor: Tensor, rank: Int) {
    let weight = try Tensor(tensor, "weight")
    if weight.view.isEmpty {
        throw .invalidShape(
            argument: "weight", expected: "a matrix with at least one entry", got: "shape \(weight.view.shape)")
    }
    if rank < 1 || rank > weight.view.maxRank {
        throw .invalidArgument(
            argument: "rank", expected: "1 <= rank <= min(m, n) = \(weight.view.maxRank)", got: "\(rank)")
    }
    return (weight, Int(rank))
}

@c @implementation
public func lr_check_weight(_ weight: UnsafePointer<DLTensor>?, _ rank: Int64) -> lr_status_t {
    call { () throws(LowRankError) in _ = try checkedWeight(weight, rank) }
}

@c @implementation
public func lr_qr(
    _ weight: UnsafePointer<DLTensor>?, _ rank: Int64, _ out_q: UnsafeMutablePointer<DLTensor>?,
    _ out_r: UnsafeMutablePointer<DLTensor>?
) -> lr_status_t {
    call { () throws(LowRankError) in
        let (weight, rank) = try checkedWeight(weight, rank)
        let q = try Tensor(out_q, "out_q")
        let r = try Tensor(out_r, "out_r")
        try q.require(weight.view.rows, rank)
        try r.require(rank, weight.view.columns)
        try requireSeparate(outputs: [q, r], inputs: [weight])
        let result = try TruncatedQR(of: weight.view, rank: rank, upperIn: r.view, on: CPUBackend.shared)
        try write(result.q.view, to: q)
        try write(result.r.view, to: r)
    }
}

@c @implementation
public func lr_ldu(
    _ weight: UnsafePointer<DLTensor>?, _ rank: Int64, _ out_l: UnsafeMutablePointer<DLTensor>?,
    _ out_d: UnsafeMutablePointer<DLTensor>?, _ out_u: UnsafeMutablePointer<DLTensor>?,
    _ out_perm: UnsafeMutablePointer<DLTensor>?
) -> lr_status_t {
    call { () throws(LowRankError) in
        let (weight, rank) = try checkedWeight(weight, rank)
        let l = try Tensor(out_l, "out_l")
        let d = try Tensor(out_d, "out_d", dimensions: 1...1)
        let u = try Tensor(out_u, "out_u")
        let permutation = try IndexVector(out_perm, "out_perm", count: weight.view.rows)
        try l.require(weight.view.rows, rank)
        try d.require(1, rank)
        try u.require(rank, weight.view.columns)
        try requireSeparate(outputs: [l, d, u, permutation.tensor], inputs: [weight])
        let result = try TruncatedLDU(of: weight.view, rank: rank, upperIn: u.view, on: CPUBackend.shared)
        try write(result.lower.view, to: l)
        try write(result.diagonal.view.transposed, to: d)
        try write(result.upper.view, to: u)
        permutation.write(result.permutation)
    }
}

@c @implementation
public func lr_svd(
    _ weight: UnsafePointer<DLTensor>?, _ rank: Int64, _ tol: Double, _ seed: UInt64,
    _ out_u: UnsafeMutablePointer<DLTensor>?, _ out_s: UnsafeMutablePointer<DLTensor>?,
    _ out_vh: UnsafeMutablePointer<DLTensor>?, _ out_report: UnsafeMutablePointer<lr_svd_report_t>?
) -> lr_status_t {
    call { () throws(LowRankError) in
        let (weight, rank) = try checkedWeight(weight, rank)
        let u = try Tensor(out_u, "out_u")
        let s = try Tensor(out_s, "out_s", dimensions: 1...1)
        let vh = try Tensor(out_vh, "out_vh")
        try u.require(weight.view.rows, rank)
        try s.require(1, rank)
        try vh.require(rank, weight.view.columns)
        try requireSeparate(outputs: [u, s, vh], inputs: [weight])
        let result = try TruncatedSVD(
            of: weight.view, rank: rank, tolerance: tol, seed: seed, on: CPUBackend.shared)
        try write(result.u.view, to: u)
        CPUBackend.shared.setValues(result.s, of: s.view)
        try requireFits(s)
        try write(result.vh.view, to: vh)
        out_report?.pointee = lr_svd_report_t(
            passes: Int64(result.passes), tol: result.tolerance, residual: result.residual)
    }
}

/// Copies a result to the caller's memory, in the caller's type.
private func write(_ source: MatrixView, to target: Tensor) throws(LowRankError) {
    // A result that was computed in place is complete and was found finite.
    if source.address == target.view.address { return }
    try CPUBackend.shared.copy(source, to: target.view)
    try requireFits(target)
}

func requireFits(_ target: Tensor) throws(LowRankError) {
    if let at = CPUBackend.shared.firstNonFinite(in: target.view) {
        throw .numericalFailure(
            operation: target.argument,
            reason: "entry [\(at.row), \(at.column)] is beyond the range of \(target.view.type); ask for a wider dtype")
    }
}

/// A vector of int64 indices.
private struct IndexVector {
    /// The memory, for the overlap check.
    let tensor: Tensor
    private let address: UnsafeMutablePointer<Int64>
    private let stride: Int

    init(_ tensor: UnsafePointer<DLTensor>?, _ argument: String, count: Int) throws(LowRankError) {
        guard let tensor else {
            throw .invalidArgument(argument: argument, expected: "a tensor", got: "a null pointer")
        }
        try requireCPU(tensor, argument)
        let type = tensor.pointee.dtype
        guard Int(type.code) == kDLInt, type.bits == 64, type.lanes == 1 else {
            throw .unsupportedType(argument: argument, expected: "int64", got: describe(type))
        }
        let layout = try Layout(tensor, elementSize: 8, argument)
        guard layout.shape == [count] else {
            throw .invalidShape(argument: argument, expected: "shape [\(count)]", got: "\(layout.shape)")
        }
        address = layout.address.assumingMemoryBound(to: Int64.self)
        stride = layout.strides[0]
        // The view serves the overlap check alone; float64 has an index's size.
        self.tensor = Tensor(
            argument: argument,
            view: MatrixView(
                address: layout.address, type: .float64, rows: 1, columns: count, rowStride: 0, columnStride: stride),
            dimensions: 1, extent: layout.extent)
    }

    func write(_ indices: [Int]) {
        for (i, index) in indices.enumerated() { address[i * stride] = Int64(index) }
    }
}
