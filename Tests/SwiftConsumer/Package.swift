// swift-tools-version: 6.2
// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import PackageDescription

/// A program that uses one product of lowrank_swift.
func program(_ name: String, uses product: String) -> Target {
    .executableTarget(name: name, dependencies: [.product(name: product, package: "lowrank_swift")])
}

// A package as a user of the library writes it: it sees the public interface alone, and no Python.
let package = Package(
    name: "SwiftConsumer",
    dependencies: [.package(name: "lowrank_swift", path: "../..")],
    targets: [
        program("GuideExample", uses: "LowRank"),
        program("PublicInterface", uses: "LowRank"),
        program("CExample", uses: "lowrank"),
    ]
)
