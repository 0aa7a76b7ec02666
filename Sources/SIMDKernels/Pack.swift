// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0

/// Copies one operand into strips of `width` lines: strip by strip, and in a strip step by step along the depth, so that
/// the micro tile reads it in one sweep. Widens to the compute type; fills the last strip up with zeros.
///
/// `lineStride` leads from one line to the next, `depthStride` along the depth, in elements.
@inline(__always)
func packStrips<S: StorageScalar, C: ComputeScalar>(
    _ source: UnsafePointer<S>, lines: Int, depth: Int, lineStride: Int, depthStride: Int,
    width: Int, into destination: UnsafeMutablePointer<C>
) {
    var strip = destination
    var first = 0
    while first < lines {
        let origin = source + first &* lineStride
        let count = min(width, lines &- first)
        if lineStride == 1 && count == width {
            for k in 0..<depth {
                let from = origin + k &* depthStride
                let to = strip + k &* width
                for j in 0..<width { to[j] = from[j].loaded() }
            }
        } else {
            for j in 0..<count {
                let from = origin + j &* lineStride
                for k in 0..<depth { strip[k &* width &+ j] = from[k &* depthStride].loaded() }
            }
            for j in count..<width {
                for k in 0..<depth { strip[k &* width &+ j] = .zero }
            }
        }
        strip += width &* depth
        first &+= width
    }
}

/// `packStrips` for an operand whose storage type is known at run time only.
@inline(__always)
func packStrips<C: ComputeScalar>(
    _ source: UnsafeRawPointer, type: Int32, lines: Int, depth: Int, lineStride: Int, depthStride: Int,
    width: Int, into destination: UnsafeMutablePointer<C>
) {
    @inline(__always)
    func pack<S: StorageScalar>(_ type: S.Type) {
        packStrips(
            source.assumingMemoryBound(to: S.self), lines: lines, depth: depth, lineStride: lineStride,
            depthStride: depthStride, width: width, into: destination)
    }
    switch type {
    case StorageCode.float32: pack(Float.self)
    case StorageCode.float64: pack(Double.self)
    case StorageCode.bfloat16: pack(BFloat16Bits.self)
    default: pack(Float16Bits.self)
    }
}
