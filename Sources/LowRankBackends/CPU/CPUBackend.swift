// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import Glibc
import LowRankCore

/// The CPU: own kernels for everything but small SVDs and eigenproblems, which are LAPACK's.
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

    /// Whether a product has too few multiplications for a second thread: it takes less than about 50 microseconds, below which
    /// waking one costs more than it saves.
    static func isForOneThread(_ rows: Int, _ columns: Int, _ depth: Int) -> Bool {
        Double(rows) * Double(columns) * Double(depth) < 0x1p20
    }

    public func makeMatrix(
        rows: Int, columns: Int, type: ScalarType, order: StorageOrder
    ) throws(LowRankError) -> Matrix {
        let bytes = max(rows * columns * type.size, 64)
        let memory = if let kept = MemoryReserve.shared.take(bytes: bytes) { kept } else { try allocate(bytes: bytes) }
        return Matrix(adopting: memory, rows: rows, columns: columns, type: type, order: order) {
            MemoryReserve.shared.give($0, bytes: bytes)
        }
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
}
