// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import CLowRank
import LowRankCore
import TestSupport
import Testing

/// One call of the C ABI with good arguments, each of which a test may replace or spoil.
struct TestCall {
    /// What a function does with a tensor.
    enum Role: Sendable {
        case input
        case output
        /// Read and written.
        case changed
    }

    struct Argument {
        /// As the function's messages call it.
        let name: String
        let tensor: TestTensor
        let role: Role
        var isOptional = false
    }

    let name: String
    let arguments: [Argument]
    private let run: ([UnsafeMutablePointer<DLTensor>?]) -> lr_status_t

    init(
        _ name: String, _ arguments: [Argument], run: @escaping ([UnsafeMutablePointer<DLTensor>?]) -> lr_status_t
    ) {
        self.name = name
        self.arguments = arguments
        self.run = run
    }

    /// Runs it, with the arguments of the given names left out.
    func callAsFunction(without missing: Set<String> = []) -> lr_status_t {
        withExtendedLifetime(arguments) {
            run(arguments.map { missing.contains($0.name) ? nil : $0.tensor.pointer })
        }
    }

    /// The tensor of a name.
    func callAsFunction(_ name: String) throws -> TestTensor {
        try #require(arguments.first { $0.name == name }?.tensor)
    }

    /// The index of each argument of each call, for tests that spoil one.
    static let allArguments: [(call: String, argument: String)] = all.flatMap { call in
        call.arguments.map { (call.name, $0.name) }
    }

    /// Every function that takes tensors.
    static var all: [TestCall] {
        [checkWeight, qr, ldu, svd, spectrum] + ["olora", "loldu", "lamda", "pissa", "lora_xs"].map { initialize($0) }
            + [
                forward, backward, changeForward, changeBackward, effectiveUp, effectiveUpBackward, baseProduct, merge,
            ]
    }

    static func named(_ name: String) throws -> TestCall {
        try #require(all.first { $0.name == name })
    }
}

extension TestCall {
    /// Sizes, type and layout of the arguments: `weight` [m, n], rank r, and T tokens.
    struct Arguments: Sendable {
        var (m, n, r, tokens) = (9, 7, 3, 5)
        var type = ScalarType.float32
        /// Those of an adapter's forward that are of another type.
        var types: [String: ScalarType] = [:]
        var layout = Layout.rowMajor
        /// For calls that take any: [r, r], else [r].
        var hasSquareCore = false
    }

    /// What the calls are made with, and run with.
    @TaskLocal static var made = Arguments()

    private static var m: Int { made.m }
    private static var n: Int { made.n }
    private static var r: Int { made.r }
    private static var tokens: Int { made.tokens }

    private static func tensor(
        _ rows: Int, _ columns: Int, seed: UInt64, dimensions: Int = 2, _ name: String = ""
    ) -> TestTensor {
        let type = made.types[name] ?? made.type
        return TestTensor(TestMatrix(.gaussian(rows, columns, seed: seed), type, made.layout), dimensions: dimensions)
    }

    private static func undefined(_ rows: Int, _ columns: Int, _ dimensions: Int = 2) -> TestTensor {
        TestTensor(undefined: rows, columns, made.type, made.layout, dimensions: dimensions)
    }

    private static func input(_ name: String, _ tensor: TestTensor) -> Argument {
        Argument(name: name, tensor: tensor, role: .input)
    }

    private static func output(_ name: String, _ tensor: TestTensor) -> Argument {
        Argument(name: name, tensor: tensor, role: .output)
    }

    private static var weight: Argument { input("weight", tensor(m, n, seed: 1)) }

    private static func core(_ make: (_ rows: Int, _ columns: Int, _ dimensions: Int) -> TestTensor) -> TestTensor {
        made.hasSquareCore ? make(r, r, 2) : make(1, r, 1)
    }

    private static var factors: [Argument] {
        [
            input("down", tensor(r, n, seed: 2, "down")),
            optional(input("core", core { tensor($0, $1, seed: 3, dimensions: $2, "core") })),
            input("up", tensor(m, r, seed: 4, "up")),
        ]
    }

    private static func optional(_ argument: Argument) -> Argument {
        var argument = argument
        argument.isOptional = true
        return argument
    }

    static var checkWeight: TestCall {
        TestCall("lr_check_weight", [weight]) { lr_check_weight($0[0], Int64(r)) }
    }

    static var qr: TestCall {
        TestCall("lr_qr", [weight, output("out_q", undefined(m, r)), output("out_r", undefined(r, n))]) {
            lr_qr($0[0], Int64(r), $0[1], $0[2])
        }
    }

    static var ldu: TestCall {
        TestCall(
            "lr_ldu",
            [
                weight, output("out_l", undefined(m, r)), output("out_d", undefined(1, r, 1)),
                output("out_u", undefined(r, n)), output("out_perm", .indices(m)),
            ]
        ) { lr_ldu($0[0], Int64(r), $0[1], $0[2], $0[3], $0[4]) }
    }

    static var svd: TestCall {
        TestCall(
            "lr_svd",
            [
                weight, output("out_u", undefined(m, r)), output("out_s", undefined(1, r, 1)),
                output("out_vh", undefined(r, n)),
            ]
        ) { lr_svd($0[0], Int64(r), 1e-4, 0, $0[1], $0[2], $0[3], nil) }
    }

    static var spectrum: TestCall {
        TestCall("lr_spectrum", [weight, output("out_values", undefined(1, r, 1))]) {
            lr_spectrum($0[0], Int64(r), 1e-4, 0, $0[1], nil, nil)
        }
    }

    /// In place; the core is of the method's kind.
    static func initialize(_ method: String) -> TestCall {
        let core: Argument? =
            switch method {
            case "loldu": output("core", undefined(1, r, 1))
            case "lamda", "lora_xs": output("core", undefined(r, r))
            default: nil
            }
        let arguments =
            [
                Argument(name: "weight", tensor: tensor(m, n, seed: 1), role: .changed),
                output("up", undefined(m, r)),
            ]
            + [core].compactMap { $0 } + [output("down", undefined(r, n))]
        return TestCall("lr_initialize \(method)", arguments) { pointers in
            let core = core == nil ? nil : pointers[2]
            return lr_initialize(method, pointers[0], Int64(r), 0.5, nil, 1, pointers[1], core, pointers.last ?? nil)
        }
    }

    static var forward: TestCall {
        let out = Argument(name: "out", tensor: tensor(tokens, m, seed: 6, "out"), role: .changed)
        let arguments =
            [input("x", tensor(tokens, n, seed: 5, "x"))] + factors + [out, output("out_h", undefined(tokens, r))]
        return TestCall("lr_adapter_forward", arguments) {
            lr_adapter_forward($0[0], $0[1], $0[2], $0[3], 0.5, $0[4], $0[5])
        }
    }

    static var backward: TestCall {
        let inputs = [
            input("grad", tensor(tokens, m, seed: 7)), input("x", tensor(tokens, n, seed: 8)),
            input("h", tensor(tokens, r, seed: 9)),
        ]
        let outputs = [
            Argument(name: "out_x", tensor: tensor(tokens, n, seed: 10), role: .changed, isOptional: true),
            optional(output("out_down", undefined(r, n))),
            optional(output("out_core", core(undefined))),
            optional(output("out_up", undefined(m, r))),
        ]
        return TestCall("lr_adapter_backward", inputs + factors + outputs) {
            lr_adapter_backward($0[0], $0[1], $0[2], $0[3], $0[4], $0[5], 0.5, 1, $0[6], $0[7], $0[8], $0[9])
        }
    }

    private static var changeFactors: [Argument] {
        [factors[0], factors[2]]
            + [input("start_down", tensor(r, n, seed: 13)), input("start_up", tensor(m, r, seed: 14))]
    }

    static var changeForward: TestCall {
        let out = Argument(name: "out", tensor: tensor(tokens, m, seed: 6), role: .changed)
        let x = input("x", tensor(tokens, n, seed: 5))
        let arguments = [x] + changeFactors + [out, output("out_h", .init(undefined: tokens, r))]
        return TestCall("lr_change_forward", arguments) {
            lr_change_forward($0[0], $0[1], $0[2], $0[3], $0[4], 0.5, $0[5], $0[6])
        }
    }

    static var changeBackward: TestCall {
        let inputs = [
            input("grad", tensor(tokens, m, seed: 7)), input("x", tensor(tokens, n, seed: 8)),
            input("h", tensor(tokens, r, seed: 9)),
        ]
        let outputs = [
            Argument(name: "out_x", tensor: tensor(tokens, n, seed: 10), role: .changed, isOptional: true),
            optional(output("out_down", .init(undefined: r, n))), optional(output("out_up", .init(undefined: m, r))),
        ]
        return TestCall("lr_change_backward", inputs + changeFactors + outputs) {
            lr_change_backward(
                $0[0], $0[1], $0[2], $0[3], $0[4], $0[5], $0[6], 0.5, $0[7], $0[8], $0[9])
        }
    }

    static var effectiveUp: TestCall {
        let arguments =
            [
                factors[2], factors[1], optional(input("start", tensor(m, r, seed: 11))),
                output("out", undefined(m, r)),
            ]
        return TestCall("lr_effective_up", arguments) { lr_effective_up($0[0], $0[1], $0[2], $0[3]) }
    }

    static var effectiveUpBackward: TestCall {
        let outputs = [
            optional(output("out_up", undefined(m, r))),
            optional(output("out_core", core(undefined))),
        ]
        let arguments = [input("grad", tensor(m, r, seed: 12)), factors[2], factors[1]] + outputs
        return TestCall("lr_effective_up_backward", arguments) {
            lr_effective_up_backward($0[0], $0[1], $0[2], 1, $0[3], $0[4])
        }
    }

    static var baseProduct: TestCall {
        let arguments = [
            input("x", tensor(tokens, n, seed: 5)), weight,
            optional(input("bias", tensor(1, m, seed: 13, dimensions: 1))), output("out", .init(undefined: tokens, m)),
        ]
        return TestCall("lr_base_product", arguments) { lr_base_product($0[0], $0[1], $0[2], $0[3]) }
    }

    static var merge: TestCall {
        let weight = Argument(name: "weight", tensor: tensor(m, n, seed: 1), role: .changed)
        return TestCall("lr_merge", [weight] + factors) { lr_merge($0[0], $0[1], $0[2], $0[3], 0.5) }
    }
}
