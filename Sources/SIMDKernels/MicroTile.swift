// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0

// The product of 6 or 4 lines of A with one packed strip of B, two vectors wide, kept in registers. 6 lines make 12
// accumulators, which with two of B and one broadcast fill 15 of 16 registers; 4 lines make 8, just enough to hide the
// latency of two fused multiplications a cycle, and waste nothing where A has 8, 16 or 32 lines.

/// Columns of a tile.
@inline(__always)
func tileColumns<V: ComputeVector>(_: V.Type) -> Int { 2 &* V.lanes }

/// Lines of the taller tile.
let maxTileLines = 6

/// Where a tile's product goes.
///
/// With `c`, that is `c = alpha * product + beta * c` on lines `line` elements apart; c is not read where beta is zero.
/// Without, `buffer` receives the product, line after line.
/// A tuple, because a generic structure would bring weak code of its own.
typealias TileTarget<C: ComputeScalar> = (
    alpha: C, beta: C, c: UnsafeMutablePointer<C>?, line: Int, buffer: UnsafeMutablePointer<C>
)

@inline(__always)
func multiplyTile<V: ComputeVector>(
    _: V.Type, lines: Int, depth: Int, a: UnsafePointer<V.Element>, aLine: Int, aStep: Int, b: UnsafePointer<V.Element>,
    to target: TileTarget<V.Element>
) {
    if lines == 6 {
        multiplyTile6(V.self, depth: depth, a: a, aLine: aLine, aStep: aStep, b: b, to: target)
    } else {
        multiplyTile4(V.self, depth: depth, a: a, aLine: aLine, aStep: aStep, b: b, to: target)
    }
}

/// 6 lines of A. `a` is read with `aLine` from line to line and `aStep` along the depth; `b` holds `depth` steps of two
/// vectors.
@inline(__always)
func multiplyTile6<V: ComputeVector>(
    _: V.Type, depth: Int, a: UnsafePointer<V.Element>, aLine: Int, aStep: Int, b: UnsafePointer<V.Element>,
    to target: TileTarget<V.Element>
) {
    var c00 = V.zero, c01 = V.zero, c10 = V.zero, c11 = V.zero, c20 = V.zero, c21 = V.zero, c30 = V.zero, c31 = V.zero
    var c40 = V.zero, c41 = V.zero, c50 = V.zero, c51 = V.zero
    let a0 = a, a1 = a + aLine, a2 = a + 2 &* aLine, a3 = a + 3 &* aLine, a4 = a + 4 &* aLine, a5 = a + 5 &* aLine
    var bStep = UnsafeRawPointer(b).assumingMemoryBound(to: V.self)
    var k = 0
    for _ in 0..<depth {
        let b0 = bStep[0]
        let b1 = bStep[1]
        let x0 = V(repeating: a0[k])
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
    if let c = target.c {
        let line = target.line
        combine(V.self, c00, c01, target, c)
        combine(V.self, c10, c11, target, c + line)
        combine(V.self, c20, c21, target, c + 2 &* line)
        combine(V.self, c30, c31, target, c + 3 &* line)
        combine(V.self, c40, c41, target, c + 4 &* line)
        combine(V.self, c50, c51, target, c + 5 &* line)
    } else {
        let buffer = UnsafeMutableRawPointer(target.buffer).assumingMemoryBound(to: V.self)
        buffer[0] = c00
        buffer[1] = c01
        buffer[2] = c10
        buffer[3] = c11
        buffer[4] = c20
        buffer[5] = c21
        buffer[6] = c30
        buffer[7] = c31
        buffer[8] = c40
        buffer[9] = c41
        buffer[10] = c50
        buffer[11] = c51
    }
}

/// 4 lines of A, as `multiplyTile6`.
@inline(__always)
func multiplyTile4<V: ComputeVector>(
    _: V.Type, depth: Int, a: UnsafePointer<V.Element>, aLine: Int, aStep: Int, b: UnsafePointer<V.Element>,
    to target: TileTarget<V.Element>
) {
    var c00 = V.zero, c01 = V.zero, c10 = V.zero, c11 = V.zero, c20 = V.zero, c21 = V.zero, c30 = V.zero, c31 = V.zero
    let a0 = a, a1 = a + aLine, a2 = a + 2 &* aLine, a3 = a + 3 &* aLine
    var bStep = UnsafeRawPointer(b).assumingMemoryBound(to: V.self)
    var k = 0
    for _ in 0..<depth {
        let b0 = bStep[0]
        let b1 = bStep[1]
        let x0 = V(repeating: a0[k])
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
    if let c = target.c {
        let line = target.line
        combine(V.self, c00, c01, target, c)
        combine(V.self, c10, c11, target, c + line)
        combine(V.self, c20, c21, target, c + 2 &* line)
        combine(V.self, c30, c31, target, c + 3 &* line)
    } else {
        let buffer = UnsafeMutableRawPointer(target.buffer).assumingMemoryBound(to: V.self)
        buffer[0] = c00
        buffer[1] = c01
        buffer[2] = c10
        buffer[3] = c11
        buffer[4] = c20
        buffer[5] = c21
        buffer[6] = c30
        buffer[7] = c31
    }
}

/// `c = alpha * (p0, p1) + beta * c` for one line of a tile. Each rounding is a separate instruction (no fusing), so
/// that `alpha = 1, beta = -1` gives an exact zero for equal numbers.
@inline(__always)
private func combine<V: ComputeVector>(
    _: V.Type, _ p0: V, _ p1: V, _ target: TileTarget<V.Element>, _ c: UnsafeMutablePointer<V.Element>
) {
    let address = UnsafeMutableRawPointer(c)
    combine(p0, target, address)
    combine(p1, target, address + MemoryLayout<V>.stride)
}

@inline(__always)
private func combine<V: ComputeVector>(
    _ product: V, _ target: TileTarget<V.Element>, _ address: UnsafeMutableRawPointer
) {
    var result = V(repeating: target.alpha) * product
    if !(target.beta == .zero) { result = result + V(repeating: target.beta) * V.read(address) }
    result.write(address)
}
