// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankCore

/// What an LU of a panel told the host.
public struct PanelLU {
    /// The permutation p with source[p, :] = L U; all m rows.
    public let permutation: [Int]
    /// Of U.
    public let diagonal: [Double]
    /// The largest magnitude of the source, or NaN where an element is not finite: then the rest is undefined.
    public let largest: Double
}

/// What a host can ask about a matrix that a device has.
public enum Question {
    /// The elements, row by row.
    case elements(MatrixView)
    /// 1 where all elements are finite, else 0.
    case isFinite(MatrixView)
    /// The largest magnitude, or NaN where an element is not finite.
    case largestMagnitude(MatrixView)
    /// The largest sum of the squares of a column, in float64; not finite where an element is not.
    case largestColumnSquare(MatrixView)
}

/// What stands between the two factors of a product.
public enum MiddleFactor {
    /// A diagonal matrix, as a vector.
    case diagonal(MatrixView)
    case square(MatrixView)

    var view: MatrixView {
        switch self {
        case .diagonal(let view), .square(let view): view
        }
    }

    /// The factor of the transposed product.
    var transposed: Self {
        switch self {
        case .diagonal: self
        case .square(let matrix): .square(matrix.transposed)
        }
    }
}

/// `target = a + beta * b`, or a copy of a without b.
public struct MatrixSum {
    public var a: MatrixView
    public var beta: Double
    public var b: MatrixView?
    public var target: MatrixView

    public init(_ a: MatrixView, beta: Double = 0, _ b: MatrixView? = nil, to target: MatrixView) {
        (self.a, self.beta, self.b, self.target) = (a, beta, b, target)
    }

    var transposed: Self { Self(a.transposed, beta: beta, b?.transposed, to: target.transposed) }
}

/// All that an algorithm may ask of a device. The factorisations and adapters are written once against this.
///
/// Views may have any element type and strides unless a method says otherwise; operands of one product may differ in
/// type. Products are summed in float64 where an operand is float64, else in float32 (``ScalarType/computeType``).
/// Results do not depend on the number of threads. What is written must not overlap what is read.
public protocol Backend: Sendable {
    /// A new matrix with undefined contents.
    func makeMatrix(rows: Int, columns: Int, type: ScalarType, order: StorageOrder) throws(LowRankError) -> Matrix

    // MARK: Elementwise

    /// `target = diag(rowFactors) source diag(columnFactors)`, converted to the target's type. Factors are vectors (one
    /// row or one column) or nil for ones. Computed in float64 where any of the four is. The target may be the source.
    func copy(
        _ source: MatrixView, rowFactors: MatrixView?, columnFactors: MatrixView?, to target: MatrixView
    ) throws(LowRankError)

    /// `target = source + beta * target`; exactly zero for equal numbers and beta = -1.
    func accumulate(_ source: MatrixView, beta: Double, into target: MatrixView) throws(LowRankError)

    /// `target = a + beta * b`, rounded once; exactly zero for equal numbers and beta = -1.
    func add(_ a: MatrixView, beta: Double, _ b: MatrixView, to target: MatrixView) throws(LowRankError)

    /// Sums none of which reads what another writes.
    func add(_ sums: [MatrixSum]) throws(LowRankError)

    /// `target[i, :] = source[indices[i], :]`.
    func gatherRows(_ indices: ArraySlice<Int>, of source: MatrixView, to target: MatrixView) throws(LowRankError)

    /// `target[indices[i], :] = source[i, :]`.
    func scatterRows(_ source: MatrixView, to indices: [Int], of target: MatrixView) throws(LowRankError)

    /// Fills with zeros.
    func clear(_ target: MatrixView)

    /// Zeros above the diagonal and ones on it; what is below stays.
    func makeUnitLower(_ target: MatrixView)

    /// Element (i, j) becomes number `i * columns + j` of a uniform stream in (-1, 1).
    func fillUniform(_ target: MatrixView, from stream: RandomStream)

    /// The elements of a vector, read by the host.
    func values(of vector: MatrixView) -> [Double]

    /// Writes a vector's elements from the host.
    func setValues(_ values: [Double], of vector: MatrixView)

    /// The rows of a matrix, read by the host.
    func rows(of matrix: MatrixView) -> [[Double]]

    /// Writes a matrix's rows from the host.
    func setRows(_ rows: [[Double]], of matrix: MatrixView)

    /// Writes 1 or -1 for each column of a matrix: the sign of its first entry of largest magnitude.
    func writeColumnSigns(of matrix: MatrixView, to vector: MatrixView)

    /// Writes int64 numbers to a vector whose view calls its elements float64, which have the same size.
    func setIndices(_ indices: [Int], of vector: MatrixView) throws(LowRankError)

    // MARK: Reductions

    /// Largest magnitude, or NaN where an element is not finite.
    func maxMagnitude(of source: MatrixView) -> Double

    /// The first element, in row order, that is a NaN or infinite.
    func firstNonFinite(in source: MatrixView) -> (row: Int, column: Int)?

    /// Whether all elements of all views are finite; the host waits once.
    func areFinite(_ views: [MatrixView]) -> Bool

    /// The answers to questions, each of one number or more; the host waits once.
    func answers(to questions: [Question]) -> [[Double]]

    /// For each column j the sum over i of `a[i, j] * b[i, j]`, in float64.
    func columnDots(_ a: MatrixView, _ b: MatrixView) -> [Double]

    /// Writes `scale` times the column products to a vector, without the host having to read them.
    func columnDots(_ a: MatrixView, _ b: MatrixView, scale: Double, into target: MatrixView) throws(LowRankError)

    /// The sum of the squares of all elements, in float64; not finite where an element is not.
    func squaredNorm(of source: MatrixView) -> Double

    // MARK: Products

    /// `c = alpha * a b + beta * c`. c is not read where beta is 0.
    func multiply(
        alpha: Double, _ a: MatrixView, _ b: MatrixView, beta: Double, into c: MatrixView
    ) throws(LowRankError)

    /// `c = alpha * a middle b + beta * c`. c is not read where beta is 0.
    func multiply(
        alpha: Double, _ a: MatrixView, _ middle: MiddleFactor, _ b: MatrixView, beta: Double, into c: MatrixView
    ) throws(LowRankError)

    /// `p = g b` and `d = alpha gᵀ h`, the two products of a backward that share g.
    func multiplyPair(
        _ g: MatrixView, _ b: MatrixView, into p: MatrixView, alpha: Double, _ h: MatrixView, into d: MatrixView
    ) throws(LowRankError)

    /// `z = aᵀ (a x)`. z is of the compute type of a and x.
    func multiplyGram(_ a: MatrixView, _ x: MatrixView, into z: MatrixView) throws(LowRankError)

    // MARK: Factorisations of column-major panels of float32 or float64

    /// Householder QR with LAPACK's signs: `panel` [m, r], m >= r, becomes Q; `triangle` [r, r] receives R with exact
    /// zeros below its diagonal.
    func factorQR(_ panel: Matrix, triangle: MatrixView) throws(LowRankError)

    /// The same of a `source` that stays as it is, into a `panel`. A backend may leave open whether that has succeeded, so that
    /// the host need not wait for it yet.
    /// - Returns: nil where it has; else one number on the device: not zero where it has not, and what was written is undefined.
    ///   Then ``factorQR(_:triangle:)`` does it.
    func startQR(
        of source: MatrixView, into panel: Matrix, triangle: MatrixView
    ) throws(LowRankError) -> MatrixView?

    /// LU with partial pivoting: `panel` [m, r], m >= r, holds L below and U on and above the diagonal.
    /// - Returns: the permutation p with panel[p, :] = L U; all m rows.
    func factorLU(_ panel: Matrix) throws(LowRankError) -> [Int]

    /// The same of a `source` that stays as it is, with what the host has to know about it, for which it waits once.
    func factorLU(of source: MatrixView, into panel: Matrix) throws(LowRankError) -> PanelLU

    /// `right = L^-1 right` for the unit lower triangle of the first rows of `panel`; `right` is row-major.
    func solveUnitLower(_ panel: Matrix, _ right: Matrix) throws(LowRankError)

    /// Thin SVD of a column-major matrix, which is destroyed. u [m, k] and vh [k, n] are column-major, k = min(m, n).
    func factorSVD(_ matrix: Matrix) throws(LowRankError) -> (u: Matrix, s: [Double], vh: Matrix)

    /// The eigenvalues of a symmetric column-major matrix of float64, ascending. The matrix is destroyed.
    func symmetricEigenvalues(_ matrix: Matrix) throws(LowRankError) -> [Double]

    /// The largest `count` eigenvalues, descending, of a symmetric float64 matrix [n, n] whose lower triangle is read, and
    /// their orthonormal eigenvectors [n, count]. The matrix is destroyed.
    func factorSymmetric(
        _ matrix: Matrix, leading count: Int
    ) throws(LowRankError) -> (values: [Double], vectors: Matrix)
}

extension Backend {
    /// `target = source`, converted to the target's type.
    public func copy(_ source: MatrixView, to target: MatrixView) throws(LowRankError) {
        try copy(source, rowFactors: nil, columnFactors: nil, to: target)
    }

    /// As two operations, in memory of the compute type.
    public func add(_ a: MatrixView, beta: Double, _ b: MatrixView, to target: MatrixView) throws(LowRankError) {
        let type = computeType(a, b)
        // A target of another type would round b before a is added.
        let sum =
            try target.type == type
            ? target : makeMatrix(rows: target.rows, columns: target.columns, type: type, order: .rowMajor).view
        try copy(b, to: sum)
        try accumulate(a, beta: beta, into: sum)
        if target.type != type { try copy(sum, to: target) }
    }

    /// One by one.
    public func add(_ sums: [MatrixSum]) throws(LowRankError) {
        for sum in sums {
            if let b = sum.b { try add(sum.a, beta: sum.beta, b, to: sum.target) } else { try copy(sum.a, to: sum.target) }
        }
    }

    /// By way of `a middle`.
    public func multiply(
        alpha: Double, _ a: MatrixView, _ middle: MiddleFactor, _ b: MatrixView, beta: Double, into c: MatrixView
    ) throws(LowRankError) {
        try multiplyOneByOne(alpha: alpha, a, middle, b, beta: beta, into: c)
    }

    /// `c = alpha * (a middle) b + beta * c` with `a middle` in memory of its own.
    package func multiplyOneByOne(
        alpha: Double, _ a: MatrixView, _ middle: MiddleFactor, _ b: MatrixView, beta: Double, into c: MatrixView
    ) throws(LowRankError) {
        let type = computeType(a, middle.view)
        let product = try makeMatrix(rows: a.rows, columns: b.rows, type: type, order: .rowMajor)
        switch middle {
        case .diagonal(let factors): try copy(a, rowFactors: nil, columnFactors: factors, to: product.view)
        case .square(let matrix): try multiply(alpha: 1, a, matrix, beta: 0, into: product.view)
        }
        try multiply(alpha: alpha, product.view, b, beta: beta, into: c)
    }

    /// Reads g twice, which a backend with a cache to keep it in can do better.
    public func multiplyPair(
        _ g: MatrixView, _ b: MatrixView, into p: MatrixView, alpha: Double, _ h: MatrixView, into d: MatrixView
    ) throws(LowRankError) {
        try multiplyOneByOne(g, b, into: p, alpha: alpha, h, into: d)
    }

    /// `p = g b` and `d = alpha gᵀ h` as two products.
    package func multiplyOneByOne(
        _ g: MatrixView, _ b: MatrixView, into p: MatrixView, alpha: Double, _ h: MatrixView, into d: MatrixView
    ) throws(LowRankError) {
        try multiply(alpha: 1, g, b, beta: 0, into: p)
        try multiply(alpha: alpha, g.transposed, h, beta: 0, into: d)
    }

    /// Reads a twice, as above.
    public func multiplyGram(_ a: MatrixView, _ x: MatrixView, into z: MatrixView) throws(LowRankError) {
        try multiply(alpha: 1, a.transposed, product(a, x).view, beta: 0, into: z)
    }

    /// A row-major matrix: in the memory of `target`, where that is one of this shape and type without gaps, else in new
    /// memory. Whoever looks after `target` has to outlive the matrix.
    package func makeMatrix(
        rows: Int, columns: Int, type: ScalarType, reusing target: MatrixView?
    ) throws(LowRankError) -> Matrix {
        if let target, target.rows == rows, target.columns == columns, target.type == type, target.columnStride == 1,
            target.rowStride == columns
        {
            return Matrix(adopting: target.address, rows: rows, columns: columns, type: type, order: .rowMajor) { _ in }
        }
        return try makeMatrix(rows: rows, columns: columns, type: type, order: .rowMajor)
    }

    /// Row by row.
    public func rows(of matrix: MatrixView) -> [[Double]] {
        (0..<matrix.rows).map { values(of: matrix[rows: $0..<($0 + 1)]) }
    }

    /// Row by row.
    public func setRows(_ rows: [[Double]], of matrix: MatrixView) {
        for (i, row) in rows.enumerated() { setValues(row, of: matrix[rows: i..<(i + 1)]) }
    }

    /// By way of the columns' values on the host.
    public func writeColumnSigns(of matrix: MatrixView, to vector: MatrixView) {
        let signs = (0..<matrix.columns).map { j in
            let column = values(of: matrix[columns: j..<(j + 1)])
            let largest = column.reduce(0.0) { $1.magnitude > $0.magnitude ? $1 : $0 }
            return largest < 0 ? -1.0 : 1.0
        }
        setValues(signs, of: vector)
    }

    /// Column by column.
    public func makeUnitLower(_ target: MatrixView) {
        for j in 0..<target.columns { clear(target[0..<min(j, target.rows), j..<(j + 1)]) }
        setValues([Double](repeating: 1, count: target.maxRank), of: target.diagonal)
    }

    /// At once.
    public func startQR(
        of source: MatrixView, into panel: Matrix, triangle: MatrixView
    ) throws(LowRankError) -> MatrixView? {
        try copy(source, to: panel.view)
        try factorQR(panel, triangle: triangle)
        return nil
    }

    /// One after the other; a source that is not finite is not factored.
    public func factorLU(of source: MatrixView, into panel: Matrix) throws(LowRankError) -> PanelLU {
        try copy(source, to: panel.view)
        let largest = maxMagnitude(of: panel.view)
        if !largest.isFinite { return PanelLU(permutation: [], diagonal: [], largest: largest) }
        let permutation = try factorLU(panel)
        return PanelLU(permutation: permutation, diagonal: values(of: panel.view.diagonal), largest: largest)
    }

    /// One by one.
    public func answers(to questions: [Question]) -> [[Double]] {
        questions.map { question in
            switch question {
            case .elements(let view): return view.columns == 1 || view.rows == 1 ? values(of: view) : rows(of: view).flatMap(\.self)
            case .isFinite(let view): return [areFinite([view]) ? 1 : 0]
            case .largestMagnitude(let view): return [maxMagnitude(of: view)]
            case .largestColumnSquare(let view): return [largestColumnSquare(in: columnDots(view, view))]
            }
        }
    }

    /// The largest of sums, or NaN where one is not finite.
    package func largestColumnSquare(in squares: [Double]) -> Double {
        squares.allSatisfy(\.isFinite) ? squares.max() ?? 0 : .nan
    }

    /// View by view.
    public func areFinite(_ views: [MatrixView]) -> Bool { !views.contains { firstNonFinite(in: $0) != nil } }

    /// By way of the products on the host.
    public func columnDots(
        _ a: MatrixView, _ b: MatrixView, scale: Double, into target: MatrixView
    ) throws(LowRankError) {
        setValues(columnDots(a, b).map { $0 * scale }, of: target)
    }

    /// `a b` as a new matrix of the compute type.
    public func product(
        _ a: MatrixView, _ b: MatrixView, order: StorageOrder = .rowMajor
    ) throws(LowRankError) -> Matrix {
        let type = computeType(a, b)
        let c = try makeMatrix(rows: a.rows, columns: b.columns, type: type, order: order)
        try multiply(alpha: 1, a, b, beta: 0, into: c.view)
        return c
    }

    /// float64 where one of the views is, else float32.
    public func computeType(_ views: MatrixView...) -> ScalarType {
        views.contains { $0.type == .float64 } ? .float64 : .float32
    }
}
