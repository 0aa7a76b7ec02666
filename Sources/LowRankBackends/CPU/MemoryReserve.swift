// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import CPUFeatures
import Glibc

/// Large blocks of memory that were given back and wait for the next matrix of their size.
///
/// malloc returns such blocks to the system, which then has to clear every page again when it is first touched: for a
/// panel that takes longer than to factor it.
package final class MemoryReserve: @unchecked Sendable {
    /// The process's.
    static let shared = MemoryReserve(capacity: 16 << 20)
    /// Smaller blocks malloc itself keeps.
    package static let smallestBlock = 1 << 17

    /// Bytes that are kept in all, at most; the oldest blocks go first.
    private let capacity: Int
    // Guarded by the process's lock, which a fork waits for; the oldest first.
    private var blocks: [(address: UnsafeMutableRawPointer, bytes: Int)] = []

    package init(capacity: Int) { self.capacity = capacity }

    deinit { for block in blocks { free(block.address) } }

    /// Memory of exactly so many bytes, with undefined contents; nil if none waits.
    package func take(bytes: Int) -> UnsafeMutableRawPointer? {
        if bytes < Self.smallestBlock || bytes > capacity { return nil }
        fork_safe_lock()
        defer { fork_safe_unlock() }
        guard let index = blocks.lastIndex(where: { $0.bytes == bytes }) else { return nil }
        return blocks.remove(at: index).address
    }

    /// Takes over memory of malloc's.
    package func give(_ address: UnsafeMutableRawPointer, bytes: Int) {
        if bytes < Self.smallestBlock || bytes > capacity { return free(address) }
        fork_safe_lock()
        defer { fork_safe_unlock() }
        blocks.append((address, bytes))
        while blocks.reduce(0, { $0 + $1.bytes }) > capacity { free(blocks.removeFirst().address) }
    }
}
