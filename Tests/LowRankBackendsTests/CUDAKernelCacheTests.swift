// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import Glibc
import LowRankBackends
import Testing

/// What the cache of compiled kernels returns is what was stored for the key, or nothing.
@Suite struct CUDAKernelCacheTests {
    private let code = (0..<1000).map { CChar(truncatingIfNeeded: $0 * 7) }

    /// A cache in a new folder.
    private func makeCache() -> CUDAKernelCache {
        var name = Array("/tmp/lowrank-cache-XXXXXX".utf8CString)
        let parent = mkdtemp(&name).map { String(cString: $0) } ?? ""
        return CUDAKernelCache(folder: parent + "/below/kernels")
    }

    private func remove(_ cache: CUDAKernelCache) {
        for file in files(in: cache) { unlink("\(cache.folder)/\(file)") }
        var folder = cache.folder
        while rmdir(folder) == 0, let end = folder.lastIndex(of: "/") { folder = String(folder[..<end]) }
    }

    private func withCache(_ body: (CUDAKernelCache) -> Void) {
        let cache = makeCache()
        body(cache)
        remove(cache)
    }

    private func files(in cache: CUDAKernelCache) -> [String] {
        guard let directory = opendir(cache.folder) else { return [] }
        defer { closedir(directory) }
        var names: [String] = []
        while let entry = readdir(directory) {
            let name = withUnsafePointer(to: &entry.pointee.d_name) {
                $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
            }
            if name != "." && name != ".." { names.append(name) }
        }
        return names
    }

    private func bytes(of path: String) -> [UInt8] {
        let file = open(path, O_RDONLY)
        defer { close(file) }
        var bytes = [UInt8](repeating: 0, count: Int(lseek(file, 0, SEEK_END)))
        #expect(pread(file, &bytes, bytes.count, 0) == bytes.count)
        return bytes
    }

    private func overwrite(_ path: String, _ bytes: [UInt8]) {
        let file = open(path, O_WRONLY | O_TRUNC)
        defer { close(file) }
        #expect(write(file, bytes, bytes.count) == bytes.count)
    }

    private func mode(_ path: String) -> mode_t {
        var status = stat()
        #expect(lstat(path, &status) == 0)
        return status.st_mode & 0o777
    }

    @Test func codeIsStoredPerKey() {
        withCache { cache in
            #expect(cache.code(for: "key") == nil)
            cache.store(code, for: "key")
            #expect(cache.code(for: "key") == code)
            #expect(cache.code(for: "kez") == nil)
            cache.store([1], for: "key")
            #expect(cache.code(for: "key") == [1])
            #expect(files(in: cache).count == 1, "drafts are left")
            #expect(mode(cache.folder) == 0o700)
            #expect(mode(cache.path(for: "key")) == 0o600)
        }
    }

    @Test func allThatCodeDependsOnIsInTheKey() {
        let keys = [
            CUDAKernels.cacheKey(source: "a", architecture: 90, compiler: "13.0"),
            CUDAKernels.cacheKey(source: "b", architecture: 90, compiler: "13.0"),
            CUDAKernels.cacheKey(source: "a", architecture: 80, compiler: "13.0"),
            CUDAKernels.cacheKey(source: "a", architecture: 90, compiler: "12.9"),
        ]
        withCache { cache in
            for (i, key) in keys.enumerated() { cache.store([CChar(i)], for: key) }
            for (i, key) in keys.enumerated() { #expect(cache.code(for: key) == [CChar(i)]) }
        }
    }

    @Test func damagedFilesCountAsMissing() {
        withCache { cache in
            cache.store(code, for: "key")
            let path = cache.path(for: "key")
            let whole = bytes(of: path)
            for count in [0, 1, 20, whole.count / 2, whole.count - 1] {
                overwrite(path, Array(whole[..<count]))
                #expect(cache.code(for: "key") == nil, "the first \(count) bytes")
            }
            overwrite(path, whole + [0])
            #expect(cache.code(for: "key") == nil, "one byte more")
            for i in whole.indices {
                var damaged = whole
                damaged[i] ^= 0x10
                overwrite(path, damaged)
                #expect(cache.code(for: "key") == nil, "byte \(i)")
            }
            // Whole, but of another key.
            cache.store(code, for: "other")
            overwrite(path, bytes(of: cache.path(for: "other")))
            #expect(cache.code(for: "key") == nil)
            cache.store(code, for: "key")
            #expect(cache.code(for: "key") == code)
        }
    }

    @Test func whatOthersCanWriteCountsAsMissing() {
        withCache { cache in
            cache.store(code, for: "key")
            let path = cache.path(for: "key")
            for (name, usual) in [(path, 0o600), (cache.folder, 0o700)] as [(String, mode_t)] {
                for bit in [0o020, 0o002] as [mode_t] {
                    chmod(name, usual | bit)
                    #expect(cache.code(for: "key") == nil, "\(name) \(bit)")
                    cache.store([1], for: "other")
                }
                chmod(name, usual)
                #expect(cache.code(for: "key") == code)
            }
            // Root alone can give files away.
            for name in [path, cache.folder] where geteuid() == 0 {
                #expect(chown(name, 12345, .max) == 0)
                #expect(cache.code(for: "key") == nil, "\(name) of somebody else")
                chown(name, 0, .max)
            }
        }
    }

    @Test func linksAndFoldersAreNotRead() {
        withCache { cache in
            cache.store(code, for: "key")
            let path = cache.path(for: "key")
            #expect(rename(path, path + "-moved") == 0 && symlink(path + "-moved", path) == 0)
            #expect(cache.code(for: "key") == nil)
            cache.store(code, for: "key")
            #expect(cache.code(for: "key") == code, "the link has been replaced")
            #expect(unlink(path) == 0 && mkdir(path, 0o700) == 0)
            cache.store(code, for: "key")
            #expect(cache.code(for: "key") == nil)
            #expect(files(in: cache).count == 2, "drafts are left")
            rmdir(path)
            #expect(mkfifo(path, 0o600) == 0)
            #expect(cache.code(for: "key") == nil, "and nobody waits for a writer")
        }
    }

    @Test(arguments: ["/dev/null", "/dev/null/below", "/proc/below", ""])
    func foldersThatCanNotBe(folder: String) {
        let cache = CUDAKernelCache(folder: folder)
        cache.store(code, for: "key")
        #expect(cache.code(for: "key") == nil)
    }

    /// Many writers and readers at a time: what is found is always whole.
    @Test func concurrentUse() async {
        let cache = makeCache()
        defer { remove(cache) }
        await withTaskGroup(of: Void.self) { group in
            for writer in 0..<4 {
                group.addTask {
                    for i in 0..<40 {
                        cache.store([CChar](repeating: CChar(writer), count: 5000 + writer), for: "key")
                        guard let found = cache.code(for: "key"), let first = found.first else {
                            Issue.record("round \(i): nothing was found")
                            continue
                        }
                        #expect(found == [CChar](repeating: first, count: 5000 + Int(first)))
                    }
                }
            }
        }
        #expect(files(in: cache).count == 1)
    }
}
