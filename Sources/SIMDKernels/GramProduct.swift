// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0

// Z = Aᵀ (A X) for an X of few columns, reading A from memory once: the second product finds some rows in the cache, where
// the first one left them.

/// Rows of A between the two products.
private let gramRows = 96

/// Elements of a strip of those rows' product with X; the last tile may be taller than what is left.
@inline(__always)
private func gramImage<V: ComputeVector>(_: V.Type) -> Int { (gramRows &+ maxTileLines) &* tileColumns(V.self) }

/// Bytes of workspace that `gramProduct` needs: X in strips, the product with it, and copied rows: a block of them along
/// the depth, or all blocks of rows that lie across the memory.
@inline(__always)
func gramWorkspaceBytes<V: ComputeVector>(_: V.Type, columns: Int, depth: Int, isAcross: Bool) -> Int {
    let width = tileColumns(V.self)
    let strips = (columns &+ width &- 1) / width
    let blocks = isAcross ? (depth &+ depthBlock &- 1) / depthBlock : 1
    let elements = strips &* (width &* depth &+ gramImage(V.self)) &+ blocks &* gramRows &* copiedLine
    return elements &* MemoryLayout<V.Element>.stride &+ 64
}

/// `Z = Aᵀ (A X)` for A [rows, depth], rows > 0, and X [depth, columns] of any storage type and strides (in elements).
///
/// Z's lines are `zLine` elements apart and have room for whole strips of `tileColumns`, and so do the `maxTileLines - 1`
/// lines behind it, which may be overwritten.
@inline(__always)
func gramProduct<V: ComputeVector>(
    _: V.Type, rows: Int, columns: Int, depth: Int, a: UnsafeRawPointer, aType: Int32, aRow: Int, aColumn: Int,
    x: UnsafeRawPointer, xType: Int32, xRow: Int, xColumn: Int, z: UnsafeMutablePointer<V.Element>, zLine: Int,
    workspace: UnsafeMutableRawPointer, computeType: Int32
) {
    typealias C = V.Element
    let width = tileColumns(V.self)
    let strips = (columns &+ width &- 1) / width
    let aligned = UnsafeMutableRawPointer(bitPattern: (UInt(bitPattern: workspace) &+ 63) & ~63).unsafelyUnwrapped
    let packedX = aligned.assumingMemoryBound(to: C.self)
    let image = packedX + strips &* width &* depth
    let copied = image + strips &* gramImage(V.self)
    let readsA = aColumn == 1 && aType == computeType
    let isAcross = aColumn != 1

    var start = 0
    while start < depth {
        packStrips(
            V.self, V.self, x + start &* xRow &* storageSize(xType), type: xType, lines: columns,
            depth: min(depthBlock, depth &- start), lineStride: xColumn, depthStride: xRow,
            into: packedX + start &* strips &* width)
        start &+= depthBlock
    }
    var first = 0
    while first < rows {
        let count = min(gramRows, rows &- first)
        let lines = a + first &* aRow &* storageSize(aType)
        start = 0
        while isAcross && start < depth {
            copyLines(
                V.self, lines + start &* aColumn &* storageSize(aType), type: aType, lines: count,
                depth: min(depthBlock, depth &- start), lineStride: aRow, depthStride: aColumn,
                into: copied + start / depthBlock &* gramRows &* copiedLine)
            start &+= depthBlock
        }
        var i = 0
        while i < count {
            // Along a few rows at a time, which the processor foresees.
            let height = tileLines(of: count &- i)
            let existing = min(height, count &- i)
            start = 0
            while start < depth {
                let steps = min(depthBlock, depth &- start)
                let source = lines + (i &* aRow &+ start &* aColumn) &* storageSize(aType)
                var from = UnsafePointer(copied)
                if readsA {
                    from = source.assumingMemoryBound(to: C.self)
                } else if isAcross {
                    from += (start / depthBlock &* gramRows &+ i) &* copiedLine
                } else {
                    copyLines(
                        V.self, source, type: aType, lines: existing, depth: steps, lineStride: aRow, depthStride: aColumn,
                        into: copied)
                }
                for strip in 0..<strips {
                    multiplyTiles(
                        V.self, height: height, count: 1, depth: steps, a: from, aLine: readsA ? aRow : copiedLine,
                        aStep: 1, aLines: existing, b: packedX + (start &* strips &+ strip &* steps) &* width,
                        to: (.one, start == 0 ? .zero : .one, image + strip &* gramImage(V.self) + i &* width, width),
                        ahead: (nil, 0, 0))
                }
                start &+= depthBlock
            }
            i &+= height
        }
        start = 0
        while start < depth {
            let steps = min(depthBlock, depth &- start)
            let block = copied + (isAcross ? start / depthBlock &* gramRows &* copiedLine : 0)
            if !isAcross {
                copyLines(
                    V.self, lines + start &* storageSize(aType), type: aType, lines: count, depth: steps, lineStride: aRow,
                    depthStride: 1, into: block)
            }
            accumulateAdjoint(
                V.self, block, rows: count, columns: steps, image: image, strips: strips, into: z + start &* zLine,
                zLine: zLine, isFirst: first == 0)
            start &+= depthBlock
        }
        first &+= gramRows
    }
}

/// `Z += Aᵀ Y` for copied rows of A and a block of Z's lines, or `Z = Aᵀ Y` for the first rows.
@inline(__always)
private func accumulateAdjoint<V: ComputeVector>(
    _: V.Type, _ block: UnsafePointer<V.Element>, rows: Int, columns: Int, image: UnsafePointer<V.Element>, strips: Int,
    into z: UnsafeMutablePointer<V.Element>, zLine: Int, isFirst: Bool
) {
    for strip in 0..<strips {
        var j = 0
        while j < columns {
            let height = tileLines(of: columns &- j)
            multiplyTiles(
                V.self, height: height, count: 1, depth: rows, a: block + j, aLine: 1, aStep: copiedLine,
                aLines: min(height, columns &- j), b: image + strip &* gramImage(V.self),
                to: (.one, isFirst ? .zero : .one, z + j &* zLine + strip &* tileColumns(V.self), zLine),
                ahead: (nil, 0, 0))
            j &+= height
        }
    }
}
