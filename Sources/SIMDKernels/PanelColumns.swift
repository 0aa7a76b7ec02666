// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0

// What the factorisations of column-major panels are made of: products with some neighbouring columns v of the panel and
// columns c of a block that is being worked on. Six columns of v, two vectors of rows at a time, fill 12 of 16 registers.

/// Columns that are worked on at a time.
let blockColumns = 6

/// Rows that are read at once.
@inline(__always)
func stepRows<V: ComputeVector>(_: V.Type) -> Int { 2 &* V.lanes }

/// `rows` made whole steps.
@inline(__always)
func wholeSteps<V: ComputeVector>(_: V.Type, _ rows: Int) -> Int {
    (rows &+ stepRows(V.self) &- 1) / stepRows(V.self) &* stepRows(V.self)
}

/// Elements from column to column of a block of `rows` rows, which ends in zeros that whole steps may reach.
@inline(__always)
func blockLine<V: ComputeVector>(_: V.Type, rows: Int) -> Int {
    wholeSteps(V.self, rows) &+ 3 &* stepRows(V.self)
}

/// Addresses of six columns. A tuple, because a generic structure would bring weak code of its own.
typealias SixColumns<C> = (
    UnsafePointer<C>, UnsafePointer<C>, UnsafePointer<C>, UnsafePointer<C>, UnsafePointer<C>, UnsafePointer<C>
)

/// Six columns that lie `line` apart, of which the last stands in for those beyond `count`.
@inline(__always)
func sixColumns<C>(_ first: UnsafePointer<C>, line: Int, count: Int) -> SixColumns<C> {
    (
        first, first + min(1, count &- 1) &* line, first + min(2, count &- 1) &* line, first + min(3, count &- 1) &* line,
        first + min(4, count &- 1) &* line, first + min(5, count &- 1) &* line
    )
}

/// `c[:, j] += v w[:, j]` for whole steps of rows. w holds six factors for each column of c.
@inline(__always)
func addColumns<V: ComputeVector>(
    _: V.Type, rows: Int, columns: Int, v: SixColumns<V.Element>, w: UnsafePointer<V.Element>,
    c: UnsafeMutablePointer<V.Element>, line: Int
) {
    let lanes = V.lanes
    var i = 0
    while i < rows {
        let v00 = V.read(v.0 + i), v10 = V.read(v.0 + i + lanes)
        let v01 = V.read(v.1 + i), v11 = V.read(v.1 + i + lanes)
        let v02 = V.read(v.2 + i), v12 = V.read(v.2 + i + lanes)
        let v03 = V.read(v.3 + i), v13 = V.read(v.3 + i + lanes)
        let v04 = V.read(v.4 + i), v14 = V.read(v.4 + i + lanes)
        let v05 = V.read(v.5 + i), v15 = V.read(v.5 + i + lanes)
        for j in 0..<columns {
            let factors = w + blockColumns &* j
            let target = c + (j &* line &+ i)
            var c0 = V.read(target), c1 = V.read(target + lanes)
            let w0 = V(repeating: factors[0])
            c0 = c0.accumulating(v00, w0)
            c1 = c1.accumulating(v10, w0)
            let w1 = V(repeating: factors[1])
            c0 = c0.accumulating(v01, w1)
            c1 = c1.accumulating(v11, w1)
            let w2 = V(repeating: factors[2])
            c0 = c0.accumulating(v02, w2)
            c1 = c1.accumulating(v12, w2)
            let w3 = V(repeating: factors[3])
            c0 = c0.accumulating(v03, w3)
            c1 = c1.accumulating(v13, w3)
            let w4 = V(repeating: factors[4])
            c0 = c0.accumulating(v04, w4)
            c1 = c1.accumulating(v14, w4)
            let w5 = V(repeating: factors[5])
            c0 = c0.accumulating(v05, w5)
            c1 = c1.accumulating(v15, w5)
            c0.write(target)
            c1.write(target + lanes)
        }
        i &+= stepRows(V.self)
    }
}

/// `sums[j][k] += v[:, k] * c[:, j]`, lane by lane, for whole steps of rows and six columns of c. The 36 sums are vectors.
@inline(__always)
func addDots<V: ComputeVector>(
    _: V.Type, rows: Int, v: SixColumns<V.Element>, c: UnsafePointer<V.Element>, line: Int,
    sums: UnsafeMutablePointer<V.Element>
) {
    // So many rows of all columns stay in the first-level cache.
    let chunk = 32 &* stepRows(V.self)
    let lanes = V.lanes
    var start = 0
    while start < rows {
        let end = min(start &+ chunk, rows)
        for j in 0..<(blockColumns / 2) {
            let left = c + 2 &* j &* line
            let right = left + line
            let target = sums + 2 &* j &* blockColumns &* lanes
            var a0 = V.read(target), a1 = V.read(target + lanes), a2 = V.read(target + 2 &* lanes)
            var a3 = V.read(target + 3 &* lanes), a4 = V.read(target + 4 &* lanes), a5 = V.read(target + 5 &* lanes)
            let other = target + blockColumns &* lanes
            var b0 = V.read(other), b1 = V.read(other + lanes), b2 = V.read(other + 2 &* lanes)
            var b3 = V.read(other + 3 &* lanes), b4 = V.read(other + 4 &* lanes), b5 = V.read(other + 5 &* lanes)
            var i = start
            while i < end {
                let x = V.read(left + i), y = V.read(right + i)
                let v0 = V.read(v.0 + i)
                a0 = a0.accumulating(v0, x)
                b0 = b0.accumulating(v0, y)
                let v1 = V.read(v.1 + i)
                a1 = a1.accumulating(v1, x)
                b1 = b1.accumulating(v1, y)
                let v2 = V.read(v.2 + i)
                a2 = a2.accumulating(v2, x)
                b2 = b2.accumulating(v2, y)
                let v3 = V.read(v.3 + i)
                a3 = a3.accumulating(v3, x)
                b3 = b3.accumulating(v3, y)
                let v4 = V.read(v.4 + i)
                a4 = a4.accumulating(v4, x)
                b4 = b4.accumulating(v4, y)
                let v5 = V.read(v.5 + i)
                a5 = a5.accumulating(v5, x)
                b5 = b5.accumulating(v5, y)
                i &+= lanes
            }
            a0.write(target)
            a1.write(target + lanes)
            a2.write(target + 2 &* lanes)
            a3.write(target + 3 &* lanes)
            a4.write(target + 4 &* lanes)
            a5.write(target + 5 &* lanes)
            b0.write(other)
            b1.write(other + lanes)
            b2.write(other + 2 &* lanes)
            b3.write(other + 3 &* lanes)
            b4.write(other + 4 &* lanes)
            b5.write(other + 5 &* lanes)
        }
        start = end
    }
}

/// The rows of some columns that make no whole step, with zeros below and beside them.
@inline(__always)
func copyRest<V: ComputeVector>(
    _: V.Type, _ source: UnsafePointer<V.Element>, line: Int, rows: Int, count: Int, to rest: UnsafeMutablePointer<V.Element>
) -> SixColumns<V.Element> {
    let height = stepRows(V.self)
    for k in 0..<blockColumns {
        for i in 0..<height { rest[k &* height &+ i] = k < count && i < rows ? source[k &* line &+ i] : .zero }
    }
    return sixColumns(UnsafePointer(rest), line: height, count: blockColumns)
}

/// A block of columns of a panel, with zeros to the end of its lines. What is beyond `count` is zero.
@inline(__always)
func readBlock<C: ComputeScalar>(
    _ source: UnsafePointer<C>, sourceLine: Int, rows: Int, count: Int, to block: UnsafeMutablePointer<C>, line: Int
) {
    for j in 0..<blockColumns {
        let (from, to) = (source + j &* sourceLine, block + j &* line)
        let end = j < count ? rows : 0
        for i in 0..<end { to[i] = from[i] }
        for i in end..<line { to[i] = .zero }
    }
}

/// The block's columns back into the panel.
@inline(__always)
func writeBlock<C: ComputeScalar>(
    _ block: UnsafePointer<C>, line: Int, rows: Int, count: Int, to target: UnsafeMutablePointer<C>, targetLine: Int
) {
    for j in 0..<count {
        let (from, to) = (block + j &* line, target + j &* targetLine)
        for i in 0..<rows { to[i] = from[i] }
    }
}
