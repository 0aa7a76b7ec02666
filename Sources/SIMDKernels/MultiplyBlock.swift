// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0

/// Steps of the depth that one packed block spans: a strip of B then fills half of the first-level cache.
let depthBlock = 256

/// Bytes of workspace that `multiplyBlock` needs: packed A, packed B, the product where it can't be summed in C, a tile.
@inline(__always)
func multiplyWorkspaceBytes<V: ComputeVector>(_: V.Type, rows: Int, columns: Int) -> Int {
    let paddedRows = (rows &+ tileRows &- 1) / tileRows &* tileRows
    let width = tileColumns(V.self)
    let paddedColumns = (columns &+ width &- 1) / width &* width
    let elements = depthBlock &* (paddedRows &+ paddedColumns) &+ rows &* paddedColumns &+ tileRows &* width
    return elements &* MemoryLayout<V.Element>.stride &+ 256
}

/// `C = alpha * A B + beta * C` for one block of C, for operands of any storage type and strides (in elements).
///
/// A is [rows, depth], B [depth, columns]. C is not read where beta is zero. The sum over the depth runs in one fixed
/// order in the compute type, so the result does not depend on how C was cut into blocks.
@inline(__always)
func multiplyBlock<V: ComputeVector>(
    _: V.Type, rows: Int, columns: Int, depth: Int, alpha: V.Element,
    a: UnsafeRawPointer, aType: Int32, aRow: Int, aColumn: Int,
    b: UnsafeRawPointer, bType: Int32, bRow: Int, bColumn: Int,
    beta: V.Element, c: UnsafeMutableRawPointer, cType: Int32, cRow: Int, cColumn: Int,
    workspace: UnsafeMutableRawPointer, computeType: Int32
) {
    typealias C = V.Element
    let width = tileColumns(V.self)
    let paddedRows = (rows &+ tileRows &- 1) / tileRows &* tileRows
    let paddedColumns = (columns &+ width &- 1) / width &* width
    let aligned = UnsafeMutableRawPointer(bitPattern: (UInt(bitPattern: workspace) &+ 63) & ~63).unsafelyUnwrapped
    let packedB = aligned.assumingMemoryBound(to: C.self)
    let tile = packedB + depthBlock &* paddedColumns
    let packedA = tile + tileRows &* width
    let product = packedA + depthBlock &* paddedRows

    let summedInC = cType == computeType && (depth <= depthBlock || beta == .zero)
    let writesTilesToC = summedInC && cColumn == 1
    // Lines that are contiguous along the depth need no copy: the tile broadcasts single elements.
    let readsA = aType == computeType && aColumn == 1

    var start = 0
    repeat {
        let steps = min(depthBlock, depth &- start)
        let isFirst = start == 0
        packStrips(
            b + start &* bRow &* storageSize(bType), type: bType, lines: columns, depth: steps, lineStride: bColumn,
            depthStride: bRow, width: width, into: packedB)
        let aBlock = a + start &* aColumn &* storageSize(aType)
        if !readsA {
            packStrips(
                aBlock, type: aType, lines: rows, depth: steps, lineStride: aRow, depthStride: aColumn,
                width: tileRows, into: packedA)
        } else if rows % tileRows != 0 {
            let full = rows / tileRows &* tileRows
            packStrips(
                aBlock + full &* aRow &* MemoryLayout<C>.stride, type: aType, lines: rows &- full, depth: steps,
                lineStride: aRow, depthStride: aColumn, width: tileRows, into: packedA + full &* steps)
        }
        // Later depth blocks add to what the first one wrote.
        let blockBeta: C = isFirst ? (summedInC ? beta : .zero) : .one
        let blockAlpha: C = summedInC ? alpha : .one
        var j = 0
        while j < columns {
            let strip = UnsafePointer(packedB + j &* steps)
            let tileWidth = min(width, columns &- j)
            var i = 0
            while i < rows {
                let tileHeight = min(tileRows, rows &- i)
                let direct = readsA && tileHeight == tileRows
                let aTile = direct ? aBlock.assumingMemoryBound(to: C.self) + i &* aRow : UnsafePointer(packedA + i &* steps)
                let isFull = tileHeight == tileRows && tileWidth == width
                var target: UnsafeMutablePointer<C>? = nil
                var targetRow = paddedColumns
                if summedInC {
                    if writesTilesToC && isFull {
                        target = c.assumingMemoryBound(to: C.self) + (i &* cRow &+ j)
                        targetRow = cRow
                    }
                } else if tileHeight == tileRows {
                    target = product + (i &* paddedColumns &+ j)
                }
                microTile(
                    V.self, depth: steps, a: aTile, aLine: direct ? aRow : 1, aStep: direct ? 1 : tileRows, b: strip,
                    alpha: blockAlpha, beta: blockBeta, c: target, cLine: targetRow, tile: tile)
                if target == nil {
                    if summedInC {
                        storeBlock(
                            tile, line: width, rows: tileHeight, columns: tileWidth, alpha: blockAlpha, beta: blockBeta,
                            to: c.assumingMemoryBound(to: C.self) + (i &* cRow &+ j &* cColumn), row: cRow, column: cColumn)
                    } else {
                        storeBlock(
                            tile, line: width, rows: tileHeight, columns: width, alpha: .one, beta: blockBeta,
                            to: product + (i &* paddedColumns &+ j), row: paddedColumns, column: 1)
                    }
                }
                i &+= tileRows
            }
            j &+= width
        }
        start &+= depthBlock
    } while start < depth

    if !summedInC {
        switch cType {
        case StorageCode.float32: store(Float.self)
        case StorageCode.float64: store(Double.self)
        case StorageCode.bfloat16: store(BFloat16Bits.self)
        default: store(Float16Bits.self)
        }
    }

    @inline(__always)
    func store<S: StorageScalar>(_: S.Type) {
        storeBlock(
            product, line: paddedColumns, rows: rows, columns: columns, alpha: alpha, beta: beta,
            to: c.assumingMemoryBound(to: S.self), row: cRow, column: cColumn)
    }
}

/// `target = alpha * product + beta * target`, in the compute type, for a block whose lines lie `line` apart.
@inline(__always)
private func storeBlock<C: ComputeScalar, S: StorageScalar>(
    _ product: UnsafeMutablePointer<C>, line: Int, rows: Int, columns: Int, alpha: C, beta: C,
    to target: UnsafeMutablePointer<S>, row: Int, column: Int
) {
    for i in 0..<rows {
        let from = product + i &* line
        let to = target + i &* row
        if beta == .zero {
            if column == 1 {
                for j in 0..<columns { to[j] = .stored(alpha * from[j]) }
            } else {
                for j in 0..<columns { to[j &* column] = .stored(alpha * from[j]) }
            }
        } else if column == 1 {
            for j in 0..<columns { to[j] = .stored(alpha * from[j] + beta * to[j].loaded()) }
        } else {
            for j in 0..<columns { to[j &* column] = .stored(alpha * from[j] + beta * to[j &* column].loaded()) }
        }
    }
}

/// Bytes of one element.
@inline(__always)
func storageSize(_ type: Int32) -> Int {
    switch type {
    case StorageCode.float32: 4
    case StorageCode.float64: 8
    default: 2
    }
}
