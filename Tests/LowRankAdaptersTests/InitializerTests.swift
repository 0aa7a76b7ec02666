// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankAdapters
import LowRankBackends
import LowRankCore
import LowRankFactorizations
import TestSupport
import Testing

/// Memory for a method's factors, all NaN.
struct TestTarget {
    let up: TestMatrix
    let core: TestMatrix?
    let down: TestMatrix
    let kind: CoreKind

    init(for method: any Initializer.Type, _ m: Int, _ n: Int, rank: Int, type: ScalarType, layout: Layout = .rowMajor)
    {
        up = TestMatrix(undefined: m, rank, type, layout)
        down = TestMatrix(undefined: rank, n, type, layout)
        switch method.name {
        case "loldu": (core, kind) = (TestMatrix(undefined: 1, rank, type, layout), .diagonal)
        case "lamda", "lora_xs": (core, kind) = (TestMatrix(undefined: rank, rank, type, layout), .square)
        default: (core, kind) = (nil, .identity)
        }
    }

    func factors(scale: Double) throws(LowRankError) -> Factors {
        let view: Core =
            switch (kind, core) {
            case (.diagonal, let core?): .diagonal(core.view)
            case (.square, let core?): .square(core.view)
            default: .identity
            }
        return try Factors(up: up.view, core: view, down: down.view, scale: scale)
    }

    /// B C A of what is stored.
    var product: RealMatrix {
        switch (kind, core) {
        case (.diagonal, let core?): up.values.scalingColumns(by: core.values.values) * down.values
        case (.square, let core?): up.values * core.values * down.values
        default: up.values * down.values
        }
    }

    func expectIntact(_ label: String, sourceLocation: SourceLocation = #_sourceLocation) {
        expectIntactGuard(up, down, label: label, sourceLocation: sourceLocation)
        if let core { expectIntactGuard(core, label: label, sourceLocation: sourceLocation) }
    }
}

/// The methods by name, as arguments of tests.
let methodNames = Initializers.all.map { $0.name }

@Suite struct InitializerTests {
    @Test func methodsAreFoundByName() throws {
        #expect(methodNames == ["olora", "loldu", "lamda", "pissa", "lora_xs"])
        for name in methodNames { #expect(try Initializers.named(name).name == name) }
        #expect(
            throws: LowRankError.invalidArgument(
                argument: "method", expected: "one of \"olora\", \"loldu\", \"lamda\", \"pissa\", \"lora_xs\"", got: "\"lora\"")
        ) { try Initializers.named("lora") }
    }

    @Test func optionsDefaultToWhatCallersGet() {
        let options = InitializerOptions()
        #expect(options.tolerance == 1e-4 && options.seed == 0 && options.diagonal == .ldu)
    }

    @Test(arguments: KernelTable.available, ScalarType.allCases)
    func oloraIsTheTruncatedQR(table: KernelTable, type: ScalarType) throws {
        let backend = CPUBackend(kernels: table, threads: 2)
        let weight = TestMatrix(.gaussian(30, 22, seed: 1), type, .paddedColumns)
        let qr = try TruncatedQR(of: weight.view, rank: 6, on: backend)
        let target = TestTarget(for: OLoRA.self, 30, 22, rank: 6, type: type.computeType, layout: .strided)
        try OLoRA.initialize(weight.view, rank: 6, into: target.factors(scale: 2), inPlace: false, on: backend)
        expectEqual(target.up.values, qr.q.values, "\(table.name) \(type), B = Q")
        expectEqual(target.down.values, qr.r.values, "\(table.name) \(type), A = R")
        target.expectIntact("\(table.name) \(type)")
    }

    @Test(arguments: KernelTable.available, ScalarType.allCases)
    func lolduFoldsThePermutationIntoB(table: KernelTable, type: ScalarType) throws {
        let backend = CPUBackend(kernels: table, threads: 2)
        let weight = TestMatrix(.gaussian(30, 22, seed: 2), type)
        let ldu = try TruncatedLDU(of: weight.view, rank: 6, on: backend)
        for layout in [Layout.rowMajor, .columnMajor, .strided] {
            let target = TestTarget(for: LoLDU.self, 30, 22, rank: 6, type: type.computeType, layout: layout)
            try LoLDU.initialize(weight.view, rank: 6, into: target.factors(scale: 2), inPlace: false, on: backend)
            let label = "\(table.name) \(type) \(layout)"
            // Row permutation[i] of B is row i of L.
            expectEqual(target.up.values.gatheringRows(ldu.permutation), ldu.lower.values, "\(label), B = P L")
            expectEqual(target.down.values, ldu.upper.values, "\(label), A = U")
            #expect(target.core?.values.values == ldu.diagonal.values.values, "\(label), C = D")
            target.expectIntact(label)
            // So B diag(d) A is W in the leading columns, with W's own order of rows.
            let difference = (target.product - weight.values).columns(0..<6)
            expectSmall(difference.norm, size: 30, norm: weight.values.norm, type.computeType, within: .ldu, label)
        }
    }

    @Test(arguments: KernelTable.available, [ScalarType.float32, .float64, .bfloat16])
    func lamdaStartsFromTheSVD(table: KernelTable, type: ScalarType) throws {
        let backend = CPUBackend(kernels: table, threads: 2)
        let weight = TestMatrix(.gaussian(30, 22, seed: 3), type)
        let svd = try TruncatedSVD(of: weight.view, rank: 6, on: backend)
        let target = TestTarget(for: LaMDA.self, 30, 22, rank: 6, type: type.computeType, layout: .columnMajor)
        try LaMDA.initialize(weight.view, rank: 6, into: target.factors(scale: 2), inPlace: false, on: backend)
        let label = "\(table.name) \(type)"
        expectEqual(target.up.values, svd.u.values, "\(label), B = U")
        expectEqual(target.down.values, svd.vh.values, "\(label), A = V'")
        expectEqual(
            target.core?.values ?? RealMatrix(0, 0, repeating: 0), RealMatrix(diagonal: svd.s), "\(label), C = diag(S)")
        target.expectIntact(label)
    }

    @Test(arguments: KernelTable.available, [ScalarType.float32, .float64, .bfloat16])
    func pissaSharesTheSingularValues(table: KernelTable, type: ScalarType) throws {
        let backend = CPUBackend(kernels: table, threads: 2)
        let weight = TestMatrix(.gaussian(30, 22, seed: 4), type)
        let svd = try TruncatedSVD(of: weight.view, rank: 6, on: backend)
        for scale in [1, 0.25, 3] {
            let target = TestTarget(for: PiSSA.self, 30, 22, rank: 6, type: type.computeType)
            try PiSSA.initialize(weight.view, rank: 6, into: target.factors(scale: scale), inPlace: false, on: backend)
            let roots = svd.s.map { ($0 / scale).squareRoot() }
            let (up, down) = (svd.u.values.scalingColumns(by: roots), svd.vh.values.scalingRows(by: roots))
            let label = "\(table.name) \(type) scale \(scale)"
            for (name, got, expected) in [
                ("B", target.up.values, up), ("A", target.down.values, down),
                ("s B A", scale * target.product, svd.u.values.scalingColumns(by: svd.s) * svd.vh.values),
            ] {
                expectSmall(
                    (got - expected).norm, size: 30, norm: expected.norm, type.computeType, within: .svd,
                    "\(label), \(name)")
            }
        }
    }

    @Test(arguments: KernelTable.available, [ScalarType.float32, .float64, .bfloat16])
    func loraXSStartsAtZeroBetweenScaledSingularVectors(table: KernelTable, type: ScalarType) throws {
        let backend = CPUBackend(kernels: table, threads: 2)
        let weight = TestMatrix(.gaussian(30, 22, seed: 9), type)
        let before = weight.bits
        let svd = try TruncatedSVD(of: weight.view, rank: 6, on: backend)
        let target = TestTarget(for: LoRAXS.self, 30, 22, rank: 6, type: type.computeType, layout: .strided)
        try LoRAXS.initialize(weight.view, rank: 6, into: target.factors(scale: 2), inPlace: true, on: backend)
        let (label, expected) = ("\(table.name) \(type)", svd.u.values.scalingColumns(by: svd.s))
        expectSmall(
            (target.up.values - expected).norm, size: 30, norm: expected.norm, type.computeType, within: .svd,
            "\(label), B = U S")
        expectEqual(target.down.values, svd.vh.values, "\(label), A = V'")
        #expect(target.core?.values.values == [Double](repeating: 0, count: 36), "\(label), C = 0")
        #expect(weight.bits == before, "\(label): s B C A is zero, and the residual the weight")
        target.expectIntact(label)
    }

    /// For a weight of lower rank the surplus factors carry nothing, and nothing is NaN.
    @Test(arguments: methodNames, [ScalarType.float32, .float64])
    func deficientWeightsAreReproduced(name: String, type: ScalarType) throws {
        let method = try Initializers.named(name)
        for values in [
            RealMatrix(14, 9, repeating: 0), RealMatrix.gaussian(14, 2, seed: 5) * RealMatrix.gaussian(2, 9, seed: 6),
        ] {
            let weight = TestMatrix(values, type)
            let target = TestTarget(for: method, 14, 9, rank: 5, type: type)
            try method.initialize(
                weight.view, rank: 5, into: target.factors(scale: 1), inPlace: false, on: CPUBackend.shared)
            // LoRA-XS starts at no change at all.
            let expected = name == LoRAXS.name ? RealMatrix(14, 9, repeating: 0) : values
            expectSmall(
                (target.product - expected).norm, size: 14, norm: values.norm, type, within: .svd, "\(name) \(type)")
        }
    }

    @Test(arguments: [0, -1, -.leastNonzeroMagnitude] as [Double])
    func pissaRefusesScalesWithoutARoot(scale: Double) {
        let weight = TestMatrix(.gaussian(8, 6, seed: 7))
        let before = weight.bits
        let target = TestTarget(for: PiSSA.self, 8, 6, rank: 2, type: .float32)
        #expect(
            throws: LowRankError.invalidArgument(
                argument: "scale", expected: "scale > 0, whose square root PiSSA takes", got: "\(scale)")
        ) {
            try PiSSA.initialize(
                weight.view, rank: 2, into: target.factors(scale: scale), inPlace: true, on: CPUBackend.shared)
        }
        #expect(weight.bits == before)
    }

    @Test(arguments: methodNames)
    func seedsAndTolerancesReachTheSVD(name: String) throws {
        let method = try Initializers.named(name)
        let weight = TestMatrix(.gaussian(20, 15, seed: 8))
        var options = InitializerOptions()
        options.tolerance = 2
        let target = TestTarget(for: method, 20, 15, rank: 3, type: .float32)
        let run = {
            try method.initialize(
                weight.view, rank: 3, into: target.factors(scale: 1), inPlace: false, options: options,
                on: CPUBackend.shared)
        }
        if ["lamda", "pissa", "lora_xs"].contains(name) {
            #expect(
                throws: LowRankError.invalidArgument(argument: "tol", expected: "0 < tol < 1", got: "2.0"),
                performing: run)
        } else {
            try run()
        }
    }
}
