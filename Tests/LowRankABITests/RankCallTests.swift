// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import CLowRank
import LowRank
import TestSupport
import Testing

/// Spectra and rank allocation through C.
@Suite struct RankCallTests {
    @Test(arguments: ScalarType.allCases, [Layout.rowMajor, .columnMajor, .strided, .reversed])
    func spectrum(type: ScalarType, layout: Layout) throws {
        let weight = TestTensor(TestMatrix(.gaussian(20, 14, seed: 1), type, layout))
        let expected = try Spectrum(of: weight.matrix.view, rank: 4, on: CPUBackend.shared)
        let values = TestTensor(undefined: 1, 4, .float64, layout, dimensions: 1)
        var (norm, share) = (-1.0, -1.0)
        #expect(lr_spectrum(weight.pointer, 4, 1e-4, 0, values.pointer, nil, nil) == .ok, "\(lastMessage)")
        #expect(values.values.values == expected.values)
        #expect(lr_spectrum(weight.pointer, 4, 1e-4, 0, values.pointer, &norm, &share) == .ok, "\(lastMessage)")
        #expect(norm == expected.norm && share == expected.shares[3])
        expectIntactGuard(values.matrix, label: "\(type) \(layout)")
    }

    @Test func spectraBeyondTheirType() {
        let weight = TestTensor(TestMatrix(RealMatrix(rows: 1, columns: 2, values: [1, 0x1p20])))
        let values = TestTensor(undefined: 1, 1, .float16, dimensions: 1)
        #expect(lr_spectrum(weight.pointer, 1, 1e-4, 0, values.pointer, nil, nil) == .numericalFailure)
        #expect(lastMessage == "out_values: entry [0, 0] is beyond the range of float16; ask for a wider dtype")
    }

    /// Calls with two layers of three singular values, changed by `edit`.
    private func allocate(
        layers count: Int64 = 2, rankMin: Int64 = 1, budget: Int64 = 5, edit: (inout lr_layer_spectrum_t) -> Void = { _ in }
    ) -> (status: lr_status_t, ranks: [Int64], unspent: Int64, undecided: Int64) {
        let values = [0.75, 0.5, 0.25]
        var ranks: [Int64] = [-1, -1]
        var (unspent, undecided): (Int64, Int64) = (-1, -2)
        let status = values.withUnsafeBufferPointer { values in
            var first = lr_layer_spectrum_t(values: values.baseAddress, count: 3, norm: 1, rank_max: 3, cost: 1)
            let second = lr_layer_spectrum_t(values: values.baseAddress, count: 3, norm: 2, rank_max: 3, cost: 1)
            edit(&first)
            return lr_allocate_ranks([first, second], count, rankMin, budget, &ranks, &unspent, &undecided)
        }
        return (status, ranks, unspent, undecided)
    }

    @Test func ranks() {
        let result = allocate()
        #expect(result.status == .ok && result.ranks == [2, 3] && result.unspent == 0 && result.undecided == -1)
        let more = allocate(budget: 50)
        #expect(more.ranks == [3, 3] && more.unspent == 44)
        let unknown = allocate(budget: 6) { $0.rank_max = .max }
        #expect(unknown.status == .ok && unknown.ranks == [3, 3] && unknown.undecided == -1)
        let undecided = allocate(budget: 8) { $0.rank_max = .max }
        #expect(undecided.status == .ok && undecided.undecided == 0)
    }

    @Test func wrongNumbers() {
        typealias Edit = (inout lr_layer_spectrum_t) -> Void
        let edits: [(String, Edit)] = [
            ("layers", { $0.values = nil }), ("layers", { $0.count = 0 }), ("layers", { $0.count = .min }),
            ("singular_values", { $0.norm = .nan }), ("singular_values", { $0.norm = -1 }),
            ("singular_values", { $0.count = 1 }), ("rank_min", { $0.rank_max = .min }), ("costs", { $0.cost = 0 }),
            ("costs", { $0.cost = .max }),
        ]
        for (argument, edit) in edits { expectRefused(argument, allocate(rankMin: 2, edit: edit)) }
        for count in [0, -1, Int64.min] { expectRefused("layer_count", allocate(layers: count)) }
        for rank in [0, -1, Int64.min] { expectRefused("rank_min", allocate(rankMin: rank)) }
        for budget in [1, 0, Int64.min] { expectRefused("budget", allocate(budget: budget)) }
        var (rank, unspent, undecided): (Int64, Int64, Int64) = (0, 0, 0)
        #expect(lr_allocate_ranks(nil, 1, 1, 1, &rank, &unspent, &undecided) == .invalidArgument)
        #expect(lastMessage == "layers: expected memory, got a null pointer")
    }

    private func expectRefused(
        _ argument: String, _ result: (status: lr_status_t, ranks: [Int64], unspent: Int64, undecided: Int64)
    ) {
        #expect(result.status == .invalidArgument && lastMessage.hasPrefix(argument), "\(argument): \(lastMessage)")
        #expect(result.ranks == [-1, -1] && result.unspent == -1 && result.undecided == -2, "\(argument)")
    }
}
