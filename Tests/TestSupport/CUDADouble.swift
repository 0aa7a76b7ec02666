// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import Glibc
import LowRankBackends
import LowRankCore
import Testing

/// The double of the CUDA libraries in this process: see Tests/CUDADouble/include/double.hpp.
public final class CUDADouble: Sendable {
    /// Runs a test alone, and expects it to have made no wrong call, and to leave nothing to run, allocated or current.
    ///
    /// - Parameter keepsMemory: Whether the body may leave blocks allocated, as the first use of a device does.
    public static func withExclusiveAccess<Failure: Error>(
        keepsMemory: Bool = false, sourceLocation: SourceLocation = #_sourceLocation,
        _ body: (CUDADouble) throws(Failure) -> Void
    ) throws(Failure) {
        pthread_mutex_lock(lock)
        defer { pthread_mutex_unlock(lock) }
        let double = shared
        _ = double.violations
        let (blocks, depth) = (double.liveBlocks, double.contextDepth)
        try body(double)
        let violations = double.violations
        #expect(violations == "", "wrong calls", sourceLocation: sourceLocation)
        #expect(double.pending == 0, "operations that no synchronization runs", sourceLocation: sourceLocation)
        #expect(keepsMemory || double.liveBlocks <= blocks, "blocks not freed", sourceLocation: sourceLocation)
        #expect(double.contextDepth == depth, "contexts not popped", sourceLocation: sourceLocation)
    }

    /// Likewise, once the backend holds on the device what it keeps, as handles with their workspace.
    public static func withWarmDevice(
        sourceLocation: SourceLocation = #_sourceLocation, _ body: (CUDADouble) throws(LowRankError) -> Void
    ) throws(LowRankError) {
        try withExclusiveAccess(keepsMemory: true) { (_) throws(LowRankError) in try CUDABackend.warmUp(device: 0) }
        try withExclusiveAccess(sourceLocation: sourceLocation, body)
    }

    private static let shared = CUDADouble()
    nonisolated(unsafe) private static let lock: UnsafeMutablePointer<pthread_mutex_t> = {
        let lock = UnsafeMutablePointer<pthread_mutex_t>.allocate(capacity: 1)
        lock.initialize(to: pthread_mutex_t())
        pthread_mutex_init(lock, nil)
        return lock
    }()

    /// The folder of links under the libraries' own names, which `LOWRANK_CUDA_LIBRARIES` names.
    public let folder: String
    nonisolated(unsafe) private let handle: UnsafeMutableRawPointer

    private init() {
        let library = "\(SourceTree.buildFolder)/libCUDADouble.so"
        folder = "\(SourceTree.buildFolder)/cuda-double"
        mkdir(folder, 0o755)
        for name in ["libcuda.so.1", "libcublas.so.13", "libcusolver.so.12", "libnvrtc.so.13"] {
            symlink(library, "\(folder)/\(name)")
        }
        setenv("LOWRANK_CUDA_LIBRARIES", folder, 1)
        // What is compiled for the double is not for the user's own processes.
        setenv("LOWRANK_CUDA_CACHE", "off", 1)
        guard let handle = dlopen(library, RTLD_NOW | RTLD_LOCAL) else { fatalError(String(cString: dlerror())) }
        self.handle = handle
    }

    /// An exported function as a C function type.
    public func function<Function>(_ symbol: String, _ type: Function.Type) -> Function {
        guard let address = dlsym(handle, symbol) else { fatalError("the double has no \(symbol)") }
        return unsafeBitCast(address, to: type)
    }

    public func allocate(_ bytes: Int, device: Int32 = 0) -> UInt64 {
        function("cuda_double_allocate", (@convention(c) (Int, Int32) -> UInt64).self)(bytes, device)
    }

    public func release(_ address: UInt64) {
        function("cuda_double_release", (@convention(c) (UInt64) -> Void).self)(address)
    }

    /// Copies from the device what is there now: operations that are still queued have not happened.
    public func read(_ target: UnsafeMutableRawBufferPointer, from address: UInt64) {
        copy(to: target.baseAddress, from: UnsafeRawPointer(bitPattern: UInt(address)), target.count)
    }

    public func write(_ source: UnsafeRawBufferPointer, to address: UInt64) {
        copy(to: UnsafeMutableRawPointer(bitPattern: UInt(address)), from: source.baseAddress, source.count)
    }

    private func copy(to target: UnsafeMutableRawPointer?, from source: UnsafeRawPointer?, _ bytes: Int) {
        typealias Copy = @convention(c) (UnsafeMutableRawPointer?, UnsafeRawPointer?, Int) -> Void
        function("cuda_double_copy", Copy.self)(target, source, bytes)
    }

    /// Runs what a stream's queue holds, as other work of the caller's would wait for it.
    public func run(_ stream: UnsafeMutableRawPointer?) {
        function("cuda_double_run", (@convention(c) (UnsafeMutableRawPointer?) -> Void).self)(stream)
    }

    /// What calls did wrong since this was last asked.
    public var violations: String {
        String(cString: function("cuda_double_violations", (@convention(c) () -> UnsafePointer<CChar>).self)())
    }

    public var liveBlocks: Int { count("blocks") }
    public var pending: Int { count("operations") }
    public var contextDepth: Int { count("contexts") }

    /// How often a function was called.
    public func calls(_ symbol: String) -> Int { count(symbol) }

    private func count(_ what: String) -> Int {
        function("cuda_double_count", (@convention(c) (UnsafePointer<CChar>) -> Int).self)(what)
    }

    /// Makes one call of a function fail: the next, or one after that.
    public func fail(_ symbol: String, after count: Int32 = 0, status: Int32) {
        function("cuda_double_fail", (@convention(c) (UnsafePointer<CChar>, Int32, Int32) -> Void).self)(
            symbol, count, status)
    }

    /// Runs the body as if all streams were being captured.
    public func whileCapturing(_ body: () -> Void) {
        let capture = function("cuda_double_capture", (@convention(c) (Bool) -> Void).self)
        capture(true)
        body()
        capture(false)
    }
}

/// A copy of a test matrix in the double's device memory, with the same strides, whose highest element is the last before
/// the forbidden page.
public final class DeviceMatrix {
    private let double: CUDADouble
    private let matrix: TestMatrix
    private let block: UInt64

    public init(_ matrix: TestMatrix, on double: CUDADouble, device: Int32 = 0) {
        self.double = double
        self.matrix = matrix
        block = double.allocate(matrix.span.count, device: device)
        double.write(UnsafeRawBufferPointer(matrix.span), to: block)
    }

    deinit { double.release(block) }

    /// The address on the device of what is at an address of the test matrix.
    public var address: UnsafeMutableRawPointer {
        let offset = matrix.span.baseAddress.map { $0.distance(to: matrix.view.address) } ?? 0
        return UnsafeMutableRawPointer(bitPattern: UInt(block) + UInt(offset)).unsafelyUnwrapped
    }

    /// The matrix on the device; keeps the memory alive.
    public var view: MatrixView {
        let host = matrix.view
        return MatrixView(
            address: address, type: host.type, rows: host.rows, columns: host.columns, rowStride: host.rowStride,
            columnStride: host.columnStride, owner: self)
    }

    /// Copies what is on the device into the test matrix.
    public func download() { double.read(matrix.span, from: block) }
}
