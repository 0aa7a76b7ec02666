// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0

/// Random numbers by counter: element `i` of stream `seed` is a fixed function of both, so results do not depend on the
/// order or the number of threads in which elements are made.
///
/// The function is SplitMix64's finaliser (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators").
public struct RandomStream: Sendable {
    /// What tells the stream apart; a device makes the same numbers from it.
    package let key: UInt64

    /// - Parameters:
    ///   - seed: The caller's seed.
    ///   - stream: Tells apart independent draws that share a seed.
    public init(seed: UInt64, stream: UInt64 = 0) {
        key = Self.mixed(seed &+ Self.mixed(stream &+ 0x9e37_79b9_7f4a_7c15))
    }

    /// Uniform in (-1, 1), never zero; multiples of 2^-53.
    public func uniform(_ index: Int) -> Double {
        let bits = Self.mixed(key &+ UInt64(truncatingIfNeeded: index) &* 0x9e37_79b9_7f4a_7c15) >> 11
        return (Double(bits) + 0.5) * 0x1p-52 - 1
    }

    private static func mixed(_ value: UInt64) -> UInt64 {
        var bits = value
        bits = (bits ^ (bits >> 30)) &* 0xbf58_476d_1ce4_e5b9
        bits = (bits ^ (bits >> 27)) &* 0x94d0_49bb_1331_11eb
        return bits ^ (bits >> 31)
    }
}
