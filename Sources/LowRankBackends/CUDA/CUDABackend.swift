// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import CCUDA
import LowRankCore

/// A CUDA device for the time of one call. Views are of its memory; own kernels, cuBLAS and cuSOLVER do the work, and LAPACK
/// on the host the small dense problems.
package struct CUDABackend: Backend {
    let session: CUDASession

    /// Runs the body on a device, on the stream that this thread has set for it. What the body enqueues may still run when
    /// this returns.
    package static func run(
        onDevice ordinal: Int, _ body: (any Backend) throws(LowRankError) -> Void
    ) throws(LowRankError) {
        try run(onDevice: ordinal) { (session: CUDASession) throws(LowRankError) in try body(CUDABackend(session: session)) }
    }

    /// As ``run(onDevice:_:)``, for a body that reads no result of the device: it runs twice, first without any effect, which
    /// tells how much memory it takes. So that comes as one block, and what a body throws, it throws before it writes.
    package static func enqueue(
        onDevice ordinal: Int, _ body: (any Backend) throws(LowRankError) -> Void
    ) throws(LowRankError) {
        try run(onDevice: ordinal) { (session: CUDASession) throws(LowRankError) in
            let plan = CUDASession(on: session.device, stream: session.stream, isPlanning: true)
            try body(CUDABackend(session: plan))
            try plan.requireNoFailure()
            try session.withWorkspace(bytes: plan.plannedBytes) { () throws(LowRankError) in
                try body(CUDABackend(session: session))
            }
        }
    }

    private static func run(
        onDevice ordinal: Int, _ body: (CUDASession) throws(LowRankError) -> Void
    ) throws(LowRankError) {
        let libraries = try CUDALibraries.shared()
        guard (0..<Int(LR_CUDA_MAX_DEVICES)).contains(ordinal) else {
            throw .unsupportedDevice(argument: "device", got: "CUDA device \(ordinal)")
        }
        let stream = cuda_thread_stream(Int32(ordinal))
        let device = try CUDADevice.ready(ordinal, stream: stream)
        try libraries.driver.withCurrent(device.context) { () throws(LowRankError) in
            let session = CUDASession(on: device, stream: stream)
            do throws(LowRankError) { try body(session) } catch {
                // What made the body fail, where it went on after a failure without knowing.
                try session.requireNoFailure()
                throw error
            }
            try session.requireNoFailure()
        }
    }

    /// Does for a device and the thread's stream what its first calls would, so that graphs can be captured on any stream.
    package static func warmUp(device ordinal: Int) throws(LowRankError) {
        try run(onDevice: ordinal) { (session) throws(LowRankError) in
            _ = try session.libraryHandles()
            try session.device.reserveHandles()
        }
    }

    /// Waits for the work on the thread's stream.
    package static func synchronize(device ordinal: Int) throws(LowRankError) {
        try run(onDevice: ordinal) { (session) throws(LowRankError) in
            try session.driver.check(session.driver.cuStreamSynchronize(session.stream), "cuStreamSynchronize")
        }
    }

    /// Zeros, to be given to ``free(_:device:)``.
    package static func allocateZeros(bytes: Int, device ordinal: Int) throws(LowRankError) -> UnsafeMutableRawPointer {
        var result: UnsafeMutableRawPointer?
        try run(onDevice: ordinal) { (session) throws(LowRankError) in
            // Whole float64 numbers, which are zero as zero bits.
            let count = max(1, (bytes + 7) / 8)
            var address: lr_cuda_address = 0
            try session.driver.check(session.driver.cuMemAlloc_v2(&address, count * 8), "cuMemAlloc", bytes: count * 8)
            guard let memory = UnsafeMutableRawPointer(bitPattern: UInt(address)) else { throw .outOfMemory(bytes: bytes) }
            do throws(LowRankError) {
                CUDABackend(session: session).clear(
                    MatrixView(address: memory, type: .float64, rows: 1, columns: count, rowStride: count, columnStride: 1))
                try session.requireNoFailure()
                // For whatever stream uses it next.
                try session.driver.check(session.driver.cuStreamSynchronize(session.stream), "cuStreamSynchronize")
            } catch {
                _ = session.driver.cuMemFree_v2(address)
                throw error
            }
            result = memory
        }
        guard let result else { throw .outOfMemory(bytes: bytes) }
        return result
    }

    package static func free(_ memory: UnsafeMutableRawPointer, device ordinal: Int) throws(LowRankError) {
        try run(onDevice: ordinal) { (session) throws(LowRankError) in
            try session.driver.check(session.driver.cuMemFree_v2(memory.cudaAddress), "cuMemFree")
        }
    }

    /// Copies a matrix to the host, row by row.
    package static func read(
        _ matrix: MatrixView, to target: UnsafeMutableRawPointer, device ordinal: Int
    ) throws(LowRankError) {
        if matrix.isEmpty { return }
        try run(onDevice: ordinal) { (session) throws(LowRankError) in
            let backend = CUDABackend(session: session)
            let compact = try backend.makeMatrix(
                rows: matrix.rows, columns: matrix.columns, type: matrix.type, order: .rowMajor)
            try backend.copy(matrix, to: compact.view)
            try session.read(compact.view.address, to: target, bytes: matrix.rows * matrix.columns * matrix.type.size)
        }
    }

    /// Sets the stream of this thread's calls on a device; nil is the default stream.
    package static func setStream(_ stream: UnsafeMutableRawPointer?, device ordinal: Int) throws(LowRankError) {
        guard (0..<Int(LR_CUDA_MAX_DEVICES)).contains(ordinal) else {
            throw .invalidArgument(
                argument: "device", expected: "0 <= device < \(LR_CUDA_MAX_DEVICES)", got: "\(ordinal)")
        }
        cuda_set_thread_stream(Int32(ordinal), stream)
    }

    /// Which libraries are open and which devices in use, as names and JSON values; opens nothing.
    package static var configuration: [(name: String, json: String)] {
        switch CUDALibraries.outcome {
        case nil: return [("cuda", "null")]
        case .failure(let error): return [("cuda", quoted(error.description))]
        case .success(let libraries):
            let devices = CUDADevice.ordinalsInUse.map { "\($0)" }.joined(separator: ", ")
            let paths = libraries.paths.map(quoted).joined(separator: ", ")
            let cache = (CUDAKernelCache.ofEnvironment()?.folder).map(quoted) ?? "null"
            return [("cuda", "{\"libraries\": [\(paths)], \"devices\": [\(devices)], \"cache\": \(cache)}")]
        }
    }

    /// A caller's functions for intermediate memory, as lr_cuda_allocator_t of lowrank.h explains.
    package typealias Allocator = (
        allocate: @convention(c) (
            UnsafeMutableRawPointer?, Int32, UInt64, UnsafeMutablePointer<UnsafeMutableRawPointer?>?,
            UnsafeMutablePointer<UnsafeMutableRawPointer?>?
        ) -> Int32,
        release: @convention(c) (UnsafeMutableRawPointer?, UnsafeMutableRawPointer?) -> Void,
        context: UnsafeMutableRawPointer?
    )

    /// Sets where this thread's calls get intermediate memory; nil for CUDA's own allocator.
    package static func setAllocator(_ allocator: Allocator?) {
        cuda_set_thread_allocator(
            cuda_allocator(allocate: allocator?.allocate, release: allocator?.release, context: allocator?.context))
    }

    package func makeMatrix(
        rows: Int, columns: Int, type: ScalarType, order: StorageOrder
    ) throws(LowRankError) -> Matrix {
        let block = try session.allocate(bytes: rows * columns * type.size)
        return Matrix(adopting: block.memory, rows: rows, columns: columns, type: type, order: order) { [session] _ in
            session.release(block)
        }
    }
}

extension MatrixView {
    /// The view as kernels take it.
    var onDevice: lr_view {
        lr_view(
            address: address.cudaAddress, rows: Int64(rows), columns: Int64(columns), row_stride: Int64(rowStride),
            column_stride: Int64(columnStride), type: type.rawValue, unused: 0)
    }

    /// A vector as a column.
    var column: MatrixView { columns == 1 ? self : transposed }

    /// Whether memory runs along the columns.
    var runsAlongColumns: Bool { rowStride.magnitude < columnStride.magnitude }

    /// The view or its transpose, with rows that memory runs along.
    var lines: MatrixView { runsAlongColumns ? transposed : self }

    /// Groups of neighbours in rows, which threads take at a time.
    var groups: Int { rows * ((columns + Int(LR_GROUP) - 1) / Int(LR_GROUP)) }
}
