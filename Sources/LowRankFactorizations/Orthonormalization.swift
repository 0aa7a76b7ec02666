// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankBackends
import LowRankCore

/// `block = basis C + Q R` up to rounding.
struct OrthonormalBlock {
    /// Q [m, b], orthonormal columns, orthogonal to the basis.
    let block: Matrix
    /// C [K, b], or nil where the basis is empty.
    let coefficients: Matrix?
    /// R [b, b], float64.
    let triangle: Matrix
    /// Of the questions that came with the block.
    let answers: [[Double]]
}

/// The length up to which a direction counts as rounding, where the host has yet to ask for what it depends on.
struct VanishingLength {
    var questions: [Question] = []
    var length: ([[Double]]) -> Double
}

/// Makes blocks orthonormal; draws the directions that a block lacks from one stream of random numbers.
struct Orthonormalizer<Device: Backend> {
    private let backend: Device
    private let seed: UInt64
    private var draws: UInt64 = 0

    /// Blocks wider than that go to LAPACK: the Cholesky factors are the host's work.
    private static var widestCholesky: Int { 128 }

    init(seed: UInt64, on backend: Device) {
        self.seed = seed
        self.backend = backend
    }

    /// `columns` random vectors of length `rows`.
    mutating func randomBlock(rows: Int, columns: Int, type: ScalarType) throws(LowRankError) -> Matrix {
        let block = try backend.makeMatrix(rows: rows, columns: columns, type: type, order: .rowMajor)
        backend.fillUniform(block.view, from: RandomStream(seed: seed, stream: draws))
        draws += 1
        return block
    }

    /// Orthonormal columns in place of `block` [m, b], orthogonal to the orthonormal `basis` [m, K], K + b <= m.
    ///
    /// One projection and a Cholesky factor of the Gram matrix in float64 where the block is well conditioned, else
    /// Householder's QR, repeated until the projection changes nothing that matters. Directions that vanish (a
    /// rank-deficient block) are replaced by random ones that carry no weight in R.
    ///
    /// - Parameters:
    ///   - vanishing: Length up to which a direction counts as rounding. A well-conditioned block lets the host wait once, for
    ///     what that depends on as well.
    mutating func orthonormalize(
        _ block: Matrix, against basis: MatrixView, vanishing: VanishingLength
    ) throws(LowRankError) -> OrthonormalBlock {
        if block.columns > Self.widestCholesky {
            let answers = backend.answers(to: vanishing.questions)
            return try orthonormalizeBySweeps(block, against: basis, start: nil, vanishing, answers)
        }
        let coefficients = try basis.columns > 0 ? project(block, from: basis) : nil
        let gram = try backend.makeMatrix(rows: block.columns, columns: block.columns, type: .float64, order: .rowMajor)
        try backend.multiply(alpha: 1, block.view.transposed, block.view, beta: 0, into: gram.view)
        let taken = try coefficients.map { (taken) throws(LowRankError) in try backend.columnSquares(of: taken.view) }
        let questions = [gram.view, taken?.view].compactMap(\.self).map { Question.elements($0) }
        let answers = backend.answers(to: questions + vanishing.questions)
        let others = Array(answers.suffix(vanishing.questions.count))
        let lost = taken == nil ? [] : answers[1]
        if let (q, r) = try choleskyQR(block, gram: answers[0], lost: lost, shortest: vanishing.length(others)) {
            return OrthonormalBlock(block: q, coefficients: coefficients, triangle: r, answers: others)
        }
        return try orthonormalizeBySweeps(block, against: basis, start: coefficients, vanishing, others)
    }

    mutating func orthonormalize(
        _ block: Matrix, against basis: MatrixView, vanishing: Double
    ) throws(LowRankError) -> OrthonormalBlock {
        try orthonormalize(block, against: basis, vanishing: VanishingLength { _ in vanishing })
    }

    /// `block -= basis (basisᵀ block)`; returns what was taken off, `basisᵀ block`.
    private func project(_ block: Matrix, from basis: MatrixView) throws(LowRankError) -> Matrix {
        let coefficients = try backend.product(basis.transposed, block.view)
        try backend.multiply(alpha: -1, basis, coefficients.view, beta: 1, into: block.view)
        return coefficients
    }

    /// Q R of a block with a Gram matrix, whose columns, brought to unit length, are far from dependent, are longer than
    /// `shortest`, and have not `lost` most of their squared length to what was taken off them; nil for another.
    ///
    /// Rounding is magnified by the condition number at most, which the smallest pivot bounds.
    private func choleskyQR(
        _ block: Matrix, gram: [Double], lost: [Double], shortest: Double
    ) throws(LowRankError) -> (q: Matrix, r: Matrix)? {
        let b = block.columns
        let rows = (0..<b).map { Array(gram[($0 * b)..<(($0 + 1) * b)]) }
        let squares = (0..<b).map { rows[$0][$0] }
        guard squares.allSatisfy({ $0 > shortest * shortest && $0.isFinite }) else { return nil }
        if lost.indices.contains(where: { squares[$0] < 0.01 * lost[$0] }) { return nil }
        let lengths = squares.map { $0.squareRoot() }
        guard let (factor, inverse) = choleskyFactor(rows, lengths: lengths, smallestPivot: 1e-4) else { return nil }
        let triangle = try backend.makeMatrix(rows: b, columns: b, type: .float64, order: .rowMajor)
        let correction = try backend.makeMatrix(rows: b, columns: b, type: block.view.type, order: .rowMajor)
        backend.setRows(factor, of: triangle.view)
        backend.setRows(inverse, of: correction.view)
        return (try backend.product(block.view, correction.view), triangle)
    }

    /// Householder's QR after each projection. From the second sweep on the columns are of unit length, so a diagonal
    /// near one says that the projection took nothing off them.
    private mutating func orthonormalizeBySweeps(
        _ block: Matrix, against basis: MatrixView, start: Matrix?, _ vanishing: VanishingLength, _ answers: [[Double]]
    ) throws(LowRankError) -> OrthonormalBlock {
        let threshold = vanishing.length(answers)
        let columns = block.columns
        let type = block.view.type
        let panel = try backend.makeMatrix(rows: block.rows, columns: columns, type: type, order: .columnMajor)
        try backend.copy(block.view, to: panel.view)
        let coefficients = try backend.makeMatrix(rows: basis.columns, columns: columns, type: .float64, order: .rowMajor)
        if let start { try backend.copy(start.view, to: coefficients.view) } else { backend.clear(coefficients.view) }
        var triangle = try backend.makeMatrix(rows: columns, columns: columns, type: .float64, order: .rowMajor)
        backend.clear(triangle.view)
        backend.setValues([Double](repeating: 1, count: columns), of: triangle.view.diagonal)

        for sweep in 0..<6 {
            if basis.columns > 0 {
                let parts = try project(panel, from: basis)
                try backend.multiply(alpha: 1, parts.view, triangle.view, beta: 1, into: coefficients.view)
            }
            let step = try backend.makeMatrix(rows: columns, columns: columns, type: type, order: .columnMajor)
            try backend.factorQR(panel, triangle: step.view)
            let diagonal = backend.values(of: step.view.diagonal)
            let missing = diagonal.indices.filter { diagonal[$0].magnitude <= (sweep == 0 ? threshold : 0) }
            for j in missing {
                backend.clear(step.view[rows: j..<(j + 1)])
                let random = try randomBlock(rows: panel.rows, columns: 1, type: type)
                try backend.copy(random.view, to: panel.view[columns: j..<(j + 1)])
            }
            triangle = try backend.product(step.view, triangle.view)
            let isOrthogonal = basis.columns == 0 || (sweep > 0 && diagonal.allSatisfy { $0.magnitude > 0.5 })
            if missing.isEmpty && isOrthogonal {
                return OrthonormalBlock(
                    block: panel, coefficients: coefficients, triangle: triangle, answers: answers)
            }
        }
        throw .internal("a block could not be made orthogonal")
    }
}

extension Backend {
    /// The sum of the squares of each column, as a vector on the device.
    func columnSquares(of view: MatrixView) throws(LowRankError) -> Matrix {
        let squares = try makeMatrix(rows: view.columns, columns: 1, type: .float64, order: .columnMajor)
        try columnDots(view, view, scale: 1, into: squares.view)
        return squares
    }
}

/// The Cholesky factor R of a Gram matrix G = RᵀR and its inverse, both upper triangular, row by row; nil where a pivot of
/// `D⁻¹ G D⁻¹`, D the lengths of the columns, is smaller than `smallestPivot`.
private func choleskyFactor(
    _ gram: [[Double]], lengths: [Double], smallestPivot: Double
) -> (factor: [[Double]], inverse: [[Double]])? {
    let n = lengths.count
    var factor = [[Double]](repeating: [Double](repeating: 0, count: n), count: n)
    var inverse = factor
    for i in 0..<n {
        var line = (0..<n).map { $0 < i ? 0 : gram[i][$0] / (lengths[i] * lengths[$0]) }
        for k in 0..<i {
            let multiplier = factor[k][i]
            let above = factor[k]
            for j in i..<n { line[j] -= multiplier * above[j] }
        }
        guard line[i] >= smallestPivot else { return nil }
        let root = line[i].squareRoot()
        factor[i] = line.map { $0 / root }
    }
    // R⁻¹ from the last row up: row i is (e_i - sum over k > i of R[i, k] R⁻¹[k]) / R[i, i].
    for i in (0..<n).reversed() {
        var line = [Double](repeating: 0, count: n)
        line[i] = 1
        for k in (i + 1)..<max(n, i + 1) {
            let multiplier = factor[i][k]
            let below = inverse[k]
            for j in k..<n { line[j] -= multiplier * below[j] }
        }
        let pivot = factor[i][i]
        inverse[i] = line.map { $0 / pivot }
    }
    // (R D) with unit-length R: undo the scaling of the columns.
    for i in 0..<n {
        for j in 0..<n {
            factor[i][j] *= lengths[j]
            inverse[i][j] /= lengths[i]
        }
    }
    return (factor, inverse)
}
