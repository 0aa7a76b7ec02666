// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import CLowRank
import LowRank

@c @implementation
public func lr_cuda_set_stream(_ device: Int32, _ stream: UnsafeMutableRawPointer?) -> lr_status_t {
    call { () throws(LowRankError) in try CUDABackend.setStream(stream, device: Int(device)) }
}

@c @implementation
public func lr_cuda_set_allocator(_ allocator: UnsafePointer<lr_cuda_allocator_t>?) -> lr_status_t {
    call { () throws(LowRankError) in
        guard let allocator = allocator?.pointee else { return CUDABackend.setAllocator(nil) }
        guard let allocate = allocator.allocate, let release = allocator.release else {
            throw .invalidArgument(argument: "allocator", expected: "two functions", got: "a null pointer")
        }
        CUDABackend.setAllocator((allocate, release, allocator.context))
    }
}

@c @implementation
public func lr_cuda_warmup(_ device: Int32) -> lr_status_t {
    call { () throws(LowRankError) in try CUDABackend.warmUp(device: Int(device)) }
}

@c @implementation
public func lr_cuda_synchronize(_ device: Int32) -> lr_status_t {
    call { () throws(LowRankError) in try CUDABackend.synchronize(device: Int(device)) }
}

@c @implementation
public func lr_cuda_allocate(
    _ device: Int32, _ bytes: UInt64, _ out_memory: UnsafeMutablePointer<UnsafeMutableRawPointer?>?
) -> lr_status_t {
    call { () throws(LowRankError) in
        guard let out_memory else {
            throw .invalidArgument(argument: "out_memory", expected: "memory", got: "a null pointer")
        }
        guard bytes <= 1 << 56 else { throw .outOfMemory(bytes: Int(clamping: bytes)) }
        out_memory.pointee = try CUDABackend.allocateZeros(bytes: Int(bytes), device: Int(device))
    }
}

@c @implementation
public func lr_cuda_free(_ device: Int32, _ memory: UnsafeMutableRawPointer?) -> lr_status_t {
    call { () throws(LowRankError) in
        if let memory { try CUDABackend.free(memory, device: Int(device)) }
    }
}

@c @implementation
public func lr_cuda_read(_ matrix: UnsafePointer<DLTensor>?, _ out: UnsafeMutableRawPointer?) -> lr_status_t {
    call { () throws(LowRankError) in
        let matrix = try Tensor(matrix, "matrix", dimensions: 1...2)
        guard case .cuda(let device) = matrix.device else {
            throw .unsupportedDevice(argument: "matrix", got: "the CPU, whose memory needs no copy")
        }
        guard let out else { throw .invalidArgument(argument: "out", expected: "memory", got: "a null pointer") }
        try CUDABackend.read(matrix.view, to: out, device: device)
    }
}
