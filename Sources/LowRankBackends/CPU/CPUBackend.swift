// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import Glibc
import LowRankCore

/// The CPU: own kernels for everything that touches a weight or an activation, LAPACK for the small panels.
public struct CPUBackend: Backend {
    /// The best kernels that this CPU runs, on the default number of threads.
    public static let shared = CPUBackend(kernels: .current)

    let kernels: KernelTable
    private let fixedThreads: Int?

    /// - Parameter threads: A fixed number of threads; nil follows the process's setting.
    package init(kernels: KernelTable, threads: Int? = nil) {
        self.kernels = kernels
        self.fixedThreads = threads
    }

    var threads: Int { fixedThreads ?? ThreadTeam.threadCount }

    public func makeMatrix(
        rows: Int, columns: Int, type: ScalarType, order: StorageOrder
    ) throws(LowRankError) -> Matrix {
        let memory = try allocate(elements: rows * columns, type: type)
        let view = MatrixView(
            address: memory, type: type, rows: rows, columns: columns,
            rowStride: order == .rowMajor ? columns : 1, columnStride: order == .rowMajor ? 1 : rows)
        return Matrix(adopting: view) { free($0) }
    }

    func allocate(elements: Int, type: ScalarType) throws(LowRankError) -> UnsafeMutableRawPointer {
        try allocate(bytes: elements * type.size)
    }

    func allocate(bytes: Int) throws(LowRankError) -> UnsafeMutableRawPointer {
        var memory: UnsafeMutableRawPointer?
        guard posix_memalign(&memory, 64, max(bytes, 64)) == 0, let memory else {
            throw .outOfMemory(bytes: bytes)
        }
        return memory
    }

    // MARK: Products

    /// Blocks of C are the units of parallel work. Their size never depends on the number of threads.
    private static let blockRows = 120
    private static let blockColumns = 256

    public func multiply(
        alpha: Double, _ a: MatrixView, _ b: MatrixView, beta: Double, into c: MatrixView
    ) throws(LowRankError) {
        precondition(a.rows == c.rows && b.columns == c.columns && a.columns == b.rows, "shapes of a product")
        if c.isEmpty { return }
        // Vectors run along the columns of C: with a column-major C the transposed product writes whole lines.
        if c.columnStride != 1 && c.rowStride == 1 {
            return try multiply(alpha: alpha, b.transposed, a.transposed, beta: beta, into: c.transposed)
        }
        let inFloat64 = a.type == .float64 || b.type == .float64 || c.type == .float64
        let kernel = inFloat64 ? kernels.multiplyFloat64 : kernels.multiplyFloat32
        let rowBlocks = (c.rows + Self.blockRows - 1) / Self.blockRows
        let columnBlocks = (c.columns + Self.blockColumns - 1) / Self.blockColumns
        let blocks = rowBlocks * columnBlocks
        // Below about 50 microseconds of arithmetic waking a second thread costs more than it saves.
        let isSmall = Double(c.rows) * Double(c.columns) * Double(a.columns) < 0x1p20
        let workers = isSmall ? 1 : min(threads, blocks)
        let space = kernels.multiplyWorkspace(min(Self.blockRows, c.rows), min(Self.blockColumns, c.columns))
        let workspace = try allocate(bytes: workers * space)
        defer { free(workspace) }
        parallelFor(blocks, threads: workers) { block, worker in
            // Down the rows first: neighbours share the block of B.
            let i = block % rowBlocks * Self.blockRows
            let j = block / rowBlocks * Self.blockColumns
            let aBlock = a[rows: i..<min(i + Self.blockRows, c.rows)]
            let bBlock = b[columns: j..<min(j + Self.blockColumns, c.columns)]
            let cBlock = c[i..<(i + aBlock.rows), j..<(j + bBlock.columns)]
            kernel(
                cBlock.rows, cBlock.columns, a.columns, alpha,
                aBlock.address, a.type.rawValue, a.rowStride, a.columnStride,
                bBlock.address, b.type.rawValue, b.rowStride, b.columnStride,
                beta, cBlock.address, c.type.rawValue, c.rowStride, c.columnStride, workspace + worker * space)
        }
    }
}
