// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankBackends
import LowRankCore
import TestSupport
import Testing

@Suite struct CPUBackendLAPACKTests {
    private let backend = CPUBackend.shared
    private static let types = [ScalarType.float32, .float64]

    private func matrix(_ values: RealMatrix, _ type: ScalarType, _ order: StorageOrder = .columnMajor) throws -> Matrix
    {
        let source = TestMatrix(values, type)
        let result = try backend.makeMatrix(rows: values.rows, columns: values.columns, type: type, order: order)
        try backend.copy(source.view, to: result.view)
        return result
    }

    @Test(arguments: types, [(1, 1), (5, 1), (1, 6), (30, 30), (60, 21), (21, 60)])
    func svd(type: ScalarType, shape: (m: Int, n: Int)) throws {
        let (m, n) = shape
        let input = try matrix(.gaussian(m, n, seed: 4), type)
        let start = input.values
        let (u, s, vh) = try backend.factorSVD(input)
        let label = "\(type) \(m)x\(n) seed 4"
        let product = u.values.scalingColumns(by: s) * vh.values
        expectSmall((product - start).norm, size: max(m, n), norm: start.norm, type, within: .svd, label)
        for (name, basis) in [("U'U", u.values), ("V'V", vh.values.transposed)] {
            expectSmall(
                (basis.transposed * basis - .identity(min(m, n))).norm, size: max(m, n), norm: 1, type, within: .svd,
                "\(label), \(name)")
        }
        #expect(s == s.sorted(by: >) && s.allSatisfy { $0 >= 0 })
    }

    /// Few eigenpairs and many take different routines.
    @Test(arguments: [(1, 1), (2, 1), (2, 2), (7, 1), (40, 3), (40, 8), (40, 40), (90, 17), (90, 18)])
    func symmetricEigenpairs(size: (n: Int, count: Int)) throws {
        let (n, count) = size
        let half = RealMatrix.gaussian(n, n, seed: 6)
        let symmetric = half + half.transposed
        let label = "\(n)x\(n) \(count) pairs seed 6"
        // What stands above the diagonal is not read.
        let lower = RealMatrix(n, n) { $0 >= $1 ? symmetric[$0, $1] : .nan }
        let (values, z) = try backend.factorSymmetric(matrix(lower, .float64), leading: count)
        let vectors = z.values
        #expect(vectors.rows == n && vectors.columns == count && values == values.sorted(by: >), "\(label)")
        expectSmall(
            (symmetric * vectors - vectors.scalingColumns(by: values)).norm, size: n, norm: symmetric.norm, .float64,
            within: .svd, label)
        expectSmall(
            (vectors.transposed * vectors - .identity(count)).norm, size: n, norm: 1, .float64, within: .svd, label)
        // No larger one is missing.
        let all = try backend.factorSymmetric(matrix(lower, .float64), leading: n).values
        #expect(zip(values, all).allSatisfy { ($0 - $1).magnitude <= 50 * Double(n) * 0x1p-52 * symmetric.norm }, "\(label)")
    }
}
