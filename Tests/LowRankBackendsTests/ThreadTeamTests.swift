// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import CLAPACK
import Glibc
import LowRankBackends
import LowRankCore
import TestSupport
import Testing

@Suite struct ThreadTeamTests {
    @Test func threadCountFollowsTheSetting() {
        ThreadCountSetting.withExclusiveAccess {
            ThreadTeam.setThreadCount(0)
            let standard = ThreadTeam.threadCount
            #expect(standard >= 1)
            for count in [1, 3, ThreadTeam.maxThreadCount] {
                ThreadTeam.setThreadCount(count)
                #expect(ThreadTeam.threadCount == count)
                #expect(CPUBackend.threadCount == count)
            }
            CPUBackend.setThreadCount(0)
            #expect(ThreadTeam.threadCount == standard)
        }
    }

    @Test func configurationNamesWhatRuns() {
        let configuration = Dictionary(uniqueKeysWithValues: CPUBackend.configuration.map { ($0.name, $0.json) })
        #expect(configuration["instruction_set"] == "\"\(KernelTable.current.name)\"")
        let names = KernelTable.available.map { "\"\($0.name)\"" }.joined(separator: ", ")
        #expect(configuration["instruction_sets"] == "[\(names)]")
        #expect(configuration["blas"]?.hasPrefix("\"OpenBLAS") == true)
        #expect(configuration["thread_team"] == "\"\(ThreadTeam.current.rawValue)\"")
        #expect(configuration["threads"].flatMap { Int($0) } ?? 0 >= 1)
    }

    // The settings below are read once in a process, so each test has a process of its own.

    @Test(arguments: ["1", "3", "5,2"])
    func defaultCountIsOpenMPs(value: String) async {
        await #expect(processExitsWith: .success) { [value] in
            setenv("OMP_NUM_THREADS", value, 1)
            precondition(ThreadTeam.threadCount == Int(value.prefix(1)))
        }
    }

    @Test func nonsenseInTheEnvironmentIsPassedOver() async throws {
        let result = await #expect(processExitsWith: .success, observing: [\.standardErrorContent]) {
            setenv("OMP_NUM_THREADS", "many", 1)
            setenv("LOWRANK_THREADS", "some", 1)
            setenv("LOWRANK_ISA", "abacus", 1)
            for _ in 0..<2 {
                precondition(ThreadTeam.threadCount >= 1)
                precondition(ThreadTeam.current == .pool)
                precondition(KernelTable.current.name == KernelTable.available.last?.name)
            }
        }
        // Once each, whatever else is on the stream.
        let said = String(decoding: try #require(result).standardErrorContent, as: UTF8.self)
        let warnings = said.split(separator: "\n").filter { $0.hasPrefix("lowrank_swift: ") }
        let sets = KernelTable.available.map(\.name).joined(separator: ", ")
        #expect(
            warnings == [
                "lowrank_swift: LOWRANK_THREADS: expected one of openmp, pool, serial, got some; it is ignored",
                "lowrank_swift: LOWRANK_ISA: expected one of \(sets), got abacus; it is ignored",
            ])
    }

    @Test func serialLoopsStayOnTheirThread() async {
        await #expect(processExitsWith: .success) {
            setenv("LOWRANK_THREADS", "serial", 1)
            precondition(ThreadTeam.current == .serial)
            let caller = pthread_self()
            parallelFor(64, threads: 8) { _, worker in precondition(worker == 0 && pthread_self() == caller) }
        }
    }

    @Test func forkedChildrenWorkAlone() async {
        await #expect(processExitsWith: .success) {
            // The pool has run before the fork, so the child would wait for threads that it does not have.
            parallelFor(64, threads: 4) { _, _ in usleep(100) }
            guard let symbol = dlsym(nil, "fork") else { exit(EXIT_FAILURE) }
            let child = unsafeBitCast(symbol, to: (@convention(c) () -> pid_t).self)()
            if child == 0 {
                alarm(20)
                var sum = 0
                parallelFor(64, threads: 4) { chunk, _ in sum += chunk }
                _exit(sum == 64 * 63 / 2 && ThreadTeam.current == .serial ? EXIT_SUCCESS : EXIT_FAILURE)
            }
            var status: Int32 = 0
            waitpid(child, &status, 0)
            precondition(status == 0, "the child failed or hung")
            precondition(ThreadTeam.current == .pool, "the parent keeps its pool")
        }
    }

    @Test func openBLASGetsItsThreadsBack() async {
        await #expect(processExitsWith: .success) {
            openblas_set_num_threads(2)
            let threads = openblas_get_num_threads()
            let panel = try CPUBackend.shared.makeMatrix(rows: 50, columns: 8, type: .float32, order: .columnMajor)
            CPUBackend.shared.fillUniform(panel.view, from: RandomStream(seed: 1))
            let triangle = try CPUBackend.shared.makeMatrix(rows: 8, columns: 8, type: .float32, order: .rowMajor)
            try CPUBackend.shared.factorQR(panel, triangle: triangle.view)
            _ = try CPUBackend.shared.factorLU(panel)
            _ = try CPUBackend.shared.factorSVD(panel)
            precondition(openblas_get_num_threads() == threads)
        }
    }
}
