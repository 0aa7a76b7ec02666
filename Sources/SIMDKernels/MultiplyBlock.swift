// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import CPUFeatures

/// Bytes of workspace that `multiplyBlock` needs: a tile, packed B, lines of A, and a product where C can't hold the sums.
@inline(__always)
func multiplyWorkspaceBytes<V: ComputeVector>(_: V.Type, rows: Int, columns: Int, depth: Int) -> Int {
    let width = tileColumns(V.self)
    let paddedColumns = (columns &+ width &- 1) / width &* width
    let lines = workspaceLines(rows: rows, depth: depth)
    let elements =
        maxTileLines &* width &+ lines &* copiedLine &+ (min(depth, depthBlock) &+ lines) &* paddedColumns
    return elements &* MemoryLayout<V.Element>.stride &+ 256
}

/// Lines of A and C in the workspace: a tile's where each line is finished at once.
@inline(__always)
private func workspaceLines(rows: Int, depth: Int) -> Int {
    depth <= depthBlock ? maxTileLines : rows &+ maxTileLines
}

/// `C = alpha * A B + beta * C` for one block of C, for operands of any storage type and strides (in elements).
///
/// A is [rows, depth], B [depth, columns]. C is not read where beta is zero. `packedA` and `packedB`, where not nil, hold
/// all of that operand as `packOperand` writes it. The sum over the depth runs in one fixed order in the compute type, so
/// the result depends neither on the tile's lines (4 or 6) nor on how C was cut up.
@inline(__always)
func multiplyBlock<V: ComputeVector>(
    _: V.Type, rows: Int, columns: Int, depth: Int, alpha: V.Element,
    a: UnsafeRawPointer, aType: Int32, aRow: Int, aColumn: Int, packedA: UnsafeRawPointer?,
    b: UnsafeRawPointer, bType: Int32, bRow: Int, bColumn: Int, packedB: UnsafeRawPointer?,
    beta: V.Element, c: UnsafeMutableRawPointer, cType: Int32, cRow: Int, cColumn: Int,
    workspace: UnsafeMutableRawPointer, computeType: Int32
) {
    typealias C = V.Element
    if rows == 0 || columns == 0 { return }
    let width = tileColumns(V.self)
    let paddedColumns = (columns &+ width &- 1) / width &* width
    let aligned = UnsafeMutableRawPointer(bitPattern: (UInt(bitPattern: workspace) &+ 63) & ~63).unsafelyUnwrapped
    let tile = aligned.assumingMemoryBound(to: C.self)
    let ownB = tile + maxTileLines &* width
    let ownA = ownB + min(depth, depthBlock) &* paddedColumns
    let product = ownA + copiedLine &* workspaceLines(rows: rows, depth: depth)

    // Sums are kept in C where its type and lines allow, else in a product of the block's or of some lines' size. Both
    // multiply by alpha once, so that the bits are the same.
    let isOneBlock = depth <= depthBlock
    let sumsInC = cType == computeType && cColumn == 1 && (isOneBlock || (alpha == .one && beta == .zero))
    // Along the lines of A and C where each is then read and written once, else down the columns of C, so that a strip
    // of B stays at hand.
    let alongLines = isOneBlock || columns <= 4 &* width
    let readsA =
        packedA == nil && aColumn == 1
        && (V.depthSteps == 1 ? aType == computeType : areWhole(a, row: aRow, depth: depth))
    let isPacked = packedA != nil || !(alongLines || readsA)
    // Of lines of A that are read once, as much in one run as packed B leaves in the second-level cache.
    let run = alongLines && packedB != nil ? max(0x10000 / paddedColumns / depthBlock, 1) &* depthBlock : depthBlock
    let storesLines = alongLines && depth <= run && !sumsInC

    var start = 0
    repeat {
        let end = min(start &+ run, depth)
        if packedB == nil {
            packStrips(
                V.self, V.self, b + start &* bRow &* storageSize(bType), type: bType, lines: columns,
                depth: end &- start, lineStride: bColumn, depthStride: bRow, into: ownB)
        }
        if isPacked && packedA == nil {
            packTiles(
                V.self, a + start &* aColumn &* storageSize(aType), type: aType, lines: rows, depth: end &- start,
                lineStride: aRow, depthStride: aColumn, into: ownA)
        }
        var outer = 0
        while outer < (alongLines ? rows : columns) {
            let outerLines = alongLines ? tileLines(of: rows &- outer) : width
            var first = start
            repeat {
                let here = min(depthBlock, end &- first)
                let steps = packedSteps(V.self, here)
                // The tile's lines of A, or those of all tiles.
                var lines = UnsafePointer(ownA)
                if let packedA {
                    lines = packedA.assumingMemoryBound(to: C.self) + first / V.depthSteps &* paddedLines(rows)
                    if alongLines { lines += outer &* steps }
                } else if readsA {
                    let origin = (alongLines ? outer &* aRow : 0) &+ first
                    lines = a.assumingMemoryBound(to: C.self) + origin / V.depthSteps
                } else if alongLines {
                    copyLines(
                        V.self, a + (outer &* aRow &+ first &* aColumn) &* storageSize(aType), type: aType,
                        lines: min(outerLines, rows &- outer), depth: here, lineStride: aRow, depthStride: aColumn,
                        into: ownA)
                }
                var strips = UnsafePointer(ownB)
                if let packedB {
                    strips = packedB.assumingMemoryBound(to: C.self) + first / V.depthSteps &* paddedColumns
                }
                // Later depth blocks add to what the first one wrote.
                let blockBeta: C = first == 0 ? (sumsInC ? beta : .zero) : .one
                var inner = 0
                while inner < (alongLines ? columns : rows) {
                    let i = alongLines ? outer : inner
                    let j = alongLines ? inner : outer
                    let height = alongLines ? outerLines : tileLines(of: rows &- inner)
                    let count = min(height, rows &- i)
                    // A tile that is not whole goes through a buffer.
                    let fits = !sumsInC || (count == height && columns &- j >= width)
                    let tiles = alongLines && fits ? ((sumsInC ? columns : paddedColumns) &- j) / width : 1
                    let target: TileTarget<C> =
                        !sumsInC
                        ? (.one, blockBeta, product + ((storesLines ? 0 : i) &* paddedColumns &+ j), paddedColumns)
                        : fits
                            ? (alpha, blockBeta, c.assumingMemoryBound(to: C.self) + (i &* cRow &+ j), cRow)
                            : (.one, .zero, tile, width)
                    let size = storageSize(cType)
                    let ahead: LinesAhead = (
                        isOneBlock && cColumn == 1 ? UnsafeRawPointer(c + ((i &+ height) &* cRow &+ j) &* size) : nil,
                        cRow &* size, width &* size
                    )
                    multiplyTiles(
                        V.self, height: height, count: tiles, depth: steps,
                        a: lines + (alongLines ? 0 : i &* (readsA ? aRow / V.depthSteps : steps)),
                        aLine: isPacked ? 1 : readsA ? aRow / V.depthSteps : copiedLine,
                        aStep: isPacked ? height : 1, aLines: count, b: strips + j &* steps, to: target, ahead: ahead)
                    if !fits {
                        storeBlock(
                            tile, line: width, rows: count, columns: min(width, columns &- j), alpha: alpha,
                            beta: blockBeta, to: c.assumingMemoryBound(to: C.self) + (i &* cRow &+ j), row: cRow,
                            column: 1)
                    }
                    inner &+= alongLines ? tiles &* width : height
                }
                first &+= depthBlock
            } while first < end
            if storesLines {
                store(
                    product, line: paddedColumns, rows: min(outerLines, rows &- outer), columns: columns, alpha: alpha,
                    beta: beta, to: c, type: cType, offset: outer &* cRow, row: cRow, column: cColumn)
            }
            outer &+= outerLines
        }
        start = end
    } while start < depth

    if !storesLines && !sumsInC {
        store(
            product, line: paddedColumns, rows: rows, columns: columns, alpha: alpha, beta: beta, to: c, type: cType,
            offset: 0, row: cRow, column: cColumn)
    }
}

/// Whether pairs along the lines of A lie as packed elements do: none is half, and the addresses are a float32's.
@inline(__always)
private func areWhole(_ a: UnsafeRawPointer, row: Int, depth: Int) -> Bool {
    (depth | row) & 1 == 0 && UInt(bitPattern: a) & 3 == 0
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
