// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankBackends
import LowRankCore
import TestSupport
import Testing

/// Own kernels for panels, and what the host asks about them.
extension CUDABackendTests {
    /// Around the widths at which the kernels' small matrices change their size or place, and rows around a block's.
    private static let panelShapes = [
        (2, 1), (64, 1), (3, 2), (33, 15), (40, 16), (65, 17), (33, 31), (2100, 32), (129, 33), (64, 63), (65, 64), (66, 65), (140, 130), (300, 256),
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
        for (m, r) in Self.panelShapes where r <= 130 {
            // Of few numbers, so that magnitudes are equal: the first one counts. In many columns rounding would decide.
            // Nor does the first row count once it has been exchanged with the last.
            let exchanged = RealMatrix(3, 2) { i, j in (i == 2) == (j == 0) ? 2 : 0 }
            for values in [RealMatrix.gaussian(m, r, seed: 32), .integers(m, min(r, 17), seed: 33), exchanged] {
                let r = values.columns
                let results = try compare(
                    "\(type) \(layout) \(m)x\(r)", within: .ldu,
                    [TestMatrix(values, type, layout), TestMatrix(undefined: values.rows, r, type)]
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
}
