// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import Glibc
import TestSupport
import Testing

private typealias Create = @convention(c) (UnsafeMutablePointer<UnsafeMutableRawPointer?>) -> Int32
private typealias Stream = UnsafeMutableRawPointer?

/// The double does what tests of the CUDA path rely on: it runs correct calls, and notices wrong ones.
@Suite struct CUDADoubleTests {
    private let stream: Stream = UnsafeMutableRawPointer(bitPattern: 0x51)
    private let other: Stream = UnsafeMutableRawPointer(bitPattern: 0x52)

    private func withContext(_ body: (CUDADouble) -> Void) {
        CUDADouble.withExclusiveAccess { double in
            var context: UnsafeMutableRawPointer?
            let retain = double.function(
                "cuDevicePrimaryCtxRetain",
                (@convention(c) (UnsafeMutablePointer<UnsafeMutableRawPointer?>, Int32) -> Int32).self)
            #expect(retain(&context, 0) == 0)
            #expect(
                double.function("cuCtxPushCurrent_v2", (@convention(c) (UnsafeMutableRawPointer?) -> Int32).self)(
                    context) == 0)
            body(double)
            #expect(
                double.function("cuCtxPopCurrent_v2", (@convention(c) (UnsafeMutableRawPointer?) -> Int32).self)(nil)
                    == 0)
        }
    }

    private func synchronize(_ double: CUDADouble, _ stream: Stream) {
        #expect(double.function("cuStreamSynchronize", (@convention(c) (Stream) -> Int32).self)(stream) == 0)
    }

    private func upload<Element>(_ double: CUDADouble, _ values: [Element]) -> UInt64 {
        let address = double.allocate(values.count * MemoryLayout<Element>.stride)
        values.withUnsafeBytes { double.write($0, to: address) }
        return address
    }

    private func download<Element>(_ double: CUDADouble, _ address: UInt64, _ zeros: [Element]) -> [Element] {
        var values = zeros
        values.withUnsafeMutableBytes { double.read($0, from: address) }
        return values
    }

    private func multiply(
        _ double: CUDADouble, _ handle: UnsafeMutableRawPointer?, _ a: UInt64, _ b: UInt64, _ c: UInt64, ldc: Int32 = 2,
        type: Int32 = 0
    ) -> Int32 {
        typealias GemmEx =
            @convention(c) (
                UnsafeMutableRawPointer?, Int32, Int32, Int32, Int32, Int32, UnsafeRawPointer, UInt64, Int32, Int32,
                UInt64,
                Int32, Int32, UnsafeRawPointer, UInt64, Int32, Int32, Int32, Int32
            ) -> Int32
        var (alpha, beta): (Float, Float) = (2, 0)
        // [1 3; 2 4] times the transpose of [1 1; 0 1].
        return double.function("cublasGemmEx", GemmEx.self)(
            handle, 0, 1, 2, 2, 2, &alpha, a, 0, 2, b, type, 2, &beta, c, 0, ldc, 68, -1)
    }

    @Test func productsRunWhenTheirStreamIsSynchronized() {
        withContext { double in
            var handle: UnsafeMutableRawPointer?
            #expect(double.function("cublasCreate_v2", Create.self)(&handle) == 0)
            let setStream = double.function(
                "cublasSetStream_v2", (@convention(c) (UnsafeMutableRawPointer?, Stream) -> Int32).self)
            let setWorkspace = double.function(
                "cublasSetWorkspace_v2", (@convention(c) (UnsafeMutableRawPointer?, UInt64, Int) -> Int32).self)
            #expect(setStream(handle, stream) == 0)
            let (a, b) = (upload(double, [1, 2, 3, 4] as [Float]), upload(double, [1, 0, 1, 1] as [Float]))
            let (c, workspace) = (double.allocate(16), double.allocate(256))
            #expect(multiply(double, handle, a, b, c) != 0)
            #expect(double.violations == "cublasGemmEx: no workspace since the stream was set\n")
            #expect(setWorkspace(handle, workspace, 256) == 0)
            #expect(multiply(double, handle, a, b, c) == 0)
            synchronize(double, other)
            #expect(download(double, c, [Float](repeating: 0, count: 4)).allSatisfy { $0.isNaN }, "it ran too early")
            synchronize(double, stream)
            #expect(download(double, c, [Float](repeating: 0, count: 4)) == [8, 12, 6, 8])

            #expect(double.violations == "")
            #expect(multiply(double, handle, a, b, c, ldc: 1) != 0)
            #expect(double.violations == "cublasGemmEx: C [2, 2] has leading dimension 1\n")
            #expect(multiply(double, handle, a, b, c, ldc: 3) != 0)
            #expect(double.violations == "cublasGemmEx: C ends 4 bytes after its block\n")
            #expect(multiply(double, handle, a, b, c, type: 14) == 15)
            #expect(double.violations == "cublasGemmEx: types 0, 14, 0, compute type 68\n")
            #expect(multiply(double, handle, a, b, a) != 0)
            #expect(double.violations == "cublasGemmEx: C overlaps an operand\n")
            for address in [a, b, c, workspace] { double.release(address) }
            #expect(
                double.function("cublasDestroy_v2", (@convention(c) (UnsafeMutableRawPointer?) -> Int32).self)(handle)
                    == 0)
        }
    }

    /// Every thread takes its right neighbour's number, and the first adds them up; `STRIDE` and `SYNC` break it.
    private static let source = """
        #ifndef STRIDE
        #define STRIDE 32
        #endif
        struct lr_sum_arguments { const float *values; float *sums; int count; };
        LR_KERNEL(lr_sum) {
          __shared__ float shared[64], rotated[64];
          int i = blockIdx.x * STRIDE + threadIdx.x;
          shared[threadIdx.x] = i < arguments.count ? arguments.values[i] : 0;
          SYNC;
          rotated[threadIdx.x] = shared[(threadIdx.x + 1) % blockDim.x];
          SYNC;
          if (threadIdx.x != 0) return;
          float sum = 0;
          for (int k = 0; k < 64; k++) sum += rotated[k];
          arguments.sums[blockIdx.x] = sum;
        }
        """

    /// Compiles the source, runs it for 200 numbers in 4 blocks of 64 threads, and returns the sums.
    private func sums(_ double: CUDADouble, options: [String]) -> [Float] {
        typealias Handle = UnsafeMutableRawPointer?
        var (program, module, kernel): (Handle, Handle, Handle) = (nil, nil, nil)
        let text = Self.source
        let created = double.function(
            "nvrtcCreateProgram",
            (@convention(c) (
                UnsafeMutablePointer<Handle>, UnsafePointer<CChar>, UnsafePointer<CChar>?, Int32, Handle, Handle
            )
                -> Int32).self)(&program, text, nil, 0, nil, nil)
        #expect(created == 0)
        let strings = (["--gpu-architecture=sm_90"] + options).map { UnsafePointer(strdup($0)!) }
        defer { for string in strings { free(UnsafeMutablePointer(mutating: string)) } }
        let compile = double.function(
            "nvrtcCompileProgram", (@convention(c) (Handle, Int32, UnsafePointer<UnsafePointer<CChar>>) -> Int32).self)
        #expect(compile(program, Int32(strings.count), strings) == 0)
        var bytes = 0
        typealias Size = @convention(c) (Handle, UnsafeMutablePointer<Int>) -> Int32
        #expect(double.function("nvrtcGetCUBINSize", Size.self)(program, &bytes) == 0)
        var image = [CChar](repeating: 0, count: bytes)
        #expect(
            double.function("nvrtcGetCUBIN", (@convention(c) (Handle, UnsafeMutablePointer<CChar>) -> Int32).self)(
                program, &image) == 0)
        _ = double.function("nvrtcDestroyProgram", Create.self)(&program)
        let load = double.function(
            "cuModuleLoadData", (@convention(c) (UnsafeMutablePointer<Handle>, UnsafeRawPointer) -> Int32).self)
        #expect(load(&module, image) == 0)
        let find = double.function(
            "cuModuleGetFunction",
            (@convention(c) (UnsafeMutablePointer<Handle>, Handle, UnsafePointer<CChar>) -> Int32).self)
        #expect(find(&kernel, module, "lr_product") == 500)
        #expect(find(&kernel, module, "lr_sum") == 0)

        let (values, sums) = (upload(double, (1...200).map { Float($0) }), double.allocate(16))
        var argument: (UInt64, UInt64, Int32) = (values, sums, 200)
        typealias Launch =
            @convention(c) (
                Handle, UInt32, UInt32, UInt32, UInt32, UInt32, UInt32, UInt32, Stream, UnsafeMutablePointer<Handle>,
                Handle
            ) -> Int32
        withUnsafeMutablePointer(to: &argument) { argument in
            var arguments: [Handle] = [Handle(argument)]
            let launch = double.function("cuLaunchKernel", Launch.self)
            #expect(launch(kernel, 4, 1, 1, 64, 1, 1, 0, stream, &arguments, nil) == 0)
        }
        argument.2 = 0  // the launch has copied it
        synchronize(double, stream)
        defer { for address in [values, sums] { double.release(address) } }
        return download(double, sums, [Float](repeating: 0, count: 4))
    }

    @Test func kernelsRunInBlocksOfThreads() {
        // 1 + ... + 64, and so on; the last block has the numbers from 193 to 200.
        let expected: [Float] = [2080, 6176, 10272, 1572]
        withContext { double in
            #expect(sums(double, options: ["-DSYNC=__syncthreads()", "-DSTRIDE=64"]) == expected)
            #expect(sums(double, options: ["-DSYNC=__syncthreads()"]) != expected, "a wrong stride")
            #expect(sums(double, options: ["-DSYNC", "-DSTRIDE=64"]) != expected, "no barriers")
        }
    }

    @Test func wrongCallsOfTheDriver() {
        CUDADouble.withExclusiveAccess { double in
            let allocate = double.function(
                "cuMemAllocAsync", (@convention(c) (UnsafeMutablePointer<UInt64>, Int, Stream) -> Int32).self)
            var address: UInt64 = 0
            #expect(allocate(&address, 8, stream) != 0)
            #expect(double.violations == "cuMemAllocAsync: no context is current on this thread\n")
        }
        withContext { double in
            let allocate = double.function(
                "cuMemAllocAsync", (@convention(c) (UnsafeMutablePointer<UInt64>, Int, Stream) -> Int32).self)
            let free = double.function("cuMemFreeAsync", (@convention(c) (UInt64, Stream) -> Int32).self)
            let copy = double.function(
                "cuMemcpyHtoDAsync_v2", (@convention(c) (UInt64, UnsafeRawPointer, Int, Stream) -> Int32).self)
            let numbers = [UInt64](repeating: 0, count: 2)
            var address: UInt64 = 0
            double.fail("cuMemAllocAsync", after: 1, status: 2)
            let (before, blocks) = (double.calls("cuMemAllocAsync"), double.liveBlocks)
            #expect(allocate(&address, 8, stream) == 0)
            #expect(allocate(&address, 8, stream) == 2, "asked to fail")
            #expect(double.calls("cuMemAllocAsync") == before + 2)
            #expect(double.liveBlocks == blocks + 1)
            #expect(copy(address, numbers, 9, stream) != 0)
            #expect(double.violations == "cuMemcpyHtoDAsync_v2: target ends 1 bytes after its block\n")
            #expect(free(address, stream) == 0)
            #expect(copy(address, numbers, 8, stream) != 0)
            #expect(double.violations == "cuMemcpyHtoDAsync_v2: target is in no live block of device memory\n")
            #expect(double.pending == 1)
            synchronize(double, stream)
            let foreign = double.allocate(4, device: 1)
            #expect(copy(foreign, numbers, 4, stream) != 0)
            #expect(double.violations == "cuMemcpyHtoDAsync_v2: target is on device 1, not 0\n")
            double.release(foreign)
            double.whileCapturing {
                let synchronize = double.function("cuStreamSynchronize", (@convention(c) (Stream) -> Int32).self)
                #expect(synchronize(stream) != 0)
                #expect(double.violations == "cuStreamSynchronize: not allowed while a stream is captured\n")
            }
        }
    }

    /// Neither the host nor a kernel touches memory that is not theirs.
    @Test func forbiddenMemory() async {
        await #expect(processExitsWith: .failure) {
            CUDADouble.withExclusiveAccess { double in
                let address = double.allocate(64)
                print(UnsafePointer<UInt8>(bitPattern: UInt(address))!.pointee)
            }
        }
    }
}
