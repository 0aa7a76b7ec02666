// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import CLowRank
import LowRank
import TestSupport
import Testing

@Suite struct AdapterCallTests {
    private let m = 9
    private let n = 7
    private let r = 3
    private let tokens = 5

    private func tensor(_ rows: Int, _ columns: Int, seed: UInt64, dimensions: Int = 2) -> TestTensor {
        TestTensor(TestMatrix(.integers(rows, columns, seed: seed, magnitude: 2)), dimensions: dimensions)
    }

    /// No core, a vector, a matrix; with C as a matrix.
    private var cores: [(tensor: TestTensor?, matrix: RealMatrix)] {
        let vector = tensor(1, r, seed: 3, dimensions: 1)
        let matrix = tensor(r, r, seed: 3)
        return [(nil, .identity(r)), (vector, RealMatrix(diagonal: vector.values.values)), (matrix, matrix.values)]
    }

    @Test func forwardBackwardAndMerge() {
        for (core, c) in cores {
            let (down, up) = (tensor(r, n, seed: 2), tensor(m, r, seed: 4))
            let (x, out, h) = (tensor(tokens, n, seed: 5), tensor(tokens, m, seed: 6), TestTensor(undefined: tokens, r))
            let old = out.values
            var status = lr_adapter_forward(
                x.pointer, down.pointer, core?.pointer, up.pointer, 0.5, out.pointer, h.pointer)
            #expect(status == .ok, "\(lastMessage)")
            let (a, b) = (down.values, up.values)
            expectEqual(h.values, x.values * a.transposed, "h")
            expectEqual(out.values, old + 0.5 * (x.values * a.transposed * c.transposed * b.transposed), "out")

            let (grad, dx) = (tensor(tokens, m, seed: 7), tensor(tokens, n, seed: 8))
            let (dDown, dUp) = (TestTensor(undefined: r, n), TestTensor(undefined: m, r))
            let dCore = core.map { TestTensor(undefined: $0.matrix.view.rows, r, dimensions: $0.dimensions) }
            let oldX = dx.values
            status = lr_adapter_backward(
                grad.pointer, x.pointer, h.pointer, down.pointer, core?.pointer, up.pointer, 0.5, 1, dx.pointer,
                dDown.pointer, dCore?.pointer, dUp.pointer)
            #expect(status == .ok, "\(lastMessage)")
            let p = grad.values * b
            let q = 0.5 * (p * c)
            expectEqual(dx.values, oldX + q * a, "dx")
            expectEqual(dDown.values, q.transposed * x.values, "dA")
            let dB = 0.5 * (grad.values.transposed * (h.values * c.transposed))
            expectEqual(dUp.values, RealMatrix(m, r) { $1 == 0 ? 0 : dB[$0, $1] }, "dB with a frozen column")
            let dC = 0.5 * (p.transposed * h.values)
            if let dCore { #expect(dCore.values.values == (dCore.dimensions == 1 ? dC.diagonal : dC.values), "dC") }

            let weight = tensor(m, n, seed: 9)
            let before = weight.values
            #expect(lr_merge(weight.pointer, down.pointer, core?.pointer, up.pointer, 0.5) == .ok, "\(lastMessage)")
            expectEqual(weight.values, before + 0.5 * (b * c * a), "merge")
        }
    }

    /// Without down x is h, and out_x its gradient.
    @Test func forwardAndBackwardFromH() {
        for (core, c) in cores {
            let (up, h, out) = (tensor(m, r, seed: 4), tensor(tokens, r, seed: 5), tensor(tokens, m, seed: 6))
            let old = out.values
            var status = lr_adapter_forward(h.pointer, nil, core?.pointer, up.pointer, 0.5, out.pointer, nil)
            #expect(status == .ok, "\(lastMessage)")
            expectEqual(out.values, old + 0.5 * (h.values * c.transposed * up.values.transposed), "out")

            let (grad, dh) = (tensor(tokens, m, seed: 7), tensor(tokens, r, seed: 8))
            let dUp = TestTensor(undefined: m, r)
            let dCore = core.map { TestTensor(undefined: $0.matrix.view.rows, r, dimensions: $0.dimensions) }
            let oldH = dh.values
            status = lr_adapter_backward(
                grad.pointer, nil, h.pointer, nil, core?.pointer, up.pointer, 0.5, 1, dh.pointer, nil, dCore?.pointer,
                dUp.pointer)
            #expect(status == .ok, "\(lastMessage)")
            let p = grad.values * up.values
            expectEqual(dh.values, oldH + 0.5 * (p * c), "dh")
            let dB = 0.5 * (grad.values.transposed * (h.values * c.transposed))
            expectEqual(dUp.values, RealMatrix(m, r) { $1 == 0 ? 0 : dB[$0, $1] }, "dB with a frozen column")
            let dC = 0.5 * (p.transposed * h.values)
            if let dCore { #expect(dCore.values.values == (dCore.dimensions == 1 ? dC.diagonal : dC.values), "dC") }

            // out as an input too.
            let overlap = lr_adapter_forward(h.pointer, nil, nil, up.pointer, 1, h.pointer, nil)
            #expect(overlap == LR_STATUS_OVERLAP && lastMessage.hasPrefix("out: "), "\(lastMessage)")
        }
    }

    @Test func changeForwardAndBackward() {
        let (down, up) = (tensor(r, n, seed: 2), tensor(m, r, seed: 4))
        let (startDown, startUp) = (tensor(r, n, seed: 12), tensor(m, r, seed: 14))
        let (x, out, h) = (tensor(tokens, n, seed: 5), tensor(tokens, m, seed: 6), TestTensor(undefined: tokens, r))
        let old = out.values
        var status = lr_change_forward(
            x.pointer, down.pointer, up.pointer, startDown.pointer, startUp.pointer, 0.5, out.pointer, h.pointer)
        #expect(status == .ok, "\(lastMessage)")
        let change = 0.5 * (up.values * down.values - startUp.values * startDown.values)
        expectEqual(h.values, x.values * down.values.transposed, "h")
        expectEqual(out.values, old + x.values * change.transposed, "out")

        let (grad, dx) = (tensor(tokens, m, seed: 7), tensor(tokens, n, seed: 8))
        let (dDown, dUp, oldX) = (TestTensor(undefined: r, n), TestTensor(undefined: m, r), dx.values)
        status = lr_change_backward(
            grad.pointer, x.pointer, h.pointer, down.pointer, up.pointer, startDown.pointer, startUp.pointer, 0.5,
            dx.pointer, dDown.pointer, dUp.pointer)
        #expect(status == .ok, "\(lastMessage)")
        expectEqual(dx.values, oldX + grad.values * change, "dx")
        expectEqual(dDown.values, 0.5 * ((grad.values * up.values).transposed * x.values), "dA")
        expectEqual(dUp.values, 0.5 * (grad.values.transposed * h.values), "dB")
    }

    @Test func effectiveUp() {
        for (core, c) in cores {
            let (up, start, out) = (tensor(m, r, seed: 10), tensor(m, r, seed: 11), TestTensor(undefined: m, r))
            #expect(lr_effective_up(up.pointer, core?.pointer, start.pointer, out.pointer) == .ok, "\(lastMessage)")
            expectEqual(out.values, up.values * c - start.values, "B C - start")
            #expect(lr_effective_up(up.pointer, core?.pointer, nil, out.pointer) == .ok, "\(lastMessage)")
            expectEqual(out.values, up.values * c, "B C")
            let (grad, dUp) = (tensor(m, r, seed: 12), TestTensor(undefined: m, r))
            let dCore = core.map { TestTensor(undefined: $0.matrix.view.rows, r, dimensions: $0.dimensions) }
            let status = lr_effective_up_backward(
                grad.pointer, up.pointer, core?.pointer, 2, dUp.pointer, dCore?.pointer)
            #expect(status == .ok, "\(lastMessage)")
            let dB = grad.values * c.transposed
            expectEqual(dUp.values, RealMatrix(m, r) { $1 < 2 ? 0 : dB[$0, $1] }, "dB")
            let dC = up.values.transposed * grad.values
            if let dCore { #expect(dCore.values.values == (dCore.dimensions == 1 ? dC.diagonal : dC.values), "dC") }
        }
    }

    @Test func baseProduct() {
        let (x, weight, bias) = (tensor(tokens, n, seed: 21), tensor(m, n, seed: 22), tensor(1, m, seed: 23, dimensions: 1))
        let out = TestTensor(undefined: tokens, m)
        let product = x.values * weight.values.transposed
        #expect(lr_base_product(x.pointer, weight.pointer, nil, out.pointer) == .ok, "\(lastMessage)")
        expectEqual(out.values, product, "x W^T")
        #expect(lr_base_product(x.pointer, weight.pointer, bias.pointer, out.pointer) == .ok, "\(lastMessage)")
        expectEqual(out.values, product + RealMatrix(tokens, 1, repeating: 1) * bias.values, "x W^T + bias")
    }

    @Test(arguments: ["x", "weight", "bias", "out"], [ScalarType.float64, .bfloat16, .float16])
    func baseProductsAreOfFloat32(name: String, type: ScalarType) throws {
        let call = TestCall.baseProduct
        let before = try call("out").bits
        try call(name).pointer.pointee.dtype = TestTensor.type(type)
        // Within the memory that is there, of aligned elements.
        let shape = name == "bias" ? [2] : [2, 2]
        try call(name).setShape(shape, strides: [2, 1].suffix(shape.count))
        #expect(call() == .unsupportedDtype)
        #expect(lastMessage == "\(name): expected float32, got \(type)")
        #expect(try call("out").bits == before)
    }

    @Test func shapesOfABaseProduct() throws {
        for (name, shape, message) in [
            ("x", [tokens, n + 1], "x: expected shape [5, 7], got [5, 8]"),
            ("bias", [m - 1], "bias: expected shape [9], got [8]"), ("out", [tokens - 1, m], "out: expected shape [5, 9], got [4, 9]"),
        ] {
            let call = TestCall.baseProduct
            try call(name).setShape(shape, strides: [1, 1].prefix(shape.count))
            #expect(call() == .invalidShape && lastMessage == message, "\(lastMessage)")
        }
    }

    @Test(arguments: ["olora", "loldu", "lamda", "pissa", "lora_xs"])
    func initialize(method: String) throws {
        let initializer = try Initializers.named(method)
        let expected = try initializer.startingFactors(
            of: TestMatrix(.gaussian(m, n, seed: 13)).view, rank: r, scale: 0.5, options: .init(), downIn: nil,
            on: CPUBackend.shared
        )
        for inPlace in [0, 1, -1] as [Int32] {
            let weight = TestTensor(TestMatrix(.gaussian(m, n, seed: 13)))
            let before = weight.values
            let (up, down) = (TestTensor(undefined: m, r), TestTensor(undefined: r, n))
            let core: TestTensor? =
                switch expected.core {
                case .identity: nil
                case .diagonal: TestTensor(undefined: 1, r, dimensions: 1)
                case .square: TestTensor(undefined: r, r)
                }
            let status = lr_initialize(
                method, weight.pointer, Int64(r), 0.5, nil, inPlace, up.pointer, core?.pointer, down.pointer)
            #expect(status == .ok, "\(lastMessage)")
            let rows = expected.permutation ?? Array(0..<m)
            expectEqual(up.values.gatheringRows(rows), expected.up.values, "\(method), B")
            expectEqual(down.values, expected.down.values, "\(method), A")
            if inPlace == 0 {
                expectEqual(weight.values, before, "\(method): the weight was written")
            } else {
                let c = core.map { $0.dimensions == 1 ? RealMatrix(diagonal: $0.values.values) : $0.values }
                let delta = 0.5 * (up.values * (c ?? .identity(r)) * down.values)
                expectSmall(
                    (weight.values + delta - before).norm, size: m, norm: before.norm + delta.norm, .float32,
                    within: .product, "\(method) in place \(inPlace)")
            }
        }
    }

    @Test func optionsReachTheMethod() {
        let weight = TestTensor(TestMatrix(.gaussian(m, n, seed: 14)))
        let (up, down, core) = (
            TestTensor(undefined: m, r), TestTensor(undefined: r, n), TestTensor(undefined: 1, r, dimensions: 1)
        )
        func run(_ method: String, _ diagonal: String?, tol: Double = 1e-4, seed: UInt64 = 0, core: TestTensor?)
            -> lr_status_t
        {
            func call(_ name: UnsafePointer<CChar>?) -> lr_status_t {
                var options = lr_initialize_options_t(tol: tol, seed: seed, diagonal: name)
                return lr_initialize(
                    method, weight.pointer, Int64(r), 1, &options, 0, up.pointer, core?.pointer, down.pointer)
            }
            guard let diagonal else { return call(nil) }
            return diagonal.withCString(call)
        }
        #expect(run("loldu", "ones", core: core) == .ok)
        #expect(core.values.values == [1, 1, 1])
        #expect(run("loldu", "uniform", seed: 1, core: core) == .ok)
        let first = core.values
        #expect(run("loldu", "uniform", seed: 2, core: core) == .ok)
        #expect(core.values != first)
        #expect(run("loldu", nil, core: core) == .ok)
        #expect(core.values != first)
        #expect(run("loldu", "twos", core: core) == .invalidArgument)
        #expect(
            lastMessage
                == "diagonal: expected one of \"ldu\", \"ones\", \"zeros\", \"mean\", \"uniform\", \"normal\", got \"twos\""
        )
        #expect(run("pissa", nil, tol: 2, core: nil) == .invalidArgument)
        #expect(lastMessage == "tol: expected 0 < tol < 1, got 2.0")
    }

    @Test func badMethodsAndScales() {
        let weight = TestTensor(TestMatrix(.gaussian(m, n, seed: 15)))
        let before = weight.bits
        let (up, down) = (TestTensor(undefined: m, r), TestTensor(undefined: r, n))
        func run(_ method: UnsafePointer<CChar>?, scale: Double) -> lr_status_t {
            lr_initialize(method, weight.pointer, Int64(r), scale, nil, 1, up.pointer, nil, down.pointer)
        }
        #expect(run(nil, scale: 1) == .invalidArgument && lastMessage == "method: expected a name, got a null pointer")
        #expect(run("lora", scale: 1) == .invalidArgument)
        #expect(lastMessage == "method: expected one of \"olora\", \"loldu\", \"lamda\", \"pissa\", \"lora_xs\", got \"lora\"")
        for scale in [Double.nan, .infinity] {
            #expect(run("olora", scale: scale) == .invalidArgument)
            #expect(lastMessage == "scale: expected a finite number, got \(scale)")
        }
        #expect(run("pissa", scale: -1) == .invalidArgument)
        #expect(lastMessage == "scale: expected scale > 0, whose square root PiSSA takes, got -1.0")
        #expect(weight.bits == before)
    }

    @Test(arguments: [-1, 4, Int64.max, Int64.min])
    func frozenColumnsOutOfRange(count: Int64) {
        let (grad, up, dUp) = (tensor(m, r, seed: 16), tensor(m, r, seed: 17), TestTensor(undefined: m, r))
        #expect(lr_effective_up_backward(grad.pointer, up.pointer, nil, count, dUp.pointer, nil) == .invalidArgument)
        #expect(lastMessage == "frozen_columns: expected 0 <= frozen_columns <= 3, got \(count)")
    }

    /// A gradient with as many elements as the core but another shape.
    @Test func gradientOfTheCoreHasItsShape() {
        let (grad, up) = (tensor(m, 4, seed: 18), tensor(m, 4, seed: 19))
        let (core, dCore) = (tensor(4, 4, seed: 20), TestTensor(undefined: 2, 8))
        #expect(
            lr_effective_up_backward(grad.pointer, up.pointer, core.pointer, 0, nil, dCore.pointer) == .invalidShape)
        #expect(lastMessage == "out_core: expected shape [4, 4], got [2, 8]")
    }

    @Test(arguments: ["up", "core", "down"])
    func nonFiniteFactorsOfAMerge(name: String) throws {
        let call = TestCall.merge
        let row = name == "core" ? 0 : 2
        try call(name).matrix.setBits(ScalarType.float32.bits(of: .nan), row, 1)
        let before = try call("weight").bits
        #expect(call() == .nonFinite)
        #expect(lastMessage == "\(name): expected finite values, got a NaN or infinity, the first one at [\(row), 1]")
        #expect(try call("weight").bits == before)
    }
}
