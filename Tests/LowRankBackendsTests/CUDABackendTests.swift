// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankBackends
import LowRankCore
import TestSupport
import Testing

/// Every operation on a device does what it does on the CPU. The device is the test double.
@Suite struct CUDABackendTests {
    /// Below and above a block of threads, a tile of a product, and what several tiles share.
    private static let shapes = [(1, 1), (1, 9), (7, 1), (5, 11), (64, 64), (65, 63), (131, 33)]

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

    @Test(arguments: ScalarType.allCases, [9, 300], [false, true])
    func rowsAreGatheredAndScattered(type: ScalarType, rows: Int, isNearlyInOrder: Bool) throws {
        // More rows than one launch takes; a permutation without a pattern, or one that exchanges two rows.
        var order = (0..<rows).map { isNearlyInOrder ? $0 : ($0 * 7 + 3) % rows }
        if isNearlyInOrder { order.swapAt(1, rows - 2) }
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

    /// Around the widths at which the kernels' small matrices change their size or place, and rows around a block's.
    private static let panelShapes = [
        (2, 1), (64, 1), (3, 2), (33, 15), (40, 16), (65, 17), (33, 31), (2100, 32), (129, 33), (64, 63), (65, 64), (66, 65), (300, 256),
    ]

    /// Cholesky's method alone: Householder's would hide that it has failed.
    @Test(arguments: [ScalarType.float32, .bfloat16, .float16], [Layout.rowMajor, .columnMajor, .strided])
    func qrByCholesky(type: ScalarType, layout: Layout) throws {
        for (m, r) in Self.panelShapes where type == .float32 || r <= 64 {
            let values = RealMatrix.gaussian(m, r, seed: 30)
            let results = try compare(
                "\(type) \(layout) \(m)x\(r)", within: .qr,
                [
                    TestMatrix(values, type, layout), TestMatrix(undefined: m, r),
                    TestMatrix(undefined: r, r, .float32, .paddedRows),
                ]
            ) { (backend, m) throws(LowRankError) in
                let panel = try backend.makeMatrix(rows: m[0].rows, columns: r, type: .float32, order: .columnMajor)
                let status = try backend.startQR(of: m[0], into: panel, triangle: m[2])
                try backend.copy(panel.view, to: m[1])
                return status.map { backend.values(of: $0) } ?? []
            }
            #expect(results.got == [0])
        }
    }

    /// Whatever Cholesky's method leaves open is not zero, and Householder's does it.
    @Test(arguments: [Double.nan, .infinity, 0, 1])
    func qrThatIsNotCertain(value: Double) throws {
        for (m, r) in [(12, 9), (70, 64), (90, 70)] {
            var values = RealMatrix.gaussian(m, r, seed: 31)
            // A column that is not finite, is zero, or is another one.
            for i in 0..<m { values[i, r / 2] = value == 1 ? values[i, 0] : value }
            let matrix = TestMatrix(values)
            try CUDADouble.withWarmDevice { (double) throws(LowRankError) in
                let onDevice = DeviceMatrix(matrix, on: double)
                let before = double.calls("cusolverDnSgeqrf")
                try CUDABackend.run(onDevice: 0) { (backend) throws(LowRankError) in
                    let panel = try backend.makeMatrix(rows: m, columns: r, type: .float32, order: .columnMajor)
                    let triangle = try backend.makeMatrix(rows: r, columns: r, type: .float32, order: .rowMajor)
                    let status = try backend.startQR(of: onDevice.view, into: panel, triangle: triangle.view)
                    #expect(status.map { backend.values(of: $0) } == [1])
                    try backend.copy(onDevice.view, to: panel.view)
                    try backend.factorQR(panel, triangle: triangle.view)
                }
                double.run(nil)
                #expect(double.calls("cusolverDnSgeqrf") == before + 1)
            }
        }
    }

    @Test(arguments: [ScalarType.float32, .float64], [Layout.rowMajor, .columnMajor, .strided])
    func luOfPanels(type: ScalarType, layout: Layout) throws {
        for (m, r) in Self.panelShapes where r <= 65 {
            // Of few numbers, so that magnitudes are equal: the first one counts.
            for values in [RealMatrix.gaussian(m, r, seed: 32), .integers(m, r, seed: 33)] {
                let results = try compare(
                    "\(type) \(layout) \(m)x\(r)", within: .ldu,
                    [TestMatrix(values, type, layout), TestMatrix(undefined: m, r, type)]
                ) { (backend, m) throws(LowRankError) in
                    let panel = try backend.makeMatrix(rows: m[0].rows, columns: r, type: type, order: .columnMajor)
                    let found = try backend.factorLU(of: m[0], into: panel)
                    try backend.copy(panel.view, to: m[1])
                    return (found.permutation, found.largest)
                }
                #expect(results.got?.0 == results.expected.0, "\(type) \(m)x\(r)")
                #expect(results.got?.1 == results.expected.1, "\(type) \(m)x\(r)")
            }
        }
        for value in [Double.nan, .infinity] {
            let results = try compare("\(value)", [TestMatrix(RealMatrix(70, 3, repeating: value), type, layout)]) {
                (backend, m) throws(LowRankError) in
                let panel = try backend.makeMatrix(rows: 70, columns: 3, type: type, order: .columnMajor)
                return try backend.factorLU(of: m[0], into: panel).largest.isNaN
            }
            #expect(results.got == true)
        }
    }

    @Test(arguments: ScalarType.allCases, Layout.allCases)
    func answersToQuestions(type: ScalarType, layout: Layout) throws {
        for (rows, columns) in Self.shapes + [(3, 600)] {
            let numbers = RealMatrix.integers(rows, columns, seed: 34)
            var broken = numbers
            broken[rows - 1, columns / 2] = -.infinity
            let results = try compare(
                "\(type) \(layout) \(rows)x\(columns)",
                [TestMatrix(numbers, type, layout), TestMatrix(broken, type, layout)]
            ) { (backend, m) throws(LowRankError) -> [[Double]] in
                // More than a launch takes, and one of nothing.
                let questions = [m[0], m[1], m[0][rows: 0..<0]].flatMap {
                    [Question.elements($0), .isFinite($0), .largestMagnitude($0), .largestColumnSquare($0)]
                }
                return backend.answers(to: questions).map { $0.map { $0.isNaN ? -1 : $0 } }
            }
            #expect(results.got == results.expected, "\(type) \(layout) \(rows)x\(columns)")
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
