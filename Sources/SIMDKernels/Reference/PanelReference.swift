// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0

// The panels' factorisations column by column and element by element, each result computed in float64 and rounded to the
// panel's type: what the other kernels are tested against.

@inline(__always)
private func load(_ address: UnsafeRawPointer, _ type: Int32, _ index: Int) -> Double {
    type == StorageCode.float64
        ? address.assumingMemoryBound(to: Double.self)[index] : Double(address.assumingMemoryBound(to: Float.self)[index])
}

@inline(__always)
private func store(_ value: Double, _ address: UnsafeMutableRawPointer, _ type: Int32, _ index: Int) {
    if type == StorageCode.float64 {
        address.assumingMemoryBound(to: Double.self)[index] = value
    } else {
        address.assumingMemoryBound(to: Float.self)[index] = Float(value)
    }
}

@inline(never)
public func factorLUReference(
    _ type: Int32, _ rows: Int, _ columns: Int, _ panel: UnsafeMutableRawPointer, _ line: Int,
    _ pivots: UnsafeMutablePointer<Int>, _ workspace: UnsafeMutableRawPointer
) {
    for k in 0..<columns {
        var pivotRow = k
        for i in k..<rows
        where load(panel, type, k &* line &+ i).magnitude > load(panel, type, k &* line &+ pivotRow).magnitude {
            pivotRow = i
        }
        pivots[k] = pivotRow
        for j in 0..<columns {
            let value = load(panel, type, j &* line &+ k)
            store(load(panel, type, j &* line &+ pivotRow), panel, type, j &* line &+ k)
            store(value, panel, type, j &* line &+ pivotRow)
        }
        let pivot = load(panel, type, k &* line &+ k)
        if pivot == 0 { continue }
        for i in (k &+ 1)..<max(rows, k &+ 1) {
            store(load(panel, type, k &* line &+ i) / pivot, panel, type, k &* line &+ i)
            let multiplier = load(panel, type, k &* line &+ i)
            for j in (k &+ 1)..<max(columns, k &+ 1) {
                let change = multiplier * load(panel, type, j &* line &+ k)
                store(load(panel, type, j &* line &+ i) - change, panel, type, j &* line &+ i)
            }
        }
    }
}

/// The triangles hold the taus alone, on their diagonals.
@inline(__always)
private func tauIndex(_ column: Int) -> Int { column / 6 &* 36 &+ column % 6 &* 7 }

@inline(never)
public func factorQRReference(
    _ type: Int32, _ rows: Int, _ columns: Int, _ panel: UnsafeMutableRawPointer, _ line: Int,
    _ triangles: UnsafeMutableRawPointer, _ workspace: UnsafeMutableRawPointer
) {
    for k in 0..<columns {
        let column = k &* line
        var largest = 0.0
        for i in (k &+ 1)..<max(rows, k &+ 1) { largest = max(largest, load(panel, type, column &+ i).magnitude) }
        if largest == 0 {
            store(0, triangles, type, tauIndex(k))
            continue
        }
        let alpha = load(panel, type, column &+ k)
        largest = max(largest, alpha.magnitude)
        var square = 0.0
        for i in k..<rows {
            let scaled = load(panel, type, column &+ i) / largest
            square += scaled * scaled
        }
        let norm = square.squareRoot()
        // In units of the largest number.
        let beta = alpha.sign == .minus ? norm : -norm
        let start = alpha / largest
        let tau = (beta - start) / beta
        store(tau, triangles, type, tauIndex(k))
        store(beta * largest, panel, type, column &+ k)
        for i in (k &+ 1)..<rows {
            store(load(panel, type, column &+ i) / largest / (start - beta), panel, type, column &+ i)
        }
        for j in (k &+ 1)..<max(columns, k &+ 1) {
            reflectReference(type, rows, column: j, by: k, panel, line, tau: tau)
        }
    }
}

@inline(never)
public func formQReference(
    _ type: Int32, _ rows: Int, _ columns: Int, _ panel: UnsafeMutableRawPointer, _ line: Int,
    _ triangles: UnsafeMutableRawPointer, _ workspace: UnsafeMutableRawPointer
) {
    var k = columns &- 1
    while k >= 0 {
        let tau = load(triangles, type, tauIndex(k))
        for i in 0..<k { store(0, panel, type, k &* line &+ i) }
        for j in (k &+ 1)..<max(columns, k &+ 1) { reflectReference(type, rows, column: j, by: k, panel, line, tau: tau) }
        // H e_k, in place of v.
        for i in (k &+ 1)..<max(rows, k &+ 1) {
            store(-tau * load(panel, type, k &* line &+ i), panel, type, k &* line &+ i)
        }
        store(1 - tau, panel, type, k &* line &+ k)
        k &-= 1
    }
}

/// `c -= tau v (v . c)` for a column c; v is below the diagonal of column k, with a one on it.
@inline(__always)
private func reflectReference(
    _ type: Int32, _ rows: Int, column j: Int, by k: Int, _ panel: UnsafeMutableRawPointer, _ line: Int, tau: Double
) {
    var dot = load(panel, type, j &* line &+ k)
    for i in (k &+ 1)..<max(rows, k &+ 1) {
        dot += load(panel, type, k &* line &+ i) * load(panel, type, j &* line &+ i)
    }
    store(load(panel, type, j &* line &+ k) - tau * dot, panel, type, j &* line &+ k)
    for i in (k &+ 1)..<max(rows, k &+ 1) {
        let change = tau * dot * load(panel, type, k &* line &+ i)
        store(load(panel, type, j &* line &+ i) - change, panel, type, j &* line &+ i)
    }
}

@inline(never)
public func solveUnitLowerReference(
    _ type: Int32, _ rows: Int, _ columns: Int, _ panel: UnsafeRawPointer, _ line: Int,
    _ right: UnsafeMutableRawPointer, _ rightLine: Int, _ workspace: UnsafeMutableRawPointer
) {
    for i in 0..<rows {
        for j in 0..<columns {
            var value = load(right, type, i &* rightLine &+ j)
            for k in 0..<i { value -= load(panel, type, k &* line &+ i) * load(right, type, k &* rightLine &+ j) }
            store(value, right, type, i &* rightLine &+ j)
        }
    }
}
