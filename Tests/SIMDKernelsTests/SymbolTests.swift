// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankBackends
import TestSupport
import Testing

/// The linker keeps one copy of equal weak symbols for the whole program. A copy from an object for a wider instruction
/// set would then run on processors that lack it, so such an object must hold no weak code but its own.
@Suite struct SymbolTests {
    private static let hasNM = SourceTree.output(of: "nm --version") != nil
    private static let wideModules = ["SIMDKernelsAVX2", "SIMDKernelsAVX512", "SIMDKernelsAVX512BF16"]

    @Test(
        .enabled(if: hasNM, "nm lists the symbols of object files; it is not installed"), arguments: wideModules
    )
    func wideKernelsExportNoSharedCode(module: String) throws {
        let folder = "\(SourceTree.buildFolder)/\(module).build"
        let objects = SourceTree.files(under: folder, ending: ".o")
        #if arch(x86_64)
            try #require(!objects.isEmpty, "no object files in \(folder)")
        #endif
        for object in objects {
            let symbols = try #require(SourceTree.output(of: "nm --defined-only '\(object)'"))
            // Lines are: address, kind, name.
            let weak = symbols.map { $0.split(separator: " ") }.filter { $0.count == 3 && ["W", "w"].contains($0[1]) }
            let shared = weak.map { $0[2] }.filter { !$0.contains(module) }
            #expect(shared.isEmpty, "\(object.split(separator: "/").last ?? "") shares weak code")
        }
    }

    /// A function that the compiler did not inline would be called for each product of pairs.
    @Test(.enabled(if: hasNM, "nm lists the symbols of object files; it is not installed"))
    func pairsAreMultipliedInTheLoop() {
        #if arch(x86_64)
            let objects = SourceTree.files(under: "\(SourceTree.buildFolder)/SIMDKernelsAVX512BF16.build", ending: ".o")
            let symbols = objects.map { SourceTree.output(of: "nm '\($0)'") ?? [] }
            let kernels = symbols.filter { $0.contains { $0.contains("multiplyFloat32") } }
            #expect(!kernels.isEmpty)
            #expect(!kernels.joined().contains { $0.contains("add_products_of_pairs") })
        #endif
    }

    /// Without this the first test would pass on objects that hold none of the kernels.
    @Test(
        .enabled(if: hasNM, "nm lists the symbols of object files; it is not installed"), arguments: wideModules
    )
    func wideKernelsAreInTheirObjects(module: String) {
        let objects = SourceTree.files(under: "\(SourceTree.buildFolder)/\(module).build", ending: ".o")
        let symbols = objects.flatMap { SourceTree.output(of: "nm --defined-only '\($0)'") ?? [] }
        #if arch(x86_64)
            let kernels = [
                "multiplyFloat32", "multiplyFloat64", "gramFloat32", "gramFloat64", "copyScaledFloat32", "maxMagnitude", "columnDots", "factorLU", "factorQR",
                "formQ", "solveUnitLower",
            ]
            for kernel in kernels {
                #expect(
                    symbols.contains { $0.contains(" T ") && $0.contains(module) && $0.contains(kernel) }, "\(kernel)")
            }
        #endif
    }
}
