// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankCore
import TestSupport
import Testing

@Suite struct ScalarTypeTests {
    @Test(arguments: ScalarType.allCases)
    func epsilonIsTheStepAboveOne(type: ScalarType) {
        #expect(type.rounded(1 + type.epsilon) == 1 + type.epsilon)
        // Half of the step is a tie, which goes to the even 1.
        #expect(type.rounded(1 + type.epsilon / 2) == 1)
    }

    @Test(arguments: ScalarType.allCases)
    func greatestFiniteIsTheLast(type: ScalarType) {
        let largest = type.greatestFinite
        #expect(type.rounded(largest) == largest)
        // Half of a step beyond is a tie, which goes to infinity.
        #expect(type.rounded(largest + (largest / (2 - type.epsilon)) * type.epsilon / 2) == .infinity)
    }

    @Test(arguments: zip([ScalarType.float32, .float64, .bfloat16, .float16], [4, 8, 2, 2]))
    func sizeIsInBytes(type: ScalarType, size: Int) {
        #expect(type.size == size)
    }

    @Test func sumsAreKeptInFloat32OrFloat64() {
        #expect(ScalarType.float64.computeType == .float64)
        for type in [ScalarType.float32, .bfloat16, .float16] { #expect(type.computeType == .float32) }
    }

    @Test func namesAreThoseOfTheFrameworks() {
        #expect(ScalarType.allCases.map(\.description) == ["float32", "float64", "bfloat16", "float16"])
    }
}
