// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankBackends
import LowRankCore
import Synchronization
import Testing

extension KernelTable: CustomTestStringConvertible {
    package var testDescription: String { name }
}

extension CPUBackend {
    /// A backend for each instruction set that this CPU runs.
    package static var all: [(name: String, backend: CPUBackend)] {
        KernelTable.available.map { ($0.name, CPUBackend(kernels: $0, threads: 2)) }
    }
}

/// Keeps tests that change the process's number of threads from running at once.
public enum ThreadCountSetting {
    private static let lock = Mutex(())

    /// Runs the body alone, then returns to the default number.
    public static func withExclusiveAccess(_ body: () -> Void) {
        lock.withLock { _ in
            body()
            CPUBackend.setThreadCount(0)
        }
    }
}
