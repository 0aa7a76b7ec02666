// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import Glibc

/// A value that one thread at a time may use. ThreadSanitizer knows this lock, and not the one inside of `Mutex`.
public final class Guarded<Value>: @unchecked Sendable {
    private var mutex = pthread_mutex_t()
    private var value: Value

    public init(_ value: Value) {
        self.value = value
        pthread_mutex_init(&mutex, nil)
    }

    deinit { pthread_mutex_destroy(&mutex) }

    public func withLock<Result>(_ body: (inout Value) -> Result) -> Result {
        pthread_mutex_lock(&mutex)
        defer { pthread_mutex_unlock(&mutex) }
        return body(&value)
    }
}
