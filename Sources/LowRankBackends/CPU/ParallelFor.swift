// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import Synchronization

/// Runs `body(chunk, worker)` for every chunk of `0..<count`, on up to `threads` threads at once.
///
/// Chunks are handed out in any order, so the caller cuts the work into pieces whose results do not depend on it, and
/// never by the number of threads. `worker` is below `threads` and held by one thread at a time: it picks a workspace.
///
/// Threads: the OpenMP team that torch has already loaded into the process, else an own pool that sleeps between calls
/// (torch's team keeps spinning after each of torch's operations, and a second team would share the cores with it).
/// LOWRANK_THREADS = openmp | pool | serial chooses. In a forked child, and when the pool is busy, the caller works alone.
package func parallelFor(_ count: Int, threads: Int, _ body: (_ chunk: Int, _ worker: Int) -> Void) {
    let team = min(threads, count)
    guard team > 1, ThreadTeam.current != .serial else {
        for chunk in 0..<max(count, 0) { body(chunk, 0) }
        return
    }
    withoutActuallyEscaping(body) { body in
        let region = ParallelRegion(count: count, body: body)
        let context = Unmanaged.passUnretained(region).toOpaque()
        withExtendedLifetime(region) {
            switch ThreadTeam.current {
            case .openmp: OpenMPTeam.shared?.run(threads: team, ParallelRegion.enter, context)
            case .pool:
                if !ThreadPool.shared.run(threads: team, ParallelRegion.enter, context) { region.work() }
            case .serial: region.work()
            }
        }
    }
}

/// One parallel loop: the chunks left and the workers that have entered.
private final class ParallelRegion {
    private let count: Int
    private let body: (Int, Int) -> Void
    private let nextChunk = Atomic<Int>(0)
    private let nextWorker = Atomic<Int>(0)

    init(count: Int, body: @escaping (Int, Int) -> Void) {
        self.count = count
        self.body = body
    }

    func work() {
        let worker = nextWorker.wrappingAdd(1, ordering: .relaxed).oldValue
        while true {
            let chunk = nextChunk.wrappingAdd(1, ordering: .relaxed).oldValue
            if chunk >= count { return }
            body(chunk, worker)
        }
    }

    /// What each thread of a team calls.
    static let enter: @convention(c) (UnsafeMutableRawPointer?) -> Void = { context in
        guard let context else { return }
        Unmanaged<ParallelRegion>.fromOpaque(context).takeUnretainedValue().work()
    }
}
