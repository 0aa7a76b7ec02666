// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankBackends
import LowRankCore
import LowRankFactorizations
import TestSupport
import Testing

/// Checks what holds for every weight: residuals within the tolerance (for the dense path within rounding), orthonormal
/// vectors, descending values, the rule of signs.
func checkSVD(
    _ svd: TruncatedSVD, of weight: RealMatrix, rank: Int, tolerance: Double?, _ type: ScalarType, _ label: String
) {
    let (u, s, v) = (svd.u.values, svd.s, svd.vh.values.transposed)
    let size = max(weight.rows, weight.columns)
    #expect(u.rows == weight.rows && u.columns == rank && v.rows == weight.columns && v.columns == rank, "\(label)")
    #expect(s.count == rank && s == s.sorted(by: >) && s.allSatisfy { $0 >= 0 }, "\(label): S \(s)")
    #expect(svd.passes >= 3, "\(label): the check alone takes two passes")
    for (name, basis) in [("U'U", u), ("V'V", v)] {
        expectSmall(
            (basis.transposed * basis - .identity(rank)).norm, size: size, norm: 1, type, within: .svd,
            "\(label), \(name)")
    }
    var worst = 0.0
    let residuals = [weight * v - u.scalingColumns(by: s), weight.transposed * u - v.scalingColumns(by: s)]
    for (name, residual) in zip(["W v - s u", "W'u - s v"], residuals) {
        let largest = residual.columnNorms.max() ?? 0
        worst = max(worst, largest)
        if let tolerance {
            let bound = max(tolerance, 10 * type.epsilon) * s[0]
            #expect(largest <= bound, "\(label): \(name) is \(largest), more than \(bound)")
        } else {
            expectSmall(largest, size: size, norm: weight.norm, type, within: .svd, "\(label), \(name)")
        }
    }
    #expect(svd.residual <= svd.tolerance, "\(label)")
    if let tolerance { #expect(svd.tolerance == max(tolerance, 10 * type.epsilon), "\(label)") }
    expectSmall(
        (worst - svd.residual * s[0]).magnitude, size: size, norm: weight.norm, type, within: .svd,
        "\(label), the residual that was reported, \(svd.residual)")
    for j in 0..<rank {
        let column = u.column(j)
        let largest = column.reduce(0.0) { $1.magnitude > $0.magnitude ? $1 : $0 }
        #expect(largest > 0, "\(label): the largest entry of column \(j) of U is \(largest)")
    }
}

@Suite struct TruncatedSVDTests {
    private static let shapes: [(m: Int, n: Int, ranks: [Int])] = [
        (1, 1, [1]), (1, 9, [1]), (9, 1, [1]), (2, 3, [1, 2]), (20, 20, [1, 7, 20]), (61, 17, [1, 5, 17]),
        (17, 61, [1, 5, 17]),
    ]

    @Test(arguments: KernelTable.available, ScalarType.allCases)
    func shapesRanksAndLayouts(table: KernelTable, type: ScalarType) throws {
        let backend = CPUBackend(kernels: table, threads: 2)
        for (m, n, ranks) in Self.shapes {
            for rank in ranks {
                for layout in Layout.allCases {
                    let weight = TestMatrix(.gaussian(m, n, seed: 1), type, layout)
                    let before = weight.bits
                    let label = "\(table.name) \(type) \(m)x\(n) rank \(rank) \(layout) seed 1"
                    let svd = try TruncatedSVD(of: weight.view, rank: rank, on: backend)
                    #expect(svd.u.view.type == type.computeType && svd.vh.view.type == type.computeType)
                    #expect(svd.u.view.rowStride == 1 && svd.vh.view.columnStride == 1, "\(label)")
                    checkSVD(svd, of: weight.values, rank: rank, tolerance: nil, type.computeType, label)
                    if rank == min(m, n) {
                        let product = svd.u.values.scalingColumns(by: svd.s) * svd.vh.values
                        expectSmall(
                            (product - weight.values).norm, size: max(m, n), norm: weight.values.norm, type.computeType,
                            within: .svd, "\(label), W = U S V'")
                    }
                    #expect(weight.bits == before, "\(label): the weight was written")
                    expectIntactGuard(weight, label: label)
                }
            }
        }
    }

    @Test(arguments: KernelTable.available, [ScalarType.float32, .float64, .bfloat16])
    func knownSpectrum(table: KernelTable, type: ScalarType) throws {
        let backend = CPUBackend(kernels: table, threads: 2)
        let spectrum = (0..<12).map { 10 / Double(1 + $0) }
        let weight = TestMatrix(.withSpectrum(spectrum, 30, 22, seed: 2), type)
        let svd = try TruncatedSVD(of: weight.view, rank: 12, on: backend)
        let difference = zip(svd.s, spectrum).map { ($0 - $1).magnitude }.max() ?? 0
        // The weight itself is rounded to its type.
        expectSmall(difference, size: 30, norm: weight.values.norm, type, within: .svd, "\(table.name) \(type) seed 2")
    }

    @Test(arguments: KernelTable.available, [ScalarType.float32, .float64])
    func truncatedFactorsLeadThoseOfFullRank(table: KernelTable, type: ScalarType) throws {
        let backend = CPUBackend(kernels: table, threads: 2)
        let spectrum = (0..<15).map { Double(30 - 2 * $0) }
        let weight = TestMatrix(.withSpectrum(spectrum, 40, 15, seed: 3), type)
        let full = try TruncatedSVD(of: weight.view, rank: 15, on: backend)
        for rank in [1, 6, 14] {
            let part = try TruncatedSVD(of: weight.view, rank: rank, on: backend)
            let label = "\(table.name) \(type) rank \(rank) seed 3"
            // Gaps of 2 among values up to 30: vectors are determined, sign included.
            expectSmall(
                (part.u.values - full.u.values.columns(0..<rank)).norm, size: 40, norm: 15, type, within: .svd,
                "\(label), U")
            expectSmall(
                (part.vh.values - full.vh.values.rows(0..<rank)).norm, size: 40, norm: 15, type, within: .svd,
                "\(label), V")
            #expect(zip(part.s, full.s).allSatisfy { $0 == $1 }, "\(label), S")
        }
    }

    @Test(arguments: KernelTable.available, [ScalarType.float32, .bfloat16, .float16])
    func agreesWithFloat64(table: KernelTable, type: ScalarType) throws {
        let backend = CPUBackend(kernels: table, threads: 2)
        let weight = TestMatrix(.gaussian(40, 25, seed: 4), type)
        let exact = TestMatrix(weight.values, .float64)
        let narrow = try TruncatedSVD(of: weight.view, rank: 25, on: backend)
        let wide = try TruncatedSVD(of: exact.view, rank: 25, on: backend)
        let difference = zip(narrow.s, wide.s).map { ($0 - $1).magnitude }.max() ?? 0
        expectSmall(difference, size: 40, norm: wide.s[0], .float32, within: .svd, "\(table.name) \(type) S, seed 4")
    }

    @Test(arguments: KernelTable.available, [ScalarType.float32, .float64])
    func deficientWeights(table: KernelTable, type: ScalarType) throws {
        let backend = CPUBackend(kernels: table, threads: 2)
        let (m, n, rank) = (24, 18, 8)
        for (name, values) in [
            ("zero matrix", RealMatrix(m, n, repeating: 0)),
            ("rank 3", .gaussian(m, 3, seed: 5) * .gaussian(3, n, seed: 6)),
            ("equal columns", RealMatrix(m, n) { i, _ in Double(i - 7) }),
            ("one entry", RealMatrix(m, n) { $0 == 11 && $1 == 4 ? -2 : 0 }),
            ("identity", RealMatrix(m, n) { $0 == $1 ? 1 : 0 }),
        ] {
            let weight = TestMatrix(values, type)
            let svd = try TruncatedSVD(of: weight.view, rank: rank, on: backend)
            checkSVD(svd, of: weight.values, rank: rank, tolerance: nil, type, "\(table.name) \(type) \(name)")
        }
    }

    @Test(arguments: [0, -1e-4, 1, 2, .infinity, -.infinity, .nan] as [Double])
    func tolerancesOutOfRange(tolerance: Double) {
        let weight = TestMatrix(.gaussian(6, 5, seed: 7))
        #expect(
            throws: LowRankError.invalidArgument(argument: "tol", expected: "0 < tol < 1", got: "\(tolerance)")
        ) {
            try TruncatedSVD(of: weight.view, rank: 2, tolerance: tolerance, on: CPUBackend.shared)
        }
    }
}
