// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0

// How matrix elements lie in memory, and how they become the type that kernels compute in.
// The file, like every file of this folder except Reference/, is compiled once per instruction set.

/// The types matrices are stored in.
protocol StorageScalar: PackSource {
    associatedtype AbsoluteBits: MagnitudeBits
    func loaded<C: ComputeScalar>() -> C
    static func stored<C: ComputeScalar>(_ value: C) -> Self
    /// The bits without the sign: ordered as the magnitudes are, and at least `infinityBits` for what is not finite.
    var absoluteBits: AbsoluteBits { get }
    static var infinityBits: AbsoluteBits { get }
    init(absoluteBits: AbsoluteBits)
}

/// Unsigned integers, with just what a search for the largest asks of them.
protocol MagnitudeBits: BitwiseCopyable {
    static var none: Self { get }
    func larger(_ other: Self) -> Self
    func reaches(_ other: Self) -> Bool
}

extension UInt16: MagnitudeBits {
    @inline(__always) static var none: UInt16 { 0 }
    @inline(__always) func larger(_ other: UInt16) -> UInt16 { self > other ? self : other }
    @inline(__always) func reaches(_ other: UInt16) -> Bool { self >= other }
}

extension UInt32: MagnitudeBits {
    @inline(__always) static var none: UInt32 { 0 }
    @inline(__always) func larger(_ other: UInt32) -> UInt32 { self > other ? self : other }
    @inline(__always) func reaches(_ other: UInt32) -> Bool { self >= other }
}

extension UInt64: MagnitudeBits {
    @inline(__always) static var none: UInt64 { 0 }
    @inline(__always) func larger(_ other: UInt64) -> UInt64 { self > other ? self : other }
    @inline(__always) func reaches(_ other: UInt64) -> Bool { self >= other }
}

/// The types kernels compute in. The protocol stands alone: refining the standard library's would make every instruction
/// set emit its own weak copies of their witness accessors, among which the linker picks one for the whole program.
protocol ComputeScalar: StorageScalar {
    typealias Four = (Self, Self, Self, Self)
    static func read(_ source: UnsafePointer<Self>) -> Four
    static func write(_ four: Four, to target: UnsafeMutablePointer<Self>)
    static func write(_ low: Four, _ high: Four, to target: UnsafeMutablePointer<Self>)
    /// The columns of the square with these lines.
    static func writeTransposed(
        _ l0: Four, _ l1: Four, _ l2: Four, _ l3: Four, to target: UnsafeMutablePointer<Self>, line: Int)
    static var zero: Self { get }
    static var one: Self { get }
    static func + (a: Self, b: Self) -> Self
    static func - (a: Self, b: Self) -> Self
    static func * (a: Self, b: Self) -> Self
    static func / (a: Self, b: Self) -> Self
    static func == (a: Self, b: Self) -> Bool
    static func < (a: Self, b: Self) -> Bool
    func squareRoot() -> Self
    var isMinus: Bool { get }
    /// Between these a sum of squares has lost nothing to underflow that matters, and is far from overflow.
    static var safeSquares: (Self, Self) { get }
    /// A power of two that brings the magnitude to about one, and whose own inverse is finite.
    var inverseBinade: Self { get }
    init(widening value: Float)
    init(narrowing value: Double)
    var float: Float { get }
    var double: Double { get }
}

extension Float: ComputeScalar {
    @inline(__always) var isMinus: Bool { bitPattern &>> 31 != 0 }
    @inline(__always) static var safeSquares: (Float, Float) { (0x1p-80, 0x1p100) }
    @inline(__always) var inverseBinade: Float {
        let exponent = (bitPattern &>> 23) & 0xff
        return Float(bitPattern: (exponent < 1 ? 253 : exponent > 253 ? 1 : 254 &- exponent) &<< 23)
    }
    @inline(__always) static var one: Float { 1 }
    @inline(__always) init(widening value: Float) { self = value }
    @inline(__always) init(narrowing value: Double) { self = Float(value) }
    @inline(__always) var float: Float { self }
    @inline(__always) var double: Double { Double(self) }
}

extension Double: ComputeScalar {
    @inline(__always) var isMinus: Bool { bitPattern &>> 63 != 0 }
    @inline(__always) static var safeSquares: (Double, Double) { (0x1p-800, 0x1p1000) }
    @inline(__always) var inverseBinade: Double {
        let exponent = (bitPattern &>> 52) & 0x7ff
        return Double(bitPattern: (exponent < 1 ? 2045 : exponent > 2045 ? 1 : 2046 &- exponent) &<< 52)
    }
    @inline(__always) static var one: Double { 1 }
    @inline(__always) init(widening value: Float) { self = Double(value) }
    @inline(__always) init(narrowing value: Double) { self = value }
    @inline(__always) var float: Float { Float(self) }
    @inline(__always) var double: Double { self }
}

extension Float: StorageScalar {
    @inline(__always) var absoluteBits: UInt32 { bitPattern & 0x7fff_ffff }
    @inline(__always) static var infinityBits: UInt32 { 0x7f80_0000 }
    @inline(__always) init(absoluteBits: UInt32) { self.init(bitPattern: absoluteBits) }

    @inline(__always) func loaded<C: ComputeScalar>() -> C { C(widening: self) }
    @inline(__always) static func stored<C: ComputeScalar>(_ value: C) -> Float { value.float }
}

extension Double: StorageScalar {
    @inline(__always) var absoluteBits: UInt64 { bitPattern & 0x7fff_ffff_ffff_ffff }
    @inline(__always) static var infinityBits: UInt64 { 0x7ff0_0000_0000_0000 }
    @inline(__always) init(absoluteBits: UInt64) { self.init(bitPattern: absoluteBits) }

    @inline(__always) func loaded<C: ComputeScalar>() -> C { C(narrowing: self) }
    @inline(__always) static func stored<C: ComputeScalar>(_ value: C) -> Double { value.double }
}

/// bfloat16: the upper half of a float32. Rounds to nearest, ties to even.
struct BFloat16Bits: StorageScalar {
    var bits: UInt16

    @inline(__always) init(bits: UInt16) { self.bits = bits }
    @inline(__always) var absoluteBits: UInt16 { bits & 0x7fff }
    @inline(__always) static var infinityBits: UInt16 { 0x7f80 }
    @inline(__always) init(absoluteBits: UInt16) { bits = absoluteBits }

    @inline(__always) func loaded<C: ComputeScalar>() -> C {
        C(widening: Float(bitPattern: UInt32(bits) &<< 16))
    }

    @inline(__always) static func stored<C: ComputeScalar>(_ value: C) -> BFloat16Bits {
        let wide = value.float.bitPattern
        let rounded = (wide &+ 0x7fff &+ ((wide &>> 16) & 1)) &>> 16
        let quietNaN = (wide &>> 16) | 0x40
        let isNaN = (wide & 0x7fff_ffff) > 0x7f80_0000
        return BFloat16Bits(bits: UInt16(truncatingIfNeeded: isNaN ? quietNaN : rounded))
    }
}

/// IEEE half precision, converted by integer arithmetic so that it vectorises on every instruction set.
/// Rounds to nearest, ties to even; values beyond 65504 become infinite.
struct Float16Bits: StorageScalar {
    var bits: UInt16

    @inline(__always) init(bits: UInt16) { self.bits = bits }
    @inline(__always) var absoluteBits: UInt16 { bits & 0x7fff }
    @inline(__always) static var infinityBits: UInt16 { 0x7c00 }
    @inline(__always) init(absoluteBits: UInt16) { bits = absoluteBits }

    @inline(__always) func loaded<C: ComputeScalar>() -> C {
        let half = UInt32(bits)
        let magnitude = (half & 0x7fff) &<< 13
        // Moving the exponent by multiplication also normalises subnormal halves.
        let finite = (Float(bitPattern: magnitude) * 0x1p112).bitPattern
        let special = magnitude | 0x7f80_0000
        let wide = (half & 0x7c00) == 0x7c00 ? special : finite
        return C(widening: Float(bitPattern: wide | ((half & 0x8000) &<< 16)))
    }

    @inline(__always) static func stored<C: ComputeScalar>(_ value: C) -> Float16Bits {
        let wide = value.float.bitPattern
        let sign = (wide &>> 16) & 0x8000
        let magnitude = wide & 0x7fff_ffff
        let special: UInt32 = magnitude > 0x7f80_0000 ? 0x7e00 : 0x7c00
        // Adding 0.5 puts a subnormal half's last bit at the end of the mantissa, so the addition rounds it.
        let subnormal = (Float(bitPattern: magnitude) + 0.5).bitPattern &- 0x3f00_0000
        let normal = (magnitude &+ 0xc800_0fff &+ ((magnitude &>> 13) & 1)) &>> 13
        let half = magnitude >= 0x4780_0000 ? special : magnitude < 0x3880_0000 ? subnormal : normal
        return Float16Bits(bits: UInt16(truncatingIfNeeded: half | sign))
    }
}

/// Codes of the storage types at the kernels' entries.
enum StorageCode {
    static let float32: Int32 = 0
    static let float64: Int32 = 1
    static let bfloat16: Int32 = 2
    static let float16: Int32 = 3
}
