// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import Glibc
import LowRankBackends
import TestSupport
import Testing

/// What a parallel loop has done, from inside of it.
private final class LoopRecord: Sendable {
    private struct State {
        var visits: [Int: Int] = [:]
        var workers: Set<Int> = []
        var threads: Set<UInt> = []
        var sharedWorker: Int?
        var largestWorker = -1
    }
    private let state = Guarded(State())

    func run(chunk: Int, worker: Int, _ work: () -> Void = {}) {
        state.withLock { state in
            state.visits[chunk, default: 0] += 1
            state.largestWorker = max(state.largestWorker, worker)
            state.threads.insert(UInt(pthread_self()))
            if !state.workers.insert(worker).inserted { state.sharedWorker = worker }
        }
        work()
        state.withLock { _ = $0.workers.remove(worker) }
    }

    var threads: Int { state.withLock { $0.threads.count } }

    func check(_ count: Int, threads: Int, _ label: String, sourceLocation: SourceLocation = #_sourceLocation) {
        let state = state.withLock { $0 }
        let visits = (0..<count).map { state.visits[$0] ?? 0 }
        #expect(visits == [Int](repeating: 1, count: count), "\(label)", sourceLocation: sourceLocation)
        #expect(state.visits.count == count, "\(label): chunks beyond the count", sourceLocation: sourceLocation)
        #expect(state.largestWorker < max(threads, 1), "\(label)", sourceLocation: sourceLocation)
        #expect(state.sharedWorker == nil, "\(label): a worker's number was held twice", sourceLocation: sourceLocation)
    }
}

@Suite struct ParallelForTests {
    @Test(arguments: [-3, 0, 1, 2, 3, 7, 64, 1000], [0, 1, 2, 3, 8, 100])
    func everyChunkRunsOnce(count: Int, threads: Int) {
        let record = LoopRecord()
        parallelFor(count, threads: threads) { chunk, worker in record.run(chunk: chunk, worker: worker) }
        record.check(max(count, 0), threads: threads, "\(count) chunks, \(threads) threads")
    }

    @Test(arguments: [2, 3, 8])
    func workersAreNotSharedByChunksThatOverlap(threads: Int) {
        let record = LoopRecord()
        parallelFor(40, threads: threads) { chunk, worker in
            record.run(chunk: chunk, worker: worker) { usleep(UInt32(100 + 50 * (chunk % 5))) }
        }
        record.check(40, threads: threads, "\(threads) threads")
    }

    @Test(.enabled(if: ThreadTeam.current != .serial, "LOWRANK_THREADS asks for serial loops"))
    func severalThreadsWork() {
        // Another test may have the pool at the moment, and this loop then runs on one thread.
        for _ in 0..<500 {
            let record = LoopRecord()
            parallelFor(8, threads: 2) { chunk, worker in record.run(chunk: chunk, worker: worker) { usleep(1000) } }
            record.check(8, threads: 2, "two threads")
            if record.threads == 2 { return }
        }
        Issue.record("no loop ran on two threads")
    }

    @Test func nestedLoopsFinish() {
        let outer = LoopRecord()
        let inner = (0..<6).map { _ in LoopRecord() }
        parallelFor(6, threads: 3) { chunk, worker in
            outer.run(chunk: chunk, worker: worker) {
                parallelFor(20, threads: 4) { part, worker in inner[chunk].run(chunk: part, worker: worker) }
            }
        }
        outer.check(6, threads: 3, "outer")
        for record in inner { record.check(20, threads: 4, "inner") }
    }

    @Test func callersMayRunAtOnce() {
        final class Caller: Sendable {
            let records = (0..<50).map { _ in LoopRecord() }
            func run() {
                for record in records {
                    parallelFor(16, threads: 2) { chunk, worker in record.run(chunk: chunk, worker: worker) }
                }
            }
        }
        let callers = (0..<8).map { _ in Caller() }
        let threads = callers.map { caller in
            var thread = pthread_t()
            let context = Unmanaged.passUnretained(caller).toOpaque()
            let status = pthread_create(
                &thread, nil,
                { context in
                    if let context { Unmanaged<Caller>.fromOpaque(context).takeUnretainedValue().run() }
                    return nil
                }, context)
            #expect(status == 0)
            return thread
        }
        for thread in threads { pthread_join(thread, nil) }
        for caller in callers {
            for record in caller.records { record.check(16, threads: 2, "one of 8 callers") }
        }
    }
}
