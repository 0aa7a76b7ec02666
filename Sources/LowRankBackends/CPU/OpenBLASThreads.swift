// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import CLAPACK
import Synchronization

/// Calls of OpenBLAS run on one thread: more of them slow the small panels down, spin beside torch's and change the
/// rounding. The setting belongs to the whole process, so the last call in flight gives it back.
enum OpenBLASThreads {
    private struct State {
        var callers = 0
        var threadsOutside: Int32 = 1
    }
    private static let state = Mutex(State())

    static func single<Result>(_ body: () -> Result) -> Result {
        state.withLock { state in
            if state.callers == 0 {
                state.threadsOutside = openblas_get_num_threads()
                if state.threadsOutside != 1 { openblas_set_num_threads(1) }
            }
            state.callers += 1
        }
        defer {
            state.withLock { state in
                state.callers -= 1
                if state.callers == 0 && state.threadsOutside != 1 { openblas_set_num_threads(state.threadsOutside) }
            }
        }
        return body()
    }
}
