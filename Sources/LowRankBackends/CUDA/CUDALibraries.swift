// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import CCUDA
import Glibc
import LowRankCore
import Synchronization

/// The CUDA driver, cuBLAS, cuSOLVER and NVRTC, opened at run time: nothing of them is needed to build or to import this
/// library, and none is opened before the first tensor on a CUDA device.
struct CUDALibraries: Sendable {
    let driver: CUDADriver
    let blas: CUDABLAS
    let solver: CUDASolver
    let compiler: CUDACompiler
    /// Where the four were found.
    let paths: [String]
    /// The process that has opened them.
    private let process = getpid()

    /// The libraries, opened once; a failure is remembered too.
    static func shared() throws(LowRankError) -> CUDALibraries {
        let libraries = try opened.get()
        if libraries.process == getpid() { return libraries }
        throw .backendUnavailable(
            reason: "CUDA can't be used in a process forked after its first use; start processes by \"spawn\"")
    }

    private static let opened: Result<CUDALibraries, LowRankError> = {
        defer { isAttempted.store(true, ordering: .releasing) }
        do throws(LowRankError) { return .success(try CUDALibraries()) } catch { return .failure(error) }
    }()

    private static let isAttempted = Atomic<Bool>(false)

    /// What came of opening them, nil as long as nobody has needed them; opens nothing.
    static var outcome: Result<CUDALibraries, LowRankError>? {
        isAttempted.load(ordering: .acquiring) ? opened : nil
    }

    private init() throws(LowRankError) {
        let finder = CUDALibraryFinder()
        let driverLibrary = try finder.open("libcuda.so.1", purpose: "the CUDA driver")
        driver = try CUDADriver(driverLibrary)
        try driver.check(driver.cuInit(0), "cuInit")
        var version: Int32 = 0
        try driver.check(driver.cuDriverGetVersion(&version), "cuDriverGetVersion")
        let set = try finder.openSet(driverVersion: version)
        (blas, solver, compiler) = (try CUDABLAS(set.blas), try CUDASolver(set.solver), try CUDACompiler(set.compiler))
        try finder.openBuiltins(of: compiler, in: set.compiler)
        paths = [driverLibrary, set.blas, set.solver, set.compiler].map(\.path)
    }
}

/// A shared library that stays open.
struct SharedLibrary: @unchecked Sendable {
    fileprivate let handle: UnsafeMutableRawPointer
    /// The file, as far as the loader tells.
    let path: String

    fileprivate init(handle: UnsafeMutableRawPointer, name: String, symbol: String) {
        self.handle = handle
        path = dlsym(handle, symbol).flatMap { pathOfLibrary($0) } ?? name
    }

    var folder: String { folderOf(path) }

    /// An exported function.
    func function<Function>(_ name: String, as type: Function.Type = Function.self) throws(LowRankError) -> Function {
        guard let address = dlsym(handle, name) else {
            throw .backendUnavailable(reason: "CUDA: \(path) has no function \(name); a newer version is needed")
        }
        return unsafeBitCast(address, to: type)
    }
}

private func folderOf(_ path: String) -> String {
    path.lastIndex(of: "/").map { String(path[..<$0]) } ?? "."
}

/// The file that the code or data at an address was loaded from.
private func pathOfLibrary(_ address: UnsafeRawPointer) -> String? {
    cuda_library_path(address).map { String(cString: $0) }
}

/// Where CUDA's libraries may be: folders that the user names, the process, folders beside what is loaded and beside this
/// library (where pip puts NVIDIA's packages), the system.
private struct CUDALibraryFinder {
    /// Libraries of one CUDA version belong together.
    private struct Names {
        let major: Int32
        let blas: String
        let solver: String
        let compiler: String

        // cuSOLVER counts otherwise.
        static let all = [
            Names(major: 13, blas: "libcublas.so.13", solver: "libcusolver.so.12", compiler: "libnvrtc.so.13"),
            Names(major: 12, blas: "libcublas.so.12", solver: "libcusolver.so.11", compiler: "libnvrtc.so.12"),
        ]

        var list: [String] { [blas, solver, compiler] }
    }

    /// A function that each library exports, by which its file is found.
    private static let symbols = [
        "libcuda": "cuInit", "libcublas": "cublasCreate_v2", "libcusolver": "cusolverDnCreate", "libnvrtc": "nvrtcVersion",
    ]

    private let named = (environmentVariable("LOWRANK_CUDA_LIBRARIES") ?? "").split(separator: ":").map(String.init)
    private let beside = Self.foldersBeside()

    /// Opens one library, or throws what the loader said where it searched last.
    func open(_ name: String, purpose: String) throws(LowRankError) -> SharedLibrary {
        let symbol = Self.symbols[String(name.prefix { $0 != "." })] ?? ""
        for folder in named {
            if let library = Self.open("\(folder)/\(name)", RTLD_NOW, symbol) { return library }
        }
        if let library = Self.open(name, RTLD_NOW | RTLD_NOLOAD, symbol) { return library }
        for folder in beside {
            if let library = Self.open("\(folder)/\(name)", RTLD_NOW, symbol) { return library }
        }
        if let library = Self.open(name, RTLD_NOW, symbol) { return library }
        let reason = dlerror().map { String(cString: $0) } ?? "it could not be opened"
        throw .backendUnavailable(reason: "CUDA tensors need \(purpose), which could not be loaded: \(reason)")
    }

    /// cuBLAS, cuSOLVER and NVRTC of one CUDA version: that of a library in the process or in a named folder, else the
    /// newest that the driver runs.
    func openSet(
        driverVersion: Int32
    ) throws(LowRankError) -> (blas: SharedLibrary, solver: SharedLibrary, compiler: SharedLibrary) {
        let served = Names.all.filter { $0.major <= driverVersion / 1000 }
        var problem = LowRankError.backendUnavailable(
            reason: "CUDA tensors need a driver of CUDA 12 or newer, and this one is of "
                + "\(driverVersion / 1000).\(driverVersion % 1000 / 10)")
        // The last problem is that of the version that was most likely meant.
        for names in served.filter({ !isPreferred($0) }).reversed() + served.filter(isPreferred).reversed() {
            do {
                let purpose = "libraries of CUDA \(names.major) (cuBLAS, cuSOLVER and NVRTC)"
                return (
                    try open(names.blas, purpose: purpose), try open(names.solver, purpose: purpose),
                    try open(names.compiler, purpose: purpose)
                )
            } catch { problem = error }
        }
        throw problem
    }

    private func isPreferred(_ names: Names) -> Bool {
        names.list.contains { name in
            named.contains { access("\($0)/\(name)", F_OK) == 0 } || dlopen(name, RTLD_NOW | RTLD_NOLOAD) != nil
        }
    }

    /// NVRTC opens this one by its bare name when it compiles, which fails where it is not on the loader's path.
    func openBuiltins(of compiler: CUDACompiler, in library: SharedLibrary) throws(LowRankError) {
        var (major, minor): (Int32, Int32) = (0, 0)
        try compiler.check(compiler.nvrtcVersion(&major, &minor), "nvrtcVersion")
        // Where it is missing, the compiler says so itself.
        _ = dlopen("\(library.folder)/libnvrtc-builtins.so.\(major).\(minor)", RTLD_NOW | RTLD_GLOBAL)
    }

    private static func open(_ path: String, _ mode: Int32, _ symbol: String) -> SharedLibrary? {
        dlopen(path, mode).map { SharedLibrary(handle: $0, name: path, symbol: symbol) }
    }

    private static func foldersBeside() -> [String] {
        var folders: [String] = []
        for name in Names.all.flatMap(\.list) {
            guard let library = open(name, RTLD_NOW | RTLD_NOLOAD, symbols[String(name.prefix { $0 != "." })] ?? "") else {
                continue
            }
            folders.append(library.folder)
            // site-packages/nvidia/<package>/lib
            folders += matches("\(library.folder)/../../*/lib")
        }
        if let own = pathOfLibrary(#dsohandle) {
            folders += matches("\(folderOf(own))/../nvidia/*/lib")
        }
        return folders
    }

    /// The paths that match a pattern of the shell, the last in order first: cu13 before cublas.
    private static func matches(_ pattern: String) -> [String] {
        var result = glob_t()
        defer { globfree(&result) }
        guard glob(pattern, GLOB_NOSORT, nil, &result) == 0 else { return [] }
        return (0..<Int(result.gl_pathc)).compactMap { index in
            result.gl_pathv[index].map { String(cString: $0) }
        }.sorted()
    }
}
