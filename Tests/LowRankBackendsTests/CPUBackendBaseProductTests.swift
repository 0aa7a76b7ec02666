// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import CLAPACK
import LowRankBackends
import LowRankCore
import TestSupport
import Testing

/// Products by OpenBLAS, cut into slices of the result and run on several threads.
@Suite struct CPUBackendBaseProductTests {
    private func check(
        rows: Int, columns: Int, depth: Int, withBias: Bool,
        layouts: (x: Layout, weight: Layout, out: Layout) = (.rowMajor, .rowMajor, .rowMajor)
    ) throws {
        let seed = UInt64(rows * 1_000_000 + columns * 1000 + depth)
        let x = TestMatrix(.integers(rows, depth, seed: seed), .float32, layouts.x)
        let weight = TestMatrix(.integers(columns, depth, seed: seed + 1), .float32, layouts.weight)
        let bias = TestMatrix(.integers(1, columns, seed: seed + 2), .float32, layouts.x)
        let out = TestMatrix(undefined: rows, columns, .float32, layouts.out)
        let backend = CPUBackend(kernels: .current, threads: 2)
        try backend.baseProduct(x.view, weight.view, bias: withBias ? bias.view : nil, into: out.view)
        let label = "\(rows)x\(columns)x\(depth) \(layouts) bias \(withBias) seed \(seed)"
        let product = x.values * weight.values.transposed
        let ones = RealMatrix(rows, 1, repeating: 1)
        expectEqual(out.values, withBias ? product + ones * bias.values : product, label)
        expectIntactGuard(x, weight, bias, out, label: label)
    }

    @Test(arguments: [false, true])
    func smallProductsAreExact(withBias: Bool) throws {
        for (rows, columns) in [(1, 1), (1, 9), (9, 1), (2, 3), (15, 17), (16, 16), (33, 47)] {
            for depth in [1, 2, 7, 64] { try check(rows: rows, columns: columns, depth: depth, withBias: withBias) }
        }
    }

    @Test(arguments: [false, true])
    func emptyProducts(withBias: Bool) throws {
        for (rows, columns, depth) in [(0, 3, 4), (3, 0, 4), (0, 0, 0), (3, 4, 0), (1, 1, 0)] {
            try check(rows: rows, columns: columns, depth: depth, withBias: withBias)
        }
    }

    /// Above a million multiplications there are several slices, also ragged ones.
    @Test(arguments: [(300, 530, 20), (530, 300, 20), (1, 1100, 1000), (1100, 1, 1000), (1030, 40, 30), (290, 290, 17)])
    func slicesMakeOneProduct(rows: Int, columns: Int, depth: Int) throws {
        for withBias in [false, true] { try check(rows: rows, columns: columns, depth: depth, withBias: withBias) }
    }

    @Test(arguments: Layout.allCases, Layout.allCases)
    func layouts(layout: Layout, outLayout: Layout) throws {
        for weightLayout in Layout.allCases {
            try check(rows: 7, columns: 9, depth: 5, withBias: true, layouts: (layout, weightLayout, outLayout))
        }
        for (rows, columns, depth) in [(1, 9, 5), (7, 1, 5), (7, 9, 1), (270, 530, 9)] {
            try check(
                rows: rows, columns: columns, depth: depth, withBias: true, layouts: (layout, layout, outLayout))
        }
    }

    /// As the gradient of a sum is.
    @Test func repeatedElements() throws {
        let one = TestMatrix(RealMatrix(1, 1, repeating: 3))
        let x = MatrixView(address: one.view.address, type: .float32, rows: 4, columns: 5, rowStride: 0, columnStride: 0)
        let weight = TestMatrix(.integers(6, 5, seed: 1))
        let out = TestMatrix(undefined: 4, 6)
        try CPUBackend.shared.baseProduct(x, weight.view, bias: nil, into: out.view)
        expectEqual(out.values, RealMatrix(4, 5, repeating: 3) * weight.values.transposed, "one number")
    }

    @Test func roundingIsThatOfFloat32() throws {
        for (rows, columns, depth) in [(7, 9, 400), (130, 280, 600)] {
            let x = TestMatrix(.gaussian(rows, depth, seed: 7))
            let weight = TestMatrix(.gaussian(columns, depth, seed: 8))
            let out = TestMatrix(undefined: rows, columns)
            try CPUBackend.shared.baseProduct(x.view, weight.view, bias: nil, into: out.view)
            let (left, right) = (x.values.transposed, weight.values.transposed)
            expectSmall(
                (out.values - left.transposed * right).maxMagnitude, size: depth,
                norm: left.columnNorms.max()! * right.columnNorms.max()!, .float32, within: .product,
                "\(rows)x\(columns)x\(depth) seeds 7, 8")
        }
    }

    @Test func numbersThatAreNotFiniteStayInTheirRows() throws {
        for value in [Double.nan, .infinity] {
            let values = RealMatrix(3, 4) { $0 == 1 && $1 == 2 ? value : 1 }
            let out = TestMatrix(undefined: 3, 5)
            let weight = TestMatrix(RealMatrix(5, 4, repeating: 2))
            try CPUBackend.shared.baseProduct(TestMatrix(values).view, weight.view, bias: nil, into: out.view)
            for j in 0..<5 {
                #expect(out.values[0, j] == 8 && out.values[2, j] == 8)
                #expect(value.isNaN ? out.values[1, j].isNaN : out.values[1, j] == value)
            }
        }
    }

    @Test(arguments: [(260, 1040, 300), (700, 520, 70), (3, 1100, 800)])
    func bitsDoNotDependOnThreads(rows: Int, columns: Int, depth: Int) throws {
        let slices = ProductSlices(rows: rows, columns: columns, depth: depth, processors: ProductSlices.processors)
        #expect(slices.count > 1 || ProductSlices.processors == 1)
        let x = TestMatrix(.gaussian(rows, depth, seed: 9))
        let weight = TestMatrix(.gaussian(columns, depth, seed: 10))
        let results = try [1, 2, 3, 4, 8].map { threads in
            let out = TestMatrix(undefined: rows, columns)
            let backend = CPUBackend(kernels: .current, threads: threads)
            try backend.baseProduct(x.view, weight.view, bias: nil, into: out.view)
            return out.bits
        }
        expectSameBits(results, cases: [1, 2, 3, 4, 8].map { "\($0) threads" }, "\(rows)x\(columns)x\(depth)")
    }

    @Test func openBLASGetsItsThreadsBack() async {
        await #expect(processExitsWith: .success) {
            openblas_set_num_threads(2)
            let threads = openblas_get_num_threads()
            let x = try CPUBackend.shared.makeMatrix(rows: 300, columns: 300, type: .float32, order: .rowMajor)
            CPUBackend.shared.clear(x.view)
            let out = try CPUBackend.shared.makeMatrix(rows: 300, columns: 300, type: .float32, order: .rowMajor)
            try CPUBackend.shared.baseProduct(x.view, x.view, bias: nil, into: out.view)
            precondition(openblas_get_num_threads() == threads)
        }
    }
}

@Suite struct ProductSlicesTests {
    @Test(arguments: [1, 2, 3, 4, 16, 64, 100])
    func slicesCoverTheResultOnce(processors: Int) {
        for rows in [1, 15, 256, 257, 1000, 1024, 1025, 4096] {
            for columns in [1, 16, 300, 2048, 3072, 11008] {
                let slices = ProductSlices(rows: rows, columns: columns, depth: 4096, processors: processors)
                let label = "\(rows)x\(columns) for \(processors) processors"
                var area = 0
                var corners: Set<[Int]> = []
                for index in 0..<slices.count {
                    let (down, across) = slices[index]
                    area += down.count * across.count
                    corners.insert([down.lowerBound, across.lowerBound])
                    #expect(down.upperBound <= rows && across.upperBound <= columns, "\(label)")
                    #expect(!down.isEmpty && !across.isEmpty, "\(label)")
                    #expect(down.count <= 1024 + 16 && across.count <= 2048 + 16, "\(label)")
                    // Whole tiles, but for the last.
                    #expect(down.lowerBound % 16 == 0 && across.lowerBound % 16 == 0, "\(label)")
                }
                #expect(area == rows * columns && corners.count == slices.count, "\(label)")
            }
        }
    }

    @Test func everyProcessorHasAShare() {
        for processors in [1, 2, 4, 8, 16, 64] {
            for columns in [1536, 2048, 4096, 11008] {
                let count = ProductSlices(rows: 4096, columns: columns, depth: 4096, processors: processors).count
                #expect(count >= processors, "\(columns) columns, \(processors) processors: \(count)")
            }
        }
        #expect(ProductSlices(rows: 1024, columns: 4096, depth: 4096, processors: 2).count == 2)
        #expect(ProductSlices(rows: 1024, columns: 6144, depth: 4096, processors: 2).count == 4)
        #expect(ProductSlices(rows: 128, columns: 128, depth: 32, processors: 64).count == 1)
    }
}
