// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0

/// Bytes of workspace of `factorLU` and of `factorQR`.
@inline(__always)
func panelWorkspaceBytes<V: ComputeVector>(_: V.Type, rows: Int) -> Int {
    let elements =
        blockColumns &* (blockLine(V.self, rows: rows) &+ wholeSteps(V.self, blockColumns) &+ stepRows(V.self))
        &+ blockColumns &* blockColumns &* (V.lanes &+ 2)
    return elements &* MemoryLayout<V.Element>.stride &+ 64
}

/// LU with partial pivoting of a column-major panel: the first largest magnitude of a column is its pivot. Row k was
/// exchanged with row `pivots[k]`. A column of zeros leaves a zero pivot and is eliminated from nothing.
///
/// Block by block of columns, each of which first receives all that the blocks before it do to it (left-looking), so that
/// it is written once. Multipliers are quotients, not products with reciprocals, which would overflow for subnormal pivots.
@inline(__always)
func factorLU<V: ComputeVector>(
    _: V.Type, rows: Int, columns: Int, panel: UnsafeMutablePointer<V.Element>, panelLine: Int,
    pivots: UnsafeMutablePointer<Int>, workspace: UnsafeMutablePointer<V.Element>
) {
    let line = blockLine(V.self, rows: rows)
    let block = workspace
    let rest = block + blockColumns &* line
    let factors = rest + blockColumns &* stepRows(V.self)
    var first = 0
    while first < columns {
        let count = min(blockColumns, columns &- first)
        let origin = panel + first &* panelLine
        readBlock(origin, sourceLine: panelLine, rows: rows, count: count, to: block, line: line)
        solveAbove(V.self, panel, panelLine: panelLine, rows: first, block: block, line: line, rest: rest, factors: factors)
        // Some rows of the block and of all columns before it at a time stay in the first-level cache.
        let chunk = 32 &* stepRows(V.self)
        var start = first
        while start < rows {
            let height = min(chunk, rows &- start)
            var k = 0
            while k < first {
                addEliminated(
                    V.self, panel + (k &* panelLine &+ start), panelLine: panelLine, rows: height, pivotRow: k, block: block,
                    line: line, start: start, rest: rest, factors: factors)
                k &+= blockColumns
            }
            start &+= chunk
        }
        for j in 0..<count {
            eliminateColumn(V.self, block, line: line, rows: rows, first: first, column: j, count: count, pivots: pivots)
        }
        writeBlock(block, line: line, rows: rows, count: count, to: origin, targetLine: panelLine)
        for j in 0..<columns where j < first || j >= first &+ count {
            let column = panel + j &* panelLine
            for k in first..<(first &+ count) {
                let pivot = pivots[k]
                let value = column[k]
                column[k] = column[pivot]
                column[pivot] = value
            }
        }
        first &+= count
    }
}

/// The block's rows above its own pivots: U from the columns before it. `rows` is a multiple of six.
@inline(__always)
private func solveAbove<V: ComputeVector>(
    _: V.Type, _ panel: UnsafePointer<V.Element>, panelLine: Int, rows: Int, block: UnsafeMutablePointer<V.Element>,
    line: Int, rest: UnsafeMutablePointer<V.Element>, factors: UnsafeMutablePointer<V.Element>
) {
    var k = 0
    while k < rows {
        let lower = panel + k &* panelLine
        for l in 0..<blockColumns {
            for i in (l &+ 1)..<max(blockColumns, l &+ 1) {
                let multiplier = lower[l &* panelLine &+ k &+ i]
                for j in 0..<blockColumns {
                    let column = block + (j &* line &+ k)
                    column[i] = column[i] - multiplier * column[l]
                }
            }
        }
        let next = k &+ blockColumns
        if next < rows {
            addEliminated(
                V.self, lower + next, panelLine: panelLine, rows: rows &- next, pivotRow: k, block: block, line: line,
                start: next, rest: rest, factors: factors)
        }
        k = next
    }
}

/// `block[start + i, :] -= L[i, :] U[pivotRow..., :]` for six columns of L and `rows` rows.
@inline(__always)
private func addEliminated<V: ComputeVector>(
    _: V.Type, _ lower: UnsafePointer<V.Element>, panelLine: Int, rows: Int, pivotRow: Int,
    block: UnsafeMutablePointer<V.Element>, line: Int, start: Int, rest: UnsafeMutablePointer<V.Element>,
    factors: UnsafeMutablePointer<V.Element>
) {
    for j in 0..<blockColumns {
        for k in 0..<blockColumns { factors[j &* blockColumns &+ k] = .zero - block[j &* line &+ pivotRow &+ k] }
    }
    let whole = rows / stepRows(V.self) &* stepRows(V.self)
    addColumns(
        V.self, rows: whole, columns: blockColumns, v: sixColumns(lower, line: panelLine, count: blockColumns), w: factors,
        c: block + start, line: line)
    if whole < rows {
        let v = copyRest(V.self, lower + whole, line: panelLine, rows: rows &- whole, count: blockColumns, to: rest)
        // Beyond the rows of this call there may be others, to which the zeros below the rest add nothing.
        addColumns(
            V.self, rows: stepRows(V.self), columns: blockColumns, v: v, w: factors, c: block + (start &+ whole), line: line)
    }
}

/// One step of elimination within the block: pivot, exchange of rows, multipliers, and what they do to the next columns.
@inline(__always)
private func eliminateColumn<V: ComputeVector>(
    _: V.Type, _ block: UnsafeMutablePointer<V.Element>, line: Int, rows: Int, first: Int, column: Int, count: Int,
    pivots: UnsafeMutablePointer<Int>
) {
    let row = first &+ column
    let lead = block + column &* line
    let pivotRow = firstLargest(lead, from: row, rows: rows)
    pivots[row] = pivotRow
    for j in 0..<count {
        let values = block + j &* line
        let value = values[row]
        values[row] = values[pivotRow]
        values[pivotRow] = value
    }
    let pivot = lead[row]
    if pivot == .zero { return }
    // Rows of the block's own triangle one by one, then whole steps, which end in the zeros below.
    let below = min(first &+ blockColumns, rows)
    for i in (row &+ 1)..<max(below, row &+ 1) {
        let multiplier = lead[i] / pivot
        lead[i] = multiplier
        for j in (column &+ 1)..<max(count, column &+ 1) {
            let values = block + j &* line
            values[i] = values[i] - multiplier * values[row]
        }
    }
    let steps = wholeSteps(V.self, rows &- below)
    @inline(__always)
    func eliminate(next: Int) {
        eliminateBelow(V.self, lead + below, line: line, steps: steps, pivot: pivot, pivotRow: lead + row, next: next)
    }
    switch count &- column &- 1 {
    case 5: eliminate(next: 5)
    case 4: eliminate(next: 4)
    case 3: eliminate(next: 3)
    case 2: eliminate(next: 2)
    case 1: eliminate(next: 1)
    default: eliminate(next: 0)
    }
}

/// Multipliers, and what they take off the `next` columns; `next` is a constant.
@inline(__always)
private func eliminateBelow<V: ComputeVector>(
    _: V.Type, _ lead: UnsafeMutablePointer<V.Element>, line: Int, steps: Int, pivot: V.Element,
    pivotRow: UnsafePointer<V.Element>, next: Int
) {
    let divisor = V(repeating: pivot)
    let u1 = V(repeating: next >= 1 ? .zero - pivotRow[line] : .zero)
    let u2 = V(repeating: next >= 2 ? .zero - pivotRow[2 &* line] : .zero)
    let u3 = V(repeating: next >= 3 ? .zero - pivotRow[3 &* line] : .zero)
    let u4 = V(repeating: next >= 4 ? .zero - pivotRow[4 &* line] : .zero)
    let u5 = V(repeating: next >= 5 ? .zero - pivotRow[5 &* line] : .zero)
    var i = 0
    while i < steps {
        let at = lead + i
        let multiplier = V.read(at) / divisor
        multiplier.write(at)
        if next >= 1 { V.read(at + line).accumulating(multiplier, u1).write(at + line) }
        if next >= 2 { V.read(at + 2 &* line).accumulating(multiplier, u2).write(at + 2 &* line) }
        if next >= 3 { V.read(at + 3 &* line).accumulating(multiplier, u3).write(at + 3 &* line) }
        if next >= 4 { V.read(at + 4 &* line).accumulating(multiplier, u4).write(at + 4 &* line) }
        if next >= 5 { V.read(at + 5 &* line).accumulating(multiplier, u5).write(at + 5 &* line) }
        i &+= V.lanes
    }
}

/// The first row from `row` on of the largest magnitude; a NaN is larger than all numbers.
@inline(__always)
private func firstLargest<C: ComputeScalar>(_ column: UnsafePointer<C>, from row: Int, rows: Int) -> Int {
    // The piece first, so that the search for the largest has no branch per element.
    let piece = 128
    var largest = C.AbsoluteBits.none
    var found = row
    var start = row
    while start < rows {
        let candidate = largestMagnitude(column + start, count: min(piece, rows &- start), step: 1)
        if !largest.reaches(candidate) {
            largest = candidate
            found = start
        }
        start &+= piece
    }
    while !column[found].absoluteBits.reaches(largest) { found &+= 1 }
    return found
}

@inline(__always)
func solveWorkspaceBytes<V: ComputeVector>(_: V.Type, rows: Int) -> Int {
    let tall = (rows &+ 3) / 4 &* 4
    return tall &* (tall &+ stepRows(V.self)) &* MemoryLayout<V.Element>.stride
}

/// `right = L^-1 right` in place for L unit lower triangular, column-major, and a row-major right side.
///
/// Strips of columns in a copy that lies together; four rows at a time in registers.
@inline(__always)
func solveUnitLower<V: ComputeVector>(
    _: V.Type, rows: Int, columns: Int, lower: UnsafePointer<V.Element>, lowerLine: Int,
    right: UnsafeMutablePointer<V.Element>, rightLine: Int, workspace: UnsafeMutablePointer<V.Element>
) {
    let width = stepRows(V.self)
    let lanes = V.lanes
    let tall = (rows &+ 3) / 4 &* 4
    // Four rows of -L, column after column; zeros beyond its end and above its diagonal.
    let packed = workspace
    for i in 0..<tall {
        for k in 0..<tall {
            packed[i / 4 &* 4 &* tall &+ k &* 4 &+ i % 4] = i < rows && k < i ? .zero - lower[k &* lowerLine &+ i] : .zero
        }
    }
    let strip = packed + tall &* tall
    var j = 0
    while j < columns {
        let count = min(width, columns &- j)
        for i in 0..<tall {
            let (from, to) = (right + (i &* rightLine &+ j), strip + i &* width)
            if count == width && i < rows {
                V.read(from).write(to)
                V.read(from + lanes).write(to + lanes)
            } else {
                for k in 0..<width { to[k] = i < rows && k < count ? from[k] : .zero }
            }
        }
        var i = 0
        while i < tall {
            let multipliers = packed + i &* tall
            let own = strip + i &* width
            var a0 = V.read(own), a1 = V.read(own + lanes)
            var b0 = V.read(own + width), b1 = V.read(own + width + lanes)
            var c0 = V.read(own + 2 &* width), c1 = V.read(own + 2 &* width + lanes)
            var d0 = V.read(own + 3 &* width), d1 = V.read(own + 3 &* width + lanes)
            for k in 0..<i {
                let x0 = V.read(strip + k &* width), x1 = V.read(strip + k &* width + lanes)
                let la = V(repeating: multipliers[4 &* k]), lb = V(repeating: multipliers[4 &* k &+ 1])
                a0 = a0.accumulating(la, x0)
                a1 = a1.accumulating(la, x1)
                b0 = b0.accumulating(lb, x0)
                b1 = b1.accumulating(lb, x1)
                let lc = V(repeating: multipliers[4 &* k &+ 2]), ld = V(repeating: multipliers[4 &* k &+ 3])
                c0 = c0.accumulating(lc, x0)
                c1 = c1.accumulating(lc, x1)
                d0 = d0.accumulating(ld, x0)
                d1 = d1.accumulating(ld, x1)
            }
            let diagonal = multipliers + 4 &* i
            let ba = V(repeating: diagonal[1]), ca = V(repeating: diagonal[2]), da = V(repeating: diagonal[3])
            b0 = b0.accumulating(ba, a0)
            b1 = b1.accumulating(ba, a1)
            c0 = c0.accumulating(ca, a0)
            c1 = c1.accumulating(ca, a1)
            d0 = d0.accumulating(da, a0)
            d1 = d1.accumulating(da, a1)
            let cb = V(repeating: diagonal[6]), db = V(repeating: diagonal[7]), dc = V(repeating: diagonal[11])
            c0 = c0.accumulating(cb, b0)
            c1 = c1.accumulating(cb, b1)
            d0 = d0.accumulating(db, b0)
            d1 = d1.accumulating(db, b1)
            d0 = d0.accumulating(dc, c0)
            d1 = d1.accumulating(dc, c1)
            a0.write(own)
            a1.write(own + lanes)
            b0.write(own + width)
            b1.write(own + width + lanes)
            c0.write(own + 2 &* width)
            c1.write(own + 2 &* width + lanes)
            d0.write(own + 3 &* width)
            d1.write(own + 3 &* width + lanes)
            i &+= 4
        }
        for i in 0..<rows {
            let (from, to) = (strip + i &* width, right + (i &* rightLine &+ j))
            if count == width {
                V.read(from).write(to)
                V.read(from + lanes).write(to + lanes)
            } else {
                for k in 0..<count { to[k] = from[k] }
            }
        }
        j &+= width
    }
}
