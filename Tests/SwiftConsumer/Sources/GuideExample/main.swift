// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRank

/// A row-major float32 matrix in memory of our own.
func matrix(_ rows: Int, _ columns: Int, element: (Int, Int) -> Float = { _, _ in 0 }) -> MatrixView {
    let memory = UnsafeMutablePointer<Float>.allocate(capacity: rows * columns)
    for i in 0..<rows { for j in 0..<columns { (memory + i * columns + j).initialize(to: element(i, j)) } }
    return MatrixView(
        address: memory, type: .float32, rows: rows, columns: columns, rowStride: columns, columnStride: 1)
}

let (outputs, inputs, rank) = (6, 4, 2)
let weight = matrix(outputs, inputs) { i, j in 1 / Float(i + j + 1) }

// OLoRA's starting factors: W = Q R cut after `rank` columns of Q and rows of R. The weight is only read.
let factors = try Factors(up: matrix(outputs, rank), core: .identity, down: matrix(rank, inputs), scale: 1)
try OLoRA.initialize(weight, rank: rank, into: factors, inPlace: false, on: CPUBackend.shared)

// y += s (x Aᵀ) Bᵀ, here onto zeros, and h = x Aᵀ, which a backward pass keeps. Row t of x is the unit vector e_t.
let x = matrix(rank, inputs) { t, j in t == j ? 1 : 0 }
let (y, h) = (matrix(rank, outputs), matrix(rank, rank))
try factors.addForward(x, to: y, keeping: h, on: CPUBackend.shared)

// Q R has the first `rank` columns of W, so row t of y is column t of W, to rounding.
var error = 0.0
for t in 0..<rank {
    let pairs = zip(
        CPUBackend.shared.values(of: y[rows: t..<(t + 1)]), CPUBackend.shared.values(of: weight[columns: t..<(t + 1)]))
    for (got, expected) in pairs { error = max(error, abs(got - expected)) }
}
let ratio = error / (Double(outputs) * ScalarType.float32.epsilon)
print("columns of W from the adapter: \(ratio < 30 ? "ok" : "wrong"), error / (m eps) = \(ratio)")

do throws(LowRankError) {
    _ = try TruncatedQR(of: weight, rank: 0, on: CPUBackend.shared)
} catch {
    print(error)
}
