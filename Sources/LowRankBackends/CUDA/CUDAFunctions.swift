// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import CCUDA
import LowRankCore

// The functions of the four libraries, under their own names.

/// libcuda.
struct CUDADriver: Sendable {
    let cuInit: pfn_cuInit
    let cuDriverGetVersion: pfn_cuDriverGetVersion
    let cuDeviceGet: pfn_cuDeviceGet
    let cuDeviceGetCount: pfn_cuDeviceGetCount
    let cuDeviceGetAttribute: pfn_cuDeviceGetAttribute
    let cuDevicePrimaryCtxRetain: pfn_cuDevicePrimaryCtxRetain
    let cuCtxGetCurrent: pfn_cuCtxGetCurrent
    let cuCtxPushCurrent_v2: pfn_cuCtxPushCurrent_v2
    let cuCtxPopCurrent_v2: pfn_cuCtxPopCurrent_v2
    let cuMemAllocAsync: pfn_cuMemAllocAsync
    let cuMemFreeAsync: pfn_cuMemFreeAsync
    let cuMemAlloc_v2: pfn_cuMemAlloc_v2
    let cuMemFree_v2: pfn_cuMemFree_v2
    let cuMemcpyDtoHAsync_v2: pfn_cuMemcpyDtoHAsync_v2
    let cuMemcpyHtoDAsync_v2: pfn_cuMemcpyHtoDAsync_v2
    let cuStreamSynchronize: pfn_cuStreamSynchronize
    let cuStreamIsCapturing: pfn_cuStreamIsCapturing
    let cuModuleLoadData: pfn_cuModuleLoadData
    let cuModuleGetFunction: pfn_cuModuleGetFunction
    let cuLaunchKernel: pfn_cuLaunchKernel
    let cuGetErrorString: pfn_cuGetErrorString

    init(_ library: SharedLibrary) throws(LowRankError) {
        cuInit = try library.function("cuInit")
        cuDriverGetVersion = try library.function("cuDriverGetVersion")
        cuDeviceGet = try library.function("cuDeviceGet")
        cuDeviceGetCount = try library.function("cuDeviceGetCount")
        cuDeviceGetAttribute = try library.function("cuDeviceGetAttribute")
        cuDevicePrimaryCtxRetain = try library.function("cuDevicePrimaryCtxRetain")
        cuCtxGetCurrent = try library.function("cuCtxGetCurrent")
        cuCtxPushCurrent_v2 = try library.function("cuCtxPushCurrent_v2")
        cuCtxPopCurrent_v2 = try library.function("cuCtxPopCurrent_v2")
        cuMemAllocAsync = try library.function("cuMemAllocAsync")
        cuMemFreeAsync = try library.function("cuMemFreeAsync")
        cuMemAlloc_v2 = try library.function("cuMemAlloc_v2")
        cuMemFree_v2 = try library.function("cuMemFree_v2")
        cuMemcpyDtoHAsync_v2 = try library.function("cuMemcpyDtoHAsync_v2")
        cuMemcpyHtoDAsync_v2 = try library.function("cuMemcpyHtoDAsync_v2")
        cuStreamSynchronize = try library.function("cuStreamSynchronize")
        cuStreamIsCapturing = try library.function("cuStreamIsCapturing")
        cuModuleLoadData = try library.function("cuModuleLoadData")
        cuModuleGetFunction = try library.function("cuModuleGetFunction")
        cuLaunchKernel = try library.function("cuLaunchKernel")
        cuGetErrorString = try library.function("cuGetErrorString")
    }

    /// Throws what a call returned unless it is success.
    ///
    /// - Parameter bytes: What the call was to allocate.
    func check(_ result: Int32, _ call: String, bytes: Int = 0) throws(LowRankError) {
        if result == LR_CUDA_SUCCESS { return }
        var text: UnsafePointer<CChar>?
        _ = cuGetErrorString(result, &text)
        let message = "CUDA: \(call) failed with error \(result)" + (text.map { ", \(String(cString: $0))" } ?? "")
        switch Int(result) {
        case LR_CUDA_ERROR_OUT_OF_MEMORY: throw .outOfMemory(bytes: bytes)
        case LR_CUDA_ERROR_NO_DEVICE, LR_CUDA_ERROR_NO_BINARY_FOR_GPU, LR_CUDA_ERROR_UNSUPPORTED_PTX_VERSION:
            throw .backendUnavailable(reason: message)
        default: throw .internal(message)
        }
    }
}

/// libcublas.
struct CUDABLAS: Sendable {
    let cublasCreate_v2: pfn_cublasCreate_v2
    let cublasDestroy_v2: pfn_cublasDestroy_v2
    let cublasSetStream_v2: pfn_cublasSetStream_v2
    let cublasSetWorkspace_v2: pfn_cublasSetWorkspace_v2
    let cublasSetMathMode: pfn_cublasSetMathMode
    let cublasGemmEx: pfn_cublasGemmEx
    let cublasStrsm_v2: pfn_cublasStrsm_v2
    let cublasDtrsm_v2: pfn_cublasDtrsm_v2
    let cublasGetStatusString: pfn_cublasGetStatusString

    init(_ library: SharedLibrary) throws(LowRankError) {
        cublasCreate_v2 = try library.function("cublasCreate_v2")
        cublasDestroy_v2 = try library.function("cublasDestroy_v2")
        cublasSetStream_v2 = try library.function("cublasSetStream_v2")
        cublasSetWorkspace_v2 = try library.function("cublasSetWorkspace_v2")
        cublasSetMathMode = try library.function("cublasSetMathMode")
        cublasGemmEx = try library.function("cublasGemmEx")
        cublasStrsm_v2 = try library.function("cublasStrsm_v2")
        cublasDtrsm_v2 = try library.function("cublasDtrsm_v2")
        cublasGetStatusString = try library.function("cublasGetStatusString")
    }

    /// Throws what a call returned unless it is success.
    func check(_ status: Int32, _ call: String) throws(LowRankError) {
        if status == 0 { return }
        let text = cublasGetStatusString(status).map { ", \(String(cString: $0))" } ?? ""
        throw .internal("cuBLAS: \(call) failed with status \(status)\(text)")
    }
}

/// libcusolver.
struct CUDASolver: Sendable {
    let cusolverDnCreate: pfn_cusolverDnCreate
    let cusolverDnDestroy: pfn_cusolverDnDestroy
    let cusolverDnSetStream: pfn_cusolverDnSetStream
    let cusolverDnSgeqrf_bufferSize: pfn_cusolverDnSgeqrf_bufferSize
    let cusolverDnDgeqrf_bufferSize: pfn_cusolverDnDgeqrf_bufferSize
    let cusolverDnSgeqrf: pfn_cusolverDnSgeqrf
    let cusolverDnDgeqrf: pfn_cusolverDnDgeqrf
    let cusolverDnSorgqr_bufferSize: pfn_cusolverDnSorgqr_bufferSize
    let cusolverDnDorgqr_bufferSize: pfn_cusolverDnDorgqr_bufferSize
    let cusolverDnSorgqr: pfn_cusolverDnSorgqr
    let cusolverDnDorgqr: pfn_cusolverDnDorgqr

    init(_ library: SharedLibrary) throws(LowRankError) {
        cusolverDnCreate = try library.function("cusolverDnCreate")
        cusolverDnDestroy = try library.function("cusolverDnDestroy")
        cusolverDnSetStream = try library.function("cusolverDnSetStream")
        cusolverDnSgeqrf_bufferSize = try library.function("cusolverDnSgeqrf_bufferSize")
        cusolverDnDgeqrf_bufferSize = try library.function("cusolverDnDgeqrf_bufferSize")
        cusolverDnSgeqrf = try library.function("cusolverDnSgeqrf")
        cusolverDnDgeqrf = try library.function("cusolverDnDgeqrf")
        cusolverDnSorgqr_bufferSize = try library.function("cusolverDnSorgqr_bufferSize")
        cusolverDnDorgqr_bufferSize = try library.function("cusolverDnDorgqr_bufferSize")
        cusolverDnSorgqr = try library.function("cusolverDnSorgqr")
        cusolverDnDorgqr = try library.function("cusolverDnDorgqr")
    }

    /// Throws what a call returned unless it is success.
    func check(_ status: Int32, _ call: String) throws(LowRankError) {
        if status != 0 { throw .internal("cuSOLVER: \(call) failed with status \(status)") }
    }
}

/// libnvrtc.
struct CUDACompiler: Sendable {
    let nvrtcVersion: pfn_nvrtcVersion
    let nvrtcCreateProgram: pfn_nvrtcCreateProgram
    let nvrtcCompileProgram: pfn_nvrtcCompileProgram
    let nvrtcGetProgramLogSize: pfn_nvrtcGetProgramLogSize
    let nvrtcGetProgramLog: pfn_nvrtcGetProgramLog
    let nvrtcGetCUBINSize: pfn_nvrtcGetCUBINSize
    let nvrtcGetCUBIN: pfn_nvrtcGetCUBIN
    let nvrtcGetPTXSize: pfn_nvrtcGetPTXSize
    let nvrtcGetPTX: pfn_nvrtcGetPTX
    let nvrtcDestroyProgram: pfn_nvrtcDestroyProgram
    let nvrtcGetErrorString: pfn_nvrtcGetErrorString

    init(_ library: SharedLibrary) throws(LowRankError) {
        nvrtcVersion = try library.function("nvrtcVersion")
        nvrtcCreateProgram = try library.function("nvrtcCreateProgram")
        nvrtcCompileProgram = try library.function("nvrtcCompileProgram")
        nvrtcGetProgramLogSize = try library.function("nvrtcGetProgramLogSize")
        nvrtcGetProgramLog = try library.function("nvrtcGetProgramLog")
        nvrtcGetCUBINSize = try library.function("nvrtcGetCUBINSize")
        nvrtcGetCUBIN = try library.function("nvrtcGetCUBIN")
        nvrtcGetPTXSize = try library.function("nvrtcGetPTXSize")
        nvrtcGetPTX = try library.function("nvrtcGetPTX")
        nvrtcDestroyProgram = try library.function("nvrtcDestroyProgram")
        nvrtcGetErrorString = try library.function("nvrtcGetErrorString")
    }

    /// Throws what a call returned unless it is success.
    func check(_ result: Int32, _ call: String) throws(LowRankError) {
        if result == LR_NVRTC_SUCCESS { return }
        let text = nvrtcGetErrorString(result).map { ", \(String(cString: $0))" } ?? ""
        throw .internal("NVRTC: \(call) failed with result \(result)\(text)")
    }
}
