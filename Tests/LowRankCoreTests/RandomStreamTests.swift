// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankCore
import Testing

@Suite struct RandomStreamTests {
    private static let count = 20_000

    @Test(arguments: [0, 1, UInt64.max])
    func numbersAreFunctionsOfSeedAndIndex(seed: UInt64) {
        let first = RandomStream(seed: seed)
        let second = RandomStream(seed: seed)
        let backwards = (0..<100).reversed().map { second.uniform($0) }
        #expect((0..<100).map { first.uniform($0) } == backwards.reversed())
    }

    @Test func seedsAndStreamsAreToldApart() {
        let streams = [
            RandomStream(seed: 0), RandomStream(seed: 1), RandomStream(seed: 0, stream: 1),
            RandomStream(seed: 1, stream: 1),
            // Counters of neighbouring seeds must not overlap: a shifted stream would show as equal numbers.
            RandomStream(seed: 0x9e37_79b9_7f4a_7c15),
        ]
        let numbers = streams.flatMap { stream in (0..<1000).map { stream.uniform($0) } }
        #expect(Set(numbers).count == numbers.count)
    }

    @Test(arguments: [0, 7, 123_456_789] as [UInt64])
    func numbersAreUniform(seed: UInt64) {
        let stream = RandomStream(seed: seed)
        let numbers = (0..<Self.count).map { stream.uniform($0) }
        #expect(numbers.allSatisfy { -1 < $0 && $0 < 1 && $0 != 0 })
        let count = Double(Self.count)
        // Six standard errors: of the mean (variance 1/3), the second moment (1/5 - 1/9) and neighbours' products.
        let mean = numbers.reduce(0, +) / count
        #expect(mean.magnitude < 6 * (1 / 3 / count).squareRoot())
        let second = numbers.reduce(0) { $0 + $1 * $1 } / count
        #expect((second - 1 / 3).magnitude < 6 * ((1 / 5.0 - 1 / 9.0) / count).squareRoot())
        let neighbours = zip(numbers, numbers.dropFirst()).reduce(0) { $0 + $1.0 * $1.1 } / count
        #expect(neighbours.magnitude < 6 * (1 / 9.0 / count).squareRoot())
    }
}
