// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0

/// Rows of the micro tile: 6 x 2 vectors of accumulators, two of B and one broadcast fill 15 of 16 registers.
let tileRows = 6

/// Columns of the micro tile.
@inline(__always)
func tileColumns<V: ComputeVector>(_: V.Type) -> Int { 2 &* V.lanes }

/// The product of 6 lines of A with one packed strip of B, kept in registers, then either written to `tile` (6 lines of
/// `tileColumns`) or, where `c` is given, combined with it in place: `c = alpha * product + beta * c`.
///
/// `a` is read with `aLine` from line to line and `aStep` along the depth; `b` holds `depth` steps of `tileColumns`.
@inline(__always)
func microTile<V: ComputeVector>(
    _: V.Type, depth: Int, a: UnsafePointer<V.Element>, aLine: Int, aStep: Int, b: UnsafePointer<V.Element>,
    alpha: V.Element, beta: V.Element, c: UnsafeMutablePointer<V.Element>?, cLine: Int,
    tile: UnsafeMutablePointer<V.Element>
) {
    var c00 = V.zero, c01 = V.zero, c10 = V.zero, c11 = V.zero, c20 = V.zero, c21 = V.zero
    var c30 = V.zero, c31 = V.zero, c40 = V.zero, c41 = V.zero, c50 = V.zero, c51 = V.zero
    let a0 = a, a1 = a + aLine, a2 = a + 2 &* aLine, a3 = a + 3 &* aLine, a4 = a + 4 &* aLine, a5 = a + 5 &* aLine
    var step = 0
    var bStep = UnsafeRawPointer(b)
    for _ in 0..<depth {
        let b0 = bStep.assumingMemoryBound(to: V.self)[0]
        let b1 = bStep.assumingMemoryBound(to: V.self)[1]
        let x0 = V(repeating: a0[step])
        c00 = c00.accumulating(x0, b0)
        c01 = c01.accumulating(x0, b1)
        let x1 = V(repeating: a1[step])
        c10 = c10.accumulating(x1, b0)
        c11 = c11.accumulating(x1, b1)
        let x2 = V(repeating: a2[step])
        c20 = c20.accumulating(x2, b0)
        c21 = c21.accumulating(x2, b1)
        let x3 = V(repeating: a3[step])
        c30 = c30.accumulating(x3, b0)
        c31 = c31.accumulating(x3, b1)
        let x4 = V(repeating: a4[step])
        c40 = c40.accumulating(x4, b0)
        c41 = c41.accumulating(x4, b1)
        let x5 = V(repeating: a5[step])
        c50 = c50.accumulating(x5, b0)
        c51 = c51.accumulating(x5, b1)
        step &+= aStep
        bStep += 2 &* MemoryLayout<V>.stride
    }
    if let c {
        let factor = V(repeating: alpha)
        combine(V.self, c00, c01, factor, beta, c)
        combine(V.self, c10, c11, factor, beta, c + cLine)
        combine(V.self, c20, c21, factor, beta, c + 2 &* cLine)
        combine(V.self, c30, c31, factor, beta, c + 3 &* cLine)
        combine(V.self, c40, c41, factor, beta, c + 4 &* cLine)
        combine(V.self, c50, c51, factor, beta, c + 5 &* cLine)
    } else {
        let lines = UnsafeMutableRawPointer(tile).assumingMemoryBound(to: V.self)
        lines[0] = c00
        lines[1] = c01
        lines[2] = c10
        lines[3] = c11
        lines[4] = c20
        lines[5] = c21
        lines[6] = c30
        lines[7] = c31
        lines[8] = c40
        lines[9] = c41
        lines[10] = c50
        lines[11] = c51
    }
}

/// `c = alpha * (p0, p1) + beta * c` for one line of a tile. `c` is not read where beta is zero. Each rounding is a
/// separate instruction (no fusing), so that `alpha = 1, beta = -1` gives an exact zero for equal numbers.
@inline(__always)
private func combine<V: ComputeVector>(
    _: V.Type, _ p0: V, _ p1: V, _ alpha: V, _ beta: V.Element, _ c: UnsafeMutablePointer<V.Element>
) {
    let low = UnsafeMutableRawPointer(c)
    let high = low + MemoryLayout<V>.stride
    var r0 = alpha * p0
    var r1 = alpha * p1
    if !(beta == .zero) {
        let factor = V(repeating: beta)
        r0 = r0 + factor * V.read(low)
        r1 = r1 + factor * V.read(high)
    }
    r0.write(low)
    r1.write(high)
}
