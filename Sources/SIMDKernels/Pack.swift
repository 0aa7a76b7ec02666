// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import CPUFeatures

// Copies of an operand's block in the order and type that the micro tile reads it in. `lineStride` leads from one line
// to the next, `depthStride` along the depth, in elements.

/// Steps of the depth that one packed block spans: a strip of B then fills most of the first-level cache.
let depthBlock = 256

/// Elements from one copied line of A to the next: more than the depth by a cache line, so that the lines of a tile don't
/// fall on the same places of the cache.
let copiedLine = depthBlock &+ 16

/// Lines of a strip, as a type so that loops over them are unrolled.
protocol StripWidth {
    static var width: Int { get }
}

enum FourLines: StripWidth {
    @inline(__always) static var width: Int { 4 }
}

enum SixLines: StripWidth {
    @inline(__always) static var width: Int { 6 }
}

extension FloatVector: StripWidth {
    @inline(__always) static var width: Int { tileColumns(self) }
}

extension DoubleVector: StripWidth {
    @inline(__always) static var width: Int { tileColumns(self) }
}

/// One depth block of lines of A, contiguous along the depth.
@inline(__always)
func copyLines<C: ComputeScalar>(
    _ source: UnsafeRawPointer, type: Int32, lines: Int, depth: Int, lineStride: Int, depthStride: Int,
    into destination: UnsafeMutablePointer<C>
) {
    @inline(__always)
    func copy<S: StorageScalar>(_: S.Type) {
        let source = source.assumingMemoryBound(to: S.self)
        // Across the lines in squares of 4 x 4 elements where they lie side by side.
        let turned = lineStride == 1 && depthStride != 1 ? depth / 4 &* 4 : 0
        for square in 0..<(turned / 4) {
            transposeLines(
                source + 4 &* square &* depthStride, lineStride: depthStride, depth: lines, width: copiedLine,
                into: destination + 4 &* square)
        }
        for i in 0..<lines {
            let from = source + i &* lineStride
            let to = destination + i &* copiedLine
            var k = turned
            if depthStride == 1 {
                copyRun(from, count: depth / 4 &* 4, to: to)
                k = depth / 4 &* 4
            }
            while k < depth {
                to[k] = from[k &* depthStride].loaded()
                k &+= 1
            }
        }
    }
    switch type {
    case StorageCode.float32: copy(Float.self)
    case StorageCode.float64: copy(Double.self)
    case StorageCode.bfloat16: copy(BFloat16Bits.self)
    default: copy(Float16Bits.self)
    }
}

/// Packs depth block number `block` of a whole operand: columns of B as strips of two vectors, or lines of A.
@inline(__always)
func packOperand<V: ComputeVector>(
    _: V.Type, asStrips: Bool, lines: Int, depth: Int, block: Int, source: UnsafeRawPointer, type: Int32,
    lineStride: Int, depthStride: Int, into destination: UnsafeMutableRawPointer
) {
    let first = block &* depthBlock
    let steps = min(depthBlock, depth &- first)
    let from = source + first &* depthStride &* storageSize(type)
    let to = destination.assumingMemoryBound(to: V.Element.self) + block &* packedBlock(V.self, asStrips, lines: lines)
    if asStrips {
        packStrips(
            V.self, from, type: type, lines: lines, depth: steps, lineStride: lineStride, depthStride: depthStride,
            into: to)
    } else {
        packTiles(
            from, type: type, lines: lines, depth: steps, lineStride: lineStride, depthStride: depthStride, into: to)
    }
}

/// Elements of a packed depth block of so many lines of A or columns of B.
@inline(__always)
func packedBlock<V: ComputeVector>(_: V.Type, _ asStrips: Bool, lines: Int) -> Int {
    let width = tileColumns(V.self)
    return depthBlock &* (asStrips ? (lines &+ width &- 1) / width &* width : paddedLines(lines))
}

/// Lines of the next tile where so many are left: 6, and 4 where that leaves fewer registers idle.
@inline(__always)
func tileLines(of left: Int) -> Int { left <= 4 || left == 7 || left == 8 ? 4 : 6 }

/// Lines of all tiles of so many.
@inline(__always)
func paddedLines(_ lines: Int) -> Int { max(4, (lines &+ 1) / 2 &* 2) }

/// One depth block of lines of A as strips of 6 or 4 of them, one for each tile.
@inline(__always)
func packTiles<C: ComputeScalar>(
    _ source: UnsafeRawPointer, type: Int32, lines: Int, depth: Int, lineStride: Int, depthStride: Int,
    into destination: UnsafeMutablePointer<C>
) {
    // All strips of six come first.
    var sixes = 0
    while sixes < lines && tileLines(of: lines &- sixes) == 6 { sixes &+= 6 }
    packStrips(
        SixLines.self, source, type: type, lines: min(sixes, lines), depth: depth, lineStride: lineStride,
        depthStride: depthStride, into: destination)
    if sixes < lines {
        packStrips(
            FourLines.self, source + sixes &* lineStride &* storageSize(type), type: type, lines: lines &- sixes,
            depth: depth, lineStride: lineStride, depthStride: depthStride, into: destination + sixes &* depth)
    }
}

/// Strips of some lines: for each step of the depth the strip's elements side by side. Zeros fill the last strip up.
@inline(__always)
func packStrips<W: StripWidth, C: ComputeScalar>(
    _: W.Type, _ source: UnsafeRawPointer, type: Int32, lines: Int, depth: Int, lineStride: Int, depthStride: Int,
    into destination: UnsafeMutablePointer<C>
) {
    @inline(__always)
    func pack<S: StorageScalar>(_: S.Type) {
        let source = source.assumingMemoryBound(to: S.self)
        let full = lineStride == 1 ? lines / W.width &* W.width : 0
        copyFullStrips(W.self, source, lines: full, depth: depth, depthStride: depthStride, into: destination)
        var first = full
        while first < lines {
            let origin = source + first &* lineStride
            let strip = destination + first &* depth
            let count = min(W.width, lines &- first)
            var j = 0
            if depthStride == 1 {
                while j &+ 4 <= count {
                    transposeLines(
                        origin + j &* lineStride, lineStride: lineStride, depth: depth, width: W.width, into: strip + j)
                    j &+= 4
                }
            }
            while j < count {
                let from = origin + j &* lineStride
                for k in 0..<depth { strip[k &* W.width &+ j] = from[k &* depthStride].loaded() }
                j &+= 1
            }
            while j < W.width {
                for k in 0..<depth { strip[k &* W.width &+ j] = .zero }
                j &+= 1
            }
            first &+= W.width
        }
    }
    switch type {
    case StorageCode.float32: pack(Float.self)
    case StorageCode.float64: pack(Double.self)
    case StorageCode.bfloat16: pack(BFloat16Bits.self)
    default: pack(Float16Bits.self)
    }
}

/// Whole strips of lines that lie side by side. Some steps for all strips come before the next ones, so that the source
/// is read in long runs; the steps after them are asked for in time, which the processor does not foresee.
@inline(__always)
private func copyFullStrips<W: StripWidth, S: StorageScalar, C: ComputeScalar>(
    _: W.Type, _ source: UnsafePointer<S>, lines: Int, depth: Int, depthStride: Int,
    into destination: UnsafeMutablePointer<C>
) {
    let ahead = 4
    @inline(__always)
    func copySteps(_ start: Int, _ count: Int) {
        var first = 0
        while first < lines {
            for k in 0..<count {
                let from = source + ((start &+ k) &* depthStride &+ first)
                let to = destination + (first &* depth &+ (start &+ k) &* W.width)
                prefetch_line(from + ahead &* depthStride)
                copyRun(from, count: W.width / 4 &* 4, to: to)
                for j in (W.width / 4 &* 4)..<W.width { to[j] = from[j].loaded() }
            }
            first &+= W.width
        }
    }
    var start = 0
    while start &+ ahead <= depth {
        copySteps(start, ahead)
        start &+= ahead
    }
    while start < depth {
        copySteps(start, 1)
        start &+= 1
    }
}

/// Four lines that are contiguous along the depth, side by side: squares of 4 x 4 elements turned over in registers.
@inline(__always)
private func transposeLines<S: StorageScalar, C: ComputeScalar>(
    _ source: UnsafePointer<S>, lineStride: Int, depth: Int, width: Int, into destination: UnsafeMutablePointer<C>
) {
    let l0 = source
    let l1 = source + lineStride
    let l2 = source + 2 &* lineStride
    let l3 = source + 3 &* lineStride
    var k = 0
    while k &+ 4 <= depth {
        C.writeTransposed(
            four(l0 + k), four(l1 + k), four(l2 + k), four(l3 + k), to: destination + k &* width, line: width)
        k &+= 4
    }
    while k < depth {
        let to = destination + k &* width
        to[0] = l0[k].loaded()
        to[1] = l1[k].loaded()
        to[2] = l2[k].loaded()
        to[3] = l3[k].loaded()
        k &+= 1
    }
}

/// A multiple of four elements side by side. By eight: element by element each store would have to come before the next
/// load.
@inline(__always)
private func copyRun<S: StorageScalar, C: ComputeScalar>(
    _ source: UnsafePointer<S>, count: Int, to target: UnsafeMutablePointer<C>
) {
    var j = 0
    while j &+ 8 <= count {
        let from = source + j
        C.write(four(from), four(from + 4), to: target + j)
        j &+= 8
    }
    if j < count { C.write(four(source + j), to: target + j) }
}

@inline(__always)
private func four<S: StorageScalar, C: ComputeScalar>(_ source: UnsafePointer<S>) -> (C, C, C, C) {
    (source[0].loaded(), source[1].loaded(), source[2].loaded(), source[3].loaded())
}

extension ComputeScalar where Self: SIMDScalar {
    @inline(__always)
    static func read(_ source: UnsafePointer<Self>) -> Four { (source[0], source[1], source[2], source[3]) }

    @inline(__always)
    static func write(_ four: Four, to target: UnsafeMutablePointer<Self>) {
        UnsafeMutableRawPointer(target).storeBytes(of: SIMD4(four.0, four.1, four.2, four.3), as: SIMD4<Self>.self)
    }

    @inline(__always)
    static func write(_ low: Four, _ high: Four, to target: UnsafeMutablePointer<Self>) {
        UnsafeMutableRawPointer(target).storeBytes(
            of: SIMD8(low.0, low.1, low.2, low.3, high.0, high.1, high.2, high.3), as: SIMD8<Self>.self)
    }

    @inline(__always)
    static func writeTransposed(
        _ l0: Four, _ l1: Four, _ l2: Four, _ l3: Four, to target: UnsafeMutablePointer<Self>, line: Int
    ) {
        let a = SIMD4(l0.0, l0.1, l0.2, l0.3)
        let b = SIMD4(l1.0, l1.1, l1.2, l1.3)
        let c = SIMD4(l2.0, l2.1, l2.2, l2.3)
        let d = SIMD4(l3.0, l3.1, l3.2, l3.3)
        let ab01 = SIMD4(a[0], b[0], a[1], b[1])
        let ab23 = SIMD4(a[2], b[2], a[3], b[3])
        let cd01 = SIMD4(c[0], d[0], c[1], d[1])
        let cd23 = SIMD4(c[2], d[2], c[3], d[3])
        let rows = UnsafeMutableRawPointer(target)
        let stride = line &* MemoryLayout<Self>.stride
        rows.storeBytes(of: SIMD4(lowHalf: ab01.lowHalf, highHalf: cd01.lowHalf), as: SIMD4<Self>.self)
        (rows + stride).storeBytes(of: SIMD4(lowHalf: ab01.highHalf, highHalf: cd01.highHalf), as: SIMD4<Self>.self)
        (rows + 2 &* stride).storeBytes(of: SIMD4(lowHalf: ab23.lowHalf, highHalf: cd23.lowHalf), as: SIMD4<Self>.self)
        (rows + 3 &* stride).storeBytes(of: SIMD4(lowHalf: ab23.highHalf, highHalf: cd23.highHalf), as: SIMD4<Self>.self)
    }
}
