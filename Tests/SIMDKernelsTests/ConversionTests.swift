// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankBackends
import LowRankCore
import TestSupport
import Testing

/// What 16-bit elements are read as and written from, against exact arithmetic and Swift's Float16.
@Suite struct ConversionTests {
    private static let halfTypes = [ScalarType.bfloat16, .float16]

    private func isNaN(_ bits: UInt64, _ type: ScalarType) -> Bool { type.value(of: bits).isNaN }

    /// Bits equal, where any NaN stands for any other.
    private func expectBits(_ got: [UInt64], _ expected: [UInt64], _ type: ScalarType, from inputs: [UInt64], _ label: String) {
        for (index, (bits, wanted)) in zip(got, expected).enumerated() where bits != wanted {
            if isNaN(bits, type) && isNaN(wanted, type) { continue }
            let input = String(inputs[index], radix: 16)
            Issue.record(
                "\(label): bits 0x\(input) became 0x\(String(bits, radix: 16)), not 0x\(String(wanted, radix: 16))")
            return
        }
    }

    @Test(arguments: KernelTable.available, halfTypes)
    func everyBitPatternIsRead(table: KernelTable, type: ScalarType) {
        let patterns = (0..<65536).map { UInt64($0) }
        for layout in [Layout.rowMajor, .strided] {
            let source = TestMatrix(undefined: 256, 256, type, layout)
            for (index, bits) in patterns.enumerated() { source.setBits(bits, index / 256, index % 256) }
            for wide in [ScalarType.float32, .float64] {
                let target = TestMatrix(undefined: 256, 256, wide)
                table.copyScaled(source.view, to: target.view, inFloat64: wide == .float64)
                let expected = patterns.map { wide.bits(of: type.value(of: $0)) }
                expectBits(target.bits, expected, wide, from: patterns, "\(table.name) \(type) to \(wide), \(layout)")
            }
            // Read and written back, every number is itself.
            let back = TestMatrix(undefined: 256, 256, type, layout)
            table.copyScaled(source.view, to: back.view, inFloat64: false)
            expectBits(back.bits, patterns, type, from: patterns, "\(table.name) \(type) to itself, \(layout)")
        }
    }

    /// float32 numbers stored to a 16-bit type.
    private func checkStores(_ numbers: [Float], to type: ScalarType, _ table: KernelTable, _ label: String) {
        let inputs = numbers.map { UInt64($0.bitPattern) }
        let columns = 1000
        let rows = (numbers.count + columns - 1) / columns
        let source = TestMatrix(RealMatrix(rows, columns, repeating: 0))
        for (index, bits) in inputs.enumerated() { source.setBits(bits, index / columns, index % columns) }
        let expected = numbers.map { type.bits(of: Double($0)) }
        for layout in [Layout.rowMajor, .strided] {
            for inFloat64 in [false, true] {
                let target = TestMatrix(undefined: rows, columns, type, layout)
                table.copyScaled(source.view, to: target.view, inFloat64: inFloat64)
                let label = "\(table.name) float32 to \(type), \(label), \(layout)"
                expectBits(Array(target.bits.prefix(numbers.count)), expected, type, from: inputs, label)
            }
        }
    }

    /// All numbers of the type, the middles between neighbours (ties, the step to infinity among them) and float32's
    /// neighbours of those.
    @Test(arguments: KernelTable.available, halfTypes)
    func storesRoundToNearestTiesToEven(table: KernelTable, type: ScalarType) {
        let infinity = type.bits(of: .infinity)
        var numbers: [Float] = []
        for bits in 0..<infinity {
            let number = type.value(of: bits)
            // Beyond the largest finite number the next one would be where the exponent would continue.
            let step = bits + 1 < infinity ? type.value(of: bits + 1) - number : number - type.value(of: bits - 1)
            let middle = Float(number + step / 2)
            for value in [Float(number), middle.nextDown, middle, middle.nextUp] { numbers += [value, -value] }
        }
        checkStores(numbers, to: type, table, "ties")
    }

    @Test(arguments: KernelTable.available, halfTypes)
    func storesOfSpecialNumbers(table: KernelTable, type: ScalarType) {
        let patterns: [UInt32] = [
            0x7f80_0000, 0xff80_0000, 0x7fc0_0000, 0xffc0_0000, 0x7f80_0001, 0xff80_0001, 0x7fff_ffff, 0x7f80_8000,
            0, 0x8000_0000, 1, 0x8000_0001, 0x007f_ffff, 0x0080_0000, 0x7f7f_ffff, 0xff7f_ffff,
        ]
        checkStores(patterns.map { Float(bitPattern: $0) }, to: type, table, "special numbers")
        for bits in patterns where Float(bitPattern: bits).isNaN {
            let source = TestMatrix(undefined: 1, 9)
            for j in 0..<9 { source.setBits(UInt64(bits), 0, j) }
            let target = TestMatrix(RealMatrix(1, 9, repeating: 0), type)
            table.copyScaled(source.view, to: target.view, inFloat64: false)
            #expect(target.values.values.allSatisfy { $0.isNaN }, "\(table.name): NaN 0x\(String(bits, radix: 16)) to \(type)")
        }
    }

    @Test(arguments: KernelTable.available, halfTypes)
    func storesOfRandomNumbers(table: KernelTable, type: ScalarType) {
        var generator = SeededGenerator(seed: 11)
        let numbers = (0..<50_000).map { _ in Float(bitPattern: UInt32.random(in: 0...UInt32.max, using: &generator)) }
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
        table.copyScaled(source.view, to: target.view, inFloat64: true)
        #expect(target.bits == numbers.map { UInt64(Float($0).bitPattern) }, "\(table.name)")
    }
}
