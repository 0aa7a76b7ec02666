// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import Glibc
import LowRankBackends
import LowRankCore
import TestSupport
import Testing

/// Kernels read and write elements of their matrices and nothing else: here the next byte, on one side or the other,
/// belongs to a page that the process may not touch. Each test has a process of its own, which a wrong access ends.
@Suite struct OutOfBoundsTests {
    private static let sizes = [1, 2, 3, 5, 6, 7, 15, 16, 17, 34]
    private static let layouts = [Layout.rowMajor, .columnMajor, .strided, .reversed]

    /// A copy of the matrix between fences. Its memory lives as long as the process.
    private static func fenced(_ matrix: TestMatrix, atEnd: Bool) -> MatrixView {
        let view = matrix.view
        let page = Int(sysconf(Int32(_SC_PAGESIZE)))
        let reaches = [max(view.rows - 1, 0) * view.rowStride, max(view.columns - 1, 0) * view.columnStride]
        let below = reaches.filter { $0 < 0 }.reduce(0, +)
        let span = (reaches.filter { $0 > 0 }.reduce(0, +) - below + 1) * view.type.size
        let usable = (span + page - 1) / page * page
        guard let pages = mmap(nil, usable + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0),
            pages != MAP_FAILED,
            mprotect(pages + page, usable, PROT_READ | PROT_WRITE) == 0
        else { fatalError("no memory between fences") }
        let lowest = pages + page + (atEnd ? usable - span : 0)
        memcpy(lowest, view.address + below * view.type.size, span)
        return MatrixView(
            address: lowest - below * view.type.size, type: view.type, rows: view.rows, columns: view.columns,
            rowStride: view.rowStride, columnStride: view.columnStride)
    }

    @Test(arguments: [false, true])
    func products(atEnd: Bool) async {
        await #expect(processExitsWith: .success) { [atEnd] in
            for table in KernelTable.multiplying {
                let backend = CPUBackend(kernels: table, threads: 1)
                for type in ScalarType.allCases {
                    for layout in Self.layouts {
                        for size in Self.sizes {
                            let a = Self.fenced(TestMatrix(.integers(size, 5, seed: 1), type, layout), atEnd: atEnd)
                            let b = Self.fenced(TestMatrix(.integers(5, size, seed: 2), type, layout), atEnd: atEnd)
                            let c = Self.fenced(TestMatrix(.integers(size, size, seed: 3), type, layout), atEnd: atEnd)
                            for beta in [0, 1.0] { try backend.multiply(alpha: 1, a, b, beta: beta, into: c) }
                        }
                    }
                }
            }
        }
    }

    @Test(arguments: [false, true])
    func elementwiseAndReductions(atEnd: Bool) async {
        await #expect(processExitsWith: .success) { [atEnd] in
            for table in KernelTable.available {
                let backend = CPUBackend(kernels: table, threads: 1)
                for type in ScalarType.allCases {
                    for layout in Self.layouts {
                        for size in Self.sizes {
                            let a = Self.fenced(TestMatrix(.integers(2, size, seed: 1), type, layout), atEnd: atEnd)
                            let b = Self.fenced(TestMatrix(.integers(2, size, seed: 2), .float32, layout), atEnd: atEnd)
                            let row = Self.fenced(TestMatrix(.integers(1, size, seed: 3), type, layout), atEnd: atEnd)
                            try backend.copy(a, to: b)
                            try backend.copy(b, rowFactors: nil, columnFactors: row, to: a)
                            try backend.accumulate(b, beta: 0.5, into: a)
                            backend.setValues(backend.values(of: row), of: row)
                            _ = backend.maxMagnitude(of: a)
                            _ = backend.firstNonFinite(in: a)
                            _ = backend.columnDots(a, b)
                            backend.clear(a)
                        }
                    }
                }
            }
        }
    }

    /// Without this the tests above would pass on fences that are none.
    @Test(arguments: [false, true])
    func fencesHold(atEnd: Bool) async {
        await #expect(processExitsWith: .failure) { [atEnd] in
            let view = Self.fenced(TestMatrix(.integers(3, 5, seed: 1)), atEnd: atEnd)
            let next = view.address + (atEnd ? 3 * 5 * view.type.size : -1)
            print(next.load(as: UInt8.self))
        }
    }
}
