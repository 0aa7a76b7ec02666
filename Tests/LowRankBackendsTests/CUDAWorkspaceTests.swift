// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankBackends
import Testing

@Suite struct CUDAWorkspaceTests {
    @Test func placesLieOneAfterAnother() {
        let memory = UnsafeMutableRawPointer.allocate(byteCount: 1024, alignment: 256)
        defer { memory.deallocate() }
        var workspace = CUDAWorkspace(memory, bytes: 1024)
        let taken = [1, 256, 513, 512, 1].map { workspace.take(bytes: $0) }
        #expect(taken == [memory, memory + 256, nil, memory + 512, nil])
        #expect(workspace.needed == 1024)
    }

    @Test(arguments: [[0, 1, 2], [2, 1, 0], [1, 2, 0], [1, 0, 2]])
    func placesAreGivenOutAgain(order: [Int]) throws {
        var workspace = try #require(CUDAWorkspace.imaginary)
        let places = [300, 20, 700].compactMap { workspace.take(bytes: $0) }
        let ends = zip(places, [512, 256, 768]).map { $0 + $1 }
        for place in order.dropLast() { workspace.giveBack(places[place]) }
        // What is behind the place that is kept is free.
        let next = workspace.take(bytes: 1)
        #expect(next == ends[order[2]])
        for memory in [next, places[order[2]]].compactMap(\.self) { workspace.giveBack(memory) }
        #expect(workspace.needed == max(512 + 256 + 768, places[0].distance(to: ends[order[2]]) + 256))
        let again = workspace.take(bytes: 1)
        #expect(again == places[0])
    }
}
