// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import CPUFeatures

/// `target[i, j] = source[i, j] * rowFactors[i] * columnFactors[j] + beta * target[i, j]`; an absent factor is 1, and the
/// target is not read where beta is zero. Converts between storage types.
@inline(__always)
func copyScaled<C: ComputeScalar>(
    _: C.Type, rows: Int, columns: Int, source: UnsafeRawPointer, sourceType: Int32, sourceRow: Int, sourceColumn: Int,
    rowFactors: UnsafePointer<C>?, columnFactors: UnsafePointer<C>?, beta: C,
    target: UnsafeMutableRawPointer, targetType: Int32, targetRow: Int, targetColumn: Int
) {
    @inline(__always)
    func run<S: StorageScalar, D: StorageScalar>(_: S.Type, _: D.Type) {
        let unit = sourceColumn == 1 && targetColumn == 1
        let isAcross = sourceRow == 1 && targetColumn == 1 && rows > 1 && columns > 1
        if isAcross && !unit && beta == .zero && rowFactors == nil && columnFactors == nil {
            copyAcross(
                C.self, rows: rows, columns: columns, source: source.assumingMemoryBound(to: S.self),
                sourceColumn: sourceColumn, target: target.assumingMemoryBound(to: D.self), targetRow: targetRow)
            return
        }
        for i in 0..<rows {
            let from = source.assumingMemoryBound(to: S.self) + i &* sourceRow
            let to = target.assumingMemoryBound(to: D.self) + i &* targetRow
            if !(beta == .zero) && unit && rowFactors == nil && columnFactors == nil {
                for j in 0..<columns {
                    let value: C = from[j].loaded()
                    let old: C = to[j].loaded()
                    to[j] = .stored(value + beta * old)
                }
            } else if !(beta == .zero) {
                let factor: C = if let rowFactors { rowFactors[i] } else { .one }
                for j in 0..<columns {
                    let other: C = if let columnFactors { columnFactors[j] } else { .one }
                    let value: C = from[j &* sourceColumn].loaded()
                    let old: C = to[j &* targetColumn].loaded()
                    to[j &* targetColumn] = .stored(value * (factor * other) + beta * old)
                }
            } else if let columnFactors {
                let factor: C = if let rowFactors { rowFactors[i] } else { .one }
                for j in 0..<columns {
                    let value: C = from[j &* sourceColumn].loaded()
                    to[j &* targetColumn] = .stored(value * (factor * columnFactors[j]))
                }
            } else if let rowFactors {
                let factor = rowFactors[i]
                for j in 0..<columns {
                    let value: C = from[j &* sourceColumn].loaded()
                    to[j &* targetColumn] = .stored(value * factor)
                }
            } else if unit {
                for j in 0..<columns { to[j] = .stored(from[j].loaded() as C) }
            } else {
                for j in 0..<columns { to[j &* targetColumn] = .stored(from[j &* sourceColumn].loaded() as C) }
            }
        }
    }
    @inline(__always)
    func from<S: StorageScalar>(_ type: S.Type) {
        switch targetType {
        case StorageCode.float32: run(type, Float.self)
        case StorageCode.float64: run(type, Double.self)
        case StorageCode.bfloat16: run(type, BFloat16Bits.self)
        default: run(type, Float16Bits.self)
        }
    }
    switch sourceType {
    case StorageCode.float32: from(Float.self)
    case StorageCode.float64: from(Double.self)
    case StorageCode.bfloat16: from(BFloat16Bits.self)
    default: from(Float16Bits.self)
    }
}

/// A copy between lines that cross: `source` is contiguous along the rows, `target` along the columns.
///
/// In squares that are as wide as a cache line of 4-byte elements, so that each line is read once and written once, even
/// where a power of two between them puts all in one set of the cache. Turned over in registers, four by four.
@inline(__always)
private func copyAcross<C: ComputeScalar, S: StorageScalar, D: StorageScalar>(
    _: C.Type, rows: Int, columns: Int, source: UnsafePointer<S>, sourceColumn: Int, target: UnsafeMutablePointer<D>,
    targetRow: Int
) {
    let side = 16
    let bytes = 2 &* side &* side &* MemoryLayout<C>.stride
    withUnsafeTemporaryAllocation(byteCount: bytes, alignment: 64) { scratch in
        let square = scratch.baseAddress.unsafelyUnwrapped.assumingMemoryBound(to: C.self)
        let turned = square + side &* side
        // The edges of incomplete squares are turned over with the rest and not written.
        for k in 0..<(side &* side) { square[k] = .zero }
        var j = 0
        while j < columns {
            let width = min(side, columns &- j)
            var i = 0
            while i < rows {
                let height = min(side, rows &- i)
                for k in 0..<width {
                    let from = source + ((j &+ k) &* sourceColumn &+ i)
                    let to = square + k &* side
                    if height == side {
                        for l in 0..<side { to[l] = from[l].loaded() }
                    } else {
                        for l in 0..<height { to[l] = from[l].loaded() }
                    }
                    // What comes next is too far away for the processor to foresee.
                    prefetch_line(from + side &* sourceColumn)
                }
                for k in 0..<(side / 4) {
                    for l in 0..<(side / 4) {
                        let from = square + (4 &* k &* side &+ 4 &* l)
                        C.writeTransposed(
                            C.read(from), C.read(from + side), C.read(from + 2 &* side), C.read(from + 3 &* side),
                            to: turned + (4 &* l &* side &+ 4 &* k), line: side)
                    }
                }
                for l in 0..<height {
                    let from = turned + l &* side
                    let to = target + ((i &+ l) &* targetRow &+ j)
                    if width == side {
                        for k in 0..<side { to[k] = .stored(from[k]) }
                    } else {
                        for k in 0..<width { to[k] = .stored(from[k]) }
                    }
                }
                i &+= side
            }
            j &+= side
        }
    }
}

/// Largest magnitude, or NaN where an element is a NaN or infinite. 0 for an empty matrix.
@inline(__always)
func maxMagnitude<S: StorageScalar>(
    _: S.Type, rows: Int, columns: Int, source: UnsafeRawPointer, row: Int, column: Int
) -> Double {
    var largest = S.AbsoluteBits.none
    for i in 0..<rows {
        let line = source.assumingMemoryBound(to: S.self) + i &* row
        largest = largest.larger(largestMagnitude(line, count: columns, step: column))
    }
    return largest.reaches(S.infinityBits) ? .nan : S(absoluteBits: largest).loaded()
}

/// Position `row * columns + column` of the first NaN or infinity in row order, or -1.
@inline(__always)
func firstNonFinite<S: StorageScalar>(
    _: S.Type, rows: Int, columns: Int, source: UnsafeRawPointer, row: Int, column: Int
) -> Int {
    for i in 0..<rows {
        let line = source.assumingMemoryBound(to: S.self) + i &* row
        // The largest of a line instead of a branch per element lets the loop vectorise.
        if largestMagnitude(line, count: columns, step: column).reaches(S.infinityBits) {
            for j in 0..<columns where line[j &* column].absoluteBits.reaches(S.infinityBits) { return i &* columns &+ j }
        }
    }
    return -1
}

/// Bits of the largest magnitude of a line. As integers they need no rule for NaN, whose bits exceed all others.
@inline(__always)
func largestMagnitude<S: StorageScalar>(_ line: UnsafePointer<S>, count: Int, step: Int) -> S.AbsoluteBits {
    var largest = S.AbsoluteBits.none
    if step == 1 {
        for j in 0..<count { largest = largest.larger(line[j].absoluteBits) }
    } else {
        for j in 0..<count { largest = largest.larger(line[j &* step].absoluteBits) }
    }
    return largest
}

/// `sums[j] += sum over i of a[i, j] * b[i, j]`, in float64.
@inline(__always)
func columnDots<S: StorageScalar, D: StorageScalar>(
    _: S.Type, _: D.Type, rows: Int, columns: Int, a: UnsafeRawPointer, aRow: Int, aColumn: Int,
    b: UnsafeRawPointer, bRow: Int, bColumn: Int, sums: UnsafeMutablePointer<Double>
) {
    for i in 0..<rows {
        let x = a.assumingMemoryBound(to: S.self) + i &* aRow
        let y = b.assumingMemoryBound(to: D.self) + i &* bRow
        for j in 0..<columns {
            sums[j] += (x[j &* aColumn].loaded() as Double) * (y[j &* bColumn].loaded() as Double)
        }
    }
}
