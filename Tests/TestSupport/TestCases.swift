// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankBackends
import LowRankCore
import Testing

extension KernelTable: CustomTestStringConvertible {
    package var testDescription: String { name }
}

/// Numbers of threads between which results must not differ.
public let threadCounts = [1, 2, 3, 8]

/// Keeps tests that change the process's number of threads from running at once.
public enum ThreadCountSetting {
    private static let lock = Guarded(())

    /// Runs the body alone, then returns to the default number.
    public static func withExclusiveAccess(_ body: () -> Void) {
        lock.withLock { _ in
            body()
            CPUBackend.setThreadCount(0)
        }
    }
}
