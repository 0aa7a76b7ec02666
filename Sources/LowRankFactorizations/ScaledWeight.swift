// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankBackends
import LowRankCore

/// A weight as an SVD works with it: as it is or transposed, and times a power of two where its products would leave the
/// range of the working precision otherwise. Counts the passes over the weight.
///
/// The power is part of the factors and products, so the weight is neither copied nor rounded.
struct ScaledWeight<Device: Backend> {
    /// Whether it is the transpose of the weight.
    var isTransposed = false
    /// Times that the weight has been read for a product.
    var passes = 0

    private let weight: MatrixView
    private let backend: Device
    /// Binary logarithm of the scale.
    private var exponent = 0

    init(_ weight: MatrixView, on backend: Device) {
        self.weight = weight
        self.backend = backend
    }

    /// The weight or its transpose, `[m, n]`.
    var matrix: MatrixView { isTransposed ? weight.transposed : weight }

    /// What the weight is multiplied by.
    var scale: Double { Double(sign: .plus, exponent: exponent, significand: 1) }

    /// Chooses a scale if numbers of size `norm`, which the weight's products led to, could leave the range later on.
    ///
    /// - Returns: Whether the scale has changed, so that the products have to be taken again.
    /// - Throws: ``LowRankError/nonFinite(argument:row:column:)`` if the weight holds a NaN or infinity.
    mutating func fitScale(to norm: Double) throws(LowRankError) -> Bool {
        // The weight's products with its own images have the squares of its size: those of a rounding unit must not
        // vanish, nor their sums overflow.
        if norm > 0x1p-24 && norm < 0x1p40 { return false }
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

    /// `scale² Wᵀ (W block)`, in one pass where the scale is 1.
    mutating func gramImage(of block: MatrixView) throws(LowRankError) -> Matrix {
        if exponent != 0 { return try adjointImage(of: image(of: block).view) }
        passes += 1
        let result = try backend.makeMatrix(
            rows: block.rows, columns: block.columns, type: backend.computeType(matrix, block), order: .rowMajor)
        try backend.multiplyGram(matrix, block, into: result.view)
        return result
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
