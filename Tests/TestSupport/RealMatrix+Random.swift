// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import Glibc

/// Random numbers of a seed (xorshift64*; Marsaglia 2003, Vigna 2016).
public struct SeededGenerator: RandomNumberGenerator {
    private var state: UInt64

    public init(seed: UInt64) {
        // The state must not be zero; a few steps part neighbouring seeds.
        state = seed &* 0x9e37_79b9_7f4a_7c15 | 1
        for _ in 0..<8 { _ = next() }
    }

    public mutating func next() -> UInt64 {
        state ^= state >> 12
        state ^= state << 25
        state ^= state >> 27
        return state &* 0x2545_f491_4f6c_dd1d
    }

    /// A standard normal number.
    public mutating func normal() -> Double {
        let radius = (-2 * log(Double.random(in: 0x1p-53..<1, using: &self))).squareRoot()
        return radius * cos(2 * Double.pi * Double.random(in: 0..<1, using: &self))
    }
}

extension RealMatrix {
    public static func gaussian(_ rows: Int, _ columns: Int, seed: UInt64) -> RealMatrix {
        var generator = SeededGenerator(seed: seed)
        return RealMatrix(rows, columns) { _, _ in generator.normal() }
    }

    /// Whole numbers of a magnitude that leaves sums of a few thousand products exact in float32, in any order.
    public static func integers(_ rows: Int, _ columns: Int, seed: UInt64, magnitude: Int = 4) -> RealMatrix {
        var generator = SeededGenerator(seed: seed)
        return RealMatrix(rows, columns) { _, _ in Double(Int.random(in: -magnitude...magnitude, using: &generator)) }
    }

    /// Orthonormal columns: Gram and Schmidt's process, each column twice.
    public static func orthonormal(_ rows: Int, _ columns: Int, seed: UInt64) -> RealMatrix {
        precondition(columns <= rows, "orthonormal columns")
        let start = gaussian(rows, columns, seed: seed)
        var basis: [[Double]] = []
        for j in 0..<columns {
            var vector = start.column(j)
            for _ in 0..<2 {
                for other in basis {
                    let dot = zip(vector, other).reduce(0) { $0 + $1.0 * $1.1 }
                    for i in 0..<rows { vector[i] -= dot * other[i] }
                }
                let norm = vector.reduce(0) { $0 + $1 * $1 }.squareRoot()
                for i in 0..<rows { vector[i] /= norm }
            }
            basis.append(vector)
        }
        return RealMatrix(rows, columns) { basis[$1][$0] }
    }

    /// Random singular vectors and the singular values given; those not given are zero.
    public static func withSpectrum(_ spectrum: [Double], _ rows: Int, _ columns: Int, seed: UInt64) -> RealMatrix {
        let left = orthonormal(rows, spectrum.count, seed: seed)
        let right = orthonormal(columns, spectrum.count, seed: seed &+ 1)
        return left.scalingColumns(by: spectrum) * right.transposed
    }
}
