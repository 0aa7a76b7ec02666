// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import CLAPACK
import Glibc
import LowRankCore

extension CPUBackend {
    /// `out = x weight^T`, plus `bias` in every row: the product of a frozen layer, by OpenBLAS's sgemm.
    ///
    /// Each slice of `out` is one call of sgemm on one thread, and `parallelFor` runs the slices: OpenBLAS's own threads
    /// would go on spinning beside torch's. The slices are cut by the shape and the processors of the machine
    /// (`ProductSlices`), so that results do not depend on the number of threads.
    ///
    /// - Parameters:
    ///   - x: `[T, n]`, float32 as all of them. Read in place where one of its strides is 1, else copied.
    ///   - weight: `[m, n]`, likewise.
    ///   - bias: `[1, m]`, or nil for none. Added before the products, as torch does.
    ///   - out: `[T, m]`, overwritten.
    /// - Throws: ``LowRankError/invalidShape(argument:expected:got:)`` for a dimension that sgemm can't count.
    ///
    /// Accuracy: `|error| <= c · n · ε · |x| |weight|^T`, entry by entry; the order of the sums is OpenBLAS's.
    public func baseProduct(
        _ x: MatrixView, _ weight: MatrixView, bias: MatrixView?, into out: MatrixView
    ) throws(LowRankError) {
        precondition(x.columns == weight.columns && out.rows == x.rows && out.columns == weight.rows, "shapes of a product")
        precondition([x, weight, out].allSatisfy { $0.type == .float32 }, "types of a product")
        if out.isEmpty { return }
        if x.columns == 0 {
            if let bias { fill(out, with: bias) } else { clear(out) }
            return
        }
        guard let leadingOut = BLASOperand.leadingDimension(out) else {
            let lines = try makeMatrix(rows: out.rows, columns: out.columns, type: .float32, order: .rowMajor)
            try baseProduct(x, weight, bias: bias, into: lines.view)
            return try copy(lines.view, to: out)
        }
        guard let depth = Int32(exactly: x.columns) else {
            throw .invalidShape(argument: "x", expected: "fewer than 2^31 columns", got: x.shape)
        }
        let (left, right) = (try blasOperand(x), try blasOperand(weight))
        let slices = ProductSlices(
            rows: out.rows, columns: out.columns, depth: x.columns, processors: ProductSlices.processors)
        // OpenBLAS has working memory for twice the threads that it was built for, 64 in distributions.
        let workers = min(threads, slices.count, 64)
        OpenBLASThreads.single {
            parallelFor(slices.count, threads: workers) { index, _ in
                let (rows, columns) = slices[index]
                let target = out[rows, columns]
                if let bias { fill(target, with: bias[columns: columns]) }
                // A row-major matrix is a column-major transpose: out^T = weight x^T.
                sgemm_(
                    right.isRowMajor ? "T" : "N", left.isRowMajor ? "N" : "T",
                    [Int32(target.columns)], [Int32(target.rows)], [depth], [1],
                    right.view[rows: columns].address.assumingMemoryBound(to: Float.self), [right.leadingDimension],
                    left.view[rows: rows].address.assumingMemoryBound(to: Float.self), [left.leadingDimension],
                    [bias == nil ? 0 : 1], target.address.assumingMemoryBound(to: Float.self), [leadingOut], 1, 1)
            }
        }
    }

    /// Writes a row into every row.
    private func fill(_ target: MatrixView, with row: MatrixView) {
        kernels.copyScaledFloat32(
            target.rows, target.columns, row.address, row.type.rawValue, 0, row.columnStride, nil, nil, 0,
            target.address, target.type.rawValue, target.rowStride, target.columnStride)
    }

    /// The matrix, or a copy of it where sgemm can't read it.
    private func blasOperand(_ view: MatrixView) throws(LowRankError) -> BLASOperand {
        if let operand = BLASOperand(view) { return operand }
        let lines = try makeMatrix(rows: view.rows, columns: view.columns, type: view.type, order: .rowMajor)
        try copy(view, to: lines.view)
        guard let operand = BLASOperand(lines.view) else { throw .internal("a matrix that sgemm can't read") }
        return operand
    }
}

/// A matrix as sgemm reads it.
private struct BLASOperand {
    let view: MatrixView
    let isRowMajor: Bool
    let leadingDimension: Int32

    /// Nil for a matrix without adjacent elements.
    init?(_ view: MatrixView) {
        self.view = view
        if let leading = Self.leadingDimension(view) {
            (isRowMajor, leadingDimension) = (true, leading)
        } else if let leading = Self.leadingDimension(view.transposed) {
            (isRowMajor, leadingDimension) = (false, leading)
        } else {
            return nil
        }
    }

    /// The distance of the rows of a row-major matrix, nil for another one.
    static func leadingDimension(_ view: MatrixView) -> Int32? {
        if view.columnStride != 1 { return nil }
        // The distance of a single row from the next may be anything.
        if view.rows == 1 { return Int32(clamping: view.columns) }
        return view.rowStride >= view.columns ? Int32(exactly: view.rowStride) : nil
    }
}

/// The slices of a product's result that are computed apart from each other.
///
/// Every slice has OpenBLAS copy its parts of both operands, which takes longer than the sums that it saves below some
/// hundred rows and columns; so slices are as large as leaves every processor with a share.
package struct ProductSlices {
    private let rows: Int
    private let columns: Int
    private let height: Int
    private let width: Int

    /// Of the machine, whichever of them the process may use.
    package static let processors = max(1, sysconf(Int32(_SC_NPROCESSORS_ONLN)))

    package init(rows: Int, columns: Int, depth: Int, processors: Int) {
        self.rows = rows
        self.columns = columns
        let isSmall = CPUBackend.isForOneThread(rows, columns, depth)
        var (down, across) = isSmall ? (1, 1) : (Self.parts(of: rows, 1024), Self.parts(of: columns, 2048))
        // Until the processors have equal shares, or many to take turns with.
        while !isSmall && down * across % processors != 0 && down * across < 4 * processors {
            let (height, width) = (rows / down, columns / across)
            if max(height, width) <= 256 { break }
            if height > width { down += 1 } else { across += 1 }
        }
        height = Self.size(rows, in: down)
        width = Self.size(columns, in: across)
    }

    /// How many there are.
    package var count: Int { Self.parts(of: rows, height) * Self.parts(of: columns, width) }

    package subscript(index: Int) -> (rows: Range<Int>, columns: Range<Int>) {
        // Down the rows first: neighbours share the part of the weight.
        let down = Self.parts(of: rows, height)
        let (row, column) = (index % down * height, index / down * width)
        return (row..<min(row + height, rows), column..<min(column + width, columns))
    }

    /// Sizes are whole tiles of OpenBLAS's kernels.
    private static func size(_ total: Int, in parts: Int) -> Int { (Self.parts(of: total, parts) + 15) / 16 * 16 }

    private static func parts(of total: Int, _ size: Int) -> Int { (total + size - 1) / size }
}
