// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import Glibc
import LowRankBackends
import Testing

@Suite struct KernelTableTests {
    @Test func tablesAreOrderedFromSlowToFast() {
        let names = KernelTable.available.map(\.name)
        #expect(names == Array(["reference", "baseline", "avx2", "avx512", "avx512bf16"].prefix(names.count)))
        #expect(names.count >= 2)
    }

    @Test(arguments: KernelTable.available.map(\.name))
    func environmentChoosesTheTable(name: String) async {
        await #expect(processExitsWith: .success) { [name] in
            setenv("LOWRANK_ISA", name, 1)
            precondition(KernelTable.current.name == name)
        }
    }

    @Test func bestTableIsTheDefault() async {
        await #expect(processExitsWith: .success) {
            unsetenv("LOWRANK_ISA")
            precondition(KernelTable.current.name == KernelTable.available.last?.name)
        }
    }
}
