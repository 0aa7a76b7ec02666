// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import Glibc
import Synchronization

/// Threads that sleep between parallel loops. They start with the first loop and live as long as the process.
final class ThreadPool: @unchecked Sendable {
    static let shared = ThreadPool()

    typealias Enter = @convention(c) (UnsafeMutableRawPointer?) -> Void

    private var mutex = pthread_mutex_t()
    private var work = pthread_cond_t()
    private var idle = pthread_cond_t()

    // Guarded by `mutex`.
    private var threads = 0
    private var isBusy = false
    private var places = 0
    private var running = 0
    private var enter: Enter?
    private var context: UnsafeMutableRawPointer?

    private init() {
        pthread_mutex_init(&mutex, nil)
        pthread_cond_init(&work, nil)
        pthread_cond_init(&idle, nil)
    }

    /// Runs `enter(context)` on the calling thread and on up to `threads - 1` others, and returns when all are done.
    /// - Returns: false, having done nothing, where another caller has the pool.
    func run(threads wanted: Int, _ enter: @escaping Enter, _ context: UnsafeMutableRawPointer) -> Bool {
        pthread_mutex_lock(&mutex)
        if isBusy {
            pthread_mutex_unlock(&mutex)
            return false
        }
        isBusy = true
        while threads < wanted - 1, startThread() { threads += 1 }
        self.enter = enter
        self.context = context
        places = min(wanted - 1, threads)
        pthread_cond_broadcast(&work)
        pthread_mutex_unlock(&mutex)

        enter(context)

        pthread_mutex_lock(&mutex)
        // All chunks are taken by now: a thread that has not woken up yet has nothing to do.
        places = 0
        while running > 0 { pthread_cond_wait(&idle, &mutex) }
        isBusy = false
        pthread_mutex_unlock(&mutex)
        return true
    }

    private func startThread() -> Bool {
        var thread = pthread_t()
        let started = pthread_create(&thread, nil, { _ in ThreadPool.shared.serve() }, nil) == 0
        if started { pthread_detach(thread) }
        return started
    }

    private func serve() -> UnsafeMutableRawPointer? {
        pthread_mutex_lock(&mutex)
        while true {
            while places == 0 { pthread_cond_wait(&work, &mutex) }
            places -= 1
            running += 1
            let enter = self.enter
            let context = self.context
            pthread_mutex_unlock(&mutex)
            enter?(context)
            pthread_mutex_lock(&mutex)
            running -= 1
            if running == 0 { pthread_cond_signal(&idle) }
        }
    }
}
