// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import CCUDA
import LowRankCore

/// One call on a device: its work goes to one stream, in order. The host waits only where it reads a result.
final class CUDASession: @unchecked Sendable {
    let device: CUDADevice
    let stream: UnsafeMutableRawPointer?
    private let allocator = cuda_thread_allocator()
    private var handles: CUDAHandles?
    /// Where memory is taken from while there is some left.
    private var workspace: CUDAWorkspace?
    /// Whether nothing is enqueued, and memory only counted.
    let isPlanning: Bool
    /// What went wrong in a method that does not throw: the next one that does throws it.
    private var failure: LowRankError?

    init(on device: CUDADevice, stream: UnsafeMutableRawPointer?, isPlanning: Bool = false) {
        self.device = device
        self.stream = stream
        self.isPlanning = isPlanning
        workspace = isPlanning ? .imaginary : nil
    }

    deinit {
        if let handles { device.giveBack(handles) }
    }

    var driver: CUDADriver { device.libraries.driver }

    // MARK: Failures

    /// Throws what an earlier method kept.
    func requireNoFailure() throws(LowRankError) {
        if let failure { throw failure }
    }

    /// Runs what a method that can't throw does; after a failure nothing more, and the result is `fallback`.
    func attempt<Value>(orElse fallback: Value, _ body: () throws(LowRankError) -> Value) -> Value {
        if failure != nil { return fallback }
        do throws(LowRankError) { return try body() } catch {
            failure = error
            return fallback
        }
    }

    // MARK: Memory

    /// Memory on the device, and where it goes back to.
    struct Block {
        let memory: UnsafeMutableRawPointer
        fileprivate let source: Source

        fileprivate enum Source {
            case workspace, driver
            /// What the allocator knows it by.
            case allocator(UnsafeMutableRawPointer?)
        }
    }

    /// Bytes of intermediate memory that were in use at once while this was a plan.
    var plannedBytes: Int { workspace?.needed ?? 0 }

    /// Runs the body with one block of memory for all that it takes.
    func withWorkspace(bytes: Int, _ body: () throws(LowRankError) -> Void) throws(LowRankError) {
        if bytes == 0 { return try body() }
        try withMemory(bytes: bytes) { (memory) throws(LowRankError) in
            workspace = CUDAWorkspace(memory, bytes: bytes)
            defer { workspace = nil }
            try body()
        }
    }

    /// Memory that is free again, for work later on this stream, as soon as it is released.
    func allocate(bytes: Int) throws(LowRankError) -> Block {
        try requireNoFailure()
        let size = max(bytes, 16)
        if let memory = workspace?.take(bytes: size) { return Block(memory: memory, source: .workspace) }
        if let allocate = allocator.allocate {
            var (memory, owner): (UnsafeMutableRawPointer?, UnsafeMutableRawPointer?)
            let status = allocate(allocator.context, Int32(device.ordinal), UInt64(size), &memory, &owner)
            guard status == 0, let memory else { throw .outOfMemory(bytes: size) }
            return Block(memory: memory, source: .allocator(owner))
        }
        var address: lr_cuda_address = 0
        if device.hasMemoryPools {
            try driver.check(driver.cuMemAllocAsync(&address, size, stream), "cuMemAllocAsync", bytes: size)
        } else {
            try driver.check(driver.cuMemAlloc_v2(&address, size), "cuMemAlloc", bytes: size)
        }
        guard let memory = UnsafeMutableRawPointer(bitPattern: UInt(address)) else { throw .outOfMemory(bytes: size) }
        return Block(memory: memory, source: .driver)
    }

    func release(_ block: Block) {
        switch block.source {
        case .workspace: workspace?.giveBack(block.memory)
        case .allocator(let owner): allocator.release?(allocator.context, owner)
        case .driver where device.hasMemoryPools: _ = driver.cuMemFreeAsync(block.memory.cudaAddress, stream)
        case .driver: _ = driver.cuMemFree_v2(block.memory.cudaAddress)
        }
    }

    /// Memory for the time of `body`.
    func withMemory<Value>(
        bytes: Int, _ body: (UnsafeMutableRawPointer) throws(LowRankError) -> Value
    ) throws(LowRankError) -> Value {
        let block = try allocate(bytes: bytes)
        defer { release(block) }
        return try body(block.memory)
    }

    /// Copies to the host and waits for it.
    func read(_ source: UnsafeMutableRawPointer, to target: UnsafeMutableRawPointer, bytes: Int) throws(LowRankError) {
        try requireHostMayWait()
        try driver.check(driver.cuMemcpyDtoHAsync_v2(target, source.cudaAddress, bytes, stream), "cuMemcpyDtoHAsync")
        try driver.check(driver.cuStreamSynchronize(stream), "cuStreamSynchronize")
    }

    /// Copies from the host, whose memory may change afterwards.
    func write(_ source: UnsafeRawPointer, to target: UnsafeMutableRawPointer, bytes: Int) throws(LowRankError) {
        try requireHostMayWait()
        try driver.check(driver.cuMemcpyHtoDAsync_v2(target.cudaAddress, source, bytes, stream), "cuMemcpyHtoDAsync")
        try driver.check(driver.cuStreamSynchronize(stream), "cuStreamSynchronize")
    }

    private func requireHostMayWait() throws(LowRankError) {
        if isPlanning { throw .internal("CUDA: a call that only enqueues work waits for a result") }
        if try driver.isCapturing(stream) {
            throw .backendUnavailable(
                reason: "CUDA: this call reads results on the host, which can't be captured into a graph; only the forward "
                    + "and the backward of adapters can")
        }
    }

    // MARK: Work

    func launch<Arguments>(
        _ kernel: CUDAKernel, _ arguments: Arguments, blocks: (x: Int, y: Int, z: Int)
    ) throws(LowRankError) {
        try requireNoFailure()
        guard let x = UInt32(exactly: blocks.x), blocks.y <= 65535, blocks.z <= 65535 else {
            throw .invalidShape(argument: "weight", expected: "dimensions that a CUDA grid can cover", got: "\(blocks)")
        }
        if isPlanning { return }
        let function = device.kernels.function(of: kernel)
        let result = withUnsafePointer(to: arguments) { pointer in
            withUnsafeTemporaryAllocation(of: UnsafeMutableRawPointer?.self, capacity: 1) { parameters in
                parameters[0] = UnsafeMutableRawPointer(mutating: pointer)
                return driver.cuLaunchKernel(
                    function, x, UInt32(blocks.y), UInt32(blocks.z), UInt32(LR_THREADS), 1, 1, 0, stream,
                    parameters.baseAddress, nil)
            }
        }
        try driver.check(result, kernel.rawValue)
    }

    /// A kernel whose threads go through `count` elements in steps of all threads of a layer.
    func launch<Arguments>(
        _ kernel: CUDAKernel, _ arguments: Arguments, elements count: Int, layers: Int = 1
    ) throws(LowRankError) {
        let threads = Int(LR_THREADS)
        try launch(kernel, arguments, blocks: (min((count + threads - 1) / threads, 1 << 20), layers, 1))
    }

    /// cuBLAS and cuSOLVER on the stream.
    func libraryHandles() throws(LowRankError) -> CUDAHandles {
        try requireNoFailure()
        if let handles { return handles }
        let taken = try device.takeHandles(stream: stream)
        handles = taken
        return taken
    }
}

extension UnsafeMutableRawPointer {
    /// The address as CUDA's functions take it.
    var cudaAddress: lr_cuda_address { lr_cuda_address(UInt(bitPattern: self)) }
}
