// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankBackends
import LowRankCore
import TestSupport
import Testing

/// Every operation on a device does what it does on the CPU. The device is the test double.
@Suite struct CUDABackendTests {
    /// Below and above a block of threads, a tile of a product, and what several tiles share.
    static let shapes = [(1, 1), (1, 9), (7, 1), (5, 11), (64, 64), (65, 63), (131, 33)]

    private static let reference = CPUBackend(kernels: .reference, threads: 1)

    /// Runs the body on the CPU and on a device with the same matrices, and expects the same numbers in all of them.
    ///
    /// - Parameters:
    ///   - limit: Nil for equal numbers.
    ///   - depth: Of sums, where that is more than the matrices' own size.
    ///   - unit: What residuals are measured by in place of those sizes.
    func compare<Result>(
        _ label: String, within limit: Limit? = nil, depth: Int = 1, unit: Int? = nil,
        _ make: @autoclosure () -> [TestMatrix],
        sourceLocation: SourceLocation = #_sourceLocation,
        _ body: (any Backend, [MatrixView]) throws(LowRankError) -> Result
    ) throws -> (expected: Result, got: Result?) {
        let (expected, got) = (make(), make())
        let wanted = try body(Self.reference, expected.map(\.view))
        var result: Result?
        try CUDADouble.withWarmDevice(sourceLocation: sourceLocation) { (double) throws(LowRankError) in
            let onDevice = got.map { DeviceMatrix($0, on: double) }
            try CUDABackend.run(onDevice: 0) { (backend) throws(LowRankError) in
                result = try body(backend, onDevice.map(\.view))
            }
            double.run(nil)
            for matrix in onDevice { matrix.download() }
        }
        for (i, (matrix, host)) in zip(got, expected).enumerated() {
            let label = "\(label), matrix \(i)"
            if let limit {
                let (rows, columns) = (host.values.rows, host.values.columns)
                expectSmall(
                    (matrix.values - host.values).norm, size: unit ?? max(rows, columns, depth), norm: host.values.norm,
                    host.view.type,
                    within: limit, label, sourceLocation: sourceLocation)
            } else {
                expectEqual(matrix.values, host.values, label, sourceLocation: sourceLocation)
            }
            expectIntactGuard(matrix, label: label, sourceLocation: sourceLocation)
        }
        return (wanted, result)
    }

    @Test(arguments: ScalarType.allCases, Layout.allCases)
    func copyAndAccumulate(type: ScalarType, layout: Layout) throws {
        for (rows, columns) in Self.shapes {
            let label = "\(type) \(layout) \(rows)x\(columns)"
            for target in [ScalarType.float32, type] {
                _ = try compare(
                    "\(label) to \(target), factors",
                    [
                        TestMatrix(.integers(rows, columns, seed: 1), type, layout),
                        TestMatrix(.integers(rows, 1, seed: 2), type, .strided),
                        TestMatrix(.integers(1, columns, seed: 3), .float32, .reversed),
                        TestMatrix(undefined: rows, columns, target, .columnMajor),
                    ]
                ) { (backend, m) throws(LowRankError) in
                    try backend.copy(m[0], rowFactors: m[1], columnFactors: m[2], to: m[3])
                }
            }
            _ = try compare(
                "\(label), conversions",
                [
                    TestMatrix(.gaussian(rows, columns, seed: 4), .float32, .paddedColumns),
                    TestMatrix(undefined: rows, columns, type, layout),
                    TestMatrix(.integers(rows, columns, seed: 5), type, .paddedRows),
                ]
            ) { (backend, m) throws(LowRankError) in
                try backend.copy(m[0], to: m[1])
                try backend.accumulate(m[1], beta: -0.5, into: m[2])
            }
        }
    }

    /// Every number of a 16-bit type, and float32's that lie between two.
    @Test(arguments: [ScalarType.bfloat16, .float16])
    func conversionsOfAllNumbers(type: ScalarType) throws {
        let numbers = type.numbersAndTies.map { Double($0) }
        let source = RealMatrix(rows: 1, columns: numbers.count, values: numbers)
        _ = try compare(
            "\(type)",
            [
                TestMatrix(source), TestMatrix(undefined: 1, numbers.count, type),
                TestMatrix(undefined: 1, numbers.count),
            ]
        ) { (backend, m) throws(LowRankError) in
            try backend.copy(m[0], to: m[1])
            try backend.copy(m[1], to: m[2])
        }
        // NaNs stay NaNs, whatever else they hold.
        let bits: [UInt64] = [0x7f80_0001, 0xff80_0001, 0x7fff_ffff, 0xffff_ffff, 0x7fc0_0000]
        _ = try compare(
            "\(type), NaNs",
            [TestMatrix(bits: bits, columns: 5, .float32), TestMatrix(RealMatrix(1, 5, repeating: 0), type)]
        ) {
            (backend, m) throws(LowRankError) in try backend.copy(m[0], to: m[1])
        }
    }

    @Test(arguments: ScalarType.allCases, [9, 300])
    func rowsAreGatheredAndScattered(type: ScalarType, rows: Int) throws {
        // More rows than one launch takes: a permutation without a pattern, and one that exchanges two rows.
        var nearlyInOrder = Array(0..<rows)
        nearlyInOrder.swapAt(1, rows - 2)
        for order in [(0..<rows).map { ($0 * 7 + 3) % rows }, nearlyInOrder] {
            _ = try compare(
                "\(type) \(rows)",
                [
                    TestMatrix(.integers(rows, 5, seed: 6), type, .columnMajor),
                    TestMatrix(undefined: rows, 5, .float64, .strided),
                    TestMatrix(undefined: rows, 5, type, .reversed), TestMatrix(undefined: rows - 1, 5, type),
                ]
            ) { (backend, m) throws(LowRankError) in
                try backend.gatherRows(order[...], of: m[0], to: m[1])
                try backend.scatterRows(m[0], to: order, of: m[2])
                try backend.gatherRows(order[1...], of: m[0], to: m[3])
            }
        }
    }

    @Test(arguments: ScalarType.allCases, Layout.allCases)
    func fillsAndVectors(type: ScalarType, layout: Layout) throws {
        for (rows, columns) in Self.shapes {
            let numbers = (0..<min(rows, columns)).map { Double($0 % 9) - 4 }
            let (expected, read) = try compare(
                "\(type) \(layout) \(rows)x\(columns)",
                [
                    TestMatrix(undefined: rows, columns, type, layout),
                    TestMatrix(.gaussian(rows, columns, seed: 7), type, layout),
                    TestMatrix(.gaussian(rows, columns, seed: 8), type, layout),
                ]
            ) { (backend, m) throws(LowRankError) in
                backend.fillUniform(m[0], from: RandomStream(seed: 42))
                backend.clear(m[1][0..<rows / 2 + 1, columns / 2..<columns])
                backend.setValues(numbers, of: m[2].diagonal)
                return backend.values(of: m[0].diagonal)
            }
            #expect(read == expected)
        }
        // More values than one launch takes.
        let (expected, read) = try compare("700 values", [TestMatrix(undefined: 1, 700, type, .strided)]) {
            (backend, m) throws(LowRankError) in
            backend.setValues((0..<700).map { Double($0 % 100) }, of: m[0])
            return backend.values(of: m[0])
        }
        #expect(read == expected)
    }

    @Test func indicesAreWritten() throws {
        let vector = TestMatrix(undefined: 1, 5, .float64, .reversed)
        try CUDADouble.withWarmDevice { (double) throws(LowRankError) in
            let onDevice = DeviceMatrix(vector, on: double)
            try CUDABackend.run(onDevice: 0) { (backend) throws(LowRankError) in
                try backend.setIndices([3, 0, -1, 1 << 40, 7], of: onDevice.view)
            }
            double.run(nil)
            onDevice.download()
        }
        #expect(vector.bits.map { Int(bitPattern: UInt($0)) } == [3, 0, -1, 1 << 40, 7])
    }

    @Test(arguments: ScalarType.allCases, Layout.allCases)
    func reductions(type: ScalarType, layout: Layout) throws {
        // The last shape needs several blocks for a reduction, and several chunks of rows for dots.
        for (rows, columns) in Self.shapes + [(1100, 9)] {
            let label = "\(type) \(layout) \(rows)x\(columns)"
            let numbers = RealMatrix.integers(rows, columns, seed: 9)
            var broken = numbers
            broken[rows - 1, 0] = .infinity
            broken[rows / 2, columns - 1] = .nan
            let results = try compare(
                label,
                [
                    TestMatrix(numbers, type, layout), TestMatrix(broken, type, layout),
                    TestMatrix(undefined: 1, columns, .float64, .strided),
                ]
            ) { (backend, m) throws(LowRankError) -> [[Double]] in
                try backend.columnDots(m[0], m[0], scale: 0.5, into: m[2])
                let found = [m[0], m[1]].map { backend.firstNonFinite(in: $0) ?? (-1, -1) }
                return [
                    [backend.maxMagnitude(of: m[0]), backend.squaredNorm(of: m[0])], backend.columnDots(m[0], m[0]),
                    [backend.maxMagnitude(of: m[1])].map { $0.isNaN ? 1 : 0 },
                    found.flatMap { [Double($0.row), Double($0.column)] },
                ]
            }
            #expect(results.got == results.expected, "\(label)")
        }
    }

    // MARK: Factorisations

    /// Random, square, identity, triangular, with zero columns, and rank-deficient panels, for LAPACK's signs.
    private static let panels: [(name: String, values: RealMatrix)] = {
        let random = RealMatrix.gaussian(70, 9, seed: 15)
        let square = RealMatrix.gaussian(12, 12, seed: 16)
        return [
            ("random", random), ("tall", .gaussian(300, 33, seed: 17)), ("square", square),
            ("one column", .gaussian(5, 1, seed: 18)),
            ("one by one", RealMatrix(1, 1, repeating: -2)), ("identity", RealMatrix(20, 6) { $0 == $1 ? 1 : 0 }),
            ("negative identity", RealMatrix(20, 6) { $0 == $1 ? -1 : 0 }),
            ("triangular", RealMatrix(12, 12) { $0 <= $1 ? square[$0, $1] : 0 }),
            ("sparse", RealMatrix(70, 9) { ($0 + $1) % 3 == 0 ? random[$0, $1] : 0 }),
            ("steep", RealMatrix(70, 9) { random[$0, $1] * Double(sign: .plus, exponent: -3 * $1, significand: 1) }),
        ]
    }()

    @Test(arguments: [ScalarType.float32, .float64])
    func qr(type: ScalarType) throws {
        for (name, values) in Self.panels {
            let r = values.columns
            _ = try compare(
                "\(name) \(type)", within: .qr,
                [
                    TestMatrix(values, type), TestMatrix(undefined: values.rows, r, type),
                    TestMatrix(undefined: r, r, type, .paddedRows),
                ]
            ) { (backend, m) throws(LowRankError) in
                let panel = try backend.makeMatrix(rows: values.rows, columns: r, type: type, order: .columnMajor)
                try backend.copy(m[0], to: panel.view)
                try backend.factorQR(panel, triangle: m[2])
                try backend.copy(panel.view, to: m[1])
            }
        }
    }

    @Test(arguments: [ScalarType.float32, .float64])
    func luAndSolve(type: ScalarType) throws {
        for (name, values) in Self.panels {
            let r = values.columns
            let results = try compare(
                "\(name) \(type)", within: .ldu,
                [
                    TestMatrix(values, type), TestMatrix(undefined: values.rows, r, type),
                    TestMatrix(.gaussian(r, 37, seed: 19), type),
                ]
            ) { (backend, m) throws(LowRankError) in
                let panel = try backend.makeMatrix(rows: values.rows, columns: r, type: type, order: .columnMajor)
                try backend.copy(m[0], to: panel.view)
                let permutation = try backend.factorLU(panel)
                let right = try backend.makeMatrix(rows: r, columns: 37, type: type, order: .rowMajor)
                try backend.copy(m[2], to: right.view)
                try backend.solveUnitLower(panel, right)
                try backend.copy(right.view, to: m[2])
                try backend.copy(panel.view, to: m[1])
                return permutation
            }
            #expect(results.got == results.expected, "\(name) \(type)")
        }
    }

    @Test func smallDenseProblems() throws {
        let values = RealMatrix.gaussian(9, 6, seed: 20)
        let symmetric = values * values.transposed
        let results = try compare(
            "gaussian", within: .svd,
            [
                TestMatrix(values, .float64), TestMatrix(undefined: 9, 6, .float64), TestMatrix(symmetric, .float64),
                TestMatrix(undefined: 9, 3, .float64),
            ]
        ) { (backend, m) throws(LowRankError) in
            let matrix = try backend.makeMatrix(rows: 9, columns: 6, type: .float64, order: .columnMajor)
            try backend.copy(m[0], to: matrix.view)
            let found = try backend.factorSVD(matrix)
            try backend.copy(found.u.view, rowFactors: nil, columnFactors: nil, to: m[1])
            let square = try backend.makeMatrix(rows: 9, columns: 9, type: .float64, order: .columnMajor)
            try backend.copy(m[2], to: square.view)
            let pairs = try backend.factorSymmetric(square, leading: 3)
            try backend.copy(pairs.vectors.view, to: m[3])
            try backend.copy(m[2], to: square.view)
            return found.s + pairs.values + (try backend.symmetricEigenvalues(square))
        }
        #expect(results.got == results.expected)
    }
}
