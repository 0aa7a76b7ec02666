// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankBackends
import LowRankCore

/// The block Krylov space of `WᵀW` for W [m, n]: an orthonormal basis V [n, K] and the projection `T = Vᵀ WᵀW V`, with
///
///     WᵀW V = V T + V_next S E_lastᵀ
///
/// so that for an eigenpair (s², x) of T the singular vectors v = V x and u = W v / s leave `‖W v − s u‖ = 0` and
/// `‖Wᵀ u − s v‖ = ‖S x_last‖ / s`.
///
/// WᵀW has the squares of W's condition, yet small singular values lose little: V is kept orthonormal against all its
/// columns, which takes off a new block what rounding in Wᵀ (W v) leaves along the dominant directions, and the rest of that
/// rounding is as small as W v is. The first blocks, which hold all directions, keep the rounding of the largest square; where
/// that is too much for a small singular value, the products of the check see it, and ``restart(from:)`` removes it.
struct KrylovSpace<Device: Backend> {
    /// W, with the passes made over it.
    private(set) var weight: ScaledWeight<Device>
    /// Columns of V.
    private(set) var dimension = 0
    /// Columns multiplied so far, those of earlier bases included.
    private(set) var columnsGrown = 0
    /// Random columns that the space was started from; it holds that many vectors of one singular value at most.
    private(set) var startingColumns: Int

    private let backend: Device
    private let type: ScalarType
    private var orthonormalizer: Orthonormalizer<Device>
    /// Memory for V and for T (float64, of which LAPACK reads the lower triangle). Most of it is never touched where
    /// convergence is quick.
    private let basis: Matrix
    private let projection: Matrix
    /// V_next and S, and the columns of V that S belongs to.
    private var next: (block: Matrix, coupling: Matrix, columns: Range<Int>)
    /// A lower bound of the largest eigenvalue of WᵀW.
    private var largestSquare = 0.0

    /// The width of V_next.
    var blockColumns: Int { next.block.columns }

    /// - Parameters:
    ///   - capacity: Columns that the basis can hold.
    ///   - type: Of the basis.
    init(
        of weight: ScaledWeight<Device>, blockColumns: Int, capacity: Int, type: ScalarType, seed: UInt64,
        on backend: Device
    ) throws(LowRankError) {
        self.weight = weight
        self.backend = backend
        self.type = type
        startingColumns = blockColumns
        orthonormalizer = Orthonormalizer(seed: seed, on: backend)
        let n = weight.matrix.columns
        basis = try backend.makeMatrix(rows: n, columns: capacity, type: type, order: .columnMajor)
        projection = try backend.makeMatrix(rows: capacity, columns: capacity, type: .float64, order: .columnMajor)
        let start = try orthonormalizer.randomBlock(rows: n, columns: blockColumns, type: type)
        let block = try orthonormalizer.orthonormalize(start, against: basis.view[columns: 0..<0], vanishing: 0).block
        let coupling = try backend.makeMatrix(rows: blockColumns, columns: 0, type: .float64, order: .rowMajor)
        next = (block, coupling, 0..<0)
    }

    // MARK: Growing

    /// Adds V_next to V.
    mutating func grow() throws(LowRankError) {
        let old = 0..<dimension
        let new = dimension..<(dimension + blockColumns)
        let (block, coupling, coupled) = next
        try backend.copy(block.view, to: basis.view[columns: new])

        let image = try scaledGramImage(of: block)
        // Vᵀ WᵀW V_next is known but for its last block. What is taken off here is long, and would leave the basis's own
        // rounding times that length in the projection below.
        try subtract(basis.view[columns: coupled], coupling.view.transposed, from: image)
        let corner = try backend.product(block.view.transposed, image.view)
        try subtract(block.view, corner.view, from: image)
        dimension = new.upperBound
        columnsGrown += new.count
        let all = 0..<dimension
        // Below the square of a rounding unit nothing is left of any direction.
        let (type, known) = (type, largestSquare)
        let vanishing = VanishingLength(questions: [.elements(corner.view.diagonal)]) { squares in
            type.epsilon * type.epsilon * max(known, squares[0].max() ?? 0)
        }
        let v = try orthonormalizer.orthonormalize(image, against: basis.view[columns: all], vanishing: vanishing)
        largestSquare = max(largestSquare, v.answers[0].max() ?? 0)
        backend.clear(projection.view[all, new])
        try backend.copy(coupling.view.transposed, to: projection.view[coupled, new])
        try backend.copy(corner.view, to: projection.view[new, new])
        if let rest = v.coefficients { try backend.accumulate(rest.view, beta: 1, into: projection.view[all, new]) }
        try backend.copy(projection.view[old, new].transposed, to: projection.view[new, old])
        next = (v.block, v.triangle, new)
    }

    /// `target -= basis coefficients`.
    private func subtract(_ basis: MatrixView, _ coefficients: MatrixView, from target: Matrix) throws(LowRankError) {
        if basis.columns == 0 { return }
        let parts = try backend.makeMatrix(
            rows: coefficients.rows, columns: coefficients.columns, type: type, order: .rowMajor)
        try backend.copy(coefficients, to: parts.view)
        try backend.multiply(alpha: -1, basis, parts.view, beta: 1, into: target.view)
    }

    /// WᵀW V_next; the first one shows whether W's entries have to be scaled.
    private mutating func scaledGramImage(of block: Matrix) throws(LowRankError) -> Matrix {
        let image = try weight.gramImage(of: block.view)
        if dimension > 0 { return image }
        let norm = backend.squaredNorm(of: image.view).squareRoot().squareRoot()
        return try weight.fitScale(to: norm) ? weight.gramImage(of: block.view) : image
    }

    // MARK: Ritz triplets

    /// The leading singular values and right singular vectors of W in the span of V: the square roots of T's eigenvalues,
    /// and its eigenvectors [K, count], float64.
    func ritzTriplets(_ count: Int) throws(LowRankError) -> RitzTriplets {
        let all = 0..<dimension
        let small = try backend.makeMatrix(rows: dimension, columns: dimension, type: .float64, order: .columnMajor)
        try backend.copy(projection.view[all, all], to: small.view)
        let (squares, x) = try backend.factorSymmetric(small, leading: count)
        return RitzTriplets(s: squares.map { max($0, 0).squareRoot() }, x: x.view)
    }

    /// `‖Wᵀ u − s v‖` of each triplet, from the next block: `‖S x_last‖ / s`.
    func residuals(of triplets: RitzTriplets) throws(LowRankError) -> [Double] {
        let last = next.columns
        let parts = try backend.product(next.coupling.view, triplets.x[rows: last])
        // Where s is rounding the quotient says nothing; Wᵀ u is then as short as the last block's image.
        let lengths = try backend.columnSquares(of: parts.view)
        let answers = backend.answers(to: [.elements(projection.view[last, last].diagonal), .elements(lengths.view)])
        let longest = max(answers[0].max() ?? 0, 0).squareRoot()
        return zip(answers[1], triplets.s).map { square, s in
            s > 0 ? min(square.squareRoot() / s, longest) : longest
        }
    }

    /// The triplets of W itself, from its right singular vectors V x: orthonormal to rounding, and checked with products.
    mutating func checked(_ triplets: RitzTriplets) throws(LowRankError) -> CheckedTriplets {
        let vectors = try combination(triplets.x)
        let none = basis.view[columns: 0..<0]
        let orthonormal = try orthonormalizer.orthonormalize(vectors, against: none, vanishing: 0).block
        return try CheckedTriplets.extracted(from: orthonormal, of: &weight, &orthonormalizer, on: backend)
    }

    /// `V x` in the type of the basis.
    private func combination(_ x: MatrixView) throws(LowRankError) -> Matrix {
        let parts = try backend.makeMatrix(rows: x.rows, columns: x.columns, type: type, order: .rowMajor)
        try backend.copy(x, to: parts.view)
        return try backend.product(basis.view[columns: 0..<dimension], parts.view)
    }

    // MARK: Starting again

    /// Keeps the span of the triplets and V_next: a thick restart.
    mutating func restart(keeping triplets: RitzTriplets) throws(LowRankError) {
        let kept = try combination(triplets.x)
        let coupling = try backend.product(next.coupling.view, triplets.x[rows: next.columns])
        try restart(from: kept.view, triplets.s, next: next.block, coupling: coupling)
    }

    /// Keeps checked triplets and goes on with what they lack, `Wᵀ u − s v`, of which rounding in WᵀW is no part.
    mutating func restart(from found: CheckedTriplets) throws(LowRankError) {
        let rest = try weight.adjointImage(of: found.left.view)
        let values = try backend.makeMatrix(rows: found.s.count, columns: found.s.count, type: .float64, order: .rowMajor)
        backend.clear(values.view)
        backend.setValues(found.s, of: values.view.diagonal)
        try subtract(found.right.view, values.view, from: rest)
        let v = try orthonormalizer.orthonormalize(rest, against: found.right.view, vanishing: 0)
        // WᵀW v = s Wᵀ u.
        let coupling = try backend.product(v.triangle.view, values.view)
        try restart(from: found.right.view, found.s, next: v.block, coupling: coupling)
    }

    private mutating func restart(
        from vectors: MatrixView, _ s: [Double], next block: Matrix, coupling: Matrix
    ) throws(LowRankError) {
        dimension = s.count
        let all = 0..<dimension
        try backend.copy(vectors, to: basis.view[columns: all])
        backend.clear(projection.view[all, all])
        backend.setValues(s.map { $0 * $0 }, of: projection.view[all, all].diagonal)
        next = (block, coupling, all)
    }

    /// Adds `columns` random directions to V_next, for copies of singular values that the space can't hold yet. The basis
    /// must have room for V_next.
    mutating func addRandomColumns(_ columns: Int) throws(LowRankError) {
        let (block, coupling, coupled) = next
        let (known, total) = (dimension + block.columns, block.columns + columns)
        try backend.copy(block.view, to: basis.view[columns: dimension..<known])
        let random = try orthonormalizer.randomBlock(rows: basis.rows, columns: columns, type: type)
        let fresh = try orthonormalizer.orthonormalize(
            random, against: basis.view[columns: 0..<known], vanishing: 0).block
        let wider = try backend.makeMatrix(rows: basis.rows, columns: total, type: type, order: .rowMajor)
        try backend.copy(block.view, to: wider.view[columns: 0..<block.columns])
        try backend.copy(fresh.view, to: wider.view[columns: block.columns..<total])
        let widerCoupling = try backend.makeMatrix(rows: total, columns: coupled.count, type: .float64, order: .rowMajor)
        backend.clear(widerCoupling.view)
        try backend.copy(coupling.view, to: widerCoupling.view[rows: 0..<block.columns])
        next = (wider, widerCoupling, coupled)
        startingColumns += columns
    }
}

/// Leading singular values and right singular vectors of a projection.
struct RitzTriplets {
    let s: [Double]
    let x: MatrixView

    /// The first `count` of them.
    func prefix(_ count: Int) -> RitzTriplets { RitzTriplets(s: Array(s[..<count]), x: x[columns: 0..<count]) }
}
