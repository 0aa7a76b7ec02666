// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankBackends
import LowRankCore
import TestSupport
import Testing

/// Products of whole matrices, cut into blocks of C and run on several threads.
@Suite struct CPUBackendMultiplyTests {
    private func check(
        _ table: KernelTable, rows: Int, columns: Int, depth: Int, alpha: Double = 1, beta: Double = 0,
        type: ScalarType = .float32, layouts: (a: Layout, b: Layout, c: Layout) = (.rowMajor, .rowMajor, .rowMajor)
    ) throws {
        let seed = UInt64(rows * 1_000_000 + columns * 1000 + depth)
        let a = TestMatrix(.integers(rows, depth, seed: seed), type, layouts.a)
        let b = TestMatrix(.integers(depth, columns, seed: seed + 1), type, layouts.b)
        let old = RealMatrix.integers(rows, columns, seed: seed + 2)
        let c = beta == 0 ? TestMatrix(undefined: rows, columns, type, layouts.c) : TestMatrix(old, type, layouts.c)
        try CPUBackend(kernels: table, threads: 2).multiply(alpha: alpha, a.view, b.view, beta: beta, into: c.view)
        let label =
            "\(table.name) \(rows)x\(columns)x\(depth) alpha \(alpha) beta \(beta) \(type) \(layouts) seed \(seed)"
        let product = alpha * (a.values * b.values)
        expectEqual(c.values, (beta == 0 ? product : product + beta * old).rounded(to: type), label)
        expectIntactGuard(a, b, c, label: label)
    }

    @Test(arguments: KernelTable.multiplying, [119, 120, 121])
    func sizesAroundTheBlocks(table: KernelTable, rows: Int) throws {
        for columns in [255, 256, 257] {
            for depth in [1, 255, 256, 257] { try check(table, rows: rows, columns: columns, depth: depth) }
        }
        try check(table, rows: 2 * rows + 1, columns: 513, depth: 5, alpha: 0.5, beta: -1)
        try check(table, rows: 3, columns: 5, depth: 513, alpha: -1, beta: 0.5)
    }

    @Test(arguments: KernelTable.multiplying, Layout.allCases)
    func layoutsAcrossBlocks(table: KernelTable, layout: Layout) throws {
        for cLayout in [Layout.rowMajor, .columnMajor, .strided, .reversed] {
            for type in ScalarType.allCases {
                try check(
                    table, rows: 125, columns: 260, depth: 9, beta: 1, type: type, layouts: (layout, layout, cLayout))
            }
        }
    }

    @Test(arguments: KernelTable.multiplying)
    func emptyProducts(table: KernelTable) throws {
        for (rows, columns, depth) in [(0, 3, 4), (3, 0, 4), (0, 0, 0), (3, 4, 0), (130, 300, 0)] {
            for beta in [0, 0.5] { try check(table, rows: rows, columns: columns, depth: depth, beta: beta) }
        }
    }

    /// C x = A (B x) for whole numbers, exactly: finds a wrong entry without computing the product naively.
    @Test(arguments: KernelTable.multiplying, ScalarType.allCases)
    func bigProductsByVectors(table: KernelTable, type: ScalarType) throws {
        let (rows, columns, depth) = (250, 530, 300)
        let a = TestMatrix(.integers(rows, depth, seed: 1, magnitude: 1), type)
        let b = TestMatrix(.integers(depth, columns, seed: 2, magnitude: 1), type, .columnMajor)
        // A wide C: 300 does not fit bfloat16's 8 bits.
        let c = TestMatrix(undefined: rows, columns, type == .float64 ? .float64 : .float32)
        try CPUBackend(kernels: table, threads: 2).multiply(alpha: 1, a.view, b.view, beta: 0, into: c.view)
        for seed in [3, 4, 5] as [UInt64] {
            let x = RealMatrix.integers(columns, 1, seed: seed, magnitude: 1000)
            expectEqual(c.values * x, a.values * (b.values * x), "\(table.name) \(type) seed \(seed)")
        }
    }

    @Test(arguments: KernelTable.multiplying, ScalarType.allCases)
    func roundingIsThatOfTheComputeType(table: KernelTable, type: ScalarType) throws {
        for (rows, columns, depth) in [(7, 9, 40), (130, 40, 257), (40, 270, 600)] {
            let a = TestMatrix(.gaussian(rows, depth, seed: 7), type)
            let b = TestMatrix(.gaussian(depth, columns, seed: 8), type)
            let c = TestMatrix(undefined: rows, columns, type.computeType)
            try CPUBackend(kernels: table, threads: 2).multiply(alpha: 1, a.view, b.view, beta: 0, into: c.view)
            let (left, right) = (a.values, b.values)
            let norm = left.transposed.columnNorms.max()! * right.columnNorms.max()!
            expectSmall(
                (c.values - left * right).maxMagnitude, size: depth, norm: norm, type.computeType, within: .product,
                "\(table.name) \(type) \(rows)x\(columns)x\(depth) seeds 7, 8")
        }
    }

    @Test(arguments: KernelTable.multiplying, ScalarType.allCases)
    func bitsDoNotDependOnThreads(table: KernelTable, type: ScalarType) throws {
        let (rows, columns, depth) = (250, 530, 40)
        let a = TestMatrix(.gaussian(rows, depth, seed: 9), type)
        let b = TestMatrix(.gaussian(depth, columns, seed: 10), type)
        let results = try threadCounts.map { threads in
            let c = TestMatrix(.gaussian(rows, columns, seed: 11), type)
            try CPUBackend(kernels: table, threads: threads).multiply(
                alpha: 0.3, a.view, b.view, beta: 0.7, into: c.view)
            return c.bits
        }
        expectSameBits(results, cases: threadCounts.map { "\($0) threads" }, "\(table.name) \(type)")
    }

    @Test(arguments: KernelTable.multiplying, [20, 27, 300])
    func bitsDoNotDependOnLayouts(table: KernelTable, depth: Int) throws {
        for type in [ScalarType.float32, .bfloat16] { try checkLayouts(table, depth: depth, type) }
    }

    private func checkLayouts(_ table: KernelTable, depth: Int, _ type: ScalarType) throws {
        let backend = CPUBackend(kernels: table, threads: 2)
        let a = RealMatrix.gaussian(130, depth, seed: 12)
        let b = RealMatrix.gaussian(depth, 40, seed: 13)
        let old = RealMatrix.gaussian(130, 40, seed: 14)
        for beta in [0, 0.7] {
            func bits(_ aLayout: Layout, _ bLayout: Layout, _ cLayout: Layout) throws -> [UInt64] {
                let c = TestMatrix(old, .float32, cLayout)
                try backend.multiply(
                    alpha: 0.3, TestMatrix(a, type, aLayout).view, TestMatrix(b, type, bLayout).view, beta: beta,
                    into: c.view)
                return c.bits
            }
            var results = [try bits(.rowMajor, .rowMajor, .rowMajor)]
            var cases = ["all row-major"]
            for layout in Layout.allCases {
                for cLayout in Layout.allCases {
                    results.append(try bits(layout, .columnMajor, cLayout))
                    cases.append("A \(layout), C \(cLayout)")
                }
            }
            expectSameBits(results, cases: cases, "\(table.name) \(type) depth \(depth) beta \(beta)")
        }
    }

    /// Shapes that the plan treats differently: few rows, few columns, both, a shallow depth and one of several runs.
    @Test(
        arguments: KernelTable.multiplying,
        [(5, 700, 600), (32, 300, 300), (300, 7, 2500), (700, 64, 1100), (17, 19, 900), (260, 700, 33)])
    func skinnyProductsHaveTheBitsOfTheirTransposes(
        table: KernelTable, shape: (rows: Int, columns: Int, depth: Int)
    ) throws {
        for type in [ScalarType.float32, .bfloat16] { try checkTransposes(table, shape, type) }
    }

    private func checkTransposes(
        _ table: KernelTable, _ shape: (rows: Int, columns: Int, depth: Int), _ type: ScalarType
    ) throws {
        let a = RealMatrix.gaussian(shape.rows, shape.depth, seed: 15)
        let b = RealMatrix.gaussian(shape.depth, shape.columns, seed: 16)
        var results: [[UInt64]] = []
        var cases: [String] = []
        for layout in [Layout.rowMajor, .columnMajor, .reversed] {
            let (left, right) = (TestMatrix(a, type, layout), TestMatrix(b, type, layout))
            for threads in [1, 2] {
                let backend = CPUBackend(kernels: table, threads: threads)
                let c = TestMatrix(undefined: shape.rows, shape.columns, .float32)
                try backend.multiply(alpha: 1, left.view, right.view, beta: 0, into: c.view)
                let turned = TestMatrix(undefined: shape.columns, shape.rows, .float32, .columnMajor)
                try backend.multiply(
                    alpha: 1, right.view.transposed, left.view.transposed, beta: 0, into: turned.view)
                let again = TestMatrix(turned.values.transposed, .float32)
                results += [c.bits, again.bits]
                cases += ["\(layout), \(threads) threads", "\(layout), \(threads) threads, transposed"]
            }
        }
        expectSameBits(results, cases: cases, "\(table.name) \(type) \(shape)")
    }

    @Test(arguments: KernelTable.multiplying)
    func productIsOfTheComputeType(table: KernelTable) throws {
        let backend = CPUBackend(kernels: table, threads: 1)
        for (aType, bType, expected) in [
            (ScalarType.float32, ScalarType.float32, ScalarType.float32), (.bfloat16, .float16, .float32),
            (.bfloat16, .float64, .float64), (.float64, .float32, .float64),
        ] {
            let a = TestMatrix(.integers(3, 4, seed: 1), aType)
            let b = TestMatrix(.integers(4, 5, seed: 2), bType)
            for order in [StorageOrder.rowMajor, .columnMajor] {
                let c = try backend.product(a.view, b.view, order: order)
                #expect(c.view.type == expected)
                #expect((order == .rowMajor ? c.view.columnStride : c.view.rowStride) == 1)
                expectEqual(c.values, a.values * b.values, "\(table.name) \(aType) \(bType)")
            }
        }
    }
}
