// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankAdapters
import LowRankBackends
import LowRankCore
import TestSupport
import Testing

@Suite struct InPlaceTests {
    /// The weight becomes W - s B C A with the factors as stored, so that adding the adapter gives W back to rounding,
    /// however coarsely the factors are stored.
    @Test(arguments: KernelTable.available, methodNames)
    func residualIsOfTheStoredFactors(table: KernelTable, name: String) throws {
        let backend = CPUBackend(kernels: table, threads: 2)
        let method = try Initializers.named(name)
        for (m, n, rank) in [(30, 22, 6), (22, 30, 22), (1, 5, 1)] {
            for (type, factorType) in [
                (ScalarType.float32, ScalarType.float32), (.float64, .float64), (.float32, .bfloat16),
                (.float32, .float16),
                (.float64, .float32), (.bfloat16, .float32), (.float16, .bfloat16),
            ] {
                for (scale, layout) in [(1.0, Layout.rowMajor), (0.25, .columnMajor), (3, .reversed)] {
                    let weight = TestMatrix(.gaussian(m, n, seed: 1), type, layout)
                    let before = weight.values
                    let target = TestTarget(for: method, m, n, rank: rank, type: factorType)
                    try method.initialize(
                        weight.view, rank: rank, into: target.factors(scale: scale), inPlace: true, on: backend)
                    let delta = scale * target.product
                    let label =
                        "\(table.name) \(name) \(m)x\(n) rank \(rank) \(type), factors \(factorType), scale \(scale)"
                    expectSmall(
                        (weight.values - (before - delta)).norm, size: max(m, n), norm: before.norm + delta.norm, type,
                        within: .product, label)
                    expectIntactGuard(weight, label: label)
                    target.expectIntact(label)
                }
            }
        }
    }

    @Test(arguments: KernelTable.available, methodNames)
    func factorsAreThoseOfTheOtherForm(table: KernelTable, name: String) throws {
        let backend = CPUBackend(kernels: table, threads: 2)
        let method = try Initializers.named(name)
        let weight = TestMatrix(.gaussian(30, 22, seed: 2))
        let before = weight.bits
        let intact = TestTarget(for: method, 30, 22, rank: 6, type: .float32)
        try method.initialize(weight.view, rank: 6, into: intact.factors(scale: 0.5), inPlace: false, on: backend)
        #expect(weight.bits == before, "\(table.name) \(name): the weight was written")
        let inPlace = TestTarget(for: method, 30, 22, rank: 6, type: .float32)
        try method.initialize(weight.view, rank: 6, into: inPlace.factors(scale: 0.5), inPlace: true, on: backend)
        // LoRA-XS starts at no change.
        #expect((weight.bits == before) == (name == "lora_xs"), "\(table.name) \(name): the weight's bits")
        #expect(inPlace.up.bits == intact.up.bits && inPlace.down.bits == intact.down.bits)
        #expect(inPlace.core?.bits == intact.core?.bits)
    }

    /// Runs an in-place initialisation that must fail and leave the weight bit for bit.
    private func expectUntouched(
        _ method: any Initializer.Type, _ weight: TestMatrix, rank: Int, scale: Double = 1, target: TestTarget? = nil,
        type: ScalarType = .float32, options: InitializerOptions = .init(), _ label: String,
        sourceLocation: SourceLocation = #_sourceLocation
    ) {
        let before = weight.bits
        let view = weight.view
        let target = target ?? TestTarget(for: method, view.rows, view.columns, rank: max(rank, 1), type: type)
        #expect(throws: LowRankError.self, "\(label)", sourceLocation: sourceLocation) {
            try method.initialize(
                view, rank: rank, into: target.factors(scale: scale), inPlace: true, options: options,
                on: CPUBackend.shared)
        }
        #expect(weight.bits == before, "\(label): the weight was written", sourceLocation: sourceLocation)
        expectIntactGuard(weight, label: label, sourceLocation: sourceLocation)
    }

    @Test(arguments: methodNames)
    func failuresLeaveTheWeight(name: String) throws {
        let method = try Initializers.named(name)
        let start = RealMatrix.gaussian(12, 10, seed: 3)
        for value in [Double.nan, .infinity] {
            var values = start
            values[5, 1] = value
            expectUntouched(method, TestMatrix(values), rank: 3, "\(name) \(value)")
        }
        expectUntouched(method, TestMatrix(start), rank: 0, "\(name) rank 0")
        expectUntouched(method, TestMatrix(start), rank: 11, "\(name) rank 11")
        for (what, m, n, rank) in [("rows", 11, 10, 3), ("columns", 12, 9, 3), ("rank", 12, 10, 4)] {
            let target = TestTarget(for: method, m, n, rank: rank, type: .float32)
            expectUntouched(method, TestMatrix(start), rank: 3, target: target, "\(name) other \(what)")
        }
        for other in Initializers.all {
            let target = TestTarget(for: other, 12, 10, rank: 3, type: .float32)
            if target.kind == TestTarget(for: method, 12, 10, rank: 3, type: .float32).kind { continue }
            expectUntouched(method, TestMatrix(start), rank: 3, target: target, "\(name) with a core of \(other.name)")
        }
    }

    /// U = [1, 2^20] does not fit float16, R = [-2^20, ...] neither.
    @Test(arguments: methodNames)
    func factorsBeyondTheirTypeLeaveTheWeight(name: String) throws {
        let method = try Initializers.named(name)
        let values =
            name == "loldu"
            ? RealMatrix(rows: 1, columns: 2, values: [0x1p-10, 0x1p10])
            : RealMatrix(rows: 1, columns: 2, values: [0x1p40, 0x1p40])
        let weight = TestMatrix(values)
        let before = weight.bits
        let target = TestTarget(for: method, 1, 2, rank: 1, type: .float16)
        #expect {
            try method.initialize(
                weight.view, rank: 1, into: target.factors(scale: 1), inPlace: true, on: CPUBackend.shared)
        } throws: { error in
            guard case .numericalFailure(name, let reason)? = error as? LowRankError else { return false }
            return reason.hasSuffix("is beyond the range of float16; ask for wider factors")
        }
        #expect(weight.bits == before, "\(name): the weight was written")
    }

    /// 6e4 + 6e4 is no float16, and a huge scale spoils every type.
    @Test(arguments: methodNames)
    func residualsBeyondTheWeightsTypeLeaveTheWeight(name: String) throws {
        let method = try Initializers.named(name)
        for type in ScalarType.allCases {
            let values = RealMatrix(3, 2) { i, j in (i + j) % 2 == 0 ? 6e4 : -5e4 }
            // PiSSA divides its factors by the scale, so that only their rounding can make the residual large.
            // LoRA-XS subtracts zero.
            if ["pissa", "lora_xs"].contains(name) { continue }
            if type == .float16 { expectUntouched(method, TestMatrix(values, type), rank: 1, scale: -1, "\(name) -1") }
            expectUntouched(
                method, TestMatrix(values, type), rank: 1, scale: type.greatestFinite / 2, type: type.computeType,
                "\(name) \(type) with a huge scale")
        }
    }

    /// The coefficient of a method's core is named as it stands in the adapter.
    @Test func coreOfAnotherShapeIsNamed() throws {
        let weight = TestMatrix(.gaussian(8, 6, seed: 4))
        for (method, other, expected, got) in [
            (OLoRA.self as any Initializer.Type, LoLDU.self as any Initializer.Type, "none", "[1, 2]"),
            (LoLDU.self, LaMDA.self, "shape [2]", "[2, 2]"), (LaMDA.self, PiSSA.self, "shape [2, 2]", "none"),
        ] {
            let target = TestTarget(for: other, 8, 6, rank: 2, type: .float32)
            #expect(throws: LowRankError.invalidShape(argument: "core", expected: expected, got: got)) {
                try method.initialize(
                    weight.view, rank: 2, into: target.factors(scale: 1), inPlace: false, on: CPUBackend.shared)
            }
        }
    }

    /// LoLDU reads little of the weight: what it does not read may be anything, and stays.
    @Test func entriesThatLoLDUDoesNotReadPass() throws {
        let start = RealMatrix.gaussian(12, 10, seed: 5)
        let clean = TestMatrix(start)
        let expected = TestTarget(for: LoLDU.self, 12, 10, rank: 3, type: .float32)
        try LoLDU.initialize(
            clean.view, rank: 3, into: expected.factors(scale: 1), inPlace: false, on: CPUBackend.shared)
        // Pivot rows have a one in B, with zeros to the right.
        let pivots = Set((0..<12).filter { expected.up.values.row($0).contains(1) })
        let row = try #require((0..<12).first { !pivots.contains($0) })
        var values = start
        values[row, 7] = .nan
        let weight = TestMatrix(values)
        let target = TestTarget(for: LoLDU.self, 12, 10, rank: 3, type: .float32)
        try LoLDU.initialize(weight.view, rank: 3, into: target.factors(scale: 1), inPlace: true, on: CPUBackend.shared)
        #expect(target.up.bits == expected.up.bits && target.down.bits == expected.down.bits)
        let nans = weight.values.values.indices.filter { weight.values.values[$0].isNaN }
        #expect(nans == [row * 10 + 7])
    }
}
