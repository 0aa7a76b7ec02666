// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankBackends
import LowRankCore
import LowRankFactorizations
import TestSupport
import Testing

/// What an SVD says of itself, and what it does where its parts fail or numbers leave their range.
@Suite struct SVDCheckTests {
    fileprivate static let paths = [TruncatedSVD.Path.dense, .gram, .krylov]

    /// Entries beside the largest and the smallest numbers: sums of products leave the range, the result need not.
    @Test(
        arguments: KernelTable.available,
        [(ScalarType.float32, 3e38), (.float32, 1e-38), (.float32, 1e-42), (.bfloat16, 1e38), (.float16, 3e4),
         (.float64, 1e300), (.float64, 1e160), (.float64, 1e-160), (.float64, 1e-300)])
    func entriesNearTheEndOfTheRange(table: KernelTable, numbers: (type: ScalarType, size: Double)) throws {
        let backend = CPUBackend(kernels: table, threads: 2)
        let unit = RealMatrix.gaussian(60, 45, seed: 1)
        let weight = TestMatrix((numbers.size / unit.maxMagnitude) * unit, numbers.type)
        for path in Self.paths {
            let svd = try TruncatedSVD(of: weight.view, rank: 4, path: path, on: backend)
            checkSVD(
                svd, of: weight.values, rank: 4, tolerance: 1e-4, numbers.type.computeType,
                "\(table.name) \(path) \(numbers)")
        }
    }

    /// A tolerance below 10 rounding units is raised to that, and the result says so.
    @Test(arguments: [ScalarType.float32, .bfloat16, .float16])
    func tolerancesAreRaised(type: ScalarType) throws {
        let weight = TestMatrix(.gaussian(80, 70, seed: 2), type)
        for path in Self.paths {
            let svd = try TruncatedSVD(of: weight.view, rank: 5, tolerance: 1e-12, path: path, on: CPUBackend.shared)
            #expect(svd.tolerance == 10 * ScalarType.float32.epsilon)
            checkSVD(svd, of: weight.values, rank: 5, tolerance: 1e-12, .float32, "\(type) \(path)")
        }
    }

    /// In float64 rounding itself is more than 10 units, and the result says what was reached.
    @Test(arguments: paths)
    func tolerancesBelowWhatFloat64Gives(path: TruncatedSVD.Path) throws {
        let weight = TestMatrix(.gaussian(150, 90, seed: 4), .float64)
        let svd = try TruncatedSVD(of: weight.view, rank: 20, tolerance: 1e-30, path: path, on: CPUBackend.shared)
        #expect(svd.residual <= svd.tolerance && svd.tolerance <= 64 * ScalarType.float64.epsilon)
        #expect(svd.tolerance >= 10 * ScalarType.float64.epsilon)
        checkSVD(svd, of: weight.values, rank: 20, tolerance: nil, .float64, "\(path)")
    }

    /// A factor that is wrong is seen by the check, whatever it came from; the error says how far it got.
    @Test func wrongFactorsAreAnError() {
        let weight = TestMatrix(.gaussian(40, 30, seed: 3))
        for path in Self.paths {
            #expect(
                "\(path)",
                performing: { _ = try TruncatedSVD(of: weight.view, rank: 5, path: path, on: SpoilingBackend()) },
                throws: { error in
                    guard case .numericalFailure("svd", let reason)? = error as? LowRankError else { return false }
                    return reason.hasPrefix("expected residuals of at most tol = 0.0001 of the largest singular value, got 0.")
                        && reason.hasSuffix(" passes over the weight")
                })
        }
    }
}

/// A backend whose SVDs and eigenvectors err.
private struct SpoilingBackend: Backend {
    private let exact = CPUBackend.shared

    func factorSVD(_ matrix: Matrix) throws(LowRankError) -> (u: Matrix, s: [Double], vh: Matrix) {
        let (u, s, vh) = try exact.factorSVD(matrix)
        exact.setValues([0.5], of: u.view[0..<1, 0..<1])
        return (u, s, vh)
    }

    func factorSymmetric(
        _ matrix: Matrix, leading count: Int
    ) throws(LowRankError) -> (values: [Double], vectors: Matrix) {
        let (values, vectors) = try exact.factorSymmetric(matrix, leading: count)
        exact.clear(vectors.view[rows: 0..<8])
        return (values, vectors)
    }

    // The rest is passed on.

    func symmetricEigenvalues(_ matrix: Matrix) throws(LowRankError) -> [Double] {
        try exact.symmetricEigenvalues(matrix)
    }

    func makeMatrix(
        rows: Int, columns: Int, type: ScalarType, order: StorageOrder
    ) throws(LowRankError) -> Matrix {
        try exact.makeMatrix(rows: rows, columns: columns, type: type, order: order)
    }
    func copy(
        _ source: MatrixView, rowFactors: MatrixView?, columnFactors: MatrixView?, to target: MatrixView
    ) throws(LowRankError) {
        try exact.copy(source, rowFactors: rowFactors, columnFactors: columnFactors, to: target)
    }
    func accumulate(_ source: MatrixView, beta: Double, into target: MatrixView) throws(LowRankError) {
        try exact.accumulate(source, beta: beta, into: target)
    }
    func gatherRows(_ indices: ArraySlice<Int>, of source: MatrixView, to target: MatrixView) throws(LowRankError) {
        try exact.gatherRows(indices, of: source, to: target)
    }
    func scatterRows(_ source: MatrixView, to indices: [Int], of target: MatrixView) throws(LowRankError) {
        try exact.scatterRows(source, to: indices, of: target)
    }
    func clear(_ target: MatrixView) { exact.clear(target) }
    func fillUniform(_ target: MatrixView, from stream: RandomStream) { exact.fillUniform(target, from: stream) }
    func values(of vector: MatrixView) -> [Double] { exact.values(of: vector) }
    func setIndices(_ indices: [Int], of vector: MatrixView) { exact.setIndices(indices, of: vector) }
    func setValues(_ values: [Double], of vector: MatrixView) { exact.setValues(values, of: vector) }
    func maxMagnitude(of source: MatrixView) -> Double { exact.maxMagnitude(of: source) }
    func firstNonFinite(in source: MatrixView) -> (row: Int, column: Int)? { exact.firstNonFinite(in: source) }
    func columnDots(_ a: MatrixView, _ b: MatrixView) -> [Double] { exact.columnDots(a, b) }
    func squaredNorm(of source: MatrixView) -> Double { exact.squaredNorm(of: source) }
    func multiply(
        alpha: Double, _ a: MatrixView, _ b: MatrixView, beta: Double, into c: MatrixView
    ) throws(LowRankError) {
        try exact.multiply(alpha: alpha, a, b, beta: beta, into: c)
    }
    func factorQR(_ panel: Matrix, triangle: MatrixView) throws(LowRankError) {
        try exact.factorQR(panel, triangle: triangle)
    }
    func factorLU(_ panel: Matrix) throws(LowRankError) -> [Int] { try exact.factorLU(panel) }
    func solveUnitLower(_ panel: Matrix, _ right: Matrix) throws(LowRankError) {
        try exact.solveUnitLower(panel, right)
    }
}
