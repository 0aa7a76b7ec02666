// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import CLAPACK
import CPUFeatures
import LowRankCore

extension CPUBackend {
    /// Threads that a large operation which starts now runs on.
    public static var threadCount: Int { ThreadTeam.threadCount }

    /// Sets the number of threads for the whole process; 0 returns to the default: the OpenMP team's size where one is
    /// borrowed, else OMP_NUM_THREADS, else the processors that the process may use.
    public static func setThreadCount(_ count: Int) { ThreadTeam.setThreadCount(count) }

    /// The largest number of threads that can be asked for.
    public static var maxThreadCount: Int { ThreadTeam.maxThreadCount }

    /// What runs here, as names and JSON values.
    public static var configuration: [(name: String, json: String)] {
        #if DEBUG
            let build = "debug"
        #else
            let build = "release"
        #endif
        let kernelNames = KernelTable.available.map { quoted($0.name) }.joined(separator: ", ")
        return [
            ("build", quoted(build)),
            ("cpu_vendor", quoted(String(cString: cpu_vendor()))),
            ("instruction_set", quoted(KernelTable.current.name)),
            ("instruction_sets", "[\(kernelNames)]"),
            ("blas", quoted(String(cString: openblas_get_config()))),
            ("blas_core", quoted(String(cString: openblas_get_corename()))),
            ("threads", "\(ThreadTeam.threadCount)"),
            ("thread_team", quoted(ThreadTeam.current.rawValue)),
        ]
    }
}

/// A JSON string.
func quoted(_ text: String) -> String {
    "\"" + text.map { $0 == "\"" || $0 == "\\" ? "\\\($0)" : "\($0)" }.joined() + "\""
}
