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
        let device = try requireSeparate(outputs: [q, r], inputs: [weight])
        try device.run { (backend) throws(LowRankError) in
            let result = try TruncatedQR(of: weight.view, rank: rank, upperIn: r.view, on: backend)
            try write([(result.q.view, q), (result.r.view, r)], on: backend)
        }
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
        let permutation = try Tensor(indices: out_perm, "out_perm", count: weight.view.rows)
        try l.require(weight.view.rows, rank)
        try d.require(1, rank)
        try u.require(rank, weight.view.columns)
        let device = try requireSeparate(outputs: [l, d, u, permutation], inputs: [weight])
        try device.run { (backend) throws(LowRankError) in
            let result = try TruncatedLDU(of: weight.view, rank: rank, upperIn: u.view, on: backend)
            try write([(result.lower.view, l), (result.diagonal.view.transposed, d), (result.upper.view, u)], on: backend)
            try backend.setIndices(result.permutation, of: permutation.view)
        }
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
        let device = try requireSeparate(outputs: [u, s, vh], inputs: [weight])
        try device.run { (backend) throws(LowRankError) in
            let result = try TruncatedSVD(of: weight.view, rank: rank, tolerance: tol, seed: seed, on: backend)
            backend.setValues(result.s, of: s.view)
            try write([(result.u.view, u), (result.vh.view, vh)], checking: [s], on: backend)
            out_report?.pointee = lr_svd_report_t(
                passes: Int64(result.passes), tol: result.tolerance, residual: result.residual)
        }
    }
}

/// Copies finite results to the caller's memory, in the caller's types, and checks what may be beyond those, and `others`.
private func write(
    _ results: [(source: MatrixView, target: Tensor)], checking others: [Tensor] = [], on backend: some Backend
) throws(LowRankError) {
    var narrowed = others
    // A result that was computed in place is complete and was found finite.
    for (source, target) in results where source.address != target.view.address {
        try backend.copy(source, to: target.view)
        if target.view.type != source.type { narrowed.append(target) }
    }
    try requireFits(narrowed, on: backend)
}

func requireFits(_ targets: [Tensor], on backend: some Backend) throws(LowRankError) {
    if backend.areFinite(targets.map(\.view)) { return }
    for target in targets {
        guard let at = backend.firstNonFinite(in: target.view) else { continue }
        throw .numericalFailure(
            operation: target.argument,
            reason: "entry [\(at.row), \(at.column)] is beyond the range of \(target.view.type); ask for a wider dtype")
    }
}

extension Tensor {
    /// Reads a vector of int64 indices, for ``Backend/setIndices(_:of:)``.
    fileprivate init(indices tensor: UnsafePointer<DLTensor>?, _ argument: String, count: Int) throws(LowRankError) {
        guard let tensor else {
            throw .invalidArgument(argument: argument, expected: "a tensor", got: "a null pointer")
        }
        let device = try Device(tensor.pointee.device, argument)
        let type = tensor.pointee.dtype
        guard Int(type.code) == kDLInt, type.bits == 64, type.lanes == 1 else {
            throw .unsupportedType(argument: argument, expected: "int64", got: describe(type))
        }
        let layout = try Layout(tensor, elementSize: 8, argument)
        guard layout.shape == [count] else {
            throw .invalidShape(argument: argument, expected: "shape [\(count)]", got: "\(layout.shape)")
        }
        self.init(
            argument: argument, device: device,
            view: MatrixView(
                address: layout.address, type: .float64, rows: 1, columns: count, rowStride: 0,
                columnStride: layout.strides[0]),
            dimensions: 1, extent: layout.extent)
    }
}
