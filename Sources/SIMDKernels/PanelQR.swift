// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0

// Householder's QR of a column-major panel by blocks of six columns, H = I - V T V^T for the six reflections of a block
// (Schreiber and Van Loan 1989). The panel holds R on and above its diagonal, V below it; the T, 6 x 6 and row by row, are
// kept beside it. Signs and the reflections left out (tau = 0) are LAPACK's.

/// Where the steps keep what they need beside the block. A tuple, because a structure would bring weak code of its own.
private typealias Scratch<C> = (
    block: UnsafeMutablePointer<C>, line: Int, head: UnsafeMutablePointer<C>, rest: UnsafeMutablePointer<C>,
    sums: UnsafeMutablePointer<C>, dots: UnsafeMutablePointer<C>, factors: UnsafeMutablePointer<C>
)

@inline(__always)
private func scratch<V: ComputeVector>(
    _: V.Type, rows: Int, _ workspace: UnsafeMutablePointer<V.Element>
) -> Scratch<V.Element> {
    let line = blockLine(V.self, rows: rows)
    let head = workspace + blockColumns &* line
    let rest = head + blockColumns &* wholeSteps(V.self, blockColumns)
    let sums = rest + blockColumns &* stepRows(V.self)
    let dots = sums + blockColumns &* blockColumns &* V.lanes
    return (workspace, line, head, rest, sums, dots, dots + blockColumns &* blockColumns)
}

/// Elements of one T.
private let triangleSize = blockColumns * blockColumns

/// R and V in place of the panel, and the T of each block of columns.
@inline(__always)
func factorQR<V: ComputeVector>(
    _: V.Type, rows: Int, columns: Int, panel: UnsafeMutablePointer<V.Element>, panelLine: Int,
    triangles: UnsafeMutablePointer<V.Element>, workspace: UnsafeMutablePointer<V.Element>
) {
    let scratch = scratch(V.self, rows: rows, workspace)
    let (block, line) = (scratch.block, scratch.line)
    var first = 0
    while first < columns {
        let count = min(blockColumns, columns &- first)
        let origin = panel + first &* panelLine
        let triangle = triangles + first &* blockColumns
        readBlock(origin, sourceLine: panelLine, rows: rows, count: count, to: block, line: line)
        var k = 0
        while k < first {
            applyReflections(
                V.self, panel, panelLine: panelLine, rows: rows, first: k, count: blockColumns,
                triangle: triangles + k &* blockColumns, transposed: true, scratch)
            k &+= blockColumns
        }
        for j in 0..<triangleSize { triangle[j] = .zero }
        for j in 0..<count {
            triangle[j &* blockColumns &+ j] = reflectColumn(
                V.self, block, line: line, rows: rows, first: first, column: j, count: count)
        }
        writeBlock(block, line: line, rows: rows, count: count, to: origin, targetLine: panelLine)
        // V itself, for the products of its columns.
        for j in 0..<count {
            let column = block + (j &* line &+ first)
            for i in 0..<j { column[i] = .zero }
            column[j] = .one
        }
        computeDots(V.self, panel, panelLine: panelLine, rows: rows, first: first, count: count, scratch)
        for j in 1..<max(count, 1) {
            let tau = triangle[j &* blockColumns &+ j]
            for i in 0..<j {
                var sum = V.Element.zero
                for l in i..<j { sum = sum + triangle[i &* blockColumns &+ l] * scratch.dots[j &* blockColumns &+ l] }
                triangle[i &* blockColumns &+ j] = .zero - tau * sum
            }
        }
        first &+= count
    }
}

/// The first columns of Q = H_1 H_2 ... in place of V and R.
@inline(__always)
func formQ<V: ComputeVector>(
    _: V.Type, rows: Int, columns: Int, panel: UnsafeMutablePointer<V.Element>, panelLine: Int,
    triangles: UnsafePointer<V.Element>, workspace: UnsafeMutablePointer<V.Element>
) {
    let scratch = scratch(V.self, rows: rows, workspace)
    let (block, line) = (scratch.block, scratch.line)
    // From the last block on, as each takes the place of its own V.
    var first = (columns &- 1) / blockColumns &* blockColumns
    while first >= 0 {
        let count = min(blockColumns, columns &- first)
        for i in 0..<(blockColumns &* line) { block[i] = .zero }
        for j in 0..<count { block[j &* line &+ first &+ j] = .one }
        var k = first
        while k >= 0 {
            applyReflections(
                V.self, panel, panelLine: panelLine, rows: rows, first: k, count: min(blockColumns, columns &- k),
                triangle: triangles + k &* blockColumns, transposed: false, scratch)
            k &-= blockColumns
        }
        writeBlock(
            block, line: line, rows: rows, count: count, to: panel + first &* panelLine, targetLine: panelLine)
        first &-= blockColumns
    }
}

/// The columns of V that `first` begins, as parts: the triangle of ones and zeros on top written out, whole steps where they
/// are, and the rest with zeros below.
@inline(__always)
private func withReflections<V: ComputeVector>(
    _: V.Type, _ panel: UnsafePointer<V.Element>, panelLine: Int, rows: Int, first: Int, count: Int,
    _ scratch: Scratch<V.Element>, _ body: (_ v: SixColumns<V.Element>, _ start: Int, _ rows: Int) -> Void
) {
    let height = wholeSteps(V.self, blockColumns)
    let origin = panel + (first &* panelLine &+ first)
    let below = rows &- first
    for k in 0..<blockColumns {
        for i in 0..<height {
            let isBelow = k < count && i > k && i < below
            scratch.head[k &* height &+ i] = isBelow ? origin[k &* panelLine &+ i] : k < count && i == k ? .one : .zero
        }
    }
    body(sixColumns(UnsafePointer(scratch.head), line: height, count: blockColumns), first, height)
    if below <= height { return }
    let whole = (below &- height) / stepRows(V.self) &* stepRows(V.self)
    body(sixColumns(origin + height, line: panelLine, count: count), first &+ height, whole)
    let left = below &- height &- whole
    if left == 0 { return }
    let rest = copyRest(
        V.self, origin + (height &+ whole), line: panelLine, rows: left, count: count, to: scratch.rest)
    body(rest, first &+ height &+ whole, stepRows(V.self))
}

/// `dots[j][k] = v_k . block[:, j]` over the rows from `first` on.
@inline(__always)
private func computeDots<V: ComputeVector>(
    _: V.Type, _ panel: UnsafePointer<V.Element>, panelLine: Int, rows: Int, first: Int, count: Int,
    _ scratch: Scratch<V.Element>
) {
    for i in 0..<(triangleSize &* V.lanes) { scratch.sums[i] = .zero }
    withReflections(V.self, panel, panelLine: panelLine, rows: rows, first: first, count: count, scratch) { v, start, steps in
        addDots(V.self, rows: steps, v: v, c: scratch.block + start, line: scratch.line, sums: scratch.sums)
    }
    for i in 0..<triangleSize { scratch.dots[i] = V.read(scratch.sums + i &* V.lanes).sumOfLanes() }
}

/// `block = (I - V T V^T) block`, or with the transpose of T.
@inline(__always)
private func applyReflections<V: ComputeVector>(
    _: V.Type, _ panel: UnsafePointer<V.Element>, panelLine: Int, rows: Int, first: Int, count: Int,
    triangle: UnsafePointer<V.Element>, transposed: Bool, _ scratch: Scratch<V.Element>
) {
    computeDots(V.self, panel, panelLine: panelLine, rows: rows, first: first, count: count, scratch)
    for j in 0..<blockColumns {
        let dots = scratch.dots + j &* blockColumns
        for k in 0..<blockColumns {
            var sum = V.Element.zero
            if transposed {
                for l in 0...k { sum = sum + triangle[l &* blockColumns &+ k] * dots[l] }
            } else {
                for l in k..<blockColumns { sum = sum + triangle[k &* blockColumns &+ l] * dots[l] }
            }
            scratch.factors[j &* blockColumns &+ k] = .zero - sum
        }
    }
    withReflections(V.self, panel, panelLine: panelLine, rows: rows, first: first, count: count, scratch) { v, start, steps in
        addColumns(
            V.self, rows: steps, columns: blockColumns, v: v, w: scratch.factors, c: scratch.block + start,
            line: scratch.line)
    }
}

/// The reflection that brings a column of the block to a multiple of a unit vector, applied to the columns after it. The
/// column keeps R and v.
///
/// - Returns: tau of `H = I - tau v v^T`.
@inline(__always)
private func reflectColumn<V: ComputeVector>(
    _: V.Type, _ block: UnsafeMutablePointer<V.Element>, line: Int, rows: Int, first: Int, column: Int, count: Int
) -> V.Element {
    let row = first &+ column
    let x = block + column &* line
    // Rows of the block's own triangle one by one, then whole steps, which end in the zeros below.
    let below = min(first &+ blockColumns, rows)
    let steps = wholeSteps(V.self, rows &- below)
    var square = sumOfSquares(V.self, x, from: row &+ 1, below: below, steps: steps)
    var unit = V.Element.one
    let (smallest, largest) = V.Element.safeSquares
    if !(smallest < square && square + x[row] * x[row] < largest) {
        var magnitude = V.Element.zero
        for i in (row &+ 1)..<max(rows, row &+ 1) { magnitude = larger(magnitude, x[i]) }
        if magnitude == .zero { return .zero }
        unit = larger(magnitude, x[row]).inverseBinade
        for i in row..<rows { x[i] = x[i] * unit }
        square = sumOfSquares(V.self, x, from: row &+ 1, below: below, steps: steps)
    }
    let alpha = x[row]
    let norm = (alpha * alpha + square).squareRoot()
    let beta = alpha.isMinus ? norm : .zero - norm
    let tau = (beta - alpha) / beta
    let inverse = V.Element.one / (alpha - beta)
    x[row] = beta / unit
    @inline(__always)
    func reflect(next: Int) {
        reflectBelow(
            V.self, x, line: line, row: row, below: below, steps: steps, inverse: inverse, tau: tau, next: next)
    }
    switch count &- column &- 1 {
    case 5: reflect(next: 5)
    case 4: reflect(next: 4)
    case 3: reflect(next: 3)
    case 2: reflect(next: 2)
    case 1: reflect(next: 1)
    default: reflect(next: 0)
    }
    return tau
}

@inline(__always)
private func larger<C: ComputeScalar>(_ a: C, _ b: C) -> C {
    let magnitude = b.isMinus ? .zero - b : b
    return a < magnitude ? magnitude : a
}

@inline(__always)
private func sumOfSquares<V: ComputeVector>(
    _: V.Type, _ x: UnsafePointer<V.Element>, from row: Int, below: Int, steps: Int
) -> V.Element {
    var s0 = V.zero, s1 = V.zero
    var i = below
    while i < below &+ steps {
        let (x0, x1) = (V.read(x + i), V.read(x + i + V.lanes))
        s0 = s0.accumulating(x0, x0)
        s1 = s1.accumulating(x1, x1)
        i &+= stepRows(V.self)
    }
    var sum = (s0 + s1).sumOfLanes()
    for i in row..<max(below, row) { sum = sum + x[i] * x[i] }
    return sum
}

/// v in place of what stands below the diagonal, and the reflection of the `next` columns; `next` is a constant.
@inline(__always)
private func reflectBelow<V: ComputeVector>(
    _: V.Type, _ x: UnsafeMutablePointer<V.Element>, line: Int, row: Int, below: Int, steps: Int, inverse: V.Element,
    tau: V.Element, next: Int
) {
    let end = below &+ steps
    let factor = V(repeating: inverse)
    var s1 = V.zero, s2 = V.zero, s3 = V.zero, s4 = V.zero, s5 = V.zero
    var i = below
    while i < end {
        let at = x + i
        let v = V.read(at) * factor
        v.write(at)
        if next >= 1 { s1 = s1.accumulating(v, V.read(at + line)) }
        if next >= 2 { s2 = s2.accumulating(v, V.read(at + 2 &* line)) }
        if next >= 3 { s3 = s3.accumulating(v, V.read(at + 3 &* line)) }
        if next >= 4 { s4 = s4.accumulating(v, V.read(at + 4 &* line)) }
        if next >= 5 { s5 = s5.accumulating(v, V.read(at + 5 &* line)) }
        i &+= V.lanes
    }
    for i in (row &+ 1)..<max(below, row &+ 1) { x[i] = x[i] * inverse }
    /// What the column `column` after this one gets of v, from the sum over the rows below.
    @inline(__always)
    func weight(_ column: Int, _ lanes: V) -> V {
        let c = x + column &* line
        var sum = lanes.sumOfLanes() + c[row]
        for i in (row &+ 1)..<max(below, row &+ 1) { sum = sum + x[i] * c[i] }
        let weight = .zero - tau * sum
        c[row] = c[row] + weight
        for i in (row &+ 1)..<max(below, row &+ 1) { c[i] = c[i] + weight * x[i] }
        return V(repeating: weight)
    }
    let w1 = next >= 1 ? weight(1, s1) : .zero
    let w2 = next >= 2 ? weight(2, s2) : .zero
    let w3 = next >= 3 ? weight(3, s3) : .zero
    let w4 = next >= 4 ? weight(4, s4) : .zero
    let w5 = next >= 5 ? weight(5, s5) : .zero
    if next == 0 { return }
    i = below
    while i < end {
        let at = x + i
        let v = V.read(at)
        if next >= 1 { V.read(at + line).accumulating(v, w1).write(at + line) }
        if next >= 2 { V.read(at + 2 &* line).accumulating(v, w2).write(at + 2 &* line) }
        if next >= 3 { V.read(at + 3 &* line).accumulating(v, w3).write(at + 3 &* line) }
        if next >= 4 { V.read(at + 4 &* line).accumulating(v, w4).write(at + 4 &* line) }
        if next >= 5 { V.read(at + 5 &* line).accumulating(v, w5).write(at + 5 &* line) }
        i &+= V.lanes
    }
}
