// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankBackends
import LowRankCore
import LowRankFactorizations
import TestSupport
import Testing

/// The parts of a factorisation as float64 matrices.
struct LDUParts {
    let lower: RealMatrix
    let diagonal: [Double]
    let upper: RealMatrix
    let permutation: [Int]

    init(_ ldu: TruncatedLDU) {
        lower = ldu.lower.values
        diagonal = ldu.diagonal.values.values
        upper = ldu.upper.values
        permutation = ldu.permutation
    }

    /// Textbook elimination of the whole matrix with row pivoting.
    init(naive weight: RealMatrix) {
        var a = weight
        let steps = min(a.rows, a.columns)
        var permutation = Array(0..<a.rows)
        var lower = RealMatrix(a.rows, steps) { $0 == $1 ? 1 : 0 }
        for k in 0..<steps {
            let pivot = (k..<a.rows).max { a[$0, k].magnitude < a[$1, k].magnitude } ?? k
            permutation.swapAt(k, pivot)
            for j in 0..<a.columns { (a[k, j], a[pivot, j]) = (a[pivot, j], a[k, j]) }
            for j in 0..<k { (lower[k, j], lower[pivot, j]) = (lower[pivot, j], lower[k, j]) }
            for i in (k + 1)..<max(a.rows, k + 1) {
                lower[i, k] = a[i, k] / a[k, k]
                for j in k..<a.columns { a[i, j] -= lower[i, k] * a[k, j] }
            }
        }
        self.lower = lower
        self.permutation = permutation
        let pivots = (0..<steps).map { a[$0, $0] }
        diagonal = pivots
        upper = RealMatrix(steps, a.columns) { $0 > $1 ? 0 : a[$0, $1] / pivots[$0] }
    }

    var product: RealMatrix { lower.scalingColumns(by: diagonal) * upper }
}

@Suite struct TruncatedLDUTests {
    private static let shapes: [(m: Int, n: Int, ranks: [Int])] = [
        (1, 1, [1]), (1, 9, [1]), (9, 1, [1]), (2, 3, [1, 2]), (20, 20, [1, 7, 20]), (61, 17, [1, 5, 17]),
        (17, 61, [1, 5, 17]), (130, 70, [33]),
    ]

    private func check(
        _ ldu: LDUParts, of weight: RealMatrix, rank: Int, _ type: ScalarType, _ label: String
    ) {
        let (m, n) = (weight.rows, weight.columns)
        let (l, u) = (ldu.lower, ldu.upper)
        #expect(l.rows == m && l.columns == rank && u.rows == rank && u.columns == n, "\(label)")
        #expect(ldu.permutation.sorted() == Array(0..<m), "\(label): permutation \(ldu.permutation)")
        #expect(ldu.diagonal.count == rank && l.maxMagnitude <= 1, "\(label)")
        for i in 0..<rank {
            #expect(l[i, i] == 1 && u[i, i] == 1, "\(label): diagonals of ones, \(i)")
            #expect((0..<i).allSatisfy { u[i, $0] == 0 && l[$0, i] == 0 }, "\(label): triangles of zeros, \(i)")
        }
        // What the factors must reproduce: the leading columns, and the pivot rows.
        let difference = ldu.product - weight.gatheringRows(ldu.permutation)
        let size = max(m, n)
        expectSmall(
            difference.columns(0..<rank).norm, size: size, norm: weight.norm, type, within: .ldu, "\(label), panel")
        expectSmall(
            difference.rows(0..<rank).norm, size: size, norm: weight.norm, type, within: .ldu, "\(label), pivot rows")
        if rank == min(m, n) {
            expectSmall(difference.norm, size: size, norm: weight.norm, type, within: .ldu, "\(label), W[p] = LDU")
        }
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
                    let ldu = try TruncatedLDU(of: weight.view, rank: rank, on: backend)
                    #expect(ldu.lower.view.type == type.computeType && ldu.upper.view.type == type.computeType)
                    #expect(ldu.lower.view.rowStride == 1 && ldu.upper.view.columnStride == 1, "\(label)")
                    check(LDUParts(ldu), of: weight.values, rank: rank, type.computeType, label)
                    #expect(weight.bits == before, "\(label): the weight was written")
                    expectIntactGuard(weight, label: label)
                }
            }
        }
    }

    /// Against textbook elimination in float64. A panel's condition enters: this seed's are below 1000.
    @Test(arguments: KernelTable.available, ScalarType.allCases)
    func factorsLeadThoseOfTheWholeMatrix(table: KernelTable, type: ScalarType) throws {
        let backend = CPUBackend(kernels: table, threads: 2)
        for (m, n) in [(30, 20), (20, 30), (25, 25)] {
            let weight = TestMatrix(.gaussian(m, n, seed: 2), type)
            let full = LDUParts(naive: weight.values)
            check(full, of: weight.values, rank: min(m, n), .float64, "naive \(m)x\(n)")
            for rank in [1, 6, 15] {
                let part = LDUParts(try TruncatedLDU(of: weight.view, rank: rank, on: backend))
                let label = "\(table.name) \(type) \(m)x\(n) rank \(rank) seed 2"
                #expect(part.permutation.prefix(rank) == full.permutation.prefix(rank), "\(label)")
                let precision = type.computeType
                // L's further rows come in the order of the rank's own permutation.
                let row = Dictionary(uniqueKeysWithValues: full.permutation.enumerated().map { ($1, $0) })
                let l = full.lower.columns(0..<rank).gatheringRows(part.permutation.map { row[$0] ?? 0 })
                let u = full.upper.rows(0..<rank)
                let d = RealMatrix(column: Array(full.diagonal.prefix(rank)))
                for (name, got, expected) in [
                    ("L", part.lower, l), ("U", part.upper, u), ("D", RealMatrix(column: part.diagonal), d),
                ] {
                    expectSmall(
                        (got - expected).norm, size: max(m, n), norm: expected.norm, precision, within: .ldu,
                        "\(label), \(name)")
                }
            }
        }
    }

    @Test(arguments: KernelTable.available)
    func bitsDependOnTheNumbersAlone(table: KernelTable) throws {
        let values = RealMatrix.gaussian(300, 280, seed: 3)
        let cases = [(1, Layout.rowMajor), (2, .columnMajor), (3, .strided), (8, .reversed)]
        var results: [[UInt64]] = []
        for (threads, layout) in cases {
            let weight = TestMatrix(values, .float32, layout)
            let ldu = try TruncatedLDU(of: weight.view, rank: 20, on: CPUBackend(kernels: table, threads: threads))
            results.append(ldu.lower.view.bits + ldu.upper.view.bits + ldu.diagonal.view.bits)
        }
        expectSameBits(results, cases: cases.map { "\($0)" }, table.name)
    }

    /// Neither the factors nor an error come from entries outside of the leading columns and the pivot rows.
    @Test(arguments: KernelTable.available, ScalarType.allCases)
    func otherEntriesAreNotRead(table: KernelTable, type: ScalarType) throws {
        let backend = CPUBackend(kernels: table, threads: 2)
        let (m, n, rank) = (12, 10, 3)
        let clean = TestMatrix(.gaussian(m, n, seed: 4), type)
        let expected = try TruncatedLDU(of: clean.view, rank: rank, on: backend)
        let pivots = Set(expected.permutation.prefix(rank))
        let poisoned = TestMatrix(
            RealMatrix(m, n) { $1 >= rank && !pivots.contains($0) ? .nan : clean.values[$0, $1] }, type, .strided)
        let got = try TruncatedLDU(of: poisoned.view, rank: rank, on: backend)
        #expect(got.lower.view.bits == expected.lower.view.bits)
        #expect(got.upper.view.bits == expected.upper.view.bits)
        #expect(got.diagonal.view.bits == expected.diagonal.view.bits)
        #expect(got.permutation == expected.permutation)
    }
}
