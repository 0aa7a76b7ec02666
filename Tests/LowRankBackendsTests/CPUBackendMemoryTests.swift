// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import Glibc
import LowRankBackends
import LowRankCore
import TestSupport
import Testing

@Suite struct CPUBackendMemoryTests {
    @Test(arguments: ScalarType.allCases)
    func matricesAreAlignedAndCompact(type: ScalarType) throws {
        for (rows, columns) in [(3, 5), (0, 4), (4, 0), (1, 1)] {
            let byRow = try CPUBackend.shared.makeMatrix(rows: rows, columns: columns, type: type, order: .rowMajor)
            let byColumn = try CPUBackend.shared.makeMatrix(
                rows: rows, columns: columns, type: type, order: .columnMajor)
            #expect(byRow.view.rowStride == columns && byRow.view.columnStride == 1)
            #expect(byColumn.view.rowStride == 1 && byColumn.view.columnStride == rows)
            for matrix in [byRow, byColumn] {
                #expect(matrix.rows == rows && matrix.columns == columns && matrix.view.type == type)
                #expect(UInt(bitPattern: matrix.view.address) % 64 == 0)
            }
        }
    }

    @Test func reserveKeepsTheNewestBlocksOfASize() {
        let size = MemoryReserve.smallestBlock
        let reserve = MemoryReserve(capacity: 3 * size)
        func block(_ bytes: Int) -> UnsafeMutableRawPointer {
            guard let memory = malloc(bytes) else { preconditionFailure("no memory") }
            return memory
        }
        #expect(reserve.take(bytes: size) == nil)
        let (first, second, third) = (block(size), block(2 * size), block(size))
        reserve.give(first, bytes: size)
        reserve.give(second, bytes: 2 * size)
        #expect(reserve.take(bytes: size + 64) == nil && reserve.take(bytes: size - 64) == nil, "another size")
        #expect(reserve.take(bytes: 2 * size) == second)
        #expect(reserve.take(bytes: 2 * size) == nil, "taken already")
        reserve.give(second, bytes: 2 * size)
        reserve.give(third, bytes: size)
        // What was there longest had to go.
        #expect(reserve.take(bytes: size) == third && reserve.take(bytes: size) == nil)
        #expect(reserve.take(bytes: 2 * size) == second)
        free(second)
        free(third)
        // Too small and too large to be kept.
        for bytes in [size / 2, 4 * size] {
            reserve.give(block(bytes), bytes: bytes)
            #expect(reserve.take(bytes: bytes) == nil)
        }
    }

    @Test func refusedMemoryIsAnError() {
        // More than a process can address.
        #expect(throws: LowRankError.outOfMemory(bytes: 1 << 53)) {
            try CPUBackend.shared.makeMatrix(rows: 1 << 40, columns: 1 << 10, type: .float64, order: .rowMajor)
        }
    }

    @Test func refusedMemoryLeavesTheTargetAlone() {
        // The vector of factors does not fit, as its view claims 2^50 equal elements.
        let one = TestMatrix(RealMatrix(1, 1, repeating: 1), .float64)
        let huge = MatrixView(
            address: one.view.address, type: .float64, rows: 1, columns: 1 << 50, rowStride: 0, columnStride: 0)
        #expect(throws: LowRankError.outOfMemory(bytes: 1 << 53)) {
            try CPUBackend.shared.copy(one.view, rowFactors: huge, columnFactors: nil, to: one.view)
        }
        #expect(one.values[0, 0] == 1)
    }
}
