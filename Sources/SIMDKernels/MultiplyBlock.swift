// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import CPUFeatures

/// Steps of the depth that one packed block spans: a strip of B then fills most of the first-level cache.
let depthBlock = 256

/// Bytes of workspace that `multiplyBlock` needs: packed B, packed A, a tile, and a product where C can't hold the sums.
@inline(__always)
func multiplyWorkspaceBytes<V: ComputeVector>(_: V.Type, rows: Int, columns: Int) -> Int {
    let width = tileColumns(V.self)
    let paddedRows = rows &+ maxTileLines &- 1
    let paddedColumns = (columns &+ width &- 1) / width &* width
    let elements = depthBlock &* (paddedRows &+ paddedColumns) &+ paddedRows &* paddedColumns &+ maxTileLines &* width
    return elements &* MemoryLayout<V.Element>.stride &+ 256
}

/// `C = alpha * A B + beta * C` for one block of C, for operands of any storage type and strides (in elements).
///
/// A is [rows, depth], B [depth, columns]. C is not read where beta is zero. The sum over the depth runs in one fixed
/// order in the compute type, so the result depends neither on the tile's lines (4 or 6) nor on how C was cut up.
@inline(__always)
func multiplyBlock<V: ComputeVector>(
    _: V.Type, lines: Int, rows: Int, columns: Int, depth: Int, alpha: V.Element,
    a: UnsafeRawPointer, aType: Int32, aRow: Int, aColumn: Int,
    b: UnsafeRawPointer, bType: Int32, bRow: Int, bColumn: Int,
    beta: V.Element, c: UnsafeMutableRawPointer, cType: Int32, cRow: Int, cColumn: Int,
    workspace: UnsafeMutableRawPointer, computeType: Int32
) {
    typealias C = V.Element
    let width = tileColumns(V.self)
    let paddedColumns = (columns &+ width &- 1) / width &* width
    let aligned = UnsafeMutableRawPointer(bitPattern: (UInt(bitPattern: workspace) &+ 63) & ~63).unsafelyUnwrapped
    let packedB = aligned.assumingMemoryBound(to: C.self)
    let tile = packedB + depthBlock &* paddedColumns
    let packedA = tile + maxTileLines &* width
    let product = packedA + depthBlock &* (rows &+ lines &- 1)

    // Sums are kept in C where its type and lines allow, else in a product of the block's or of some lines' size. Both
    // multiply by alpha once, so that the bits are the same.
    let isOneBlock = depth <= depthBlock
    let sumsInC = cType == computeType && cColumn == 1 && (isOneBlock || (alpha == .one && beta == .zero))
    // A few strips of B don't pay for a copy of lines of A that the tile can read where they are.
    let readsA = aColumn == 1 && aType == computeType && columns <= 4 &* width

    var start = 0
    repeat {
        let steps = min(depthBlock, depth &- start)
        packStrips(
            V.self, b + start &* bRow &* storageSize(bType), type: bType, lines: columns, depth: steps,
            lineStride: bColumn, depthStride: bRow, into: packedB)
        let aBlock = a + start &* aColumn &* storageSize(aType)
        let readLines = readsA ? rows / lines &* lines : 0
        packA(
            aBlock + readLines &* aRow &* storageSize(aType), type: aType, lines: rows &- readLines, depth: steps,
            lineStride: aRow, depthStride: aColumn, tileLines: lines, into: packedA)
        // Later depth blocks add to what the first one wrote.
        let blockBeta: C = start == 0 ? (sumsInC ? beta : .zero) : .one
        var target: TileTarget<C> = (
            alpha: sumsInC ? alpha : .one, beta: blockBeta, c: nil, line: 0, buffer: tile
        )
        // Along the lines of C where each is written once, else down its columns, so that a strip of B stays at hand.
        var outer = 0
        while outer < (isOneBlock ? rows : columns) {
            var inner = 0
            while inner < (isOneBlock ? columns : rows) {
                let i = isOneBlock ? outer : inner
                let j = isOneBlock ? inner : outer
                let isFull = rows &- i >= lines && columns &- j >= width
                if isOneBlock && cColumn == 1 {
                    let size = storageSize(cType)
                    prefetchTile(
                        c + ((i &+ lines) &* cRow &+ j) &* size, lines: lines, line: cRow &* size, width: width &* size)
                }
                if !sumsInC {
                    target.c = product + ((isOneBlock ? 0 : i) &* paddedColumns &+ j)
                    target.line = paddedColumns
                } else if isFull {
                    let origin = c.assumingMemoryBound(to: C.self) + (i &* cRow &+ j)
                    target.c = origin
                    target.line = cRow
                } else {
                    target.c = nil
                }
                let strip = UnsafePointer(packedB + j &* steps)
                if i < readLines {
                    multiplyTile(
                        V.self, lines: lines, depth: steps, a: aBlock.assumingMemoryBound(to: C.self) + i &* aRow,
                        aLine: aRow, aStep: 1, b: strip, to: target)
                } else {
                    multiplyTile(
                        V.self, lines: lines, depth: steps, a: packedA + (i &- readLines) &* steps, aLine: 1,
                        aStep: lines, b: strip, to: target)
                }
                if target.c == nil {
                    storeBlock(
                        tile, line: width, rows: min(lines, rows &- i), columns: min(width, columns &- j),
                        alpha: target.alpha, beta: blockBeta, to: c.assumingMemoryBound(to: C.self) + (i &* cRow &+ j),
                        row: cRow, column: 1)
                }
                inner &+= isOneBlock ? width : lines
            }
            if isOneBlock && !sumsInC {
                store(
                    product, line: paddedColumns, rows: min(lines, rows &- outer), columns: columns, alpha: alpha,
                    beta: beta, to: c, type: cType, offset: outer &* cRow, row: cRow, column: cColumn)
            }
            outer &+= isOneBlock ? lines : width
        }
        start &+= depthBlock
    } while start < depth

    if !isOneBlock && !sumsInC {
        store(
            product, line: paddedColumns, rows: rows, columns: columns, alpha: alpha, beta: beta, to: c, type: cType,
            offset: 0, row: cRow, column: cColumn)
    }
}

@inline(__always)
private func packA<C: ComputeScalar>(
    _ source: UnsafeRawPointer, type: Int32, lines: Int, depth: Int, lineStride: Int, depthStride: Int, tileLines: Int,
    into destination: UnsafeMutablePointer<C>
) {
    if tileLines == 6 {
        packStrips(
            SixLines.self, source, type: type, lines: lines, depth: depth, lineStride: lineStride,
            depthStride: depthStride, into: destination)
    } else {
        packStrips(
            FourLines.self, source, type: type, lines: lines, depth: depth, lineStride: lineStride,
            depthStride: depthStride, into: destination)
    }
}

/// Asks for lines of C that a coming tile will be added to, too far apart for the processor to foresee. In bytes.
@inline(__always)
private func prefetchTile(_ c: UnsafeMutableRawPointer, lines: Int, line: Int, width: Int) {
    for i in 0..<lines {
        prefetch_line(c + i &* line)
        prefetch_line(c + (i &* line &+ width &- 1))
    }
}

/// `storeBlock` for a target whose storage type is known at run time only; `offset` in elements.
@inline(__always)
private func store<C: ComputeScalar>(
    _ product: UnsafeMutablePointer<C>, line: Int, rows: Int, columns: Int, alpha: C, beta: C,
    to target: UnsafeMutableRawPointer, type: Int32, offset: Int, row: Int, column: Int
) {
    @inline(__always)
    func store<S: StorageScalar>(_: S.Type) {
        storeBlock(
            product, line: line, rows: rows, columns: columns, alpha: alpha, beta: beta,
            to: target.assumingMemoryBound(to: S.self) + offset, row: row, column: column)
    }
    switch type {
    case StorageCode.float32: store(Float.self)
    case StorageCode.float64: store(Double.self)
    case StorageCode.bfloat16: store(BFloat16Bits.self)
    default: store(Float16Bits.self)
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
