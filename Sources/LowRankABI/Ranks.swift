// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import CLowRank
import LowRank

@c @implementation
public func lr_spectrum(
    _ weight: UnsafePointer<DLTensor>?, _ rank: Int64, _ tol: Double, _ seed: UInt64,
    _ out_values: UnsafeMutablePointer<DLTensor>?, _ out_norm: UnsafeMutablePointer<Double>?,
    _ out_share: UnsafeMutablePointer<Double>?
) -> lr_status_t {
    call { () throws(LowRankError) in
        let (weight, rank) = try checkedWeight(weight, rank)
        let values = try Tensor(out_values, "out_values", dimensions: 1...1)
        try values.require(1, rank)
        let device = try requireSeparate(outputs: [values], inputs: [weight])
        try device.run { (backend) throws(LowRankError) in
            let spectrum = try Spectrum(of: weight.view, rank: rank, tolerance: tol, seed: seed, on: backend)
            backend.setValues(spectrum.values, of: values.view)
            try requireFits([values], on: backend)
            out_norm?.pointee = spectrum.norm
            out_share?.pointee = spectrum.shares[rank - 1]
        }
    }
}

@c @implementation
public func lr_allocate_ranks(
    _ layers: UnsafePointer<lr_layer_spectrum_t>?, _ layer_count: Int64, _ rank_min: Int64, _ budget: Int64,
    _ out_ranks: UnsafeMutablePointer<Int64>?, _ out_unspent: UnsafeMutablePointer<Int64>?,
    _ out_undecided: UnsafeMutablePointer<Int64>?
) -> lr_status_t {
    call { () throws(LowRankError) in
        let source = try require(layers, "layers")
        let (ranks, unspent) = (try require(out_ranks, "out_ranks"), try require(out_unspent, "out_unspent"))
        let undecided = try require(out_undecided, "out_undecided")
        if layer_count < 1 {
            throw .invalidArgument(argument: "layer_count", expected: "at least 1", got: "\(layer_count)")
        }
        var known: [RankAllocation.Layer] = []
        for i in 0..<Int(layer_count) {
            let layer = source[i]
            guard let values = layer.values, layer.count >= 1 else {
                throw .invalidArgument(
                    argument: "layers", expected: "singular values", got: "\(layer.count) of them for layer \(i)")
            }
            let spectrum = Spectrum(values: (0..<Int(layer.count)).map { values[$0] }, norm: layer.norm)
            known.append(.init(spectrum: spectrum, maxRank: Int(layer.rank_max), cost: Int(layer.cost)))
        }
        let result = try RankAllocation(known, minRank: Int(rank_min), budget: Int(budget))
        for (i, rank) in result.ranks.enumerated() { ranks[i] = Int64(rank) }
        unspent.pointee = Int64(result.unspent)
        undecided.pointee = Int64(result.undecided ?? -1)
    }
}

private func require<Pointer>(_ pointer: Pointer?, _ argument: String) throws(LowRankError) -> Pointer {
    guard let pointer else {
        throw .invalidArgument(argument: argument, expected: "memory", got: "a null pointer")
    }
    return pointer
}
