// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankBackends
import LowRankCore
import TestSupport
import Testing

/// Products on a device, whichever of cuBLAS and the kernels computes them.
extension CUDABackendTests {
    /// Integers, whose sums are exact in any order.
    @Test(arguments: ScalarType.allCases, Layout.allCases)
    func products(type: ScalarType, layout: Layout) throws {
        let sizes = [
            (1, 1, 1), (3, 0, 2), (5, 7, 3), (64, 16, 64), (65, 17, 63), (33, 300, 9), (9, 64, 131), (0, 3, 4), (70, 520, 3),
        ]
        for (m, k, n) in sizes {
            for (aType, bType, cType) in [(type, type, type), (type, .float32, .float32), (.float32, type, .float64)] {
                let label = "\(layout) \(m)x\(k)x\(n) \(aType) \(bType) \(cType)"
                _ = try compare(
                    label,
                    [
                        TestMatrix(.integers(m, k, seed: 10, magnitude: 1), aType, layout),
                        TestMatrix(.integers(k, n, seed: 11, magnitude: 1), bType, .columnMajor),
                        TestMatrix(undefined: m, n, cType, layout),
                        TestMatrix(.integers(n, m, seed: 12), cType, .paddedRows),
                    ]
                ) { (backend, v) throws(LowRankError) in
                    try backend.multiply(alpha: 2, v[0], v[1], beta: 0, into: v[2])
                    try backend.multiply(alpha: -1, v[1].transposed, v[0].transposed, beta: 0.5, into: v[3])
                }
            }
        }
    }

    /// Of float32 operands with a small product of 16 bits, which is rounded once.
    @Test(arguments: [ScalarType.bfloat16, .float16], [0.0, 0.5])
    func roundedProducts(type: ScalarType, beta: Double) throws {
        for (m, k, n) in [(40, 70, 8), (8, 130, 9), (3, 4, 3)] {
            _ = try compare(
                "\(type) \(m)x\(k)x\(n) beta \(beta)",
                [
                    TestMatrix(.integers(m, k, seed: 33)), TestMatrix(.integers(k, n, seed: 34), .float32, .columnMajor),
                    TestMatrix(.integers(m, n, seed: 35), type, .paddedRows), TestMatrix(.integers(n, m, seed: 36), type),
                ]
            ) { (backend, v) throws(LowRankError) in
                try backend.multiply(alpha: 0.5, v[0], v[1], beta: beta, into: v[2])
                try backend.multiply(alpha: 2, v[1].transposed, v[0].transposed, beta: beta, into: v[3])
            }
        }
    }

    /// With a factor for each number of the depth, or a matrix, in between.
    @Test(arguments: ScalarType.allCases, Layout.allCases)
    func productsWithMiddleFactors(type: ScalarType, layout: Layout) throws {
        for (m, k, n) in [
            (1, 1, 1), (5, 7, 3), (65, 33, 63), (9, 300, 7), (0, 3, 4), (130, 3, 2), (1, 32, 200), (70, 64, 136), (6, 65, 7),
        ] {
            for (bType, middleType, cType) in [
                (type, type, type), (.bfloat16, .float32, .float32), (.float32, .float16, type), (type, .float64, .float32),
            ] as [(ScalarType, ScalarType, ScalarType)] {
                _ = try compare(
                    "\(layout) \(m)x\(k)x\(n) \(type) \(middleType) \(bType) \(cType)",
                    [
                        TestMatrix(.integers(m, k, seed: 25, magnitude: 1), type, layout),
                        TestMatrix(.integers(1, k, seed: 26, magnitude: 1), middleType, .strided),
                        TestMatrix(.integers(k, n, seed: 27, magnitude: 1), bType, layout),
                        TestMatrix(undefined: m, n, cType, layout), TestMatrix(.integers(n, m, seed: 28), cType, .paddedRows),
                        TestMatrix(sparse(k), middleType, layout), TestMatrix(undefined: m, n, cType, layout),
                        TestMatrix(.integers(n, m, seed: 28), cType, .paddedRows),
                    ]
                ) { (backend, v) throws(LowRankError) in
                    try backend.multiply(alpha: 2, v[0], .diagonal(v[1]), v[2], beta: 0, into: v[3])
                    try backend.multiply(
                        alpha: -1, v[2].transposed, .diagonal(v[1].transposed), v[0].transposed, beta: 0.5, into: v[4])
                    try backend.multiply(alpha: 2, v[0], .square(v[5]), v[2], beta: 0, into: v[6])
                    try backend.multiply(
                        alpha: -1, v[2].transposed, .square(v[5].transposed), v[0].transposed, beta: 0.5, into: v[7])
                }
            }
        }
    }

    /// What one block does after another tile, whichever of the operands lies so that it can be read in pieces.
    @Test(arguments: ScalarType.allCases, [8, 40])
    func tilesOfABlock(type: ScalarType, rank: Int) throws {
        for (layouts, columns) in [((Layout.rowMajor, Layout.columnMajor), 272), ((.columnMajor, .rowMajor), 261)] {
            for bType in [type, .float32] {
                _ = try compare(
                    "\(type) \(bType) \(rank) \(layouts)",
                    [
                        TestMatrix(.integers(70, rank, seed: 36, magnitude: 1), type, layouts.0),
                        TestMatrix(sparse(rank), .float32, layouts.1),
                        TestMatrix(.integers(rank, columns, seed: 37, magnitude: 1), bType, layouts.1),
                        TestMatrix(.integers(70, columns, seed: 38), type),
                    ]
                ) { (backend, v) throws(LowRankError) in
                    guard let device = backend as? CUDABackend else {
                        return try backend.multiply(alpha: 2, v[0], .square(v[1]), v[2], beta: -1, into: v[3])
                    }
                    let isDone = try device.expand(alpha: 2, v[0], .square(v[1]), v[2], beta: -1, into: v[3], blocks: 1)
                    #expect(isDone)
                }
            }
        }
    }

    /// Two integers in each row, so that products stay small enough for 16 bits.
    private func sparse(_ k: Int) -> RealMatrix {
        RealMatrix(k, k) { i, j in (j == (i * 5 + 2) % k ? 1 : 0) - (j == (i + k / 2) % k ? 2 : 0) }
    }

    /// Layouts in which a library can take the operands; one of 16 bits must not make the other one lose bits.
    @Test(arguments: ScalarType.allCases, ScalarType.allCases)
    func productsOfRandomNumbers(aType: ScalarType, bType: ScalarType) throws {
        for (m, k, n) in [(40, 70, 24), (8, 130, 8), (96, 8, 72)] {
            for layouts in [
                (Layout.rowMajor, Layout.rowMajor), (.paddedRows, .paddedColumns), (.columnMajor, .rowMajor),
            ] {
                _ = try compare(
                    "\(layouts) \(m)x\(k)x\(n) \(aType) \(bType)", within: .product, depth: k,
                    [
                        TestMatrix(.gaussian(m, k, seed: 13), aType, layouts.0),
                        TestMatrix(.gaussian(k, n, seed: 14), bType, layouts.1), TestMatrix(undefined: m, n, .float32),
                        TestMatrix(undefined: n, m, bType),
                    ]
                ) { (backend, v) throws(LowRankError) in
                    try backend.multiply(alpha: 1, v[0], v[1], beta: 0, into: v[2])
                    try backend.multiply(alpha: 1, v[1].transposed, v[0].transposed, beta: 0, into: v[3])
                }
            }
        }
    }

    /// A large 16-bit matrix and a narrow float32 one: no bit of the narrow one is lost on the way to 16-bit products.
    @Test(arguments: [ScalarType.bfloat16, .float16], [1.0, 1e-5, 3e4])
    func productsOfLargeMatricesOf16Bits(type: ScalarType, scale: Double) throws {
        let (m, k, n) = (160, 110, 24)
        for layout in [Layout.rowMajor, .paddedRows, .columnMajor] {
            for beta in [0.0, 0.5] {
                _ = try compare(
                    "\(type) \(scale) \(layout) beta \(beta)", within: .product, unit: 1,
                    [
                        TestMatrix(.gaussian(m, k, seed: 21), type, layout),
                        TestMatrix(scale * .gaussian(k, n, seed: 22), .float32, .paddedColumns),
                        TestMatrix(scale * .gaussian(m, n, seed: 23), .float32, layout),
                        TestMatrix(scale * .gaussian(n, m, seed: 24), .float32),
                    ]
                ) { (backend, v) throws(LowRankError) in
                    try backend.multiply(alpha: 2, v[0], v[1], beta: beta, into: v[2])
                    try backend.multiply(alpha: -1, v[1].transposed, v[0].transposed, beta: beta, into: v[3])
                }
            }
        }
    }

    /// No bit of a float32 operand is lost in products that are too small, or too wide, for that.
    @Test(arguments: [ScalarType.bfloat16, .float16])
    func productsOf16BitNumbersAndOthers(type: ScalarType) throws {
        let (m, k, n) = (40, 24, 96)
        _ = try compare(
            "\(type)", within: .product, unit: 1,
            [
                TestMatrix(.gaussian(m, k, seed: 29), type), TestMatrix(.gaussian(k, n, seed: 30), .float32),
                TestMatrix(.gaussian(1, k, seed: 31), .float32), TestMatrix(undefined: m, n), TestMatrix(undefined: n, m),
                TestMatrix(undefined: m, n), TestMatrix(.gaussian(k, n, seed: 32), type), TestMatrix(undefined: m, n),
            ]
        ) { (backend, v) throws(LowRankError) in
            try backend.multiply(alpha: 1, v[0], v[1], beta: 0, into: v[3])
            try backend.multiply(alpha: 1, v[1].transposed, v[0].transposed, beta: 0, into: v[4])
            try backend.multiply(alpha: 1, v[0], .diagonal(v[2]), v[1], beta: 0, into: v[5])
            try backend.multiply(alpha: 1, v[0], .diagonal(v[2]), v[6], beta: 0, into: v[7])
        }
    }
}
