// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0

/// Places for the intermediate results of a call in one block of memory, given out from its start on.
package struct CUDAWorkspace {
    private let start: UnsafeMutableRawPointer
    private let capacity: Int
    private var places: [(offset: Int, end: Int, isFree: Bool)] = []
    /// The most that was in use at once, in bytes.
    package private(set) var needed = 0

    package init(_ start: UnsafeMutableRawPointer, bytes: Int) {
        self.start = start
        capacity = bytes
    }

    /// Addresses of no memory, as many as a call asks for: for finding out how many.
    package static var imaginary: CUDAWorkspace? {
        UnsafeMutableRawPointer(bitPattern: alignment).map { CUDAWorkspace($0, bytes: 1 << 62) }
    }

    /// That of torch's and CUDA's own allocations at least.
    private static let alignment = 256

    /// nil where what is left does not suffice.
    package mutating func take(bytes: Int) -> UnsafeMutableRawPointer? {
        let offset = places.last?.end ?? 0
        let end = offset + (bytes + Self.alignment - 1) / Self.alignment * Self.alignment
        if end > capacity { return nil }
        places.append((offset, end, false))
        needed = max(needed, end)
        return start + offset
    }

    /// Takes a place back; it is given out again as soon as those behind it are back too.
    package mutating func giveBack(_ memory: UnsafeMutableRawPointer) {
        guard let place = places.lastIndex(where: { start + $0.offset == memory && !$0.isFree }) else { return }
        places[place].isFree = true
        while places.last?.isFree == true { places.removeLast() }
    }
}
