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
        let libraries = try CUDALibraries.shared()
        guard (0..<Int(LR_CUDA_MAX_DEVICES)).contains(ordinal) else {
            throw .unsupportedDevice(argument: "device", got: "CUDA device \(ordinal)")
        }
        let stream = lr_cuda_thread_stream(Int32(ordinal))
        let device = try CUDADevice.ready(ordinal, stream: stream)
        try libraries.driver.withCurrent(device.context) { () throws(LowRankError) in
            let session = CUDASession(on: device, stream: stream)
            do throws(LowRankError) { try body(CUDABackend(session: session)) } catch {
                // What made the body fail, where it went on after a failure without knowing.
                try session.requireNoFailure()
                throw error
            }
            try session.requireNoFailure()
        }
    }

    /// Does for a device and the thread's stream what its first calls would, so that graphs can be captured.
    package static func warmUp(device ordinal: Int) throws(LowRankError) {
        try run(onDevice: ordinal) { (backend) throws(LowRankError) in
            guard let backend = backend as? CUDABackend else { return }
            _ = try backend.session.libraryHandles()
        }
    }

    /// Sets the stream of this thread's calls on a device; nil is the default stream.
    package static func setStream(_ stream: UnsafeMutableRawPointer?, device ordinal: Int) throws(LowRankError) {
        guard (0..<Int(LR_CUDA_MAX_DEVICES)).contains(ordinal) else {
            throw .invalidArgument(
                argument: "device", expected: "0 <= device < \(LR_CUDA_MAX_DEVICES)", got: "\(ordinal)")
        }
        lr_cuda_set_thread_stream(Int32(ordinal), stream)
    }

    /// Which libraries are open and which devices in use, as names and JSON values; opens nothing.
    package static var configuration: [(name: String, json: String)] {
        switch CUDALibraries.outcome {
        case nil: return [("cuda", "null")]
        case .failure(let error): return [("cuda", quoted(error.description))]
        case .success(let libraries):
            let devices = CUDADevice.ordinalsInUse.map { "\($0)" }.joined(separator: ", ")
            let paths = libraries.paths.map(quoted).joined(separator: ", ")
            return [("cuda", "{\"libraries\": [\(paths)], \"devices\": [\(devices)]}")]
        }
    }

    package func makeMatrix(
        rows: Int, columns: Int, type: ScalarType, order: StorageOrder
    ) throws(LowRankError) -> Matrix {
        let memory = try session.allocate(bytes: rows * columns * type.size)
        return Matrix(adopting: memory, rows: rows, columns: columns, type: type, order: order) { [session] in
            session.release($0)
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
}
