// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankCore

/// A float64 matrix with the operations of the definitions, each written naively: the oracle of the tests.
public struct RealMatrix: Equatable, Sendable {
    public let rows: Int
    public let columns: Int
    /// Row by row.
    public private(set) var values: [Double]

    public init(rows: Int, columns: Int, values: [Double]) {
        precondition(values.count == rows * columns, "values of a matrix")
        self.rows = rows
        self.columns = columns
        self.values = values
    }

    public init(_ rows: Int, _ columns: Int, _ element: (_ row: Int, _ column: Int) -> Double) {
        var values: [Double] = []
        values.reserveCapacity(rows * columns)
        for i in 0..<rows {
            for j in 0..<columns { values.append(element(i, j)) }
        }
        self.init(rows: rows, columns: columns, values: values)
    }

    public init(_ rows: Int, _ columns: Int, repeating value: Double) {
        self.init(rows: rows, columns: columns, values: [Double](repeating: value, count: rows * columns))
    }

    /// A column.
    public init(column values: [Double]) {
        self.init(rows: values.count, columns: 1, values: values)
    }

    public init(diagonal: [Double]) {
        self.init(diagonal.count, diagonal.count) { i, j in i == j ? diagonal[i] : 0 }
    }

    public static func identity(_ size: Int) -> RealMatrix {
        RealMatrix(diagonal: [Double](repeating: 1, count: size))
    }

    public subscript(row: Int, column: Int) -> Double {
        get { values[row * columns + column] }
        set { values[row * columns + column] = newValue }
    }

    public var transposed: RealMatrix { RealMatrix(columns, rows) { self[$1, $0] } }
    public var shape: String { "[\(rows), \(columns)]" }
}

// MARK: Arithmetic

extension RealMatrix {
    public static func * (a: RealMatrix, b: RealMatrix) -> RealMatrix {
        precondition(a.columns == b.rows, "shapes of a product")
        var c = [Double](repeating: 0, count: a.rows * b.columns)
        for i in 0..<a.rows {
            for k in 0..<a.columns {
                let factor = a.values[i * a.columns + k]
                for j in 0..<b.columns { c[i * b.columns + j] += factor * b.values[k * b.columns + j] }
            }
        }
        return RealMatrix(rows: a.rows, columns: b.columns, values: c)
    }

    public static func * (factor: Double, a: RealMatrix) -> RealMatrix { a.map { factor * $0 } }

    public static func + (a: RealMatrix, b: RealMatrix) -> RealMatrix { a.combined(with: b) { $0 + $1 } }

    public static func - (a: RealMatrix, b: RealMatrix) -> RealMatrix { a.combined(with: b) { $0 - $1 } }

    public func map(_ transform: (Double) -> Double) -> RealMatrix {
        RealMatrix(rows: rows, columns: columns, values: values.map(transform))
    }

    private func combined(with other: RealMatrix, _ operation: (Double, Double) -> Double) -> RealMatrix {
        precondition(rows == other.rows && columns == other.columns, "shapes of a sum")
        return RealMatrix(rows: rows, columns: columns, values: zip(values, other.values).map(operation))
    }

    /// `diag(factors) self`.
    public func scalingRows(by factors: [Double]) -> RealMatrix {
        precondition(factors.count == rows, "one factor a row")
        return RealMatrix(rows, columns) { factors[$0] * self[$0, $1] }
    }

    /// `self diag(factors)`.
    public func scalingColumns(by factors: [Double]) -> RealMatrix {
        precondition(factors.count == columns, "one factor a column")
        return RealMatrix(rows, columns) { self[$0, $1] * factors[$1] }
    }
}

// MARK: Parts

extension RealMatrix {
    public func rows(_ range: Range<Int>) -> RealMatrix {
        RealMatrix(range.count, columns) { self[range.lowerBound + $0, $1] }
    }

    public func columns(_ range: Range<Int>) -> RealMatrix {
        RealMatrix(rows, range.count) { self[$0, range.lowerBound + $1] }
    }

    /// Row i of the result is row `indices[i]`.
    public func gatheringRows(_ indices: [Int]) -> RealMatrix {
        RealMatrix(indices.count, columns) { self[indices[$0], $1] }
    }

    public func row(_ index: Int) -> [Double] { Array(values[(index * columns)..<((index + 1) * columns)]) }

    public func column(_ index: Int) -> [Double] { (0..<rows).map { self[$0, index] } }

    public var diagonal: [Double] { (0..<min(rows, columns)).map { self[$0, $0] } }
}

// MARK: Measures

extension RealMatrix {
    /// The Frobenius norm, computed so that squares neither overflow nor vanish.
    public var norm: Double {
        let largest = maxMagnitude
        if largest == 0 || !largest.isFinite { return largest }
        return largest * values.reduce(0) { $0 + ($1 / largest) * ($1 / largest) }.squareRoot()
    }

    /// The largest magnitude; NaN where an entry is one.
    public var maxMagnitude: Double {
        values.reduce(0) { $0.isNaN || $1.isNaN ? .nan : max($0, $1.magnitude) }
    }

    public var columnNorms: [Double] { (0..<columns).map { RealMatrix(column: column($0)).norm } }

    /// Entries equal, where a NaN equals a NaN.
    public func isIdentical(to other: RealMatrix) -> Bool {
        rows == other.rows && columns == other.columns
            && zip(values, other.values).allSatisfy { $0 == $1 || ($0.isNaN && $1.isNaN) }
    }

    /// The first difference between two matrices, for messages.
    public func firstDifference(from expected: RealMatrix) -> String {
        guard rows == expected.rows, columns == expected.columns else { return "shape \(shape), not \(expected.shape)" }
        for i in 0..<rows {
            for j in 0..<columns {
                let (got, wanted) = (self[i, j], expected[i, j])
                if got != wanted && !(got.isNaN && wanted.isNaN) { return "[\(i), \(j)] is \(got), not \(wanted)" }
            }
        }
        return "no difference"
    }
}
