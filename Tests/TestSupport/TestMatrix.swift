// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankCore

/// How a matrix lies in memory.
public enum Layout: String, CaseIterable, Sendable {
    case rowMajor
    case columnMajor
    /// Row-major, rows an odd distance apart, starting off any vector's alignment.
    case paddedRows
    /// Column-major likewise.
    case paddedColumns
    /// Neither stride is one.
    case strided
    /// Row-major read from the last row up.
    case rowsReversed
    /// Both strides are negative, and neither is one.
    case reversed

    fileprivate func strides(_ rows: Int, _ columns: Int) -> (row: Int, column: Int) {
        switch self {
        case .rowMajor: (columns, 1)
        case .columnMajor: (1, rows)
        case .paddedRows: (columns + 3, 1)
        case .paddedColumns: (1, rows + 5)
        case .strided: (3 * columns + 4, 3)
        case .rowsReversed: (-(columns + 1), 1)
        case .reversed: (-2, -(2 * rows + 1))
        }
    }

    /// Elements between the aligned start of the memory and the first that belongs to the matrix, beside the guard.
    fileprivate var offset: Int { self == .rowMajor || self == .columnMajor ? 0 : 1 }
}

/// A matrix in memory of its own, of any type and layout, between and around whose elements lies a pattern that nobody
/// may touch.
public final class TestMatrix {
    private let first: UnsafeMutableRawPointer
    private let shape: (rows: Int, columns: Int)
    private let strides: (row: Int, column: Int)
    private let type: ScalarType
    private let memory: UnsafeMutableRawPointer
    private let byteCount: Int

    private static let guardElements = 64
    private static let pattern: UInt8 = 0xa5

    /// A matrix of these numbers, rounded to the type.
    public init(_ values: RealMatrix, _ type: ScalarType = .float32, _ layout: Layout = .rowMajor) {
        self.type = type
        shape = (values.rows, values.columns)
        strides = layout.strides(shape.rows, shape.columns)
        let rowReach = max(shape.rows - 1, 0) * strides.row
        let columnReach = max(shape.columns - 1, 0) * strides.column
        let below = min(rowReach, 0) + min(columnReach, 0)
        let above = max(rowReach, 0) + max(columnReach, 0)
        let lowest = Self.guardElements + layout.offset
        byteCount = (lowest + above - below + 1 + Self.guardElements) * type.size
        memory = .allocate(byteCount: byteCount, alignment: 64)
        memory.initializeMemory(as: UInt8.self, repeating: Self.pattern, count: byteCount)
        first = memory + (lowest - below) * type.size
        self.values = values
    }

    /// An output: every element is a NaN, so that what is not written, or read before, shows.
    public convenience init(
        undefined rows: Int, _ columns: Int, _ type: ScalarType = .float32, _ layout: Layout = .rowMajor
    ) {
        self.init(RealMatrix(rows, columns, repeating: .nan), type, layout)
    }

    /// A matrix of elements with these bits, row by row.
    public convenience init(bits: [UInt64], columns: Int, _ type: ScalarType, _ layout: Layout = .rowMajor) {
        self.init(undefined: bits.count / columns, columns, type, layout)
        for (index, bits) in bits.enumerated() { setBits(bits, index / columns, index % columns) }
    }

    deinit { memory.deallocate() }

    /// The matrix as operands take it; keeps the memory alive.
    public var view: MatrixView {
        MatrixView(
            address: first, type: type, rows: shape.rows, columns: shape.columns, rowStride: strides.row,
            columnStride: strides.column, owner: self)
    }

    /// The memory from the lowest to the highest element, what lies between elements included.
    public var span: UnsafeMutableRawBufferPointer {
        let corners = [
            address(0, 0), address(shape.rows - 1, 0), address(0, shape.columns - 1),
            address(shape.rows - 1, shape.columns - 1),
        ]
        guard let lowest = corners.min(), let highest = corners.max(), !view.isEmpty else {
            return UnsafeMutableRawBufferPointer(start: nil, count: 0)
        }
        return UnsafeMutableRawBufferPointer(start: lowest, count: lowest.distance(to: highest) + type.size)
    }

    /// The numbers in memory.
    public var values: RealMatrix {
        get { view.values }
        set {
            precondition(newValue.rows == shape.rows && newValue.columns == shape.columns, "values of a matrix")
            for i in 0..<shape.rows {
                for j in 0..<shape.columns { setBits(type.bits(of: newValue[i, j]), i, j) }
            }
        }
    }

    /// The bits of all elements, row by row.
    public var bits: [UInt64] { view.bits }

    /// Writes bits that stand for no particular number.
    public func setBits(_ bits: UInt64, _ row: Int, _ column: Int) {
        let address = address(row, column)
        switch type.size {
        case 8: address.storeBytes(of: bits, as: UInt64.self)
        case 4: address.storeBytes(of: UInt32(truncatingIfNeeded: bits), as: UInt32.self)
        default: address.storeBytes(of: UInt16(truncatingIfNeeded: bits), as: UInt16.self)
        }
    }

    /// Whether all memory that is not an element still holds the pattern.
    public var isGuardIntact: Bool {
        var isElement = [Bool](repeating: false, count: byteCount)
        for i in 0..<shape.rows {
            for j in 0..<shape.columns {
                let start = memory.distance(to: address(i, j))
                for byte in start..<(start + type.size) { isElement[byte] = true }
            }
        }
        return (0..<byteCount).allSatisfy {
            isElement[$0] || memory.load(fromByteOffset: $0, as: UInt8.self) == Self.pattern
        }
    }

    private func address(_ row: Int, _ column: Int) -> UnsafeMutableRawPointer {
        first + (row * strides.row + column * strides.column) * type.size
    }
}

extension MatrixView {
    private func bits(_ row: Int, _ column: Int) -> UInt64 {
        let address = address + (row * rowStride + column * columnStride) * type.size
        return switch type.size {
        case 8: address.load(as: UInt64.self)
        case 4: UInt64(address.load(as: UInt32.self))
        default: UInt64(address.load(as: UInt16.self))
        }
    }

    /// The numbers in memory.
    public var values: RealMatrix { RealMatrix(rows, columns) { type.value(of: bits($0, $1)) } }

    /// The bits of all elements, row by row.
    public var bits: [UInt64] {
        var all: [UInt64] = []
        all.reserveCapacity(rows * columns)
        for i in 0..<rows {
            for j in 0..<columns { all.append(bits(i, j)) }
        }
        return all
    }
}

extension Matrix {
    /// The numbers in memory.
    public var values: RealMatrix { view.values }
}
