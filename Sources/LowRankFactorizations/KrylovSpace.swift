// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankBackends
import LowRankCore

/// The block Krylov space of a tall matrix `W` [m, n], m >= n: bases U [m, K] and V [n, K] and the projection
/// `B = Uᵀ W V`, upper triangular by blocks, with
///
///     W V  = U B
///     Wᵀ U = V Bᵀ + V_next S E_lastᵀ
///
/// so that for a singular triplet (y, s, x) of B only `‖Wᵀ U y − s V x‖ = ‖S y_last‖` is not zero.
///
/// V is kept orthonormal against all its columns, U against its last block alone: U then loses orthogonality along
/// directions of small singular values first, and what matters, `Bᵀ (Uᵀ U − 1)`, stays small (Simon and Zha 2000,
/// "Low-rank matrix approximation using the Lanczos bidiagonalization process with applications"). It is what the
/// projection takes off Wᵀ U beyond the recurrence; where it has grown, U is kept orthonormal against all its columns too.
///
/// The singular vectors of B are found as eigenvectors of `T = Bᵀ B = Vᵀ Wᵀ W V`.
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
    /// Memory for U and V, B and T (both float64). Most of it is never touched where convergence is quick.
    private let left: Matrix
    private let right: Matrix
    private let projection: Matrix
    private let gram: Matrix
    /// Whether new blocks of U are made orthogonal to its last block alone.
    private var isOneSided = true
    /// V_next and S, and the columns of U that S belongs to.
    private var next: (block: Matrix, coupling: Matrix, columns: Range<Int>)

    /// The width of V_next.
    var blockColumns: Int { next.block.columns }
    /// A lower bound of the largest singular value: the largest norm of W's product with a column of V.
    private var largestImage = 0.0

    /// - Parameters:
    ///   - capacity: Columns that the bases can hold.
    ///   - type: Of the bases.
    init(
        of weight: ScaledWeight<Device>, blockColumns: Int, capacity: Int, type: ScalarType, seed: UInt64,
        on backend: Device
    ) throws(LowRankError) {
        self.weight = weight
        self.backend = backend
        self.type = type
        startingColumns = blockColumns
        orthonormalizer = Orthonormalizer(seed: seed, on: backend)
        let (m, n) = (weight.matrix.rows, weight.matrix.columns)
        left = try backend.makeMatrix(rows: m, columns: capacity, type: type, order: .columnMajor)
        right = try backend.makeMatrix(rows: n, columns: capacity, type: type, order: .columnMajor)
        projection = try backend.makeMatrix(rows: capacity, columns: capacity, type: .float64, order: .columnMajor)
        gram = try backend.makeMatrix(rows: capacity, columns: capacity, type: .float64, order: .columnMajor)
        let start = try orthonormalizer.randomBlock(rows: n, columns: blockColumns, type: type)
        let block = try orthonormalizer.orthonormalize(start, against: right.view[columns: 0..<0], vanishing: 0).block
        let coupling = try backend.makeMatrix(rows: blockColumns, columns: 0, type: .float64, order: .rowMajor)
        next = (block, coupling, 0..<0)
    }

    // MARK: Growing

    /// Adds V_next to V and the new directions of W V_next to U.
    mutating func grow() throws(LowRankError) {
        let old = 0..<dimension
        let new = dimension..<(dimension + blockColumns)
        let (block, coupling, coupled) = next
        try backend.copy(block.view, to: right.view[columns: new])

        let image = try scaledImage(of: block)
        // Uᵀ W V_next is known: it is the transpose of V_nextᵀ Wᵀ U.
        try subtract(left.view[columns: coupled], coupling.view.transposed, from: image)
        // Short columns would have lost more of their orthogonality than the recurrence shows.
        let u = try orthonormalizer.orthonormalize(
            image, against: left.view[columns: old],
            orthogonality: isOneSided ? (coupling.view.transposed, 0.01 * largestImage) : nil, vanishing: vanishing)
        try backend.copy(u.block.view, to: left.view[columns: new])
        try extendProjection(old: old, new: new, u)
        dimension = new.upperBound
        columnsGrown += new.count

        let back = try weight.adjointImage(of: u.block.view)
        try subtract(block.view, u.triangle.view.transposed, from: back)
        let squares = backend.values(of: gram.view[0..<dimension, 0..<dimension].diagonal)
        largestImage = (squares.max() ?? 0).squareRoot()
        let v = try orthonormalizer.orthonormalize(
            back, against: right.view[columns: 0..<dimension], vanishing: vanishing)
        next = (v.block, v.triangle, new)
        if isOneSided, let loss = v.coefficients { isOneSided = isSmall(loss) }
    }

    /// Whether `Bᵀ Uᵀ U_new`, which would be zero without rounding, is far below what eigenvectors of T would notice, even
    /// if another step magnifies it.
    private func isSmall(_ loss: Matrix) -> Bool {
        let size = backend.squaredNorm(of: loss.view)
        // ε to the power 3/4 of the length.
        return size <= type.epsilon * type.epsilon.squareRoot() * largestImage * largestImage
    }

    /// Length up to which a direction counts as rounding.
    private var vanishing: Double { 64 * type.epsilon * largestImage }

    /// `target -= basis coefficients`.
    private func subtract(_ basis: MatrixView, _ coefficients: MatrixView, from target: Matrix) throws(LowRankError) {
        if basis.columns == 0 { return }
        let parts = try backend.makeMatrix(
            rows: coefficients.rows, columns: coefficients.columns, type: type, order: .rowMajor)
        try backend.copy(coefficients, to: parts.view)
        try backend.multiply(alpha: -1, basis, parts.view, beta: 1, into: target.view)
    }

    /// W V_next; the first one shows whether W's entries have to be scaled.
    private mutating func scaledImage(of block: Matrix) throws(LowRankError) -> Matrix {
        let image = try weight.image(of: block.view)
        if dimension > 0 { return image }
        let norm = backend.squaredNorm(of: image.view).squareRoot()
        return try weight.fitScale(to: norm) ? weight.image(of: block.view) : image
    }

    /// The new columns of B and T.
    private func extendProjection(old: Range<Int>, new: Range<Int>, _ u: OrthonormalBlock) throws(LowRankError) {
        let (_, coupling, coupled) = next
        backend.clear(projection.view[old, new])
        backend.clear(projection.view[new, old])
        try backend.copy(coupling.view.transposed, to: projection.view[coupled, new])
        var reached = coupled
        if let more = u.coefficients {
            try backend.accumulate(more.view, beta: 1, into: projection.view[old, new])
            reached = old
        }
        try backend.copy(u.triangle.view, to: projection.view[new, new])
        // T's new columns, from the rows of B's new columns that are not zero.
        let (above, corner) = (projection.view[reached, new], projection.view[new, new])
        try backend.multiply(
            alpha: 1, projection.view[reached, old].transposed, above, beta: 0, into: gram.view[old, new])
        try backend.multiply(alpha: 1, above.transposed, above, beta: 0, into: gram.view[new, new])
        try backend.multiply(alpha: 1, corner.transposed, corner, beta: 1, into: gram.view[new, new])
        try backend.copy(gram.view[old, new].transposed, to: gram.view[new, old])
    }

    // MARK: Ritz triplets

    /// The leading singular values of B and its right singular vectors [K, count], float64.
    ///
    /// - Parameter bound: What is wanted of the residuals, relative to the largest value; the eigenvalues of T give
    ///   rounding over the ratio of the smallest to the largest value.
    func ritzTriplets(_ count: Int, bound: Double) throws(LowRankError) -> RitzTriplets {
        let all = 0..<dimension
        let small = try backend.makeMatrix(rows: dimension, columns: dimension, type: .float64, order: .columnMajor)
        if bound >= RitzTriplets.smallestEigenvalueBound {
            try backend.copy(gram.view[all, all], to: small.view)
            let (squares, x) = try backend.factorSymmetric(small, leading: count)
            return RitzTriplets(s: squares.map { max($0, 0).squareRoot() }, x: x.view)
        }
        try backend.copy(projection.view[all, all], to: small.view)
        let (_, s, xh) = try backend.factorSVD(small)
        return RitzTriplets(s: Array(s[..<count]), x: xh.view[rows: 0..<count].transposed)
    }

    /// `‖Wᵀ u − s v‖` of each triplet, from the next block: `‖S y_last‖` with `y = B x / s`.
    func residuals(of triplets: RitzTriplets) throws(LowRankError) -> [Double] {
        let last = next.columns
        let y = try backend.product(projection.view[last, last], triplets.x[rows: last])
        let parts = try backend.product(next.coupling.view, y.view)
        // y is a unit vector, which the quotient misses where s is rounding.
        let largest = backend.squaredNorm(of: next.coupling.view).squareRoot()
        return zip(backend.columnDots(parts.view, parts.view), triplets.s).map { square, s in
            s > 0 ? min(square.squareRoot() / s, largest) : largest
        }
    }

    /// The triplets of W itself, from its right singular vectors V x: orthonormal to rounding, and checked with products.
    mutating func checked(_ triplets: RitzTriplets) throws(LowRankError) -> CheckedTriplets {
        let vectors = try combination(right, triplets.x)
        let none = right.view[columns: 0..<0]
        let orthonormal = try orthonormalizer.orthonormalize(vectors, against: none, vanishing: 0).block
        return try CheckedTriplets.extracted(from: orthonormal, of: &weight, &orthonormalizer, on: backend)
    }

    /// `basis x` in the type of the bases.
    private func combination(_ basis: Matrix, _ x: MatrixView) throws(LowRankError) -> Matrix {
        let parts = try backend.makeMatrix(rows: x.rows, columns: x.columns, type: type, order: .rowMajor)
        try backend.copy(x, to: parts.view)
        return try backend.product(basis.view[columns: 0..<dimension], parts.view)
    }

    // MARK: Starting again

    /// Keeps the span of the triplets (all columns of U and V are replaced by theirs) and V_next: a thick restart.
    mutating func restart(keeping triplets: RitzTriplets) throws(LowRankError) {
        // A vector u = W v / s is rounding where s is.
        let kept = triplets.s.prefix { $0 > 0x1p-20 * triplets.s[0] }
        let x = triplets.x[columns: 0..<kept.count]
        let y = try backend.product(projection.view[0..<dimension, 0..<dimension], x, order: .columnMajor)
        let inverses = try backend.makeMatrix(rows: kept.count, columns: 1, type: .float64, order: .columnMajor)
        backend.setValues(kept.map { 1 / $0 }, of: inverses.view)
        try backend.copy(y.view, rowFactors: nil, columnFactors: inverses.view, to: y.view)

        let (newLeft, newRight) = (try combination(left, y.view), try combination(right, x))
        let coupling = try backend.product(next.coupling.view, y.view[rows: next.columns])
        dimension = kept.count
        let all = 0..<dimension
        next = (next.block, coupling, all)
        try backend.copy(newLeft.view, to: left.view[columns: all])
        try backend.copy(newRight.view, to: right.view[columns: all])
        for (matrix, diagonal) in [(projection, Array(kept)), (gram, kept.map { $0 * $0 })] {
            backend.clear(matrix.view[all, all])
            backend.setValues(diagonal, of: matrix.view[all, all].diagonal)
        }
    }

    /// Adds `columns` random directions to V_next, for copies of singular values that the space can't hold yet. The bases
    /// must have room for V_next.
    mutating func addRandomColumns(_ columns: Int) throws(LowRankError) {
        let (block, coupling, coupled) = next
        let (known, total) = (dimension + block.columns, block.columns + columns)
        try backend.copy(block.view, to: right.view[columns: dimension..<known])
        let random = try orthonormalizer.randomBlock(rows: right.rows, columns: columns, type: type)
        let fresh = try orthonormalizer.orthonormalize(
            random, against: right.view[columns: 0..<known], vanishing: 0).block
        let wider = try backend.makeMatrix(rows: right.rows, columns: total, type: type, order: .rowMajor)
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

    /// Relative residuals down to which the eigenvectors of T will do.
    static let smallestEigenvalueBound = 0x1p-30

    /// The first `count` of them.
    func prefix(_ count: Int) -> RitzTriplets { RitzTriplets(s: Array(s[..<count]), x: x[columns: 0..<count]) }
}
