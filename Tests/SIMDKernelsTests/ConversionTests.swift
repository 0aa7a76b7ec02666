// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankBackends
import LowRankCore
import TestSupport
import Testing

/// What 16-bit elements are read as and written from, against exact arithmetic and Swift's Float16.
@Suite struct ConversionTests {
    private static let halfTypes = [ScalarType.bfloat16, .float16]

    @Test(arguments: KernelTable.available, halfTypes)
    func everyBitPatternIsRead(table: KernelTable, type: ScalarType) {
        let patterns = (0..<65536).map { UInt64($0) }
        for layout in [Layout.rowMajor, .strided] {
            let source = TestMatrix(bits: patterns, columns: 256, type, layout)
            for wide in [ScalarType.float32, .float64] {
                let target = TestMatrix(undefined: 256, 256, wide)
                table.copyScaled(source, to: target, inFloat64: wide == .float64)
                let expected = patterns.map { wide.bits(of: type.value(of: $0)) }
                expectBits(target, expected, from: patterns, "\(table.name) \(type) to \(wide), \(layout)")
            }
            // Read and written back, every number is itself.
            let back = TestMatrix(undefined: 256, 256, type, layout)
            table.copyScaled(source, to: back, inFloat64: false)
            expectBits(back, patterns, from: patterns, "\(table.name) \(type) to itself, \(layout)")
        }
    }

    /// float32 numbers stored to a 16-bit type.
    private func checkStores(_ numbers: [Float], to type: ScalarType, _ table: KernelTable, _ label: String) {
        let inputs = numbers.map { UInt64($0.bitPattern) }
        let expected = numbers.map { type.bits(of: Double($0)) }
        let source = TestMatrix(bits: inputs, columns: inputs.count, .float32)
        for layout in [Layout.rowMajor, .strided] {
            for inFloat64 in [false, true] {
                let target = TestMatrix(undefined: 1, inputs.count, type, layout)
                table.copyScaled(source, to: target, inFloat64: inFloat64)
                expectBits(target, expected, from: inputs, "\(table.name) float32 to \(type), \(label), \(layout)")
            }
        }
    }

    @Test(arguments: KernelTable.available, halfTypes)
    func storesRoundToNearestTiesToEven(table: KernelTable, type: ScalarType) {
        checkStores(type.numbersAndTies, to: type, table, "numbers and ties")
    }

    @Test(arguments: KernelTable.available, halfTypes)
    func storesOfSpecialNumbers(table: KernelTable, type: ScalarType) {
        let patterns: [UInt32] = [
            0x7f80_0000, 0xff80_0000, 0x7fc0_0000, 0xffc0_0000, 0x7f80_0001, 0xff80_0001, 0x7fff_ffff, 0x7f80_8000,
            0, 0x8000_0000, 1, 0x8000_0001, 0x007f_ffff, 0x0080_0000, 0x7f7f_ffff, 0xff7f_ffff,
        ]
        checkStores(patterns.map { Float(bitPattern: $0) }, to: type, table, "special numbers")
    }

    @Test(arguments: KernelTable.available, halfTypes)
    func storesOfRandomNumbers(table: KernelTable, type: ScalarType) {
        var generator = SeededGenerator(seed: 11)
        let numbers = (0..<40_000).map { _ in Float(bitPattern: UInt32(truncatingIfNeeded: generator.next() >> 32)) }
        checkStores(numbers, to: type, table, "random bits, seed 11")
    }

    @Test(arguments: KernelTable.available)
    func float64IsRoundedToFloat32Once(table: KernelTable) {
        let numbers: [Double] = [
            1 + 0x1p-24, 1 + 0x1p-24 + 0x1p-50, 1 + 0x1.8p-23, 0x1p-149, 0x1p-150, 0x1.8p-150, 0x1.ffffffp127, 0x1p128,
            -0x1.fffffefp127, .pi, -0.0,
        ]
        let source = TestMatrix(RealMatrix(rows: 1, columns: numbers.count, values: numbers), .float64)
        let target = TestMatrix(undefined: 1, numbers.count)
        table.copyScaled(source, to: target, inFloat64: true)
        #expect(target.bits == numbers.map { UInt64(Float($0).bitPattern) }, "\(table.name)")
    }
}
