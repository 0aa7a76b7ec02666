// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankBackends
import LowRankCore
import TestSupport
import Testing

/// `p = g b` and `d = alpha gᵀ h` in one reading of g, by kernels that the test double runs.
@Suite struct CUDABackendMultiplyPairTests {
    /// Within a tile, at its borders, and over several blocks in both directions.
    private static let shapes = [(1, 1), (5, 9), (64, 64), (65, 63), (33, 130), (300, 600)]

    private struct Types: Sendable, CustomStringConvertible {
        var g, b, h, d: ScalarType
        var ranks: [(Int, Int)]
        var description: String { "\(g) \(b) \(h) into \(d)" }
    }

    private static let served = [
        Types(g: .float32, b: .float32, h: .float32, d: .float32, ranks: [(8, 8), (3, 5), (1, 8)]),
        Types(g: .float64, b: .float64, h: .float64, d: .float64, ranks: [(8, 8), (7, 2)]),
        Types(g: .float32, b: .bfloat16, h: .float64, d: .float16, ranks: [(4, 4)]),
        Types(g: .bfloat16, b: .bfloat16, h: .bfloat16, d: .bfloat16, ranks: [(32, 32), (17, 31), (1, 33), (64, 64)]),
        Types(g: .float16, b: .float16, h: .float16, d: .float32, ranks: [(32, 8), (40, 64)]),
        Types(g: .bfloat16, b: .float32, h: .bfloat16, d: .float32, ranks: [(32, 32), (5, 18)]),
    ]

    /// What `d` or `p` may be rounded to, and the matrices, on the device.
    private func run(
        _ types: Types, _ g: TestMatrix, columns: Int, _ b: TestMatrix, _ h: TestMatrix, _ p: TestMatrix, _ d: TestMatrix
    ) throws -> Bool {
        var isServed = false
        try CUDADouble.withWarmDevice { (double) throws(LowRankError) in
            let onDevice = [g, b, h, p, d].map { DeviceMatrix($0, on: double) }
            try CUDABackend.run(onDevice: 0) { (backend) throws(LowRankError) in
                guard let backend = backend as? CUDABackend else { return }
                let views = onDevice.map(\.view)
                isServed = try backend.multiplyPairAtOnce(
                    views[0][columns: 0..<columns], views[1], into: views[3], alpha: 0.5, views[2], into: views[4])
            }
            double.run(nil)
            for matrix in onDevice { matrix.download() }
        }
        return isServed
    }

    /// Integers, whose sums are exact in any order.
    @Test(arguments: 0..<6) func exactSums(index: Int) throws {
        let types = Self.served[index]
        for (rows, columns) in Self.shapes {
            for (i, (rank, other)) in types.ranks.enumerated() {
                // Rows that begin where 16 bytes do, with the last of them cut off.
                let padded = (columns + 7) / 8 * 8
                let layouts: [Layout] = types.g.size == 2 ? [.rowMajor] : [.rowMajor, .columnMajor, .strided]
                for layout in layouts {
                    let narrow: [Layout] = [.rowMajor, .columnMajor, .reversed]
                    let values = RealMatrix.integers(rows, padded, seed: 1, magnitude: 2)
                    let g = TestMatrix(values, types.g, layout)
                    let b = TestMatrix(.integers(columns, rank, seed: 2, magnitude: 2), types.b, narrow[i % 3])
                    let h = TestMatrix(.integers(rows, other, seed: 3, magnitude: 2), types.h, narrow[(i + 1) % 3])
                    let p = TestMatrix(undefined: rows, rank, .float32, layout)
                    let d = TestMatrix(undefined: columns, other, types.d, narrow[i % 3])
                    let label = "\(types) \(layout) \(rows)x\(columns), \(rank) and \(other) columns"
                    #expect(try run(types, g, columns: columns, b, h, p, d), "\(label) is not served")
                    let used = RealMatrix(rows, columns) { values[$0, $1] }
                    expectEqual(p.values, used * b.values, "p, \(label)")
                    expectEqual(d.values, (0.5 * (used.transposed * h.values)).rounded(to: types.d), "d, \(label)")
                    expectIntactGuard(g, b, h, p, d, label: label)
                }
            }
        }
    }

    /// No bit of a float32 b is lost on the way to 16-bit products.
    @Test func termsOfFloat32() throws {
        let types = Types(g: .bfloat16, b: .float32, h: .bfloat16, d: .float32, ranks: [])
        let g = TestMatrix(.gaussian(70, 136, seed: 4), .bfloat16)
        let (b, h) = (TestMatrix(.gaussian(136, 9, seed: 5)), TestMatrix(.gaussian(70, 9, seed: 6), .bfloat16))
        let (p, d) = (TestMatrix(undefined: 70, 9), TestMatrix(undefined: 136, 9))
        #expect(try run(types, g, columns: 136, b, h, p, d))
        let (wantedP, wantedD) = (g.values * b.values, 0.5 * (g.values.transposed * h.values))
        expectSmall((p.values - wantedP).norm, size: 1, norm: wantedP.norm, .float32, within: .product, "p")
        expectSmall((d.values - wantedD).norm, size: 1, norm: wantedD.norm, .float32, within: .product, "d")
    }

    @Test func nonFiniteNumbersStay() throws {
        let types = Types(g: .bfloat16, b: .float32, h: .bfloat16, d: .float32, ranks: [])
        // A NaN, also one whose mark is in the lower half of its bits, and the infinities.
        for bits in [0x7fc0_0000, 0x7f80_0001, 0x7f80_0000, 0xff80_0000] as [UInt64] {
            let (g, h) = (TestMatrix(.integers(9, 16, seed: 7), .bfloat16), TestMatrix(.integers(9, 3, seed: 8), .bfloat16))
            let values = RealMatrix.integers(16, 3, seed: 9)
            let (b, p, d) = (TestMatrix(values), TestMatrix(undefined: 9, 3), TestMatrix(undefined: 16, 3))
            b.setBits(bits, 4, 1)
            #expect(try run(types, g, columns: 16, b, h, p, d))
            let wanted = g.values * values
            for i in 0..<9 {
                #expect(!p.values[i, 1].isFinite, "\(String(bits, radix: 16))")
                #expect(p.values[i, 0] == wanted[i, 0] && p.values[i, 2] == wanted[i, 2])
            }
        }
    }

    @Test func operandsWithoutAKernel() throws {
        let cases: [(Types, Layout)] = [
            (Types(g: .float32, b: .float32, h: .float32, d: .float32, ranks: [(9, 8), (8, 9)]), .rowMajor),
            (Types(g: .bfloat16, b: .bfloat16, h: .bfloat16, d: .float32, ranks: [(65, 8), (8, 65)]), .rowMajor),
            (Types(g: .bfloat16, b: .float32, h: .bfloat16, d: .float32, ranks: [(33, 8), (8, 33)]), .rowMajor),
            (Types(g: .float16, b: .float32, h: .float16, d: .float32, ranks: [(8, 8)]), .rowMajor),
            (Types(g: .bfloat16, b: .bfloat16, h: .float32, d: .float32, ranks: [(8, 8)]), .rowMajor),
            (Types(g: .bfloat16, b: .float16, h: .bfloat16, d: .float32, ranks: [(8, 8)]), .rowMajor),
            (Types(g: .bfloat16, b: .bfloat16, h: .bfloat16, d: .float32, ranks: [(8, 8)]), .columnMajor),
            (Types(g: .bfloat16, b: .bfloat16, h: .bfloat16, d: .float32, ranks: [(8, 8)]), .paddedRows),
        ]
        for (types, layout) in cases {
            for (rank, other) in types.ranks {
                let g = TestMatrix(.integers(17, 24, seed: 10), types.g, layout)
                let (b, h) = (TestMatrix(.integers(24, rank, seed: 11), types.b), TestMatrix(.integers(17, other, seed: 12), types.h))
                let (p, d) = (TestMatrix(undefined: 17, rank), TestMatrix(undefined: 24, other))
                #expect(try !run(types, g, columns: 24, b, h, p, d), "\(types) \(layout) \(rank) \(other)")
            }
        }
    }

    /// Two products by cuBLAS below 32 MiB of g, none from there on.
    @Test(arguments: [2047, 2048]) func theSizeDecides(rows: Int) throws {
        let g = TestMatrix(RealMatrix(rows, 4096) { Double(($0 + $1) % 3) })
        let (b, h) = (TestMatrix(.integers(4096, 1, seed: 13)), TestMatrix(.integers(rows, 1, seed: 14)))
        let (p, d) = (TestMatrix(undefined: rows, 1), TestMatrix(undefined: 4096, 1))
        try CUDADouble.withWarmDevice { (double) throws(LowRankError) in
            let onDevice = [g, b, h, p, d].map { DeviceMatrix($0, on: double) }
            let before = double.calls("cublasGemmEx")
            try CUDABackend.run(onDevice: 0) { (backend) throws(LowRankError) in
                let views = onDevice.map(\.view)
                try backend.multiplyPair(views[0], views[1], into: views[3], alpha: 1, views[2], into: views[4])
            }
            #expect(double.calls("cublasGemmEx") - before == (rows < 2048 ? 2 : 0))
            double.run(nil)
            for matrix in onDevice { matrix.download() }
        }
        expectEqual(p.values, g.values * b.values, "p")
        expectEqual(d.values, g.values.transposed * h.values, "d")
    }
}
