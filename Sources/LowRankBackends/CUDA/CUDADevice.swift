// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import CCUDA
import Glibc
import LowRankCore
import Synchronization

/// A device with what is made for it once: its primary context, which torch and others use too, our kernels, and handles of
/// cuBLAS and cuSOLVER. Nothing of it is ever destroyed: at the end of a process the driver may be gone first.
final class CUDADevice: @unchecked Sendable {
    let libraries: CUDALibraries
    let ordinal: Int
    let context: UnsafeMutableRawPointer
    let hasMemoryPools: Bool
    let kernels: CUDAKernels
    private let idleHandles = Mutex<[CUDAHandles]>([])
    /// Whether a graph has taken the reserve.
    private let isReserveWanted = Atomic(false)

    private init(_ ordinal: Int, stream: UnsafeMutableRawPointer?) throws(LowRankError) {
        let libraries = try CUDALibraries.shared()
        self.libraries = libraries
        self.ordinal = ordinal
        let driver = libraries.driver
        var count: Int32 = 0
        try driver.check(driver.cuDeviceGetCount(&count), "cuDeviceGetCount")
        if ordinal >= count {
            throw .backendUnavailable(reason: "CUDA device \(ordinal) is not there: the driver finds \(count)")
        }
        var device: Int32 = 0
        try driver.check(driver.cuDeviceGet(&device, Int32(ordinal)), "cuDeviceGet")
        var context: UnsafeMutableRawPointer?
        try driver.check(driver.cuDevicePrimaryCtxRetain(&context, device), "cuDevicePrimaryCtxRetain")
        guard let context else { throw .internal("CUDA: cuDevicePrimaryCtxRetain gave no context") }
        self.context = context
        func attribute(_ attribute: Int) throws(LowRankError) -> Int32 {
            var value: Int32 = 0
            try driver.check(driver.cuDeviceGetAttribute(&value, Int32(attribute), device), "cuDeviceGetAttribute")
            return value
        }
        hasMemoryPools = try attribute(LR_CUDA_MEMORY_POOLS_SUPPORTED) != 0
        let (major, minor) = (
            try attribute(LR_CUDA_COMPUTE_CAPABILITY_MAJOR), try attribute(LR_CUDA_COMPUTE_CAPABILITY_MINOR)
        )
        if major < 8 {
            throw .backendUnavailable(
                reason: "CUDA device \(ordinal) has compute capability \(major).\(minor), and 8.0 or newer is needed")
        }
        kernels = try driver.withCurrent(context) { () throws(LowRankError) in
            if try driver.isCapturing(stream) {
                throw .backendUnavailable(
                    reason: "CUDA device \(ordinal) is used for the first time while a graph is captured: call "
                        + "lowrank_swift.warmup(\"cuda:\(ordinal)\") before")
            }
            return try CUDAKernels(architecture: 10 * major + minor, libraries)
        }
    }

    // MARK: The one of each ordinal

    private static let known = Mutex<[Int: CUDADevice]>([:])

    /// The device, made ready at its first use, which takes the time of compiling the kernels.
    static func ready(_ ordinal: Int, stream: UnsafeMutableRawPointer?) throws(LowRankError) -> CUDADevice {
        guard (0..<Int(LR_CUDA_MAX_DEVICES)).contains(ordinal) else {
            throw .unsupportedDevice(argument: "device", got: "CUDA device \(ordinal)")
        }
        let result = known.withLock { (known) -> Result<CUDADevice, LowRankError> in
            if let device = known[ordinal] { return .success(device) }
            do throws(LowRankError) {
                let device = try CUDADevice(ordinal, stream: stream)
                known[ordinal] = device
                return .success(device)
            } catch { return .failure(error) }
        }
        return try result.get()
    }

    /// The ordinals in use; makes none ready.
    static var ordinalsInUse: [Int] { known.withLock { $0.keys.sorted() } }

    // MARK: Handles

    /// Handles whose stream is `stream`, for one caller at a time. The context must be current.
    func takeHandles(stream: UnsafeMutableRawPointer?) throws(LowRankError) -> CUDAHandles {
        if try libraries.driver.isCapturing(stream) { return try takeHandles(capturing: stream) }
        if isReserveWanted.load(ordering: .relaxed) { try reserveHandles() }
        let (idle, superfluous) = idleHandles.withLock { (handles) -> (CUDAHandles?, CUDAHandles?) in
            let places = handles.indices.filter { !handles[$0].isReserve && !handles[$0].isInGraph }
            if let place = places.last(where: { handles[$0].stream == stream }) { return (handles.remove(at: place), nil) }
            // Streams come and go; a workspace is not for every one of them.
            return (nil, places.count < 16 ? nil : handles.remove(at: places[0]))
        }
        if let idle { return idle }
        superfluous?.destroy(libraries)
        return try CUDAHandles(stream: stream, libraries)
    }

    /// Handles for a stream that is being captured, during which no memory can be allocated. The graph keeps them: work outside
    /// of it may run at the same time, and gets others.
    private func takeHandles(capturing stream: UnsafeMutableRawPointer?) throws(LowRankError) -> CUDAHandles {
        let idle = idleHandles.withLock { (handles) -> CUDAHandles? in
            let ofStream = handles.indices.filter { handles[$0].stream == stream && !handles[$0].isReserve }
            let place =
                ofStream.last { handles[$0].isInGraph } ?? ofStream.last ?? handles.firstIndex(where: \.isReserve)
            return place.map { handles.remove(at: $0) }
        }
        guard var handles = idle else {
            throw .backendUnavailable(
                reason: "CUDA device \(ordinal): call lowrank_swift.warmup(\"cuda:\(ordinal)\") before a graph is captured")
        }
        if handles.isReserve { isReserveWanted.store(true, ordering: .relaxed) }
        try handles.move(toCapturedStream: stream, libraries)
        return handles
    }

    /// Sees to handles for a stream that is yet to be captured.
    func reserveHandles() throws(LowRankError) {
        isReserveWanted.store(false, ordering: .relaxed)
        if idleHandles.withLock({ $0.contains(where: \.isReserve) }) { return }
        var handles = try CUDAHandles(stream: nil, libraries)
        handles.isReserve = true
        giveBack(handles)
    }

    func giveBack(_ handles: CUDAHandles) { idleHandles.withLock { $0.append(handles) } }
}

/// Handles of cuBLAS and cuSOLVER on one stream, and what the products on it share. The workspace of cuBLAS and the counters
/// are the stream's own: the products of two streams may run at once.
struct CUDAHandles: @unchecked Sendable {
    private(set) var stream: UnsafeMutableRawPointer? = nil
    /// Kept for a stream to come.
    var isReserve = false
    /// A captured graph uses the workspace as long as it lives.
    private(set) var isInGraph = false
    private(set) var blas: UnsafeMutableRawPointer?
    private(set) var solver: UnsafeMutableRawPointer?
    private var workspace: lr_cuda_address = 0

    /// What NVIDIA recommends for Hopper.
    private static let workspaceBytes = 32 << 20

    /// How many counters there are.
    static let counterCount = 512

    /// 32-bit zeros for a kernel's blocks, which leave zeros behind.
    var counters: lr_cuda_address { workspace + lr_cuda_address(Self.workspaceBytes) }

    init(stream: UnsafeMutableRawPointer?, _ libraries: CUDALibraries) throws(LowRankError) {
        let (driver, blasLibrary, solverLibrary) = (libraries.driver, libraries.blas, libraries.solver)
        let zeros = [UInt32](repeating: 0, count: Self.counterCount)
        let bytes = Self.workspaceBytes + 4 * zeros.count
        try driver.check(driver.cuMemAlloc_v2(&workspace, bytes), "cuMemAlloc", bytes: bytes)
        do throws(LowRankError) {
            try driver.check(driver.cuMemcpyHtoDAsync_v2(counters, zeros, 4 * zeros.count, stream), "cuMemcpyHtoDAsync")
            try driver.check(driver.cuStreamSynchronize(stream), "cuStreamSynchronize")
            try blasLibrary.check(blasLibrary.cublasCreate_v2(&blas), "cublasCreate")
            try blasLibrary.check(blasLibrary.cublasSetMathMode(blas, Int32(LR_CUBLAS_DEFAULT_MATH)), "cublasSetMathMode")
            try solverLibrary.check(solverLibrary.cusolverDnCreate(&solver), "cusolverDnCreate")
            try setStream(stream, libraries)
        } catch {
            destroy(libraries)
            throw error
        }
    }

    private mutating func setStream(_ stream: UnsafeMutableRawPointer?, _ libraries: CUDALibraries) throws(LowRankError) {
        let (blasLibrary, solverLibrary) = (libraries.blas, libraries.solver)
        self.stream = stream
        try blasLibrary.check(blasLibrary.cublasSetStream_v2(blas, stream), "cublasSetStream")
        // After the stream, which takes the workspace back.
        try blasLibrary.check(blasLibrary.cublasSetWorkspace_v2(blas, workspace, Self.workspaceBytes), "cublasSetWorkspace")
        try solverLibrary.check(solverLibrary.cusolverDnSetStream(solver, stream), "cusolverDnSetStream")
    }

    /// Leaves them to graphs captured on a stream, for good.
    mutating func move(toCapturedStream stream: UnsafeMutableRawPointer?, _ libraries: CUDALibraries) throws(LowRankError) {
        if !isReserve && isInGraph { return }
        if isReserve { try setStream(stream, libraries) }
        (isReserve, isInGraph) = (false, true)
    }

    /// Waits for the device and gives back what was made.
    func destroy(_ libraries: CUDALibraries) {
        if let blas { _ = libraries.blas.cublasDestroy_v2(blas) }
        if let solver { _ = libraries.solver.cusolverDnDestroy(solver) }
        _ = libraries.driver.cuMemFree_v2(workspace)
    }
}

extension CUDADriver {
    /// Runs the body with a context current on this thread.
    func withCurrent<Value>(
        _ context: UnsafeMutableRawPointer, _ body: () throws(LowRankError) -> Value
    ) throws(LowRankError) -> Value {
        var current: UnsafeMutableRawPointer?
        try check(cuCtxGetCurrent(&current), "cuCtxGetCurrent")
        if current == context { return try body() }
        try check(cuCtxPushCurrent_v2(context), "cuCtxPushCurrent")
        defer { _ = cuCtxPopCurrent_v2(&current) }
        return try body()
    }

    func isCapturing(_ stream: UnsafeMutableRawPointer?) throws(LowRankError) -> Bool {
        var status: Int32 = 0
        try check(cuStreamIsCapturing(stream, &status), "cuStreamIsCapturing")
        return status != 0
    }
}
