// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankBackends
import LowRankCore

/// A weight as an SVD works with it: at least as many rows as columns, and times a power of two where its products would
/// leave the range of the working precision otherwise. Counts the passes over the weight.
///
/// The power is part of the factors and products, so the weight is neither copied nor rounded.
struct ScaledWeight<Device: Backend> {
    /// The weight or its transpose, `[m, n]` with m >= n.
    let matrix: MatrixView
    let isTransposed: Bool
    /// Products of the weight or its transpose with a block so far.
    var passes = 0

    private let weight: MatrixView
    private let backend: Device
    /// Binary logarithm of the scale.
    private var exponent = 0

    init(_ weight: MatrixView, on backend: Device) {
        self.weight = weight
        self.backend = backend
        isTransposed = weight.rows < weight.columns
        matrix = isTransposed ? weight.transposed : weight
    }

    /// What the weight is multiplied by.
    var scale: Double { Double(sign: .plus, exponent: exponent, significand: 1) }

    /// Chooses a scale if numbers of size `norm`, which the weight's products led to, could leave the range later on.
    ///
    /// - Returns: Whether the scale has changed, so that the products have to be taken again.
    /// - Throws: ``LowRankError/nonFinite(argument:row:column:)`` if the weight holds a NaN or infinity.
    mutating func fitScale(to norm: Double) throws(LowRankError) -> Bool {
        // Squares of a residual of a rounding unit must not vanish, nor the squares' sums overflow.
        if norm > 0x1p-40 && norm < 0x1p40 { return false }
        let largest = backend.maxMagnitude(of: weight)
        if !largest.isFinite, let at = backend.firstNonFinite(in: weight) {
            throw .nonFinite(argument: "weight", row: at.row, column: at.column)
        }
        let fitting = largest > 0 ? -Int(largest.exponent) : 0
        defer { exponent = fitting }
        return exponent != fitting
    }

    /// `scale * W block`.
    mutating func image(of block: MatrixView, order: StorageOrder = .rowMajor) throws(LowRankError) -> Matrix {
        try product(matrix, block, order)
    }

    /// `scale * Wᵀ block`.
    mutating func adjointImage(of block: MatrixView, order: StorageOrder = .rowMajor) throws(LowRankError) -> Matrix {
        try product(matrix.transposed, block, order)
    }

    private mutating func product(
        _ operand: MatrixView, _ block: MatrixView, _ order: StorageOrder
    ) throws(LowRankError) -> Matrix {
        passes += 1
        if exponent == 0 { return try backend.product(operand, block, order: order) }
        // The block has columns of unit length: so much of the scale keeps sums below the largest number, and the
        // products of subnormal entries above the smallest. The rest multiplies what comes out.
        let before = max(-20, min(exponent, 60))
        let factor = try backend.makeMatrix(rows: block.columns, columns: 1, type: .float64, order: .columnMajor)
        backend.setValues([Double](repeating: Double(sign: .plus, exponent: before, significand: 1), count: block.columns), of: factor.view)
        let scaled = try backend.makeMatrix(rows: block.rows, columns: block.columns, type: block.type, order: order)
        try backend.copy(block, rowFactors: nil, columnFactors: factor.view, to: scaled.view)
        let result = try backend.makeMatrix(rows: operand.rows, columns: block.columns, type: block.type, order: order)
        let after = Double(sign: .plus, exponent: exponent - before, significand: 1)
        try backend.multiply(alpha: after, operand, scaled.view, beta: 0, into: result.view)
        return result
    }
}
