// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import CPUFeatures
import Glibc

/// Large blocks of memory that were given back and wait for the next matrix of their size.
///
/// malloc returns such blocks to the system, which then has to clear every page again when it is first touched: for a
/// panel that takes longer than to factor it. At most `capacity` bytes are kept, of which the oldest go first.
enum MemoryReserve {
    /// Smaller blocks malloc itself keeps.
    static let smallestBlock = 1 << 17
    /// Bytes that may be kept in all.
    static let capacity = 16 << 20

    // Guarded by the process's lock, which a fork waits for; the oldest first.
    private nonisolated(unsafe) static var blocks: [(address: UnsafeMutableRawPointer, bytes: Int)] = []

    /// Memory of exactly so many bytes, aligned to cache lines and with undefined contents; nil if none waits.
    static func take(bytes: Int) -> UnsafeMutableRawPointer? {
        if bytes < smallestBlock || bytes > capacity { return nil }
        fork_safe_lock()
        defer { fork_safe_unlock() }
        guard let index = blocks.lastIndex(where: { $0.bytes == bytes }) else { return nil }
        return blocks.remove(at: index).address
    }

    /// Takes over memory that `posix_memalign` gave.
    static func give(_ address: UnsafeMutableRawPointer, bytes: Int) {
        if bytes < smallestBlock || bytes > capacity { return free(address) }
        fork_safe_lock()
        defer { fork_safe_unlock() }
        blocks.append((address, bytes))
        while blocks.reduce(0, { $0 + $1.bytes }) > capacity { free(blocks.removeFirst().address) }
    }
}
