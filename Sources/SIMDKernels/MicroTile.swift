// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import CPUFeatures

// The product of 6 or 4 lines of A with one packed strip of B, two vectors wide, kept in registers. 6 lines make 12
// accumulators, which with two of B and one broadcast fill 15 of 16 registers; 4 lines make 8, just enough to hide the
// latency of two fused multiplications a cycle, and with 6 waste nothing where A has 8, 16 or 32 lines.

/// Columns of a tile.
@inline(__always)
func tileColumns<V: ComputeVector>(_: V.Type) -> Int { 2 &* V.lanes }

/// Lines of the taller tile.
let maxTileLines = 6

/// Where the products of a run of tiles go: `c = alpha * product + beta * c` on lines `line` elements apart, one tile
/// after the other along them. c is not read where beta is zero.
/// A tuple, because a generic structure would bring weak code of its own.
typealias TileTarget<C: ComputeScalar> = (alpha: C, beta: C, c: UnsafeMutablePointer<C>, line: Int)

/// Memory that comes next, to be asked for: for each tile `step` bytes of lines `line` bytes apart. They are too far apart
/// for the processor to foresee.
typealias LinesAhead = (address: UnsafeRawPointer?, line: Int, step: Int)

/// A run of tiles side by side: `height` lines of A, 6 or 4, times `count` strips of B. Of the lines the first `aLines`
/// exist: the last one stands in for the others.
@inline(__always)
func multiplyTiles<V: ComputeVector>(
    _: V.Type, height: Int, count: Int, depth: Int, a: UnsafePointer<V.Element>, aLine: Int, aStep: Int, aLines: Int,
    b: UnsafePointer<V.Element>, to target: TileTarget<V.Element>, ahead: LinesAhead
) {
    let last = aLines &- 1
    if height == 6 {
        multiplyTiles6(
            V.self, count: count, depth: depth, a: a, aLine: aLine, aStep: aStep, last: last, b: b, to: target,
            ahead: ahead)
    } else {
        multiplyTiles4(
            V.self, count: count, depth: depth, a: a, aLine: aLine, aStep: aStep, last: last, b: b, to: target,
            ahead: ahead)
    }
}

/// `a` is read with `aLine` from line to line and `aStep` along the depth; `b` holds `depth` steps of two vectors for each
/// tile.
@inline(__always)
private func multiplyTiles6<V: ComputeVector>(
    _: V.Type, count: Int, depth: Int, a: UnsafePointer<V.Element>, aLine: Int, aStep: Int, last: Int,
    b: UnsafePointer<V.Element>, to target: TileTarget<V.Element>, ahead: LinesAhead
) {
    let a1 = a + min(1, last) &* aLine, a2 = a + min(2, last) &* aLine, a3 = a + min(3, last) &* aLine
    let a4 = a + min(4, last) &* aLine, a5 = a + min(5, last) &* aLine
    var bStep = UnsafeRawPointer(b).assumingMemoryBound(to: V.self)
    var ahead = ahead
    var c = target.c
    for _ in 0..<count {
        prefetch(&ahead, lines: 6)
        var c00 = V.zero, c01 = V.zero, c10 = V.zero, c11 = V.zero, c20 = V.zero, c21 = V.zero, c30 = V.zero, c31 = V.zero
        var c40 = V.zero, c41 = V.zero, c50 = V.zero, c51 = V.zero
        var k = 0
        for _ in 0..<depth {
            let b0 = bStep[0]
            let b1 = bStep[1]
            let x0 = V(repeating: a[k])
            c00 = c00.accumulating(x0, b0)
            c01 = c01.accumulating(x0, b1)
            let x1 = V(repeating: a1[k])
            c10 = c10.accumulating(x1, b0)
            c11 = c11.accumulating(x1, b1)
            let x2 = V(repeating: a2[k])
            c20 = c20.accumulating(x2, b0)
            c21 = c21.accumulating(x2, b1)
            let x3 = V(repeating: a3[k])
            c30 = c30.accumulating(x3, b0)
            c31 = c31.accumulating(x3, b1)
            let x4 = V(repeating: a4[k])
            c40 = c40.accumulating(x4, b0)
            c41 = c41.accumulating(x4, b1)
            let x5 = V(repeating: a5[k])
            c50 = c50.accumulating(x5, b0)
            c51 = c51.accumulating(x5, b1)
            bStep += 2
            k &+= aStep
        }
        let line = target.line
        if target.beta == .zero {
            write(V.self, c00, c01, target.alpha, c + 0 &* line)
            write(V.self, c10, c11, target.alpha, c + 1 &* line)
            write(V.self, c20, c21, target.alpha, c + 2 &* line)
            write(V.self, c30, c31, target.alpha, c + 3 &* line)
            write(V.self, c40, c41, target.alpha, c + 4 &* line)
            write(V.self, c50, c51, target.alpha, c + 5 &* line)
        } else {
            add(V.self, c00, c01, target, c + 0 &* line)
            add(V.self, c10, c11, target, c + 1 &* line)
            add(V.self, c20, c21, target, c + 2 &* line)
            add(V.self, c30, c31, target, c + 3 &* line)
            add(V.self, c40, c41, target, c + 4 &* line)
            add(V.self, c50, c51, target, c + 5 &* line)
        }
        c += tileColumns(V.self)
    }
}

/// 4 lines of A, as `multiplyTiles6`.
@inline(__always)
private func multiplyTiles4<V: ComputeVector>(
    _: V.Type, count: Int, depth: Int, a: UnsafePointer<V.Element>, aLine: Int, aStep: Int, last: Int,
    b: UnsafePointer<V.Element>, to target: TileTarget<V.Element>, ahead: LinesAhead
) {
    let a1 = a + min(1, last) &* aLine, a2 = a + min(2, last) &* aLine, a3 = a + min(3, last) &* aLine
    var bStep = UnsafeRawPointer(b).assumingMemoryBound(to: V.self)
    var ahead = ahead
    var c = target.c
    for _ in 0..<count {
        prefetch(&ahead, lines: 4)
        var c00 = V.zero, c01 = V.zero, c10 = V.zero, c11 = V.zero, c20 = V.zero, c21 = V.zero, c30 = V.zero, c31 = V.zero
        var k = 0
        for _ in 0..<depth {
            let b0 = bStep[0]
            let b1 = bStep[1]
            let x0 = V(repeating: a[k])
            c00 = c00.accumulating(x0, b0)
            c01 = c01.accumulating(x0, b1)
            let x1 = V(repeating: a1[k])
            c10 = c10.accumulating(x1, b0)
            c11 = c11.accumulating(x1, b1)
            let x2 = V(repeating: a2[k])
            c20 = c20.accumulating(x2, b0)
            c21 = c21.accumulating(x2, b1)
            let x3 = V(repeating: a3[k])
            c30 = c30.accumulating(x3, b0)
            c31 = c31.accumulating(x3, b1)
            bStep += 2
            k &+= aStep
        }
        let line = target.line
        if target.beta == .zero {
            write(V.self, c00, c01, target.alpha, c + 0 &* line)
            write(V.self, c10, c11, target.alpha, c + 1 &* line)
            write(V.self, c20, c21, target.alpha, c + 2 &* line)
            write(V.self, c30, c31, target.alpha, c + 3 &* line)
        } else {
            add(V.self, c00, c01, target, c + 0 &* line)
            add(V.self, c10, c11, target, c + 1 &* line)
            add(V.self, c20, c21, target, c + 2 &* line)
            add(V.self, c30, c31, target, c + 3 &* line)
        }
        c += tileColumns(V.self)
    }
}

@inline(__always)
private func write<V: ComputeVector>(
    _: V.Type, _ p0: V, _ p1: V, _ alpha: V.Element, _ c: UnsafeMutablePointer<V.Element>
) {
    let address = UnsafeMutableRawPointer(c)
    (V(repeating: alpha) * p0).write(address)
    (V(repeating: alpha) * p1).write(address + MemoryLayout<V>.stride)
}

/// `c = alpha * (p0, p1) + beta * c` for one line of a tile. Each rounding is a separate instruction (no fusing), so
/// that `alpha = 1, beta = -1` gives an exact zero for equal numbers.
@inline(__always)
private func add<V: ComputeVector>(
    _: V.Type, _ p0: V, _ p1: V, _ target: TileTarget<V.Element>, _ c: UnsafeMutablePointer<V.Element>
) {
    let low = UnsafeMutableRawPointer(c)
    let high = low + MemoryLayout<V>.stride
    let (alpha, beta) = (V(repeating: target.alpha), V(repeating: target.beta))
    (alpha * p0 + beta * V.read(low)).write(low)
    (alpha * p1 + beta * V.read(high)).write(high)
}

/// Asks for the memory of one tile: of each line the last byte's cache line, since the one before asked for the rest.
@inline(__always)
private func prefetch(_ ahead: inout LinesAhead, lines: Int) {
    guard let address = ahead.address else { return }
    for i in 0..<lines {
        let end = address + (i &* ahead.line &+ ahead.step)
        prefetch_line(end - 1)
        if ahead.step > 64 { prefetch_line(end - 65) }
    }
    ahead.address = address + ahead.step
}
