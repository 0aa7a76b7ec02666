// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankAdapters
import LowRankBackends
import LowRankCore
import TestSupport
import Testing

/// Every error of the adapters, with what it says; nothing is written before.
@Suite struct AdapterErrorTests {
    private let backend = CPUBackend.shared
    private let m = 7
    private let n = 5
    private let r = 4
    private let tokens = 3

    /// A NaN-filled matrix; what is refused must never be read.
    private func matrix(_ rows: Int, _ columns: Int) -> TestMatrix { TestMatrix(undefined: rows, columns) }

    private func factors(_ kind: CoreKind) throws -> Factors {
        try TestAdapter(integers: m, n, rank: r, kind).factors()
    }

    @Test func downMustFitUp() {
        let (up, down) = (matrix(m, r), matrix(r + 1, n))
        #expect(
            throws: LowRankError.invalidShape(
                argument: "down", expected: "shape [4, n] to fit up [7, 4]", got: "[5, 5]")
        ) { try Factors(up: up.view, core: .identity, down: down.view, scale: 1) }
    }

    @Test func coresMustFitTheRank() {
        let (up, down) = (matrix(m, r), matrix(r, n))
        let (vector, block, square, wide) = (matrix(1, r + 1), matrix(2, 2), matrix(r + 1, r + 1), matrix(r, r + 1))
        for (core, expected, got) in [
            (Core.diagonal(vector.view), "shape [4]", "[5]"), (.diagonal(block.view), "shape [4]", "[4]"),
            (.square(square.view), "shape [4, 4]", "[5, 5]"), (.square(wide.view), "shape [4, 4]", "[4, 5]"),
        ] {
            let error = LowRankError.invalidShape(argument: "core", expected: expected, got: got)
            #expect(throws: error) { try Factors(up: up.view, core: core, down: down.view, scale: 1) }
            #expect(throws: error) { try EffectiveUp(up: up.view, core: core) }
        }
    }

    @Test(arguments: [Double.nan, .infinity, -.infinity])
    func scaleMustBeFinite(scale: Double) {
        let (up, down) = (matrix(m, r), matrix(r, n))
        #expect(throws: LowRankError.invalidArgument(argument: "scale", expected: "a finite number", got: "\(scale)")) {
            try Factors(up: up.view, core: .identity, down: down.view, scale: scale)
        }
    }

    @Test(arguments: CoreKind.allCases)
    func shapesOfTheForward(kind: CoreKind) throws {
        let factors = try factors(kind)
        for (argument, x, y, h, expected, got) in [
            ("x", (tokens, n + 1), (tokens, m), (tokens, r), "[3, 5]", "[3, 6]"),
            ("out", (tokens, n), (tokens, m + 1), (tokens, r), "[3, 7]", "[3, 8]"),
            ("out", (tokens, n), (tokens + 1, m), (tokens, r), "[3, 7]", "[4, 7]"),
            ("out_h", (tokens, n), (tokens, m), (tokens, r - 1), "[3, 4]", "[3, 3]"),
            ("out_h", (tokens, n), (tokens, m), (tokens - 1, r), "[3, 4]", "[2, 4]"),
        ] {
            let (x, y, h) = (matrix(x.0, x.1), TestMatrix(.integers(y.0, y.1, seed: 1)), matrix(h.0, h.1))
            let before = y.bits
            #expect(throws: LowRankError.invalidShape(argument: argument, expected: "shape \(expected)", got: got)) {
                try factors.addForward(x.view, to: y.view, keeping: h.view, on: backend)
            }
            #expect(y.bits == before && h.values.values.allSatisfy { $0.isNaN })
        }
    }

    @Test(arguments: CoreKind.allCases)
    func shapesOfTheBackward(kind: CoreKind) throws {
        let factors = try factors(kind)
        let (g, x, h) = (matrix(tokens, m), matrix(tokens, n), matrix(tokens, r))
        let wrong = matrix(6, 6)
        for (argument, expected, g, x, h, gradients) in [
            ("grad", "[3, 7]", matrix(tokens, m + 1), x, h, Gradients()),
            ("h", "[3, 4]", g, x, matrix(tokens, r + 1), Gradients()),
            ("h", "[3, 4]", g, x, matrix(tokens + 1, r), Gradients()),
            ("x", "[3, 5]", g, matrix(tokens, n + 1), h, Gradients()),
            ("x", "[3, 5]", g, matrix(tokens + 1, n), h, Gradients()),
            ("out_x", "[3, 5]", g, x, h, Gradients(x: wrong.view)),
            ("out_down", "[4, 5]", g, x, h, Gradients(down: wrong.view)),
            ("out_up", "[7, 4]", g, x, h, Gradients(up: wrong.view)),
        ] {
            #expect(
                performing: { try factors.backward(g.view, x: x.view, h: h.view, into: gradients, on: backend) },
                throws: { error in
                    guard case .invalidShape(argument, let wanted, _)? = error as? LowRankError else { return false }
                    return wanted == "shape \(expected)"
                })
        }
    }

    @Test func whatIsMissingIsNamed() throws {
        let factors = try factors(.diagonal)
        let (g, x, h) = (matrix(tokens, m), matrix(tokens, n), matrix(tokens, r))
        let (dDown, dCore, dUp) = (matrix(r, n), matrix(1, r), matrix(m, r))
        #expect(
            throws: LowRankError.invalidArgument(
                argument: "x", expected: "the activations, which the gradient of down needs", got: "none")
        ) { try factors.backward(g.view, x: nil, h: h.view, into: Gradients(down: dDown.view), on: backend) }
        for gradients in [Gradients(core: dCore.view), Gradients(up: dUp.view)] {
            #expect(
                throws: LowRankError.invalidArgument(
                    argument: "h", expected: "what the forward kept, which the gradients of up and core need",
                    got: "none")
            ) { try factors.backward(g.view, x: x.view, h: nil, into: gradients, on: backend) }
        }
    }

    /// A gradient with as many elements as the core, in another shape, is another shape.
    @Test func gradientOfTheCoreHasItsShape() throws {
        let (g, h) = (matrix(tokens, m), matrix(tokens, r))
        let up = matrix(m, r)
        for (kind, rows, columns, expected) in [
            (CoreKind.square, 2, 8, "shape [4, 4]"), (.square, 1, 16, "shape [4, 4]"), (.square, 3, 4, "shape [4, 4]"),
            (.diagonal, 2, 2, "shape [4]"), (.diagonal, 1, 3, "shape [4]"), (.diagonal, 4, 4, "shape [4]"),
        ] {
            let adapter = TestAdapter(integers: m, n, rank: r, kind)
            let dCore = matrix(rows, columns)
            let error = LowRankError.invalidShape(
                argument: "out_core", expected: expected, got: "[\(rows), \(columns)]")
            #expect(throws: error) {
                try adapter.factors().backward(
                    g.view, x: nil, h: h.view, into: Gradients(core: dCore.view), on: backend)
            }
            #expect(throws: error) {
                try EffectiveUp(up: adapter.up.view, core: adapter.libraryCore)
                    .backward(up.view, into: Gradients(core: dCore.view), on: backend)
            }
        }
        let dCore = matrix(1, r)
        let error = LowRankError.invalidArgument(
            argument: "out_core", expected: "none for an adapter without a core", got: "[1, 4]")
        #expect(throws: error) {
            try factors(.identity).backward(g.view, x: nil, h: h.view, into: Gradients(core: dCore.view), on: backend)
        }
        #expect(throws: error) {
            try EffectiveUp(up: up.view, core: .identity).backward(
                up.view, into: Gradients(core: dCore.view), on: backend)
        }
    }

    @Test(arguments: [-1, 5, Int.max, Int.min])
    func frozenColumnsAreWithinTheRank(count: Int) throws {
        let (g, h, dUp) = (matrix(tokens, m), matrix(tokens, r), matrix(m, r))
        let error = LowRankError.invalidArgument(
            argument: "frozen_columns", expected: "0 <= frozen_columns <= 4", got: "\(count)")
        for kind in CoreKind.allCases {
            let adapter = TestAdapter(integers: m, n, rank: r, kind)
            let gradients = Gradients(up: dUp.view, frozenColumns: count)
            #expect(throws: error) {
                try adapter.factors().backward(g.view, x: nil, h: h.view, into: gradients, on: backend)
            }
            #expect(throws: error) {
                try EffectiveUp(up: adapter.up.view, core: adapter.libraryCore).backward(
                    dUp.view, into: gradients, on: backend)
            }
        }
        #expect(dUp.values.values.allSatisfy { $0.isNaN })
    }

    @Test(arguments: CoreKind.allCases)
    func shapesOfTheEffectiveUp(kind: CoreKind) throws {
        let adapter = TestAdapter(integers: m, n, rank: r, kind)
        let effective = try EffectiveUp(up: adapter.up.view, core: adapter.libraryCore)
        let (good, wrong) = (matrix(m, r), matrix(m, r + 1))
        func error(_ argument: String) -> LowRankError {
            .invalidShape(argument: argument, expected: "shape [7, 4]", got: "[7, 5]")
        }
        #expect(throws: error("out")) { try effective.write(minus: nil, to: wrong.view, on: backend) }
        #expect(throws: error("start")) { try effective.write(minus: wrong.view, to: good.view, on: backend) }
        #expect(throws: error("grad")) { try effective.backward(wrong.view, into: Gradients(), on: backend) }
        #expect(throws: error("out_up")) {
            try effective.backward(good.view, into: Gradients(up: wrong.view), on: backend)
        }
    }

    @Test func weightOfAMergeMustFit() throws {
        let weight = matrix(n, m)
        #expect(throws: LowRankError.invalidShape(argument: "weight", expected: "shape [7, 5]", got: "[5, 7]")) {
            try factors(.square).merge(into: weight.view, on: backend)
        }
    }
}
