// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankBackends
import LowRankCore
import LowRankFactorizations
import TestSupport
import Testing

@Suite struct TruncatedQRTests {
    /// Shapes with the ranks to try.
    private static let shapes: [(m: Int, n: Int, ranks: [Int])] = [
        (1, 1, [1]), (1, 9, [1]), (9, 1, [1]), (2, 3, [1, 2]), (20, 20, [1, 7, 20]), (61, 17, [1, 5, 17]),
        (17, 61, [1, 5, 17]), (130, 70, [33]),
    ]

    /// Checks what holds for every weight and rank.
    private func check(_ qr: TruncatedQR, of weight: RealMatrix, rank: Int, _ type: ScalarType, _ label: String) {
        let (q, r) = (qr.q.values, qr.r.values)
        let (m, n) = (weight.rows, weight.columns)
        let size = max(m, n)
        #expect(q.rows == m && q.columns == rank && r.rows == rank && r.columns == n, "\(label)")
        expectSmall((q.transposed * q - .identity(rank)).norm, size: size, norm: 1, type, within: .qr, "\(label), Q'Q")
        let panel = weight.columns(0..<rank)
        expectSmall(
            (q * r.columns(0..<rank) - panel).norm, size: size, norm: panel.norm, type, within: .qr, "\(label), panel")
        let rest = weight.columns(rank..<n)
        expectSmall(
            (q.transposed * rest - r.columns(rank..<n)).norm, size: size, norm: rest.norm, type, within: .qr,
            "\(label), rest of R")
        if rank == min(m, n) {
            expectSmall((q * r - weight).norm, size: size, norm: weight.norm, type, within: .qr, "\(label), W = QR")
        }
        let below = (0..<rank).flatMap { i in (0..<i).map { r[i, $0] } }
        #expect(below.allSatisfy { $0 == 0 }, "\(label): R below its diagonal")
    }

    @Test(arguments: KernelTable.available, ScalarType.allCases)
    func shapesRanksAndLayouts(table: KernelTable, type: ScalarType) throws {
        let backend = CPUBackend(kernels: table, threads: 2)
        for (m, n, ranks) in Self.shapes {
            for rank in ranks {
                for layout in Layout.allCases {
                    let weight = TestMatrix(.gaussian(m, n, seed: 1), type, layout)
                    let before = weight.bits
                    let label = "\(table.name) \(type) \(m)x\(n) rank \(rank) \(layout) seed 1"
                    let qr = try TruncatedQR(of: weight.view, rank: rank, on: backend)
                    #expect(qr.q.view.type == type.computeType && qr.r.view.type == type.computeType)
                    #expect(qr.q.view.rowStride == 1 && qr.r.view.columnStride == 1, "\(label)")
                    check(qr, of: weight.values, rank: rank, type.computeType, label)
                    #expect(weight.bits == before, "\(label): the weight was written")
                    expectIntactGuard(weight, label: label)
                }
            }
        }
    }

    @Test(arguments: KernelTable.available, [ScalarType.float32, .float64])
    func truncatedFactorsLeadThoseOfFullRank(table: KernelTable, type: ScalarType) throws {
        let backend = CPUBackend(kernels: table, threads: 2)
        for (m, n) in [(40, 25), (25, 40), (30, 30)] {
            let weight = TestMatrix(.gaussian(m, n, seed: 2), type)
            let full = try TruncatedQR(of: weight.view, rank: min(m, n), on: backend)
            for rank in [1, 6, 20] {
                let part = try TruncatedQR(of: weight.view, rank: rank, on: backend)
                let label = "\(table.name) \(type) \(m)x\(n) rank \(rank) seed 2"
                let q = full.q.values.columns(0..<rank)
                let r = full.r.values.rows(0..<rank)
                expectSmall((part.q.values - q).norm, size: max(m, n), norm: q.norm, type, within: .qr, "\(label), Q")
                expectSmall((part.r.values - r).norm, size: max(m, n), norm: r.norm, type, within: .qr, "\(label), R")
            }
        }
    }

    @Test(arguments: KernelTable.available, [ScalarType.float32, .bfloat16, .float16])
    func agreesWithFloat64(table: KernelTable, type: ScalarType) throws {
        let backend = CPUBackend(kernels: table, threads: 2)
        for (m, n, rank) in [(40, 25, 8), (25, 40, 25)] {
            let weight = TestMatrix(.gaussian(m, n, seed: 3), type)
            let exact = TestMatrix(weight.values, .float64)
            let wide = try TruncatedQR(of: exact.view, rank: rank, on: backend)
            let narrow = try TruncatedQR(of: weight.view, rank: rank, on: backend)
            let label = "\(table.name) \(type) \(m)x\(n) rank \(rank) seed 3"
            for (name, got, expected) in [("Q", narrow.q, wide.q), ("R", narrow.r, wide.r)] {
                expectSmall(
                    (got.values - expected.values).norm, size: max(m, n), norm: expected.values.norm, .float32,
                    within: .qr, "\(label), \(name)")
            }
        }
    }

    /// Householder's first reflection maps a column to minus the sign of its first entry: for W = [[3], [4]],
    /// R = [-5] and Q = [-0.6, -0.8]; a normalisation to a positive diagonal would give 5.
    @Test(arguments: KernelTable.available, [ScalarType.float32, .float64])
    func signsAreHouseholders(table: KernelTable, type: ScalarType) throws {
        let weight = TestMatrix(RealMatrix(column: [3, 4]), type)
        let qr = try TruncatedQR(of: weight.view, rank: 1, on: CPUBackend(kernels: table, threads: 1))
        expectSmall((qr.r.values[0, 0] + 5).magnitude, size: 2, norm: 5, type, within: .qr, "\(table.name) \(type), R")
        expectSmall(
            (qr.q.values - RealMatrix(column: [-0.6, -0.8])).norm, size: 2, norm: 1, type, within: .qr,
            "\(table.name) \(type), Q")
    }

    @Test(arguments: KernelTable.available, [ScalarType.float32, .float64, .bfloat16])
    func deficientPanels(table: KernelTable, type: ScalarType) throws {
        let backend = CPUBackend(kernels: table, threads: 2)
        let (m, n, rank) = (30, 20, 9)
        let start = RealMatrix.gaussian(m, n, seed: 4)
        let weights: [(String, RealMatrix)] = [
            ("zero matrix", RealMatrix(m, n, repeating: 0)),
            ("zero column", RealMatrix(m, n) { $1 == 3 ? 0 : start[$0, $1] }),
            ("zero first column", RealMatrix(m, n) { $1 == 0 ? 0 : start[$0, $1] }),
            ("equal columns", RealMatrix(m, n) { start[$0, $1 / 2] }),
            ("equal rows", RealMatrix(m, n) { start[$0 / 10, $1] }),
            ("rank 2", .gaussian(m, 2, seed: 5) * .gaussian(2, n, seed: 6)),
            ("one entry", RealMatrix(m, n) { $0 == 7 && $1 == 5 ? -3 : 0 }),
        ]
        for (name, values) in weights {
            let weight = TestMatrix(values, type)
            let qr = try TruncatedQR(of: weight.view, rank: rank, on: backend)
            check(qr, of: weight.values, rank: rank, type.computeType, "\(table.name) \(type) \(name)")
        }
    }

    /// Each column keeps its own accuracy, however small it is beside the others.
    @Test(arguments: KernelTable.available, [ScalarType.float32, .float64])
    func gradedColumns(table: KernelTable, type: ScalarType) throws {
        let (m, n, rank) = (30, 12, 8)
        for descending in [true, false] {
            let scales = (0..<n).map { Double(sign: .plus, exponent: 8 * (descending ? -$0 : $0), significand: 1) }
            let weight = TestMatrix(RealMatrix.gaussian(m, n, seed: 7).scalingColumns(by: scales), type)
            let qr = try TruncatedQR(of: weight.view, rank: rank, on: CPUBackend(kernels: table, threads: 1))
            let product = qr.q.values * qr.r.values
            for j in 0..<rank {
                let column = RealMatrix(column: weight.values.column(j))
                expectSmall(
                    (RealMatrix(column: product.column(j)) - column).norm, size: m, norm: column.norm, type,
                    within: .qr,
                    "\(table.name) \(type) column \(j), descending \(descending), seed 7")
            }
        }
    }

    @Test(arguments: KernelTable.available)
    func bitsDependOnTheNumbersAlone(table: KernelTable) throws {
        let values = RealMatrix.gaussian(300, 280, seed: 8)
        let cases = [(1, Layout.rowMajor), (2, .columnMajor), (3, .strided), (8, .reversed)]
        var results: [[UInt64]] = []
        for (threads, layout) in cases {
            let weight = TestMatrix(values, .float32, layout)
            let qr = try TruncatedQR(of: weight.view, rank: 20, on: CPUBackend(kernels: table, threads: threads))
            results.append(qr.q.view.bits + qr.r.view.bits)
        }
        expectSameBits(results, cases: cases.map { "\($0)" }, table.name)
    }
}
