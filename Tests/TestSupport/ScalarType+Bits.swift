// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankCore

// How numbers are written in each element type, by other means than the kernels'.

extension ScalarType {
    /// The bits of the nearest number of this type, ties to even.
    public func bits(of value: Double) -> UInt64 {
        switch self {
        case .float64: value.bitPattern
        case .float32: UInt64(Float(value).bitPattern)
        case .float16: UInt64(Float16(value).bitPattern)
        case .bfloat16: UInt64(Float(Self.nearestBFloat16(value)).bitPattern >> 16)
        }
    }

    /// The number that the bits stand for.
    public func value(of bits: UInt64) -> Double {
        switch self {
        case .float64: Double(bitPattern: bits)
        case .float32: Double(Float(bitPattern: UInt32(truncatingIfNeeded: bits)))
        case .float16: Double(Float16(bitPattern: UInt16(truncatingIfNeeded: bits)))
        case .bfloat16: Double(Float(bitPattern: UInt32(truncatingIfNeeded: bits) << 16))
        }
    }

    /// The nearest number of this type, ties to even.
    public func rounded(_ value: Double) -> Double { self.value(of: bits(of: value)) }

    /// All finite numbers of a 16-bit type, the middles between neighbours (ties, the step to infinity among them) and
    /// float32's neighbours of those, with both signs.
    public var numbersAndTies: [Float] {
        precondition(size == 2, "a 16-bit type")
        let infinity = bits(of: .infinity)
        return (0..<infinity).flatMap { bits in
            let number = value(of: bits)
            // Beyond the largest finite number the next one would be where the exponent would continue.
            let step = bits + 1 < infinity ? value(of: bits + 1) - number : number - value(of: bits - 1)
            let middle = Float(number + step / 2)
            return [Float(number), middle.nextDown, middle, middle.nextUp].flatMap { [$0, -$0] }
        }
    }

    /// bfloat16 has float32's exponents and 8 bits of significand. Dividing by its last place is exact.
    private static func nearestBFloat16(_ value: Double) -> Double {
        guard value.isFinite, value != 0 else { return value }
        let lastPlace = Double(sign: .plus, exponent: max(Int(value.exponent), -126) - 7, significand: 1)
        let nearest = (value / lastPlace).rounded(.toNearestOrEven) * lastPlace
        return nearest.magnitude >= 0x1p128 ? Double(sign: value.sign, exponent: 0, significand: .infinity) : nearest
    }
}

extension RealMatrix {
    public func rounded(to type: ScalarType) -> RealMatrix { map { type.rounded($0) } }
}
