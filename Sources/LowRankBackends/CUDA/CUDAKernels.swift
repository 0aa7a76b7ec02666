// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import CCUDA
import LowRankCore

/// The kernels of CBridge/CCUDA/kernels, by the names of their functions.
enum CUDAKernel: String, CaseIterable {
    case combine = "lr_combine"
    case moveRows = "lr_move_rows"
    case clear = "lr_clear"
    case fillUniform = "lr_fill_uniform"
    case setValues = "lr_set_values"
    case upperTriangle = "lr_upper_triangle"
    case unitLower = "lr_unit_lower"
    case panel = "lr_panel"
    case luColumn = "lr_lu_column"
    case placeRows = "lr_place_rows"
    case cholesky = "lr_cholesky"
    case householderSigns = "lr_householder_signs"
    case reduce = "lr_reduce"
    case reducePartials = "lr_reduce_partials"
    case findNonFinite = "lr_find_non_finite"
    case columnDots = "lr_column_dots"
    case columnSigns = "lr_column_signs"
    case sumChunks = "lr_sum_chunks"
    case multiplyFloat32 = "lr_multiply_float32"
    case multiplyFloat64 = "lr_multiply_float64"
    case multiplyTerms = "lr_multiply_terms"
    case shrink32 = "lr_shrink_32"
    case shrink64 = "lr_shrink_64"
    case shrinkFloat32To32 = "lr_shrink_float32_32"
    case shrinkFloat32To64 = "lr_shrink_float32_64"
    case expand32 = "lr_expand_32"
    case expand64 = "lr_expand_64"
    case expandFloat32 = "lr_expand_float32"
    case expandFloat64 = "lr_expand_float64"
    case sumSlices = "lr_sum_slices"
    case multiplyPair32 = "lr_multiply_pair_32"
    case multiplyPair64 = "lr_multiply_pair_64"
    case multiplyPairTerms = "lr_multiply_pair_terms"
    case multiplyPairFloat32 = "lr_multiply_pair_float32"
    case multiplyPairFloat64 = "lr_multiply_pair_float64"
    case splitTerms = "lr_split_terms"
}

/// The kernels compiled for one device and loaded into its context, which must be current. They stay loaded.
package struct CUDAKernels: @unchecked Sendable {
    private let functions: [CUDAKernel: UnsafeMutableRawPointer]

    init(architecture: Int32, _ libraries: CUDALibraries) throws(LowRankError) {
        let module = try Self.load(architecture: architecture, libraries)
        let driver = libraries.driver
        var functions: [CUDAKernel: UnsafeMutableRawPointer] = [:]
        for kernel in CUDAKernel.allCases {
            var function: UnsafeMutableRawPointer?
            try driver.check(driver.cuModuleGetFunction(&function, module, kernel.rawValue), "cuModuleGetFunction")
            functions[kernel] = function
        }
        self.functions = functions
    }

    func function(of kernel: CUDAKernel) -> UnsafeMutableRawPointer? { functions[kernel] }

    /// The module, from the cache where that has it. What the driver does not take, as code of another NVRTC of the same
    /// version might be, is compiled again.
    private static func load(
        architecture: Int32, _ libraries: CUDALibraries
    ) throws(LowRankError) -> UnsafeMutableRawPointer? {
        let (driver, compiler) = (libraries.driver, libraries.compiler)
        var (major, minor): (Int32, Int32) = (0, 0)
        try compiler.check(compiler.nvrtcVersion(&major, &minor), "nvrtcVersion")
        let key = cacheKey(
            source: String(cString: cuda_kernel_source), architecture: architecture, compiler: "\(major).\(minor)")
        var module: UnsafeMutableRawPointer?
        let cache = CUDAKernelCache.ofEnvironment()
        if let code = cache?.code(for: key), driver.cuModuleLoadData(&module, code) == LR_CUDA_SUCCESS { return module }
        let code = try compile(architecture: architecture, compiler)
        try driver.check(driver.cuModuleLoadData(&module, code), "cuModuleLoadData")
        cache?.store(code, for: key)
        return module
    }

    /// All that the code depends on.
    package static func cacheKey(source: String, architecture: Int32, compiler: String) -> String {
        "sm_\(architecture), NVRTC \(compiler), \(options.joined(separator: " "))\n\(source)"
    }

    /// Beside the architecture.
    private static let options = ["--std=c++17"]

    /// Machine code for `architecture`, as 90 for compute capability 9.0. A driver that is older than NVRTC refuses its PTX
    /// but not this; PTX is for devices that NVRTC does not know.
    private static func compile(
        architecture: Int32, _ compiler: CUDACompiler
    ) throws(LowRankError) -> [CChar] {
        if let image = try compile(option: "sm_\(architecture)", compiler, compiler.nvrtcGetCUBINSize, compiler.nvrtcGetCUBIN) {
            return image
        }
        let newestKnown = "compute_90"
        if let image = try compile(option: newestKnown, compiler, compiler.nvrtcGetPTXSize, compiler.nvrtcGetPTX) {
            return image
        }
        throw .backendUnavailable(reason: "CUDA: NVRTC compiles for neither sm_\(architecture) nor \(newestKnown)")
    }

    /// - Returns: nil where the compiler does not know the architecture.
    private static func compile(
        option: String, _ compiler: CUDACompiler, _ size: pfn_nvrtcGetPTXSize, _ image: pfn_nvrtcGetPTX
    ) throws(LowRankError) -> [CChar]? {
        var program: UnsafeMutableRawPointer?
        try compiler.check(
            compiler.nvrtcCreateProgram(&program, cuda_kernel_source, "lowrank.cu", 0, nil, nil), "nvrtcCreateProgram")
        defer { _ = compiler.nvrtcDestroyProgram(&program) }
        let result = withOptions(["--gpu-architecture=\(option)"] + options) { options in
            compiler.nvrtcCompileProgram(program, Int32(options.count), options.baseAddress)
        }
        if Int(result) == LR_NVRTC_ERROR_INVALID_OPTION { return nil }
        if Int(result) == LR_NVRTC_ERROR_COMPILATION { throw .internal("NVRTC: \(try log(of: program, compiler))") }
        try compiler.check(result, "nvrtcCompileProgram")
        var bytes = 0
        try compiler.check(size(program, &bytes), "nvrtcGetCUBINSize")
        var code = [CChar](repeating: 0, count: bytes)
        try compiler.check(image(program, &code), "nvrtcGetCUBIN")
        return code
    }

    private static func log(of program: UnsafeMutableRawPointer?, _ compiler: CUDACompiler) throws(LowRankError) -> String {
        var bytes = 0
        try compiler.check(compiler.nvrtcGetProgramLogSize(program, &bytes), "nvrtcGetProgramLogSize")
        var text = [CChar](repeating: 0, count: bytes + 1)
        try compiler.check(compiler.nvrtcGetProgramLog(program, &text), "nvrtcGetProgramLog")
        return text.withUnsafeBufferPointer { $0.baseAddress.map { String(cString: $0) } ?? "" }
    }

    private static func withOptions<Result>(
        _ options: [String], _ body: (UnsafeBufferPointer<UnsafePointer<CChar>?>) -> Result
    ) -> Result {
        func next(_ rest: ArraySlice<String>, _ pointers: [UnsafePointer<CChar>?]) -> Result {
            guard let first = rest.first else { return pointers.withUnsafeBufferPointer(body) }
            return first.withCString { next(rest.dropFirst(), pointers + [$0]) }
        }
        return next(options[...], [])
    }
}
