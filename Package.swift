// swift-tools-version: 6.2
// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import PackageDescription

// The Python extension needs Python.h, so it is part of the package only when setup.py names its folder.
let pythonInclude = Context.environment["LOWRANK_PYTHON_INCLUDE"]

/// A folder of C declarations under CBridge.
func bridge(_ name: String, dependencies: [Target.Dependency] = []) -> Target {
    .target(name: name, dependencies: dependencies, path: "CBridge/\(name)")
}

// Kernels stay optimised, and as one module specialised, in debug builds: they hold raw pointers and SIMD only, and tests
// would crawl otherwise. One thread keeps an object for each file, which the index of a debug build expects.
let kernelFlags: [String] = ["-Ounchecked", "-whole-module-optimization", "-num-threads", "1", "-disable-batch-mode"]

/// The kernels for a wider instruction set, by clang's options for it.
func wideKernels(_ set: String, options: [String], defines: [String] = []) -> Target {
    .target(
        name: "SIMDKernels\(set)", dependencies: ["CPUFeatures"],
        swiftSettings: (["LOWRANK_\(set)"] + defines).map { .define($0) }
            + [.unsafeFlags(kernelFlags + options.flatMap { ["-Xcc", $0] })])
}

#if arch(x86_64)
// Gathering and scattering element by element is slower than scalar code on many of these processors.
let avx512 = [
    "-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mfma", "-mf16c", "-mno-gather", "-mno-scatter",
]
let wideKernels: [Target] = [
    wideKernels("AVX2", options: ["-mavx2", "-mfma", "-mf16c"]),
    wideKernels("AVX512", options: avx512),
    wideKernels(
        "AVX512BF16", options: avx512 + ["-mavx512bf16"], defines: ["LOWRANK_AVX512", "LOWRANK_BFLOAT16_PAIRS"]),
]
let baselineDefines: [SwiftSetting] = [.define("LOWRANK_BASELINE")]
#else
let wideKernels: [Target] = []
let baselineDefines: [SwiftSetting] = []
#endif

var products: [Product] = [
    .library(name: "LowRank", targets: ["LowRank"]),
    // liblowrank.so, for C.
    .library(name: "lowrank", type: .dynamic, targets: ["LowRankABI", "CLowRank"]),
    // For tests: what stands for the libraries of CUDA.
    .library(name: "CUDADouble", type: .dynamic, targets: ["CUDADouble"]),
]
var targets: [Target] = [
    bridge("CDLPack"),
    bridge("CLowRank", dependencies: ["CDLPack"]),
    bridge("CPUFeatures"),
    bridge("CCUDA"),
    .systemLibrary(
        name: "CLAPACK", path: "CBridge/CLAPACK", pkgConfig: "openblas", providers: [.apt(["libopenblas-dev"])]),

    .target(name: "SIMDKernels", dependencies: ["CPUFeatures"], swiftSettings: baselineDefines + [.unsafeFlags(kernelFlags)]),
    .target(name: "LowRankCore"),
    .target(
        name: "LowRankBackends",
        dependencies: ["LowRankCore", "SIMDKernels", "CLAPACK", "CPUFeatures", "CCUDA"]
            + wideKernels.map { .byName(name: $0.name) }),
    .target(name: "LowRankFactorizations", dependencies: ["LowRankBackends", "LowRankCore"]),
    .target(name: "LowRankAdapters", dependencies: ["LowRankFactorizations", "LowRankBackends", "LowRankCore"]),
    .target(name: "LowRank", dependencies: ["LowRankAdapters", "LowRankFactorizations", "LowRankBackends", "LowRankCore"]),
    // What LowRank re-exports is named too: an incremental build would not see a structure's memory change below it.
    .target(
        name: "LowRankABI",
        dependencies: [
            "LowRank", "LowRankAdapters", "LowRankFactorizations", "LowRankBackends", "LowRankCore", "CLowRank",
        ]),
] + wideKernels

if let pythonInclude {
    products.append(.library(name: "_native", type: .dynamic, targets: ["PythonExtension", "LowRankABI"]))
    targets.append(
        .target(
            name: "PythonExtension", dependencies: ["CLowRank"], path: "CBridge/PythonExtension",
            cSettings: [.unsafeFlags(["-I", pythonInclude])]))
}

/// Tests of one target; they see what it depends on as well.
func tests(_ name: String, _ dependencies: Target.Dependency...) -> Target {
    .testTarget(name: name, dependencies: dependencies + ["TestSupport"])
}

targets += [
    // Optimised in debug builds too: its oracles are naive loops.
    .target(
        name: "TestSupport", dependencies: ["PairKernels", "LowRankBackends", "LowRankCore"], path: "Tests/TestSupport",
        swiftSettings: [.unsafeFlags(["-O"])]),
    .target(
        name: "CUDADouble", dependencies: ["CLAPACK"], path: "Tests/CUDADouble", exclude: ["prelude.inc"],
        cxxSettings: [.unsafeFlags(["-O1", "-std=c++17"])]),
    // The kernels of AVX512BF16 with the instruction modelled in plain code, so that every processor tests them.
    .target(
        name: "PairKernels", dependencies: ["CPUFeatures"], path: "Tests/PairKernels",
        swiftSettings: baselineDefines + [.define("LOWRANK_BFLOAT16_PAIRS"), .unsafeFlags(kernelFlags)]),
    tests("CUDADoubleTests"),
    tests("LowRankCoreTests", "LowRankCore"),
    tests("SIMDKernelsTests", "LowRankBackends", "LowRankCore"),
    tests("LowRankBackendsTests", "LowRankBackends", "LowRankCore", "CLAPACK"),
    tests("LowRankFactorizationsTests", "LowRankFactorizations", "LowRankBackends", "LowRankCore"),
    tests("LowRankAdaptersTests", "LowRankAdapters", "LowRankFactorizations", "LowRankBackends", "LowRankCore"),
    tests("LowRankABITests", "LowRankABI", "LowRank", "LowRankCore", "CLowRank"),
    .executableTarget(name: "ABITests", dependencies: ["LowRankABI", "CLowRank"], path: "Tests/ABITests"),
]

let package = Package(name: "lowrank_swift", products: products, targets: targets)
