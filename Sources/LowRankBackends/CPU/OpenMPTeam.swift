// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import Glibc
import Synchronization

/// GNU OpenMP's thread team, borrowed where something else (torch) has already loaded it. Never loaded by us.
struct OpenMPTeam: Sendable {
    private typealias Parallel = @convention(c) (
        @convention(c) (UnsafeMutableRawPointer?) -> Void, UnsafeMutableRawPointer?, UInt32, UInt32
    ) -> Void
    private typealias MaxThreads = @convention(c) () -> Int32

    private let parallel: Parallel
    private let maxThreads: MaxThreads

    /// The size that OpenMP gives a team of the calling thread; follows torch.set_num_threads and OMP_NUM_THREADS.
    var threadCount: Int { max(1, Int(maxThreads())) }

    func run(
        threads: Int, _ enter: @convention(c) (UnsafeMutableRawPointer?) -> Void, _ context: UnsafeMutableRawPointer
    ) {
        parallel(enter, context, UInt32(threads), 0)
    }

    /// The team, once libgomp is in the process; nil before.
    static var shared: OpenMPTeam? {
        let parallel = foundParallel.load(ordering: .acquiring)
        if let function = UnsafeRawPointer(bitPattern: parallel),
            let maxThreads = UnsafeRawPointer(bitPattern: foundMaxThreads.load(ordering: .relaxed))
        {
            return OpenMPTeam(
                parallel: unsafeBitCast(function, to: Parallel.self),
                maxThreads: unsafeBitCast(maxThreads, to: MaxThreads.self))
        }
        return find()
    }

    // The addresses of the two functions, 0 until found. No lock: threads that search at once find the same.
    private static let foundParallel = Atomic<UInt>(0)
    private static let foundMaxThreads = Atomic<UInt>(0)

    // Each time until found: torch is often imported after this library.
    private static func find() -> OpenMPTeam? {
        guard let library = dlopen("libgomp.so.1", RTLD_LAZY | RTLD_NOLOAD),
            let parallel = dlsym(library, "GOMP_parallel"), let maxThreads = dlsym(library, "omp_get_max_threads")
        else { return nil }
        foundMaxThreads.store(UInt(bitPattern: maxThreads), ordering: .relaxed)
        foundParallel.store(UInt(bitPattern: parallel), ordering: .releasing)
        return OpenMPTeam(
            parallel: unsafeBitCast(parallel, to: Parallel.self),
            maxThreads: unsafeBitCast(maxThreads, to: MaxThreads.self))
    }
}
