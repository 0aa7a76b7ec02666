// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankCore
import Testing

@Suite struct LowRankErrorTests {
    @Test(
        arguments: [
            (
                .invalidShape(argument: "up", expected: "shape [4, 2]", got: "[2, 4]"),
                "up: expected shape [4, 2], got [2, 4]"
            ),
            (
                .invalidArgument(argument: "rank", expected: "1 <= rank <= min(m, n) = 384", got: "0"),
                "rank: expected 1 <= rank <= min(m, n) = 384, got 0"
            ),
            (
                .nonFinite(argument: "weight", row: 3, column: 5),
                "weight: expected finite values, got a NaN or infinity, the first one at [3, 5]"
            ),
            (.readOnly(argument: "out"), "out: expected writable memory, got a read-only array"),
            (.overlap(argument: "out", other: "x"), "out: expected memory of its own, got memory that overlaps x"),
            (.unsupportedType(argument: "x", expected: "float32", got: "int8"), "x: expected float32, got int8"),
            (
                .unsupportedDevice(argument: "x", got: "another"),
                "x: expected memory on the CPU or a CUDA device, got another"
            ),
            (
                .differentDevice(argument: "up", expected: "memory on the CPU, where x is", got: "memory on CUDA device 0"),
                "up: expected memory on the CPU, where x is, got memory on CUDA device 0"
            ),
            (.backendUnavailable(reason: "no driver"), "no driver"),
            (.numericalFailure(operation: "svd", reason: "no convergence"), "svd: no convergence"),
            (.outOfMemory(bytes: 12), "could not allocate 12 bytes for intermediate results"),
            (.internal("a bug"), "internal error, please report it: a bug"),
        ] as [(LowRankError, String)])
    func messageNamesArgumentExpectedAndGot(error: LowRankError, message: String) {
        #expect(error.description == message)
    }
}
