// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0

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

/// Largest magnitude, or NaN where an element is a NaN or infinite. 0 for an empty matrix.
@inline(__always)
func maxMagnitude<S: StorageScalar>(
    _: S.Type, rows: Int, columns: Int, source: UnsafeRawPointer, row: Int, column: Int
) -> Double {
    var largest = 0.0
    var finite = 0.0
    for i in 0..<rows {
        let line = source.assumingMemoryBound(to: S.self) + i &* row
        for j in 0..<columns {
            let value: Double = line[j &* column].loaded()
            finite += value * 0
            largest = max(largest, value.magnitude)
        }
    }
    return finite == 0 ? largest : .nan
}

/// Position `row * columns + column` of the first NaN or infinity in row order, or -1.
@inline(__always)
func firstNonFinite<S: StorageScalar>(
    _: S.Type, rows: Int, columns: Int, source: UnsafeRawPointer, row: Int, column: Int
) -> Int {
    for i in 0..<rows {
        let line = source.assumingMemoryBound(to: S.self) + i &* row
        // Zero times a NaN or an infinity is NaN. A sum of bits instead of a branch per element lets the loop vectorise.
        var spoiled = 0
        for j in 0..<columns { spoiled |= (line[j &* column].loaded() as Double) * 0 == 0 ? 0 : 1 }
        if spoiled != 0 {
            for k in 0..<columns where !(line[k &* column].loaded() as Double).isFinite { return i &* columns &+ k }
        }
    }
    return -1
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
