// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankBackends
import LowRankCore
import TestSupport
import Testing

/// Products of two bfloat16 operands in pairs along the depth, and the packed operands that they read.
@Suite struct PairKernelTests {
    private static let lines = [1, 3, 4, 5, 6, 7, 8, 9, 13, 16, 17, 31, 32, 33, 70]
    private static let depths = [1, 2, 3, 7, 8, 9, 255, 256, 257, 515]

    /// Bits that differ from place to place, NaNs and subnormal numbers among them: packing must not change any.
    private static func bits(_ lines: Int, _ depth: Int) -> [UInt64] {
        (0..<(lines * depth)).map { UInt64(truncatingIfNeeded: ($0 * 40503 + 12345) & 0xffff) }
    }

    /// Where the lines of a packed operand stand: strips of B are two registers wide, those of A fit the tiles.
    private static func strips(_ table: KernelTable, asStrips: Bool, lines: Int) -> [(first: Int, width: Int)] {
        var strips: [(first: Int, width: Int)] = []
        var first = 0
        while first < lines {
            let left = lines - first
            let width = asStrips ? 2 * table.floatLanes : left <= 4 || left == 7 || left == 8 ? 4 : 6
            strips.append((first, width))
            first += width
        }
        return strips
    }

    /// The packed operand, element by element: the reference version of `packFloat32` for pairs. nil is not written.
    private static func packed(_ table: KernelTable, asStrips: Bool, lines: Int, depth: Int, size: Int) -> [UInt32?] {
        let bits = Self.bits(lines, depth)
        let strips = strips(table, asStrips: asStrips, lines: lines)
        let paddedLines = strips.map(\.width).reduce(0, +)
        var result = [UInt32?](repeating: nil, count: size)
        for start in stride(from: 0, to: depth, by: KernelTable.packedDepth) {
            let end = min(start + KernelTable.packedDepth, depth)
            let pairs = (end - start + 1) / 2
            for (first, width) in strips {
                for pair in 0..<pairs {
                    for j in 0..<width {
                        let place = start / 2 * paddedLines + first * pairs + pair * width + j
                        let halves = (0...1).map { half in
                            let (line, k) = (first + j, start + 2 * pair + half)
                            return line < lines && k < end ? UInt32(bits[line * depth + k]) : 0
                        }
                        result[place] = halves[0] | halves[1] << 16
                    }
                }
            }
        }
        return result
    }

    @Test(arguments: KernelTable.ofPairs, Layout.allCases)
    func packsEqualTheReference(table: KernelTable, layout: Layout) {
        for asStrips in [false, true] {
            for lines in Self.lines {
                for depth in Self.depths {
                    let operand = TestMatrix(bits: Self.bits(lines, depth), columns: depth, .bfloat16, layout)
                    let blocks = (depth + KernelTable.packedDepth - 1) / KernelTable.packedDepth
                    let size = blocks * table.packedBytes(asStrips, lines, false) / 4
                    let memory = table.pack(operand.view, asStrips: asStrips, with: .bfloat16, false)
                    defer { memory.deallocate() }
                    let expected = Self.packed(table, asStrips: asStrips, lines: lines, depth: depth, size: size)
                    let wrong = (0..<size).first {
                        memory.load(fromByteOffset: 4 * $0, as: UInt32.self) != expected[$0] ?? .max
                    }
                    #expect(wrong == nil, "\(table.name) \(lines)x\(depth) \(layout), strips: \(asStrips)")
                    expectIntactGuard(operand, label: "\(table.name) \(lines)x\(depth) \(layout)")
                }
            }
        }
    }

    /// One product of the instruction: rounded once, and zero for what is below the smallest normal number.
    private static func adding(_ sum: Float, _ a: Float, _ b: Float) -> Float {
        func flushed(_ value: Float) -> Float { value.isSubnormal ? 0 * value : value }
        return flushed(sum.addingProduct(flushed(a), flushed(b)))
    }

    /// The product in pairs, entry by entry: the reference version of `multiplyFloat32` for pairs, bit for bit.
    private static func product(_ a: TestMatrix, _ b: TestMatrix) -> [UInt64] {
        func numbers(_ matrix: TestMatrix) -> [Float] { matrix.bits.map { Float(bitPattern: UInt32($0) << 16) } }
        let (rows, columns, depth) = (a.view.rows, b.view.columns, a.view.columns)
        let (left, right) = (numbers(a), numbers(b))
        return (0..<(rows * columns)).map { index in
            let (i, j) = (index / columns, index % columns)
            var sum: Float = 0
            for start in stride(from: 0, to: depth, by: KernelTable.packedDepth) {
                let end = min(start + KernelTable.packedDepth, depth)
                var part: Float = 0
                for k in stride(from: start, to: end, by: 2) {
                    // The high half comes first.
                    if k + 1 < end { part = adding(part, left[i * depth + k + 1], right[(k + 1) * columns + j]) }
                    part = adding(part, left[i * depth + k], right[k * columns + j])
                }
                sum = start == 0 ? part : sum + part
            }
            return UInt64(sum.bitPattern)
        }
    }

    @Test(arguments: KernelTable.ofPairs, [(1, 1), (5, 7), (8, 33), (13, 70)])
    func productsEqualTheReferenceBitForBit(table: KernelTable, shape: (rows: Int, columns: Int)) {
        for depth in [1, 2, 3, 8, 31, 256, 257, 600] {
            for scale in [1, 0x1p-62, 0x1p-130] {
                let a = TestMatrix(scale * .gaussian(shape.rows, depth, seed: 1), .bfloat16)
                let b = TestMatrix(.gaussian(depth, shape.columns, seed: 2).map { $0 * max(scale, 0x1p-62) }, .bfloat16)
                let expected = Self.product(a, b)
                for packed in [(a: false, b: false), (true, true)] {
                    let c = TestMatrix(undefined: shape.rows, shape.columns, .float32)
                    let label = "\(table.name) \(shape) depth \(depth) scale \(scale) packed \(packed)"
                    table.multiply(1, a, b, beta: 0, into: c, packed: packed, label: label)
                    #expect(c.bits == expected, "\(label)")
                }
            }
        }
    }

    /// What is below 2^-126 counts as zero, in either operand and half, and in the sum; 2^-126 itself does not.
    @Test(arguments: KernelTable.ofPairs)
    func subnormalNumbersAreZero(table: KernelTable) {
        for (x, expected) in [(0x1p-126, 0x1p-26), (0x1p-127, 0)] {
            for k in 0..<3 {
                let row = TestMatrix(RealMatrix(1, 3) { _, j in j == k ? x : 0 }, .bfloat16)
                let column = TestMatrix(RealMatrix(3, 1, repeating: 0x1p100), .bfloat16)
                for (a, b) in [(row.values, column.values), (column.values.transposed, row.values.transposed)] {
                    let c = TestMatrix(undefined: 1, 1, .float32)
                    table.multiply(
                        1, TestMatrix(a, .bfloat16), TestMatrix(b, .bfloat16), beta: 0, into: c, label: table.name)
                    #expect(c.values[0, 0] == expected, "\(table.name) \(x) at \(k)")
                }
            }
        }
        let c = TestMatrix(undefined: 1, 1, .float32)
        let small = TestMatrix(RealMatrix(1, 1, repeating: 0x1p-64), .bfloat16)
        table.multiply(1, small, small, beta: 0, into: c, label: table.name)
        #expect(c.values[0, 0] == 0, "\(table.name): a sum of 2^-128")
    }

    /// An operand of another type has numbers that bfloat16 does not hold: the product is one of float32.
    @Test(arguments: KernelTable.ofPairs, [ScalarType.float32, .float16])
    func otherTypesKeepTheirDigits(table: KernelTable, type: ScalarType) {
        let wide = TestMatrix(.gaussian(9, 40, seed: 3), type)
        let narrow = TestMatrix(.gaussian(40, 35, seed: 4), .bfloat16)
        for packed in [(a: false, b: false), (true, true)] {
            let c = TestMatrix(undefined: 9, 35, .float32)
            table.multiply(1, wide, narrow, beta: 0, into: c, packed: packed, label: table.name)
            let norm = wide.values.transposed.columnNorms.max()! * narrow.values.columnNorms.max()!
            expectSmall(
                (c.values - wide.values * narrow.values).maxMagnitude, size: 40, norm: norm, .float32, within: .product,
                "\(table.name) \(type)")
        }
    }
}
