// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import CCUDA
import Glibc

/// Compiled kernels on disk, for the processes of one user.
///
/// A file has a key in full, all that its code depends on, and a checksum: what is incomplete, damaged or of another key
/// counts as not there, and so does what somebody else owns or can write. Files are written beside their places and
/// renamed, so that processes that work at the same time see a whole one or none. The cache only saves time: whatever
/// goes wrong, kernels are compiled.
package struct CUDAKernelCache: Sendable {
    /// The folder, made when something is stored.
    package let folder: String

    package init(folder: String) { self.folder = folder }

    /// That of the environment: `LOWRANK_CUDA_CACHE`, of which "off" means none, else lowrank_swift in the user's folder for
    /// caches; nil where there is none.
    package static func ofEnvironment() -> CUDAKernelCache? {
        if let named = environmentVariable("LOWRANK_CUDA_CACHE") {
            return named == "off" ? nil : CUDAKernelCache(folder: named)
        }
        // A relative path is to be ignored, says the XDG Base Directory Specification.
        if let caches = environmentVariable("XDG_CACHE_HOME"), caches.hasPrefix("/") {
            return CUDAKernelCache(folder: caches + "/lowrank_swift")
        }
        return environmentVariable("HOME").map { CUDAKernelCache(folder: $0 + "/.cache/lowrank_swift") }
    }

    /// Where the code for a key is stored.
    package func path(for key: String) -> String { "\(folder)/\(Self.fileName(for: key))" }

    /// The code that was stored for a key, nil where there is none that can be trusted.
    package func code(for key: String) -> [CChar]? {
        guard let directory = openFolder() else { return nil }
        defer { close(directory) }
        let file = cuda_open_at(directory, Self.fileName(for: key), O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK, 0)
        if file < 0 { return nil }
        defer { close(file) }
        let head = Self.head(of: key)
        var status = stat()
        guard fstat(file, &status) == 0, cuda_is_regular_file(status.st_mode), isOurs(status),
            status.st_size > head.count + 8, let bytes = Self.read(file, count: Int(status.st_size)),
            bytes.starts(with: head)
        else { return nil }
        let code = bytes[(head.count + 8)...]
        return bytes[head.count..<(head.count + 8)].elementsEqual(Self.bytes(of: Self.checksum(code)))
            ? code.map { CChar(bitPattern: $0) } : nil
    }

    /// Stores the code for a key, in place of what is there; does nothing where that is not possible.
    package func store(_ code: [CChar], for key: String) {
        makeFolders()
        guard let directory = openFolder() else { return }
        defer { close(directory) }
        let name = Self.fileName(for: key)
        let draft = "\(name).\(getpid()).\(UInt64.random(in: .min ... .max)).tmp"
        let file = cuda_open_at(directory, draft, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0o600)
        if file < 0 { return }
        let bytes = code.map { UInt8(bitPattern: $0) }
        let isWritten = Self.write(Self.head(of: key) + Self.bytes(of: Self.checksum(bytes[...])) + bytes, to: file)
        // What the disk has no place for may show when a file is closed.
        let isClosed = close(file) == 0
        if !isWritten || !isClosed || renameat(directory, draft, directory, name) != 0 {
            unlinkat(directory, draft, 0)
        }
    }

    // MARK: The folder

    /// Makes the folder, and what it is in, for the user alone.
    private func makeFolders() {
        for end in folder.indices where folder[end] == "/" && end != folder.startIndex {
            mkdir(String(folder[..<end]), 0o700)
        }
        mkdir(folder, 0o700)
    }

    /// Opens the folder, which is then the same for all that follows; nil where others may have put files there.
    private func openFolder() -> Int32? {
        let directory = cuda_open_at(AT_FDCWD, folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0)
        if directory < 0 { return nil }
        var status = stat()
        if fstat(directory, &status) == 0 && isOurs(status) { return directory }
        close(directory)
        return nil
    }

    /// Whether the user alone can write.
    private func isOurs(_ status: stat) -> Bool { status.st_uid == geteuid() && !cuda_others_may_write(status.st_mode) }

    // MARK: Files

    private static func fileName(for key: String) -> String {
        let digits = String(checksum(Array(key.utf8)[...]), radix: 16)
        return "kernels-" + String(repeating: "0", count: 16 - digits.count) + digits
    }

    /// What a file begins with: its kind, the length of the key, the key. A checksum of the code and the code follow.
    private static func head(of key: String) -> [UInt8] {
        Array("lowrank_swift kernels 1\n".utf8) + bytes(of: UInt64(key.utf8.count)) + Array(key.utf8)
    }

    private static func bytes(of number: UInt64) -> [UInt8] { (0..<8).map { UInt8(truncatingIfNeeded: number >> (8 * $0)) } }

    /// FNV-1a, which notices damage; who may write is another question.
    private static func checksum(_ bytes: ArraySlice<UInt8>) -> UInt64 {
        bytes.reduce(0xcbf2_9ce4_8422_2325) { ($0 ^ UInt64($1)) &* 0x100_0000_01b3 }
    }

    private static func read(_ file: Int32, count: Int) -> [UInt8]? {
        var bytes = [UInt8](repeating: 0, count: count)
        let isWhole = bytes.withUnsafeMutableBytes { buffer in
            transfer(count) { done in Glibc.read(file, buffer.baseAddress.map { $0 + done }, count - done) }
        }
        return isWhole ? bytes : nil
    }

    private static func write(_ bytes: [UInt8], to file: Int32) -> Bool {
        bytes.withUnsafeBytes { buffer in
            transfer(bytes.count) { done in Glibc.write(file, buffer.baseAddress.map { $0 + done }, bytes.count - done) }
        }
    }

    /// Repeats a step, which gets how many bytes are done and returns how many more it did, until all are.
    private static func transfer(_ count: Int, _ step: (Int) -> Int) -> Bool {
        var done = 0
        while done < count {
            let more = step(done)
            if more == 0 || (more < 0 && !cuda_was_interrupted()) { return false }
            done += max(more, 0)
        }
        return true
    }
}
