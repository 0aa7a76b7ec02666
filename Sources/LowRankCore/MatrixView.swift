// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0

/// A matrix in memory: any element type, any strides (also zero or negative).
///
/// A view of a ``Matrix`` keeps it alive. Memory that somebody else owns must outlive its views. Reading or writing is up
/// to the operation; each says which of its views it writes.
public struct MatrixView {
    /// Address of element [0, 0].
    public let address: UnsafeMutableRawPointer
    /// Type of the elements.
    public let type: ScalarType
    /// The number of rows.
    public let rows: Int
    /// The number of columns.
    public let columns: Int
    /// Distance between rows, in elements.
    public let rowStride: Int
    /// Distance between columns, in elements.
    public let columnStride: Int
    /// What the memory lives as long as; nil where the caller sees to that.
    private let owner: AnyObject?

    /// - Parameters:
    ///   - address: Element [0, 0], aligned to the element's size.
    ///   - rowStride, columnStride: In elements.
    ///   - owner: Kept alive by the view and by all views made from it.
    public init(
        address: UnsafeMutableRawPointer, type: ScalarType, rows: Int, columns: Int, rowStride: Int, columnStride: Int,
        owner: AnyObject? = nil
    ) {
        self.address = address
        self.type = type
        self.rows = rows
        self.columns = columns
        self.rowStride = rowStride
        self.columnStride = columnStride
        self.owner = owner
    }

    /// The same memory read with rows and columns exchanged.
    public var transposed: MatrixView {
        MatrixView(
            address: address, type: type, rows: columns, columns: rows, rowStride: columnStride, columnStride: rowStride,
            owner: owner)
    }

    /// The same memory, `[row range, column range]`.
    public subscript(rowRange: Range<Int>, columnRange: Range<Int>) -> MatrixView {
        precondition(rowRange.lowerBound >= 0 && rowRange.upperBound <= rows, "row range outside the matrix")
        precondition(columnRange.lowerBound >= 0 && columnRange.upperBound <= columns, "column range outside the matrix")
        let offset = rowRange.lowerBound * rowStride + columnRange.lowerBound * columnStride
        return MatrixView(
            address: address + offset * type.size, type: type, rows: rowRange.count, columns: columnRange.count,
            rowStride: rowStride, columnStride: columnStride, owner: owner)
    }

    /// All rows of a column range.
    public subscript(columns columnRange: Range<Int>) -> MatrixView { self[0..<rows, columnRange] }

    /// All columns of a row range.
    public subscript(rows rowRange: Range<Int>) -> MatrixView { self[rowRange, 0..<columns] }

    /// The diagonal as a `[min(rows, columns), 1]` view.
    public var diagonal: MatrixView {
        MatrixView(
            address: address, type: type, rows: min(rows, columns), columns: 1, rowStride: rowStride + columnStride,
            columnStride: 1, owner: owner)
    }

    /// Whether there is no element.
    public var isEmpty: Bool { rows == 0 || columns == 0 }

    /// min(rows, columns), the largest rank a factorisation can have.
    public var maxRank: Int { min(rows, columns) }

    /// `[rows, columns]`, as messages show it.
    public var shape: String { "[\(rows), \(columns)]" }
}

/// Which of the two strides is one.
public enum StorageOrder: Sendable {
    /// The elements of a row follow each other.
    case rowMajor
    /// The elements of a column follow each other.
    case columnMajor
}

/// A matrix that owns its memory. Contents are undefined until written.
public final class Matrix {
    private let address: UnsafeMutableRawPointer
    private let type: ScalarType
    /// The number of rows.
    public let rows: Int
    /// The number of columns.
    public let columns: Int
    private let order: StorageOrder
    private let release: (UnsafeMutableRawPointer) -> Void

    /// Takes over memory for a compact matrix; `release` is called with its address once nothing refers to the matrix.
    package init(
        adopting address: UnsafeMutableRawPointer, rows: Int, columns: Int, type: ScalarType, order: StorageOrder,
        release: @escaping (UnsafeMutableRawPointer) -> Void
    ) {
        self.address = address
        self.type = type
        self.rows = rows
        self.columns = columns
        self.order = order
        self.release = release
    }

    deinit { release(address) }

    /// The matrix as operands take it; keeps the matrix alive.
    public var view: MatrixView {
        MatrixView(
            address: address, type: type, rows: rows, columns: columns, rowStride: order == .rowMajor ? columns : 1,
            columnStride: order == .rowMajor ? 1 : rows, owner: self)
    }
}
