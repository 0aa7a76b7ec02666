// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0

// The same operations, each element on its own, in float64: what the other kernels are tested against. They run in place
// of all others under LOWRANK_ISA=reference.

@inline(__always)
private func load(_ address: UnsafeRawPointer, _ type: Int32, _ index: Int) -> Double {
    switch type {
    case StorageCode.float32: address.assumingMemoryBound(to: Float.self)[index].loaded()
    case StorageCode.float64: address.assumingMemoryBound(to: Double.self)[index]
    case StorageCode.bfloat16: address.assumingMemoryBound(to: BFloat16Bits.self)[index].loaded()
    default: address.assumingMemoryBound(to: Float16Bits.self)[index].loaded()
    }
}

@inline(__always)
private func store(_ value: Double, _ address: UnsafeMutableRawPointer, _ type: Int32, _ index: Int) {
    switch type {
    case StorageCode.float32: address.assumingMemoryBound(to: Float.self)[index] = .stored(value)
    case StorageCode.float64: address.assumingMemoryBound(to: Double.self)[index] = value
    case StorageCode.bfloat16: address.assumingMemoryBound(to: BFloat16Bits.self)[index] = .stored(value)
    default: address.assumingMemoryBound(to: Float16Bits.self)[index] = .stored(value)
    }
}

@inline(never)
public func multiplyReference(
    _ rows: Int, _ columns: Int, _ depth: Int, _ alpha: Double,
    _ a: UnsafeRawPointer, _ aType: Int32, _ aRow: Int, _ aColumn: Int, _ packedA: UnsafeRawPointer?,
    _ b: UnsafeRawPointer, _ bType: Int32, _ bRow: Int, _ bColumn: Int, _ packedB: UnsafeRawPointer?,
    _ beta: Double, _ c: UnsafeMutableRawPointer, _ cType: Int32, _ cRow: Int, _ cColumn: Int,
    _ workspace: UnsafeMutableRawPointer
) {
    for i in 0..<rows {
        for j in 0..<columns {
            var sum = 0.0
            for k in 0..<depth {
                sum += load(a, aType, i &* aRow &+ k &* aColumn) * load(b, bType, k &* bRow &+ j &* bColumn)
            }
            let index = i &* cRow &+ j &* cColumn
            store(beta == 0 ? alpha * sum : alpha * sum + beta * load(c, cType, index), c, cType, index)
        }
    }
}

@inline(__always)
private func gramReference<C: ComputeScalar>(
    _ rows: Int, _ columns: Int, _ depth: Int, _ a: UnsafeRawPointer, _ aType: Int32, _ aRow: Int, _ aColumn: Int,
    _ x: UnsafeRawPointer, _ xType: Int32, _ xRow: Int, _ xColumn: Int, _ z: UnsafeMutablePointer<C>,
    _ zLine: Int
) {
    for j in 0..<columns {
        for k in 0..<depth { z[k &* zLine &+ j] = .zero }
        for i in 0..<rows {
            var image = 0.0
            for k in 0..<depth {
                image += load(a, aType, i &* aRow &+ k &* aColumn) * load(x, xType, k &* xRow &+ j &* xColumn)
            }
            for k in 0..<depth {
                let index = k &* zLine &+ j
                z[index] = C(narrowing: z[index].double + image * load(a, aType, i &* aRow &+ k &* aColumn))
            }
        }
    }
}

@inline(never)
public func gramReferenceFloat32(
    _ rows: Int, _ columns: Int, _ depth: Int, _ a: UnsafeRawPointer, _ aType: Int32, _ aRow: Int, _ aColumn: Int,
    _ x: UnsafeRawPointer, _ xType: Int32, _ xRow: Int, _ xColumn: Int, _ z: UnsafeMutableRawPointer,
    _ zLine: Int, _ workspace: UnsafeMutableRawPointer
) {
    gramReference(
        rows, columns, depth, a, aType, aRow, aColumn, x, xType, xRow, xColumn, z.assumingMemoryBound(to: Float.self), zLine)
}

@inline(never)
public func gramReferenceFloat64(
    _ rows: Int, _ columns: Int, _ depth: Int, _ a: UnsafeRawPointer, _ aType: Int32, _ aRow: Int, _ aColumn: Int,
    _ x: UnsafeRawPointer, _ xType: Int32, _ xRow: Int, _ xColumn: Int, _ z: UnsafeMutableRawPointer,
    _ zLine: Int, _ workspace: UnsafeMutableRawPointer
) {
    gramReference(
        rows, columns, depth, a, aType, aRow, aColumn, x, xType, xRow, xColumn, z.assumingMemoryBound(to: Double.self), zLine)
}

@inline(never)
public func copyScaledReferenceFloat32(
    _ rows: Int, _ columns: Int, _ source: UnsafeRawPointer, _ sourceType: Int32, _ sourceRow: Int, _ sourceColumn: Int,
    _ rowFactors: UnsafePointer<Float>?, _ columnFactors: UnsafePointer<Float>?, _ beta: Double,
    _ target: UnsafeMutableRawPointer, _ targetType: Int32, _ targetRow: Int, _ targetColumn: Int
) {
    for i in 0..<rows {
        for j in 0..<columns {
            let factor = Double(rowFactors?[i] ?? 1) * Double(columnFactors?[j] ?? 1)
            let value = load(source, sourceType, i &* sourceRow &+ j &* sourceColumn) * factor
            let index = i &* targetRow &+ j &* targetColumn
            store(beta == 0 ? value : value + beta * load(target, targetType, index), target, targetType, index)
        }
    }
}

@inline(never)
public func copyScaledReferenceFloat64(
    _ rows: Int, _ columns: Int, _ source: UnsafeRawPointer, _ sourceType: Int32, _ sourceRow: Int, _ sourceColumn: Int,
    _ rowFactors: UnsafePointer<Double>?, _ columnFactors: UnsafePointer<Double>?, _ beta: Double,
    _ target: UnsafeMutableRawPointer, _ targetType: Int32, _ targetRow: Int, _ targetColumn: Int
) {
    for i in 0..<rows {
        for j in 0..<columns {
            let factor = (rowFactors?[i] ?? 1) * (columnFactors?[j] ?? 1)
            let value = load(source, sourceType, i &* sourceRow &+ j &* sourceColumn) * factor
            let index = i &* targetRow &+ j &* targetColumn
            store(beta == 0 ? value : value + beta * load(target, targetType, index), target, targetType, index)
        }
    }
}

@inline(never)
public func maxMagnitudeReference(
    _ rows: Int, _ columns: Int, _ source: UnsafeRawPointer, _ type: Int32, _ row: Int, _ column: Int
) -> Double {
    var largest = 0.0
    for i in 0..<rows {
        for j in 0..<columns {
            let value = load(source, type, i &* row &+ j &* column)
            if !value.isFinite { return .nan }
            largest = max(largest, value.magnitude)
        }
    }
    return largest
}

@inline(never)
public func firstNonFiniteReference(
    _ rows: Int, _ columns: Int, _ source: UnsafeRawPointer, _ type: Int32, _ row: Int, _ column: Int
) -> Int {
    for i in 0..<rows {
        for j in 0..<columns where !load(source, type, i &* row &+ j &* column).isFinite { return i &* columns &+ j }
    }
    return -1
}

@inline(never)
public func columnDotsReference(
    _ rows: Int, _ columns: Int, _ a: UnsafeRawPointer, _ aType: Int32, _ aRow: Int, _ aColumn: Int,
    _ b: UnsafeRawPointer, _ bType: Int32, _ bRow: Int, _ bColumn: Int, _ sums: UnsafeMutablePointer<Double>
) {
    for j in 0..<columns {
        for i in 0..<rows {
            sums[j] += load(a, aType, i &* aRow &+ j &* aColumn) * load(b, bType, i &* bRow &+ j &* bColumn)
        }
    }
}
