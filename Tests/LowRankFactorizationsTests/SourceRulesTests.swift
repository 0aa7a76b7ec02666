// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import TestSupport
import Testing

/// The architecture, as the sources show it: arrows between targets run one way, and algorithms know no memory.
@Suite struct SourceRulesTests {
    private static let sources = "\(SourceTree.root)/Sources"

    /// What each target may import.
    private static let allowedImports: [String: Set<String>] = [
        "LowRankABI": ["LowRank", "CLowRank", "Glibc"],
        "LowRank": ["LowRankAdapters", "LowRankFactorizations", "LowRankBackends", "LowRankCore"],
        "LowRankAdapters": ["LowRankFactorizations", "LowRankBackends", "LowRankCore", "Glibc"],
        "LowRankFactorizations": ["LowRankBackends", "LowRankCore"],
        "LowRankBackends": [
            "LowRankCore", "SIMDKernels", "SIMDKernelsAVX2", "SIMDKernelsAVX512", "SIMDKernelsAVX512BF16", "CLAPACK",
            "CCUDA", "CPUFeatures", "Glibc", "Synchronization",
        ],
        "LowRankCore": [],
        "SIMDKernels": ["CPUFeatures"],
        "SIMDKernelsAVX2": ["CPUFeatures"],
        "SIMDKernelsAVX512": ["CPUFeatures"],
        "SIMDKernelsAVX512BF16": ["CPUFeatures"],
    ]

    /// The module of an import line, whatever stands before the keyword.
    private func importedModule(_ line: String) -> String? {
        let words = line.split(separator: " ")
        guard let keyword = words.firstIndex(of: "import"), keyword + 1 < words.count,
            words[..<keyword].allSatisfy({
                $0.hasPrefix("@") || ["public", "package", "internal", "private"].contains($0)
            })
        else { return nil }
        return String(words[keyword + 1].split(separator: ".")[0])
    }

    @Test func importsRunDownwards() throws {
        let files = SourceTree.files(under: Self.sources, ending: ".swift")
        try #require(!files.isEmpty)
        for file in files {
            let target = String(file.dropFirst(Self.sources.count + 1).prefix { $0 != "/" })
            let allowed = try #require(Self.allowedImports[target], "\(target) is not in the table of targets")
            for line in SourceTree.lines(of: file) {
                guard let module = importedModule(line) else { continue }
                #expect(allowed.contains(module), "\(file): \(target) must not import \(module)")
            }
        }
    }

    @Test func importLinesAreRecognised() {
        #expect(importedModule("import LowRankCore") == "LowRankCore")
        #expect(importedModule("    import Glibc") == "Glibc")
        #expect(importedModule("@_exported import LowRankCore") == "LowRankCore")
        #expect(importedModule("internal import Glibc.C") == "Glibc")
        #expect(importedModule("// what import means") == nil)
    }

    @Test(arguments: [
        "Unsafe", "Pointer", ".address", "withUnsafe", "assumingMemoryBound", "CLAPACK", "cblas", "gemm", "geqrf",
        "orgqr",
        "getrf", "gesdd", "trsm", "malloc", "memcpy", "SIMDKernels", "CPUBackend",
    ])
    func factorisationsKnowNeitherMemoryNorBLAS(word: String) throws {
        let files = SourceTree.files(under: "\(Self.sources)/LowRankFactorizations", ending: ".swift")
        try #require(!files.isEmpty)
        for file in files {
            for (index, line) in SourceTree.lines(of: file).enumerated() {
                // Comments may name what the code must not.
                let code = line.split(separator: "//", maxSplits: 1, omittingEmptySubsequences: false)[0]
                #expect(!code.lowercased().contains(word.lowercased()), "\(file):\(index + 1): \(line)")
            }
        }
    }

    @Test(arguments: [
        "Sources/SIMDKernelsAVX2", "Sources/SIMDKernelsAVX512", "Sources/SIMDKernelsAVX512BF16", "Tests/PairKernels",
    ])
    func wideKernelsAreTheSameSources(target: String) throws {
        let folder = "\(Self.sources)/SIMDKernels"
        let files = SourceTree.files(under: folder, ending: ".swift").filter { !$0.contains("/Reference/") }
        try #require(!files.isEmpty)
        let wide = SourceTree.files(under: "\(SourceTree.root)/\(target)", ending: ".swift")
        #expect(wide.map { $0.split(separator: "/").last } == files.map { $0.split(separator: "/").last })
        for (file, copy) in zip(files, wide) {
            #expect(SourceTree.lines(of: file) == SourceTree.lines(of: copy), "\(copy) is not \(file)")
        }
    }
}
