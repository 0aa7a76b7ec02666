// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankBackends
import LowRankCore

/// The block Krylov space of a tall matrix `W` [m, n], m >= n: orthonormal bases U [m, K], V [n, K] and the projection
/// `B = Uᵀ W V` with
///
///     W V  = U B
///     Wᵀ U = V Bᵀ + V_next S E_lastᵀ
///
/// so that for a singular triplet (y, s, x) of B only `‖Wᵀ U y − s V x‖ = ‖S y_last‖` is not zero.
struct KrylovSpace<Device: Backend> {
    private let matrix: MatrixView
    private let weight: MatrixView
    private let backend: Device
    private let seed: UInt64
    private let type: ScalarType

    /// Products of W or its transpose with a block so far.
    private(set) var passes = 0
    private var draws: UInt64
    private var dimension = 0
    private var left: Matrix
    private var right: Matrix
    private var projection: Matrix
    /// V_next and S.
    private var next: (block: Matrix, coupling: Matrix)

    /// Columns that one pass multiplies. Fewer need fewer columns in all, more make better use of a pass.
    private static var blockColumns: Int { 16 }

    /// - Parameter weight: The matrix as the caller knows it, for messages.
    init(of matrix: MatrixView, weight: MatrixView, seed: UInt64, on backend: Device) throws(LowRankError) {
        precondition(matrix.rows >= matrix.columns, "a Krylov space starts on the shorter side")
        precondition(matrix.columns >= Self.blockColumns, "a Krylov space holds one block at least")
        self.matrix = matrix
        self.weight = weight
        self.backend = backend
        self.seed = seed
        type = matrix.type.computeType
        left = try backend.makeMatrix(rows: matrix.rows, columns: 0, type: type, order: .columnMajor)
        right = try backend.makeMatrix(rows: matrix.columns, columns: 0, type: type, order: .columnMajor)
        projection = try backend.makeMatrix(rows: 0, columns: 0, type: type, order: .columnMajor)
        let start = try backend.makeMatrix(
            rows: matrix.columns, columns: Self.blockColumns, type: type, order: .columnMajor)
        backend.fillUniform(start.view, from: RandomStream(seed: seed, stream: 0))
        draws = 1
        // The coupling of the start is never asked for: there is no U yet.
        next = (start, projection)
        _ = try orthonormalized(start, against: right.view)
    }

    /// Grows the space until the leading `rank` triplets have residuals of at most `bound * s[0]`, checked with products.
    ///
    /// - Returns: nil if that took more dimensions than the matrix has.
    mutating func leadingTriplets(
        _ rank: Int, bound: Double
    ) throws(LowRankError) -> (left: Matrix, s: [Double], right: Matrix)? {
        var nextCheck = rank
        // The estimate is made of the next block, so that has to fit as well.
        while dimension + 2 * Self.blockColumns <= matrix.columns {
            try grow()
            if dimension < nextCheck { continue }
            let (y, s, x) = try projectedTriplets(rank)
            // The check costs two passes with `rank` columns, so the estimate must promise success.
            if try estimatedResidual(y) <= 0.5 * bound * s[0] {
                let u = try backend.product(left.view[columns: 0..<dimension], y, order: .columnMajor)
                let v = try backend.product(right.view[columns: 0..<dimension], x, order: .columnMajor)
                if try measuredResidual(u.view, s, v.view) <= bound * s[0] { return (u, s, v) }
            }
            // A dense SVD of the projection at every step would cost more than the passes.
            nextCheck = dimension + dimension / 8
        }
        return nil
    }

    // MARK: Growing

    /// Adds V_next to V and the new directions of W V_next to U.
    private mutating func grow() throws(LowRankError) {
        let old = 0..<dimension
        let new = dimension..<(dimension + Self.blockColumns)
        try reserve(new.upperBound)
        try backend.copy(next.block.view, to: right.view[columns: new])

        let image = try pass(matrix, next.block.view)
        let (c, r) = try orthonormalized(image, against: left.view[columns: old])
        try backend.copy(image.view, to: left.view[columns: new])
        try backend.copy(c.view, to: projection.view[old, new])
        try backend.copy(r.view, to: projection.view[new, new])
        backend.clear(projection.view[new, old])
        dimension = new.upperBound

        let back = try pass(matrix.transposed, image.view)
        next = (back, try orthonormalized(back, against: right.view[columns: 0..<dimension]).triangle)
    }

    private mutating func orthonormalized(
        _ block: Matrix, against basis: MatrixView
    ) throws(LowRankError) -> (coefficients: Matrix, triangle: Matrix) {
        if let parts = try orthonormalize(block, against: basis, seed: seed, draws: &draws, on: backend) { return parts }
        try requireFinite([block.view], of: "svd", on: backend, dependingOn: [(weight, nil)])
        throw .numericalFailure(operation: "svd", reason: "the squares of the weight's entries overflow or vanish; scale it")
    }

    private mutating func pass(_ operand: MatrixView, _ block: MatrixView) throws(LowRankError) -> Matrix {
        passes += 1
        return try backend.product(operand, block, order: .columnMajor)
    }

    /// Makes room for `columns` columns in both bases, keeping what is there.
    private mutating func reserve(_ columns: Int) throws(LowRankError) {
        if columns <= left.columns { return }
        let capacity = min(matrix.columns, max(columns, 2 * left.columns, 8 * Self.blockColumns))
        let kept = 0..<dimension
        let (oldLeft, oldRight, oldProjection) = (left, right, projection)
        left = try backend.makeMatrix(rows: matrix.rows, columns: capacity, type: type, order: .columnMajor)
        right = try backend.makeMatrix(rows: matrix.columns, columns: capacity, type: type, order: .columnMajor)
        projection = try backend.makeMatrix(rows: capacity, columns: capacity, type: type, order: .columnMajor)
        try backend.copy(oldLeft.view[columns: kept], to: left.view[columns: kept])
        try backend.copy(oldRight.view[columns: kept], to: right.view[columns: kept])
        try backend.copy(oldProjection.view[kept, kept], to: projection.view[kept, kept])
    }

    // MARK: Ritz triplets

    /// The leading singular triplets of B: vectors [K, rank] and values.
    private func projectedTriplets(_ rank: Int) throws(LowRankError) -> (y: MatrixView, s: [Double], x: MatrixView) {
        let all = 0..<dimension
        let small = try backend.makeMatrix(rows: dimension, columns: dimension, type: type, order: .columnMajor)
        try backend.copy(projection.view[all, all], to: small.view)
        let (y, s, xh) = try backend.factorSVD(small)
        return (y.view[columns: 0..<rank], Array(s[..<rank]), xh.view[rows: 0..<rank].transposed)
    }

    /// The largest `‖S y_last‖` of the triplets.
    private func estimatedResidual(_ y: MatrixView) throws(LowRankError) -> Double {
        let last = y[rows: (dimension - Self.blockColumns)..<dimension]
        let residuals = try backend.product(next.coupling.view, last)
        return largestColumnNorm(residuals.view)
    }

    /// The largest `‖W v − s u‖` and `‖Wᵀ u − s v‖` of the triplets, from the products themselves.
    private mutating func measuredResidual(_ u: MatrixView, _ s: [Double], _ v: MatrixView) throws(LowRankError) -> Double {
        let values = try backend.makeMatrix(rows: s.count, columns: 1, type: type, order: .columnMajor)
        backend.setValues(s, of: values.view)
        var largest = 0.0
        for (operand, from, to) in [(matrix, v, u), (matrix.transposed, u, v)] {
            let residual = try backend.makeMatrix(rows: to.rows, columns: to.columns, type: type, order: .columnMajor)
            try backend.copy(to, rowFactors: nil, columnFactors: values.view, to: residual.view)
            passes += 1
            try backend.multiply(alpha: 1, operand, from, beta: -1, into: residual.view)
            largest = max(largest, largestColumnNorm(residual.view))
        }
        return largest
    }

    private func largestColumnNorm(_ view: MatrixView) -> Double {
        (backend.columnDots(view, view).max() ?? 0).squareRoot()
    }
}
