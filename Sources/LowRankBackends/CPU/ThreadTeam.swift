// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import CPUFeatures
import Synchronization

/// Which threads a parallel loop runs on, and how many.
package enum ThreadTeam: String, CaseIterable, Sendable {
    case openmp
    case pool
    case serial

    /// What a loop that starts now runs on.
    package static var current: ThreadTeam {
        // Neither a pool's threads nor OpenMP's survive fork(): OpenMP would wait for them forever.
        if fork_state_is_child() { return .serial }
        switch wanted {
        case .serial: return .serial
        case .pool: return .pool
        case .openmp, nil: return OpenMPTeam.shared == nil ? .pool : .openmp
        }
    }

    /// The number of threads for a loop that starts now.
    package static var threadCount: Int {
        let count = requestedCount.load(ordering: .relaxed)
        if count > 0 { return count }
        if current == .openmp, let team = OpenMPTeam.shared { return team.threadCount }
        return defaultCount
    }

    /// Sets the number of threads for all loops that follow; 0 returns to the default.
    package static func setThreadCount(_ count: Int) {
        requestedCount.store(count, ordering: .relaxed)
    }

    /// The largest number of threads that can be asked for.
    package static let maxThreadCount = 4096

    private static let requestedCount = Atomic<Int>(0)
    private static let wanted = environmentChoice("LOWRANK_THREADS", among: allCases.map { ($0.rawValue, $0) })

    private static let defaultCount: Int = {
        // OMP_NUM_THREADS may be a list for nested levels; the first number is ours.
        if let text = environmentVariable("OMP_NUM_THREADS"), let first = text.split(separator: ",").first,
            let count = Int(first), count > 0
        {
            return min(count, maxThreadCount)
        }
        return Int(cpu_count())
    }()
}
