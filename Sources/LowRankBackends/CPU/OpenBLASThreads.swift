// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import CLAPACK
import CPUFeatures

/// Calls of OpenBLAS run on one thread: more of them slow the small panels down, spin beside torch's and change the
/// rounding. The setting belongs to the whole process, so the last call in flight gives it back.
enum OpenBLASThreads {
    // Guarded by the process's lock, which a fork waits for.
    private nonisolated(unsafe) static var callers = 0
    private nonisolated(unsafe) static var threadsOutside: Int32 = 1

    static func single<Result>(_ body: () -> Result) -> Result {
        enter()
        defer { leave() }
        return body()
    }

    private static func enter() {
        fork_safe_lock()
        defer { fork_safe_unlock() }
        if callers == 0 {
            threadsOutside = openblas_get_num_threads()
            if threadsOutside != 1 { openblas_set_num_threads(1) }
        }
        callers += 1
    }

    private static func leave() {
        fork_safe_lock()
        defer { fork_safe_unlock() }
        callers -= 1
        if callers == 0 && threadsOutside != 1 { openblas_set_num_threads(threadsOutside) }
    }
}
