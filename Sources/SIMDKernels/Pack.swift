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

/// What a packed element holds: one element of the operand, or some that follow one another along the depth.
protocol PackSource: BitwiseCopyable {
    /// How many.
    static var steps: Int { get }
    /// The packed element that begins at an address, with `next` from one step of the depth to the next.
    static func packed<C: ComputeScalar>(_ first: UnsafePointer<Self>, next: Int) -> C
    /// The packed element of the depth's last step alone, with zeros in place of the others.
    static func packedLast<C: ComputeScalar>(_ first: UnsafePointer<Self>) -> C
}

extension StorageScalar {
    @inline(__always) static var steps: Int { 1 }
    @inline(__always) static func packed<C: ComputeScalar>(_ first: UnsafePointer<Self>, next: Int) -> C {
        first.pointee.loaded()
    }
    @inline(__always) static func packedLast<C: ComputeScalar>(_ first: UnsafePointer<Self>) -> C {
        first.pointee.loaded()
    }
}

/// Packed elements of so many steps of the depth.
@inline(__always)
func packedSteps<V: ComputeVector>(_: V.Type, _ depth: Int) -> Int { (depth &+ V.depthSteps &- 1) / V.depthSteps }

/// One depth block of lines of A, contiguous along the depth.
@inline(__always)
func copyLines<V: ComputeVector>(
    _: V.Type, _ source: UnsafeRawPointer, type: Int32, lines: Int, depth: Int, lineStride: Int, depthStride: Int,
    into destination: UnsafeMutablePointer<V.Element>
) {
    @inline(__always)
    func copy<S: PackSource>(_: S.Type) {
        let source = source.assumingMemoryBound(to: S.self)
        let count = depth / S.steps
        let step = S.steps &* depthStride
        // Across the lines in squares of 4 x 4 elements where they lie side by side.
        let turned = lineStride == 1 && depthStride != 1 ? count / 4 &* 4 : 0
        for square in 0..<(turned / 4) {
            transposeLines(
                source + 4 &* square &* step, lineStride: step, along: 1, next: depthStride, count: lines,
                width: copiedLine, into: destination + 4 &* square)
        }
        for i in 0..<lines {
            let from = source + i &* lineStride
            let to = destination + i &* copiedLine
            var k = turned
            if depthStride == 1 {
                copyRun(from, along: S.steps, next: 1, count: count / 4 &* 4, to: to)
                k = count / 4 &* 4
            }
            while k < count {
                to[k] = S.packed(from + k &* step, next: depthStride)
                k &+= 1
            }
            if count &* S.steps < depth { to[count] = S.packedLast(from + count &* step) }
        }
    }
    #if LOWRANK_BFLOAT16_PAIRS
        if V.depthSteps > 1 { return copy(BFloat16Pair.self) }
    #endif
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
            V.self, V.self, from, type: type, lines: lines, depth: steps, lineStride: lineStride,
            depthStride: depthStride, into: to)
    } else {
        packTiles(
            V.self, from, type: type, lines: lines, depth: steps, lineStride: lineStride, depthStride: depthStride,
            into: to)
    }
}

/// Elements of a packed depth block of so many lines of A or columns of B.
@inline(__always)
func packedBlock<V: ComputeVector>(_: V.Type, _ asStrips: Bool, lines: Int) -> Int {
    let width = tileColumns(V.self)
    return packedSteps(V.self, depthBlock) &* (asStrips ? (lines &+ width &- 1) / width &* width : paddedLines(lines))
}

/// Lines of the next tile where so many are left: 6, and 4 where that leaves fewer registers idle.
@inline(__always)
func tileLines(of left: Int) -> Int { left <= 4 || left == 7 || left == 8 ? 4 : 6 }

/// Lines of all tiles of so many.
@inline(__always)
func paddedLines(_ lines: Int) -> Int { max(4, (lines &+ 1) / 2 &* 2) }

/// One depth block of lines of A as strips of 6 or 4 of them, one for each tile.
@inline(__always)
func packTiles<V: ComputeVector>(
    _: V.Type, _ source: UnsafeRawPointer, type: Int32, lines: Int, depth: Int, lineStride: Int, depthStride: Int,
    into destination: UnsafeMutablePointer<V.Element>
) {
    // All strips of six come first.
    var sixes = 0
    while sixes < lines && tileLines(of: lines &- sixes) == 6 { sixes &+= 6 }
    packStrips(
        SixLines.self, V.self, source, type: type, lines: min(sixes, lines), depth: depth, lineStride: lineStride,
        depthStride: depthStride, into: destination)
    if sixes < lines {
        packStrips(
            FourLines.self, V.self, source + sixes &* lineStride &* storageSize(type), type: type,
            lines: lines &- sixes, depth: depth, lineStride: lineStride, depthStride: depthStride,
            into: destination + sixes &* packedSteps(V.self, depth))
    }
}

/// Strips of some lines: for each step of the depth the strip's elements side by side. Zeros fill the last strip up.
@inline(__always)
func packStrips<W: StripWidth, V: ComputeVector>(
    _: W.Type, _: V.Type, _ source: UnsafeRawPointer, type: Int32, lines: Int, depth: Int, lineStride: Int,
    depthStride: Int, into destination: UnsafeMutablePointer<V.Element>
) {
    @inline(__always)
    func pack<S: PackSource>(_: S.Type) {
        let source = source.assumingMemoryBound(to: S.self)
        let count = depth / S.steps
        let step = S.steps &* depthStride
        let stripDepth = packedSteps(V.self, depth)
        let full = lineStride == 1 ? lines / W.width &* W.width : 0
        copyFullStrips(
            W.self, source, lines: full, count: count, step: step, next: depthStride, stripDepth: stripDepth,
            into: destination)
        var first = full
        while first < lines {
            let origin = source + first &* lineStride
            let strip = destination + first &* stripDepth
            let present = min(W.width, lines &- first)
            var j = 0
            if depthStride == 1 {
                while j &+ 4 <= present {
                    transposeLines(
                        origin + j &* lineStride, lineStride: lineStride, along: S.steps, next: 1, count: count,
                        width: W.width, into: strip + j)
                    j &+= 4
                }
            }
            while j < present {
                let from = origin + j &* lineStride
                for k in 0..<count { strip[k &* W.width &+ j] = S.packed(from + k &* step, next: depthStride) }
                j &+= 1
            }
            while j < W.width {
                for k in 0..<stripDepth { strip[k &* W.width &+ j] = .zero }
                j &+= 1
            }
            first &+= W.width
        }
        if count < stripDepth {
            for line in 0..<lines {
                let strip = destination + line / W.width &* W.width &* stripDepth
                strip[count &* W.width &+ line % W.width] = S.packedLast(source + (line &* lineStride &+ count &* step))
            }
        }
    }
    #if LOWRANK_BFLOAT16_PAIRS
        if V.depthSteps > 1 { return pack(BFloat16Pair.self) }
    #endif
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
private func copyFullStrips<W: StripWidth, S: PackSource, C: ComputeScalar>(
    _: W.Type, _ source: UnsafePointer<S>, lines: Int, count: Int, step: Int, next: Int, stripDepth: Int,
    into destination: UnsafeMutablePointer<C>
) {
    let ahead = 4
    @inline(__always)
    func copySteps(_ start: Int, _ steps: Int) {
        var first = 0
        while first < lines {
            for k in 0..<steps {
                let from = source + ((start &+ k) &* step &+ first)
                let to = destination + (first &* stripDepth &+ (start &+ k) &* W.width)
                prefetch_line(from + ahead &* step)
                if S.steps > 1 { prefetch_line(from + (ahead &* step &+ next)) }
                copyRun(from, along: 1, next: next, count: W.width / 4 &* 4, to: to)
                for j in (W.width / 4 &* 4)..<W.width { to[j] = S.packed(from + j, next: next) }
            }
            first &+= W.width
        }
    }
    var start = 0
    while start &+ ahead <= count {
        copySteps(start, ahead)
        start &+= ahead
    }
    while start < count {
        copySteps(start, 1)
        start &+= 1
    }
}

/// Four lines `lineStride` apart side by side: squares of 4 x 4 elements turned over in registers. `along` leads from
/// one of a line's elements to the next.
@inline(__always)
private func transposeLines<S: PackSource, C: ComputeScalar>(
    _ source: UnsafePointer<S>, lineStride: Int, along: Int, next: Int, count: Int, width: Int,
    into destination: UnsafeMutablePointer<C>
) {
    let l0 = source
    let l1 = source + lineStride
    let l2 = source + 2 &* lineStride
    let l3 = source + 3 &* lineStride
    var k = 0
    while k &+ 4 <= count {
        let from = k &* along
        C.writeTransposed(
            four(l0 + from, along, next), four(l1 + from, along, next), four(l2 + from, along, next),
            four(l3 + from, along, next), to: destination + k &* width, line: width)
        k &+= 4
    }
    while k < count {
        let from = k &* along
        let to = destination + k &* width
        to[0] = S.packed(l0 + from, next: next)
        to[1] = S.packed(l1 + from, next: next)
        to[2] = S.packed(l2 + from, next: next)
        to[3] = S.packed(l3 + from, next: next)
        k &+= 1
    }
}

/// A multiple of four elements side by side. By eight: element by element each store would have to come before the next
/// load.
@inline(__always)
private func copyRun<S: PackSource, C: ComputeScalar>(
    _ source: UnsafePointer<S>, along: Int, next: Int, count: Int, to target: UnsafeMutablePointer<C>
) {
    var j = 0
    while j &+ 8 <= count {
        let from = source + j &* along
        C.write(four(from, along, next), four(from + 4 &* along, along, next), to: target + j)
        j &+= 8
    }
    if j < count { C.write(four(source + j &* along, along, next), to: target + j) }
}

@inline(__always)
private func four<S: PackSource, C: ComputeScalar>(
    _ source: UnsafePointer<S>, _ along: Int, _ next: Int
) -> (C, C, C, C) {
    (
        S.packed(source, next: next), S.packed(source + along, next: next), S.packed(source + 2 &* along, next: next),
        S.packed(source + 3 &* along, next: next)
    )
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
