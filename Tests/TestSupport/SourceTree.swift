// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import Glibc

/// The package's own files, for tests of how it is written and built.
public enum SourceTree {
    /// The folder of Package.swift.
    public static let root: String = {
        // .../Tests/TestSupport/SourceTree.swift
        var parts = #filePath.split(separator: "/", omittingEmptySubsequences: false)
        parts.removeLast(3)
        return parts.joined(separator: "/")
    }()

    /// The folder of the test executable, which holds the object files of all targets.
    public static let buildFolder: String = {
        var buffer = [CChar](repeating: 0, count: Int(PATH_MAX))
        let length = readlink("/proc/self/exe", &buffer, buffer.count)
        let path = String(decoding: buffer.prefix(max(length, 0)).map { UInt8(bitPattern: $0) }, as: UTF8.self)
        return path.split(separator: "/", omittingEmptySubsequences: false).dropLast().joined(separator: "/")
    }()

    /// The files below a folder whose names end so, sorted.
    public static func files(under folder: String, ending suffix: String) -> [String] {
        guard let directory = opendir(folder) else { return [] }
        defer { closedir(directory) }
        var found: [String] = []
        while let entry = readdir(directory) {
            let name = withUnsafePointer(to: &entry.pointee.d_name) {
                $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
            }
            if name.hasPrefix(".") { continue }
            let path = "\(folder)/\(name)"
            if name.hasSuffix(suffix) { found.append(path) } else { found += files(under: path, ending: suffix) }
        }
        return found.sorted()
    }

    /// A file's lines.
    public static func lines(of path: String) -> [String] {
        guard let file = fopen(path, "r") else { return [] }
        defer { fclose(file) }
        return lines(from: file)
    }

    /// What a command prints, or nil where it fails.
    public static func output(of command: String) -> [String]? {
        guard let pipe = popen("\(command) 2>/dev/null", "r") else { return nil }
        let result = lines(from: pipe)
        return pclose(pipe) == 0 ? result : nil
    }

    private static func lines(from file: UnsafeMutablePointer<FILE>) -> [String] {
        var result: [String] = []
        var line: UnsafeMutablePointer<CChar>?
        var capacity = 0
        defer { free(line) }
        while getline(&line, &capacity, file) >= 0 {
            guard let line else { break }
            result.append(String(cString: line).split(separator: "\n").first.map(String.init) ?? "")
        }
        return result
    }
}
