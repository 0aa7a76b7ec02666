// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankAdapters
import LowRankBackends
import LowRankCore
import LowRankFactorizations
import TestSupport
import Testing

@Suite struct SpectrumTests {
    @Test(arguments: KernelTable.available, ScalarType.allCases)
    func valuesAndShareOfEveryTypeAndLayout(table: KernelTable, type: ScalarType) throws {
        let backend = CPUBackend(kernels: table, threads: 2)
        for (m, n) in [(1, 1), (1, 9), (9, 1), (20, 20), (61, 17), (17, 61)] {
            for layout in Layout.allCases {
                let weight = TestMatrix(.gaussian(m, n, seed: 1), type, layout)
                let before = weight.bits
                let exact = try TruncatedSVD(
                    of: TestMatrix(weight.values, .float64).view, rank: min(m, n), on: backend)
                for rank in [1, min(m, n)] {
                    let label = "\(table.name) \(type) \(m)x\(n) rank \(rank) \(layout)"
                    let spectrum = try Spectrum(of: weight.view, rank: rank, on: backend)
                    #expect(spectrum.values.count == rank && spectrum.values == spectrum.values.sorted(by: >), "\(label)")
                    // However narrow the weight, the values are those of its elements to float32's rounding of the first.
                    let error = zip(spectrum.values, exact.s).map { ($0 - $1).magnitude }.max() ?? 0
                    expectSmall(error, size: max(m, n), norm: exact.s[0], type.computeType, within: .svd, label)
                    expectSmall(
                        spectrum.norm - weight.values.norm, size: max(m, n), norm: weight.values.norm, .float64,
                        within: .product, "\(label), norm")
                    let share = spectrum.shares[rank - 1]
                    let all = exact.s.reduce(0) { $0 + $1 * $1 }
                    let expected = exact.s[..<rank].reduce(0) { $0 + $1 * $1 } / all
                    expectSmall(
                        share - expected, size: max(m, n), norm: 1, type.computeType, within: .svd, "\(label), share")
                }
                #expect(weight.bits == before, "the weight was written")
                expectIntactGuard(weight, label: "\(table.name) \(type) \(m)x\(n) \(layout)")
            }
        }
    }

    /// Small values beside a large one are found to float32's precision of the large one, from float64's square of it.
    @Test func gradedValues() throws {
        let values = [1, 1e-2, 1e-4, 1e-6]
        let weight = TestMatrix(.withSpectrum(values, 40, 30, seed: 2), .float64)
        let narrow = TestMatrix(weight.values, .float32)
        let exact = try TruncatedSVD(of: TestMatrix(narrow.values, .float64).view, rank: 4, on: CPUBackend.shared).s
        let spectrum = try Spectrum(of: narrow.view, rank: 4, on: CPUBackend.shared)
        for (got, expected) in zip(spectrum.values, exact) {
            #expect((got - expected).magnitude < ScalarType.float32.epsilon, "\(got) for \(expected)")
        }
    }

    /// A short side of more than 1024 takes the truncated SVD.
    @Test func longSidesTakeTheTruncatedSVD() throws {
        let weight = TestMatrix(.gaussian(1030, 1040, seed: 3))
        let spectrum = try Spectrum(of: weight.view, rank: 2, tolerance: 0.1, seed: 5, on: CPUBackend.shared)
        let svd = try TruncatedSVD(of: weight.view, rank: 2, tolerance: 0.1, seed: 5, on: CPUBackend.shared)
        #expect(spectrum.values == svd.s)
    }

    @Test func resultsDoNotDependOnThreads() throws {
        for type in [ScalarType.float32, .bfloat16, .float64] {
            let weight = TestMatrix(.gaussian(400, 300, seed: 4), type, .paddedColumns)
            let results = try threadCounts.map { threads in
                let spectrum = try Spectrum(of: weight.view, rank: 40, on: CPUBackend(kernels: .current, threads: threads))
                return (spectrum.values + [spectrum.norm]).map(\.bitPattern)
            }
            expectSameBits(results, cases: threadCounts.map { "\($0) threads" }, "\(type)")
        }
    }

    @Test(arguments: ScalarType.allCases)
    func zeroWeights(type: ScalarType) throws {
        let weight = TestMatrix(RealMatrix(6, 5, repeating: 0), type)
        let spectrum = try Spectrum(of: weight.view, rank: 3, on: CPUBackend.shared)
        #expect(spectrum.values == [0, 0, 0] && spectrum.norm == 0 && spectrum.shares == [1, 1, 1])
    }

    /// Squares of float64 numbers overflow and vanish long before the numbers do.
    @Test(arguments: [1e200, 1e-200, 1e307, 1e-310])
    func extremeWeights(scale: Double) throws {
        let values = RealMatrix.gaussian(9, 7, seed: 6)
        let usual = try Spectrum(of: TestMatrix(values, .float64).view, rank: 7, on: CPUBackend.shared)
        let extreme = try Spectrum(of: TestMatrix(scale * values, .float64).view, rank: 7, on: CPUBackend.shared)
        // 1e-310 has lost digits itself.
        let unit = scale < 1e-300 ? 1e-12 : 1e-14
        for (got, expected) in zip(extreme.values + [extreme.norm], usual.values + [usual.norm]) {
            #expect((got / scale / expected - 1).magnitude < unit, "\(got) for \(expected) times \(scale)")
        }
        #expect((extreme.shares[2] - usual.shares[2]).magnitude < unit)
    }

    @Test(arguments: KernelTable.available, ScalarType.allCases)
    func nonFiniteWeights(table: KernelTable, type: ScalarType) {
        for value in [Double.nan, .infinity, -.infinity] {
            let weight = TestMatrix(.gaussian(9, 7, seed: 7), type, .columnMajor)
            weight.setBits(type.bits(of: value), 4, 2)
            #expect(throws: LowRankError.nonFinite(argument: "weight", row: 4, column: 2)) {
                try Spectrum(of: weight.view, rank: 3, on: CPUBackend(kernels: table, threads: 2))
            }
        }
    }

    @Test func numbersOutOfRange() {
        let weight = TestMatrix(.gaussian(6, 5, seed: 8))
        for tolerance in [0, 1, .nan, -1e-4] as [Double] {
            #expect(
                throws: LowRankError.invalidArgument(argument: "tol", expected: "0 < tol < 1", got: "\(tolerance)")
            ) { try Spectrum(of: weight.view, rank: 2, tolerance: tolerance, on: CPUBackend.shared) }
        }
        for rank in [0, 6, .max, .min] {
            #expect(
                throws: LowRankError.invalidArgument(
                    argument: "rank", expected: "1 <= rank <= min(m, n) = 5", got: "\(rank)")
            ) { try Spectrum(of: weight.view, rank: rank, on: CPUBackend.shared) }
        }
    }
}
