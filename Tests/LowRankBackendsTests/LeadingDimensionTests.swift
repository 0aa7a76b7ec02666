// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import Glibc
import LowRankBackends
import LowRankCore
import TestSupport
import Testing

/// Matrices that are parts of larger ones, their lines far apart. Numbers are whole, so that results must be equal.
@Suite struct LeadingDimensionTests {
    /// Powers of two, at which all lines compete for the same sets of a cache, off any vector's alignment.
    @Test(arguments: KernelTable.available, ScalarType.allCases)
    func powersOfTwo(table: KernelTable, type: ScalarType) throws {
        let backend = CPUBackend(kernels: table, threads: 2)
        let (rows, columns, depth) = (19, 35, 21)
        for lead in [64, 1024] {
            for layout in [Layout.rowMajor, .columnMajor] {
                func part(_ rows: Int, _ columns: Int, seed: UInt64) -> (whole: TestMatrix, view: MatrixView) {
                    let alongRows = layout == .rowMajor
                    let whole = TestMatrix(
                        .integers(alongRows ? rows : lead, alongRows ? lead : columns, seed: seed), type, layout)
                    return (
                        whole,
                        alongRows ? whole.view[columns: 3..<(3 + columns)] : whole.view[rows: 3..<(3 + rows)]
                    )
                }
                let (a, b, c) = (
                    part(rows, depth, seed: 1), part(depth, columns, seed: 2), part(rows, columns, seed: 3)
                )
                let label = "\(table.name) \(type) lines \(lead) apart, \(layout)"
                let before = c.whole.bits
                let expected = (a.view.values * b.view.values + c.view.values).rounded(to: type)
                try backend.multiply(alpha: 1, a.view, b.view, beta: 1, into: c.view)
                expectEqual(c.view.values, expected, label)
                // Nothing around the part was written: with the part put back, all is as it was.
                try backend.copy(part(rows, columns, seed: 3).view, to: c.view)
                #expect(c.whole.bits == before, "\(label)")
            }
        }
    }

    /// Offsets that neither 32 bits of elements nor of bytes hold.
    @Test(arguments: KernelTable.available, ScalarType.allCases)
    func huge(table: KernelTable, type: ScalarType) throws {
        let backend = CPUBackend(kernels: table, threads: 2)
        let lead = 1 << 30 + 3
        let lines = 6
        let bytes = lines * lead * type.size
        // Only the pages that hold elements get memory.
        let pages = try #require(
            mmap(nil, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0))
        try #require(pages != MAP_FAILED, "no addresses for \(bytes) bytes")
        defer { munmap(pages, bytes) }
        let (a, b) = (TestMatrix(.integers(lines, 5, seed: 1), type), TestMatrix(.integers(5, 17, seed: 2), type))
        for isTransposed in [false, true] {
            // A in one part of the lines, C in another.
            func part(_ offset: Int, _ columns: Int) -> MatrixView {
                MatrixView(
                    address: pages + offset * type.size, type: type, rows: lines, columns: columns, rowStride: lead,
                    columnStride: 1)
            }
            let (farA, farC) = (part(1, 5), part(8, 17))
            try backend.copy(a.view, to: farA)
            let label = "\(table.name) \(type) transposed: \(isTransposed)"
            if isTransposed {
                try backend.multiply(alpha: 1, b.view.transposed, farA.transposed, beta: 0, into: farC.transposed)
            } else {
                try backend.multiply(alpha: 1, farA, b.view, beta: 0, into: farC)
            }
            expectEqual(farC.values, (a.values * b.values).rounded(to: type), label)
            #expect(backend.maxMagnitude(of: farC) == farC.values.maxMagnitude, "\(label)")
            backend.clear(farC)
        }
    }
}
