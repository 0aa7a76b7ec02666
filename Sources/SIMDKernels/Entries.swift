// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0

// The functions that other targets call: concrete, never inlined, so that no code of this instruction set leaves it.
// Sizes and strides are in elements; storage types are the codes of StorageCode.

/// Bytes of workspace for one `multiply` of a block of C of this size.
@inline(never)
public func multiplyWorkspace(rows: Int, columns: Int, depth: Int) -> Int {
    max(
        multiplyWorkspaceBytes(FloatVector.self, rows: rows, columns: columns, depth: depth),
        multiplyWorkspaceBytes(DoubleVector.self, rows: rows, columns: columns, depth: depth))
}

/// float32 elements of a vector register.
@inline(never)
public func floatLanes() -> Int { FloatVector.lanes }

/// Whether a product is one of bfloat16 pairs: packed operands hold these then.
@inline(__always)
private func isOfPairs(_ aType: Int32, _ bType: Int32) -> Bool {
    #if LOWRANK_BFLOAT16_PAIRS
        aType == StorageCode.bfloat16 && bType == StorageCode.bfloat16
    #else
        false
    #endif
}

/// Whether bfloat16 operands are multiplied in pairs along the depth.
@inline(never)
public func multipliesPairs() -> Bool { isOfPairs(StorageCode.bfloat16, StorageCode.bfloat16) }

/// `C = alpha * A B + beta * C`, computed in float32. A [rows, depth], B [depth, columns]; packed operands may be NULL.
@inline(never)
public func multiplyFloat32(
    _ rows: Int, _ columns: Int, _ depth: Int, _ alpha: Double,
    _ a: UnsafeRawPointer, _ aType: Int32, _ aRow: Int, _ aColumn: Int, _ packedA: UnsafeRawPointer?,
    _ b: UnsafeRawPointer, _ bType: Int32, _ bRow: Int, _ bColumn: Int, _ packedB: UnsafeRawPointer?,
    _ beta: Double, _ c: UnsafeMutableRawPointer, _ cType: Int32, _ cRow: Int, _ cColumn: Int,
    _ workspace: UnsafeMutableRawPointer
) {
    #if LOWRANK_BFLOAT16_PAIRS
        if isOfPairs(aType, bType) {
            multiplyBlock(
                PairVector.self, rows: rows, columns: columns, depth: depth, alpha: Float(alpha),
                a: a, aType: aType, aRow: aRow, aColumn: aColumn, packedA: packedA,
                b: b, bType: bType, bRow: bRow, bColumn: bColumn, packedB: packedB,
                beta: Float(beta), c: c, cType: cType, cRow: cRow, cColumn: cColumn, workspace: workspace,
                computeType: StorageCode.float32)
            return
        }
    #endif
    multiplyBlock(
        FloatVector.self, rows: rows, columns: columns, depth: depth, alpha: Float(alpha),
        a: a, aType: aType, aRow: aRow, aColumn: aColumn, packedA: packedA,
        b: b, bType: bType, bRow: bRow, bColumn: bColumn, packedB: packedB,
        beta: Float(beta), c: c, cType: cType, cRow: cRow, cColumn: cColumn, workspace: workspace,
        computeType: StorageCode.float32)
}

/// `C = alpha * A B + beta * C`, computed in float64.
@inline(never)
public func multiplyFloat64(
    _ rows: Int, _ columns: Int, _ depth: Int, _ alpha: Double,
    _ a: UnsafeRawPointer, _ aType: Int32, _ aRow: Int, _ aColumn: Int, _ packedA: UnsafeRawPointer?,
    _ b: UnsafeRawPointer, _ bType: Int32, _ bRow: Int, _ bColumn: Int, _ packedB: UnsafeRawPointer?,
    _ beta: Double, _ c: UnsafeMutableRawPointer, _ cType: Int32, _ cRow: Int, _ cColumn: Int,
    _ workspace: UnsafeMutableRawPointer
) {
    multiplyBlock(
        DoubleVector.self, rows: rows, columns: columns, depth: depth, alpha: alpha,
        a: a, aType: aType, aRow: aRow, aColumn: aColumn, packedA: packedA,
        b: b, bType: bType, bRow: bRow, bColumn: bColumn, packedB: packedB,
        beta: beta, c: c, cType: cType, cRow: cRow, cColumn: cColumn, workspace: workspace,
        computeType: StorageCode.float64)
}

/// Lines behind Z that `gramFloat32` and `gramFloat64` may write to.
@inline(never)
public func gramSlack() -> Int { maxTileLines &- 1 }

/// Bytes of workspace for one `gramFloat32` or `gramFloat64`, of an A whose rows lie along or across the memory.
@inline(never)
public func gramWorkspace(_ columns: Int, _ depth: Int, _ isAcross: Bool) -> Int {
    max(
        gramWorkspaceBytes(FloatVector.self, columns: columns, depth: depth, isAcross: isAcross),
        gramWorkspaceBytes(DoubleVector.self, columns: columns, depth: depth, isAcross: isAcross))
}

/// `Z = Aᵀ (A X)` in float32. A [rows, depth], rows > 0, X [depth, columns]. Z's lines are `zLine` elements apart and have
/// room for whole pairs of vectors, and so do `gramSlack` lines behind it.
@inline(never)
public func gramFloat32(
    _ rows: Int, _ columns: Int, _ depth: Int, _ a: UnsafeRawPointer, _ aType: Int32, _ aRow: Int, _ aColumn: Int,
    _ x: UnsafeRawPointer, _ xType: Int32, _ xRow: Int, _ xColumn: Int, _ z: UnsafeMutableRawPointer,
    _ zLine: Int, _ workspace: UnsafeMutableRawPointer
) {
    gramProduct(
        FloatVector.self, rows: rows, columns: columns, depth: depth, a: a, aType: aType, aRow: aRow, aColumn: aColumn,
        x: x, xType: xType, xRow: xRow, xColumn: xColumn, z: z.assumingMemoryBound(to: Float.self), zLine: zLine,
        workspace: workspace, computeType: StorageCode.float32)
}

/// `Z = Aᵀ (A X)` in float64. A [rows, depth], rows > 0, X [depth, columns]. Z's lines are `zLine` elements apart and have
/// room for whole pairs of vectors, and so do `gramSlack` lines behind it.
@inline(never)
public func gramFloat64(
    _ rows: Int, _ columns: Int, _ depth: Int, _ a: UnsafeRawPointer, _ aType: Int32, _ aRow: Int, _ aColumn: Int,
    _ x: UnsafeRawPointer, _ xType: Int32, _ xRow: Int, _ xColumn: Int, _ z: UnsafeMutableRawPointer,
    _ zLine: Int, _ workspace: UnsafeMutableRawPointer
) {
    gramProduct(
        DoubleVector.self, rows: rows, columns: columns, depth: depth, a: a, aType: aType, aRow: aRow, aColumn: aColumn,
        x: x, xType: xType, xRow: xRow, xColumn: xColumn, z: z.assumingMemoryBound(to: Double.self), zLine: zLine,
        workspace: workspace, computeType: StorageCode.float64)
}

/// Steps of the depth in a block of a packed operand.
@inline(never)
public func packedDepth() -> Int { depthBlock }

/// Bytes that a block of a packed operand takes at most: of `lines` columns of B as strips, or of `lines` lines of A.
@inline(never)
public func packedBytes(_ asStrips: Bool, _ lines: Int, _ inFloat64: Bool) -> Int {
    inFloat64
        ? packedBlock(DoubleVector.self, asStrips, lines: lines) &* 8
        : packedBlock(FloatVector.self, asStrips, lines: lines) &* 4
}

/// Packs one block of the depth of a whole operand for `multiplyFloat32` with one of another type. Strides from line to
/// line, and along the depth.
@inline(never)
public func packFloat32(
    _ asStrips: Bool, _ lines: Int, _ depth: Int, _ block: Int, _ source: UnsafeRawPointer, _ type: Int32,
    _ otherType: Int32, _ lineStride: Int, _ depthStride: Int, _ destination: UnsafeMutableRawPointer
) {
    #if LOWRANK_BFLOAT16_PAIRS
        if isOfPairs(type, otherType) {
            packOperand(
                PairVector.self, asStrips: asStrips, lines: lines, depth: depth, block: block, source: source,
                type: type, lineStride: lineStride, depthStride: depthStride, into: destination)
            return
        }
    #endif
    packOperand(
        FloatVector.self, asStrips: asStrips, lines: lines, depth: depth, block: block, source: source, type: type,
        lineStride: lineStride, depthStride: depthStride, into: destination)
}

/// Packs one block of the depth of a whole operand for `multiplyFloat64`. Strides from line to line, and along the depth.
@inline(never)
public func packFloat64(
    _ asStrips: Bool, _ lines: Int, _ depth: Int, _ block: Int, _ source: UnsafeRawPointer, _ type: Int32,
    _ otherType: Int32, _ lineStride: Int, _ depthStride: Int, _ destination: UnsafeMutableRawPointer
) {
    packOperand(
        DoubleVector.self, asStrips: asStrips, lines: lines, depth: depth, block: block, source: source, type: type,
        lineStride: lineStride, depthStride: depthStride, into: destination)
}

/// `target[i, j] = source[i, j] * rowFactors[i] * columnFactors[j] + beta * target[i, j]` in float32; NULL factors are 1.
@inline(never)
public func copyScaledFloat32(
    _ rows: Int, _ columns: Int, _ source: UnsafeRawPointer, _ sourceType: Int32, _ sourceRow: Int, _ sourceColumn: Int,
    _ rowFactors: UnsafePointer<Float>?, _ columnFactors: UnsafePointer<Float>?, _ beta: Double,
    _ target: UnsafeMutableRawPointer, _ targetType: Int32, _ targetRow: Int, _ targetColumn: Int
) {
    copyScaled(
        Float.self, rows: rows, columns: columns, source: source, sourceType: sourceType, sourceRow: sourceRow,
        sourceColumn: sourceColumn, rowFactors: rowFactors, columnFactors: columnFactors, beta: Float(beta),
        target: target, targetType: targetType, targetRow: targetRow, targetColumn: targetColumn)
}

/// `target[i, j] = source[i, j] * rowFactors[i] * columnFactors[j] + beta * target[i, j]` in float64; NULL factors are 1.
@inline(never)
public func copyScaledFloat64(
    _ rows: Int, _ columns: Int, _ source: UnsafeRawPointer, _ sourceType: Int32, _ sourceRow: Int, _ sourceColumn: Int,
    _ rowFactors: UnsafePointer<Double>?, _ columnFactors: UnsafePointer<Double>?, _ beta: Double,
    _ target: UnsafeMutableRawPointer, _ targetType: Int32, _ targetRow: Int, _ targetColumn: Int
) {
    copyScaled(
        Double.self, rows: rows, columns: columns, source: source, sourceType: sourceType, sourceRow: sourceRow,
        sourceColumn: sourceColumn, rowFactors: rowFactors, columnFactors: columnFactors, beta: beta,
        target: target, targetType: targetType, targetRow: targetRow, targetColumn: targetColumn)
}

/// Largest magnitude of a matrix, or NaN where an element is not finite.
@inline(never)
public func maxMagnitude(
    _ rows: Int, _ columns: Int, _ source: UnsafeRawPointer, _ type: Int32, _ row: Int, _ column: Int
) -> Double {
    switch type {
    case StorageCode.float32:
        maxMagnitude(Float.self, rows: rows, columns: columns, source: source, row: row, column: column)
    case StorageCode.float64:
        maxMagnitude(Double.self, rows: rows, columns: columns, source: source, row: row, column: column)
    case StorageCode.bfloat16:
        maxMagnitude(BFloat16Bits.self, rows: rows, columns: columns, source: source, row: row, column: column)
    default: maxMagnitude(Float16Bits.self, rows: rows, columns: columns, source: source, row: row, column: column)
    }
}

/// Position `row * columns + column` of the first element that is not finite, or -1.
@inline(never)
public func firstNonFinite(
    _ rows: Int, _ columns: Int, _ source: UnsafeRawPointer, _ type: Int32, _ row: Int, _ column: Int
) -> Int {
    switch type {
    case StorageCode.float32:
        firstNonFinite(Float.self, rows: rows, columns: columns, source: source, row: row, column: column)
    case StorageCode.float64:
        firstNonFinite(Double.self, rows: rows, columns: columns, source: source, row: row, column: column)
    case StorageCode.bfloat16:
        firstNonFinite(BFloat16Bits.self, rows: rows, columns: columns, source: source, row: row, column: column)
    default: firstNonFinite(Float16Bits.self, rows: rows, columns: columns, source: source, row: row, column: column)
    }
}

/// `sums[j] += sum over i of a[i, j] * b[i, j]`, in float64.
@inline(never)
public func columnDots(
    _ rows: Int, _ columns: Int, _ a: UnsafeRawPointer, _ aType: Int32, _ aRow: Int, _ aColumn: Int,
    _ b: UnsafeRawPointer, _ bType: Int32, _ bRow: Int, _ bColumn: Int, _ sums: UnsafeMutablePointer<Double>
) {
    @inline(__always)
    func with<S: StorageScalar>(_ first: S.Type) {
        switch bType {
        case StorageCode.float32: run(first, Float.self)
        case StorageCode.float64: run(first, Double.self)
        case StorageCode.bfloat16: run(first, BFloat16Bits.self)
        default: run(first, Float16Bits.self)
        }
    }
    @inline(__always)
    func run<S: StorageScalar, D: StorageScalar>(_ first: S.Type, _ second: D.Type) {
        columnDots(
            first, second, rows: rows, columns: columns, a: a, aRow: aRow, aColumn: aColumn, b: b, bRow: bRow,
            bColumn: bColumn, sums: sums)
    }
    switch aType {
    case StorageCode.float32: with(Float.self)
    case StorageCode.float64: with(Double.self)
    case StorageCode.bfloat16: with(BFloat16Bits.self)
    default: with(Float16Bits.self)
    }
}
