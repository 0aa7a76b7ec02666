// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import Glibc
import LowRankCore

extension CPUBackend {
    /// A is cut into parts of its rows by its shape alone, each with a Z of its own; these are added in their order.
    public func multiplyGram(_ a: MatrixView, _ x: MatrixView, into z: MatrixView) throws(LowRankError) {
        precondition(a.columns == x.rows && z.rows == x.rows && z.columns == x.columns, "shapes of a Gram product")
        let type = computeType(a, x)
        precondition(z.type == type, "a result of the compute type")
        if z.isEmpty { return }
        if a.rows == 0 { return clear(z) }
        let kernel = type == .float64 ? kernels.gramFloat64 : kernels.gramFloat32
        // Enough rows for a part's own Z to be little beside them, and parts for many threads.
        let partRows = max(512, (a.rows + 15) / 16)
        let parts = (a.rows + partRows - 1) / partRows
        let lanes = type == .float64 ? kernels.floatLanes / 2 : kernels.floatLanes
        let line = (z.columns + 2 * lanes - 1) / (2 * lanes) * 2 * lanes
        let lines = z.rows + KernelTable.gramSlack
        let sums = try makeMatrix(rows: parts * lines, columns: line, type: type, order: .rowMajor).view
        let workers = Self.isForOneThread(a.rows, a.columns, z.columns) ? 1 : min(threads, parts)
        let space = kernels.gramWorkspace(x.columns, x.rows, a.columnStride != 1)
        let workspace = try allocate(bytes: workers * space)
        defer { free(workspace) }
        parallelFor(parts, threads: workers) { part, worker in
            let rows = a[rows: (part * partRows)..<min((part + 1) * partRows, a.rows)]
            kernel(
                rows.rows, x.columns, x.rows, rows.address, a.type.rawValue, a.rowStride, a.columnStride,
                x.address, x.type.rawValue, x.rowStride, x.columnStride,
                sums.address + part * lines * line * type.size, line, workspace + worker * space)
        }
        let chunk = 512
        parallelFor((z.rows + chunk - 1) / chunk, threads: workers) { index, _ in
            let rows = (index * chunk)..<min((index + 1) * chunk, z.rows)
            for part in 0..<parts {
                let from = sums[(part * lines + rows.lowerBound)..<(part * lines + rows.upperBound), 0..<z.columns]
                copyPart(
                    from, rowFactors: nil, columnFactors: nil, beta: part == 0 ? 0 : 1, in: type, to: z[rows: rows])
            }
        }
    }
}
