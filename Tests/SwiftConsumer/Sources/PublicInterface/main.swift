// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
//
// What another package can do with the product LowRank, checked with plain loops in float64. Prints a line for each check
// that fails, and at last "consumer: N passed, N failed".
import LowRank

let backend = CPUBackend.shared
// All checks run on this thread.
nonisolated(unsafe) var passed = 0
nonisolated(unsafe) var failed = 0

func check(_ what: String, _ holds: Bool) {
    if holds { passed += 1 } else { failed += 1; print("failed: \(what)") }
}

/// Elements in row order.
struct Elements {
    let rows: Int
    let columns: Int
    var values: [Double]

    init(_ rows: Int, _ columns: Int, _ element: (Int, Int) -> Double) {
        (self.rows, self.columns) = (rows, columns)
        values = (0..<rows * columns).map { element($0 / columns, $0 % columns) }
    }

    init(_ view: MatrixView) {
        (rows, columns) = (view.rows, view.columns)
        values = (0..<view.rows).flatMap { backend.values(of: view[rows: $0..<($0 + 1)]) }
    }

    subscript(i: Int, j: Int) -> Double { values[i * columns + j] }
    var transposed: Elements { Elements(columns, rows) { self[$1, $0] } }
    var norm: Double { values.reduce(0) { $0 + $1 * $1 }.squareRoot() }

    static func * (a: Elements, b: Elements) -> Elements {
        Elements(a.rows, b.columns) { i, j in (0..<a.columns).reduce(0) { $0 + a[i, $1] * b[$1, j] } }
    }
    static func * (s: Double, a: Elements) -> Elements { Elements(a.rows, a.columns) { s * a[$0, $1] } }
    static func + (a: Elements, b: Elements) -> Elements { Elements(a.rows, a.columns) { a[$0, $1] + b[$0, $1] } }
}

/// An object of the caller's that owns memory, which the views of it keep alive.
final class Memory {
    let address: UnsafeMutableRawPointer
    init(bytes: Int) { address = .allocate(byteCount: bytes, alignment: 64) }
    deinit { address.deallocate() }
}

/// A matrix of any type in memory of ours, with a gap after each row.
func view(_ elements: Elements, _ type: ScalarType = .float64) -> MatrixView {
    let stride = elements.columns + 3
    let memory = Memory(bytes: elements.rows * stride * type.size)
    let result = MatrixView(
        address: memory.address, type: type, rows: elements.rows, columns: elements.columns, rowStride: stride,
        columnStride: 1, owner: memory)
    for i in 0..<elements.rows {
        backend.setValues((0..<elements.columns).map { elements[i, $0] }, of: result[rows: i..<(i + 1)])
    }
    return result
}

func zeros(_ rows: Int, _ columns: Int, _ type: ScalarType = .float64) -> MatrixView {
    view(Elements(rows, columns) { _, _ in 0 }, type)
}

func equal(_ a: Elements, _ b: Elements, _ epsilon: Double = ScalarType.float64.epsilon) -> Bool {
    let difference = (a + -1 * b).norm
    let unit = Double(max(a.rows, a.columns)) * b.norm * epsilon
    return (a.rows, a.columns) == (b.rows, b.columns) && (difference == 0 || difference / unit < 30)
}

func coreElements(_ core: Core, rank: Int) -> Elements {
    switch core {
    case .identity: Elements(rank, rank) { $0 == $1 ? 1 : 0 }
    case .diagonal(let vector): Elements(rank, rank) { $0 == $1 ? backend.values(of: vector)[$0] : 0 }
    case .square(let matrix): Elements(matrix)
    }
}

func delta(_ factors: Factors) -> Elements {
    factors.scale * (Elements(factors.up) * coreElements(factors.core, rank: factors.rank) * Elements(factors.down))
}

let (m, n, rank, tokens, scale) = (7, 5, 3, 4, 0.5)
let stream = RandomStream(seed: 1)
let weight = Elements(m, n) { stream.uniform($0 * n + $1) }
let activations = Elements(tokens, n) { stream.uniform(1000 + $0 * n + $1) }
let upstream = Elements(tokens, m) { stream.uniform(2000 + $0 * m + $1) }

/// Room for the factors of a method.
func room(for method: any Initializer.Type, _ type: ScalarType = .float64) throws(LowRankError) -> Factors {
    let core: Core =
        switch method.name {
        case "loldu": .diagonal(zeros(rank, 1, type))
        case "lamda", "lora_xs": .square(zeros(rank, rank, type))
        default: .identity
        }
    return try Factors(up: zeros(m, rank, type), core: core, down: zeros(rank, n, type), scale: scale)
}

func checkMethod(_ method: any Initializer.Type) throws(LowRankError) {
    let factors = try room(for: method)
    let pretrained = view(weight)
    try method.initialize(pretrained, rank: rank, into: factors, inPlace: false, on: backend)
    check("\(method.name) leaves the weight alone", Elements(pretrained).values == weight.values)
    try method.initialize(pretrained, rank: rank, into: factors, inPlace: true, on: backend)
    check("\(method.name) in place", equal(Elements(pretrained) + delta(factors), weight))
    try factors.merge(into: pretrained, on: backend)
    check("\(method.name) merged", equal(Elements(pretrained), weight))

    let (y, h) = (zeros(tokens, m), zeros(tokens, rank))
    try factors.addForward(view(activations), to: y, keeping: h, on: backend)
    check("\(method.name) forward", equal(Elements(y), activations * delta(factors).transposed))

    let (dx, dDown, dUp) = (zeros(tokens, n), zeros(rank, n), zeros(m, rank))
    let dCore = factors.core.view.map { zeros($0.rows, $0.columns) }
    try factors.backward(
        view(upstream), x: view(activations), h: h,
        into: Gradients(x: dx, down: dDown, core: dCore, up: dUp, frozenColumns: 1), on: backend)
    let core = coreElements(factors.core, rank: rank)
    let p = upstream * Elements(factors.up)
    check("\(method.name) dx", equal(Elements(dx), upstream * delta(factors)))
    let (fromH, dh) = (zeros(tokens, m), zeros(tokens, rank))
    let upProjection = try UpProjection(up: factors.up, core: factors.core, scale: factors.scale)
    try upProjection.addForward(h, to: fromH, on: backend)
    try upProjection.backward(view(upstream), h: nil, into: Gradients(x: dh), on: backend)
    check("\(method.name) forward from h", equal(Elements(fromH), Elements(y)))
    check("\(method.name) dh", equal(Elements(dh) * Elements(factors.down), Elements(dx)))
    check("\(method.name) d down", equal(Elements(dDown), scale * ((p * core).transposed * activations)))
    let full = scale * (upstream.transposed * (Elements(h) * core.transposed))
    check("\(method.name) d up", equal(Elements(dUp), Elements(m, rank) { $1 == 0 ? 0 : full[$0, $1] }))
    let square = scale * (p.transposed * Elements(h))
    switch factors.core {
    case .identity: break
    case .diagonal: check("\(method.name) d core", equal(Elements(dCore!), Elements(rank, 1) { i, _ in square[i, i] }))
    case .square: check("\(method.name) d core", equal(Elements(dCore!), square))
    }
}

func checkFactorisations() throws(LowRankError) {
    let full = min(m, n)
    let qr = try TruncatedQR(of: view(weight), rank: full, on: backend)
    check("qr", equal(Elements(qr.q.view) * Elements(qr.r.view), weight))
    let ldu = try TruncatedLDU(of: view(weight), rank: full, on: backend)
    let d = backend.values(of: ldu.diagonal.view)
    let product = Elements(ldu.lower.view) * Elements(full, full) { $0 == $1 ? d[$0] : 0 } * Elements(ldu.upper.view)
    check("ldu", equal(product, Elements(m, n) { weight[ldu.permutation[$0], $1] }))
    let svd = try TruncatedSVD(of: view(weight).transposed, rank: full, tolerance: 1e-6, seed: 3, on: backend)
    let s = Elements(full, full) { $0 == $1 ? svd.s[$0] : 0 }
    check("svd of a transposed view", equal(Elements(svd.u.view) * s * Elements(svd.vh.view), weight.transposed))
    check("svd passes", svd.passes >= 1)
}

func checkRanks() throws(LowRankError) {
    let full = min(m, n)
    let spectrum = try Spectrum(of: view(weight), rank: full, on: backend)
    check("norm", (spectrum.norm / weight.norm - 1).magnitude < 1e-14)
    check("all energy", (spectrum.shares[full - 1] - 1).magnitude < 1e-14)
    let flat = Spectrum(values: [1, 1, 1], norm: 2)
    let layers = [spectrum, flat].map { RankAllocation.Layer(spectrum: $0, maxRank: $0.values.count) }
    let allocation = try RankAllocation(layers, minRank: 1, budget: 20)
    check("ranks", allocation.ranks == [full, 3] && allocation.unspent == 17 - full && allocation.undecided == nil)
}

func checkOptions() throws(LowRankError) {
    var options = InitializerOptions()
    options.diagonal = .normal
    options.seed = 5
    options.tolerance = TruncatedSVD.defaultTolerance
    let (first, second) = (try room(for: LoLDU.self), try room(for: LoLDU.self))
    try LoLDU.initialize(view(weight), rank: rank, into: first, inPlace: false, options: options, on: backend)
    try LoLDU.initialize(view(weight), rank: rank, into: second, inPlace: false, options: options, on: backend)
    check("a seed gives one result", delta(first).values == delta(second).values)
    options.seed = 6
    try LoLDU.initialize(view(weight), rank: rank, into: second, inPlace: false, options: options, on: backend)
    check("another seed gives another", delta(first).values != delta(second).values)
}

func checkNarrowTypes() throws(LowRankError) {
    for type in ScalarType.allCases {
        let factors = try room(for: OLoRA.self, type)
        try OLoRA.initialize(view(weight, type), rank: rank, into: factors, inPlace: false, on: backend)
        let panel = Elements(m, rank) { weight[$0, $1] }
        let product = delta(factors)
        check("olora in \(type)", equal(Elements(m, rank) { product[$0, $1] / scale }, panel, type.epsilon))
    }
}

func checkEffectiveUp() throws(LowRankError) {
    let factors = try room(for: LaMDA.self)
    try LaMDA.initialize(view(weight), rank: rank, into: factors, inPlace: false, on: backend)
    let effective = try EffectiveUp(up: factors.up, core: factors.core)
    let (start, difference) = (zeros(m, rank), zeros(m, rank))
    try effective.write(minus: nil, to: start, on: backend)
    try effective.write(minus: start, to: difference, on: backend)
    check("an untrained adapter is zero", Elements(difference).norm == 0)
    let (dUp, dCore) = (zeros(m, rank), zeros(rank, rank))
    try effective.backward(start, into: Gradients(core: dCore, up: dUp), on: backend)
    check("d core of B C", equal(Elements(dCore), Elements(factors.up).transposed * Elements(start)))
}

func checkChange() throws(LowRankError) {
    let factors = try room(for: OLoRA.self)
    try OLoRA.initialize(view(weight), rank: rank, into: factors, inPlace: false, on: backend)
    let change = try Change(factors, startUp: factors.up, startDown: factors.down)
    let (y, h, dx) = (zeros(m, m), zeros(m, rank), zeros(m, n))
    try change.addForward(view(weight), to: y, keeping: h, on: backend)
    check("an untrained adapter has changed nothing", Elements(y).norm == 0 && Elements(h).norm > 0)
    try change.backward(y, x: nil, h: nil, into: Gradients(x: dx), on: backend)
    check("nor a gradient", Elements(dx).norm == 0)
}

func checkErrors() throws(LowRankError) {
    func message(_ body: () throws(LowRankError) -> Void) -> String {
        do { try body() } catch { return "\(error)" }
        return "none"
    }
    let tooHigh = message { () throws(LowRankError) in _ = try TruncatedQR(of: view(weight), rank: 6, on: backend) }
    check(tooHigh, tooHigh == "rank: expected 1 <= rank <= min(m, n) = 5, got 6")
    let unknown = message { () throws(LowRankError) in _ = try Initializers.named("lora") }
    check(unknown, unknown.hasPrefix("method: expected one of"))
    let chain = message { () throws(LowRankError) in
        _ = try Factors(up: zeros(m, rank), core: .identity, down: zeros(rank + 1, n), scale: 1)
    }
    check(chain, chain == "down: expected shape [3, n] to fit up [7, 3], got [4, 5]")
    var spoiled = weight
    spoiled.values[n + 2] = .nan
    do {
        _ = try TruncatedQR(of: view(spoiled), rank: rank, on: backend)
        check("a NaN is refused", false)
    } catch {
        check("\(error)", error == .nonFinite(argument: "weight", row: 1, column: 2))
    }
}

func checkThreads() {
    CPUBackend.setThreadCount(3)
    check("threads can be set", CPUBackend.threadCount == 3)
    CPUBackend.setThreadCount(0)
    check("threads return to the default", (1...CPUBackend.maxThreadCount).contains(CPUBackend.threadCount))
    check("what runs here", CPUBackend.configuration.contains { $0.name == "instruction_set" })
}

for method in Initializers.all { try checkMethod(method) }
try checkFactorisations()
try checkRanks()
try checkOptions()
try checkNarrowTypes()
try checkEffectiveUp()
try checkChange()
try checkErrors()
checkThreads()
print("consumer: \(passed) passed, \(failed) failed")
if failed > 0 { fatalError("a check of the public interface failed") }
