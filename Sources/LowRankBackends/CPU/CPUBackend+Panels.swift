// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import Glibc
import LowRankCore

// Panels of up to `panelColumns` columns are the kernels' work, on one thread; wider ones are cut into such parts, and what
// the parts do to each other are products.

extension CPUBackend {
    public func factorLU(_ panel: Matrix) throws(LowRankError) -> [Int] {
        let view = columnMajor(panel)
        precondition(view.rows >= view.columns, "shape of an LU panel")
        let (m, r, width) = (view.rows, view.columns, kernels.panelColumns)
        let workspace = try allocate(bytes: kernels.panelWorkspace(m))
        defer { free(workspace) }
        var pivots = [Int](repeating: 0, count: r)
        for first in stride(from: 0, to: r, by: width) {
            let end = min(first + width, r)
            let part = view[first..<m, first..<end]
            pivots.withUnsafeMutableBufferPointer { buffer in
                guard let start = buffer.baseAddress else { return }
                kernels.factorLU(
                    view.type.rawValue, part.rows, part.columns, part.address, view.columnStride, start + first, workspace)
            }
            for k in first..<end { pivots[k] += first }
            let exchanges = first..<end
            exchangeRows(pivots, exchanges, of: view[columns: 0..<first])
            if end == r { break }
            exchangeRows(pivots, exchanges, of: view[columns: end..<r])
            let upper = view[first..<end, end..<r]
            let right = try makeMatrix(rows: upper.rows, columns: upper.columns, type: view.type, order: .rowMajor)
            try copy(upper, to: right.view)
            try solveUnitLower(part, right.view)
            try copy(right.view, to: upper)
            try multiply(alpha: -1, view[end..<m, first..<end], right.view, beta: 1, into: view[end..<m, end..<r])
        }
        var permutation = Array(0..<m)
        for (i, pivot) in pivots.enumerated() { permutation.swapAt(i, pivot) }
        return permutation
    }

    /// Exchanges row k with row `pivots[k]` for the ks of a range, in order.
    private func exchangeRows(_ pivots: [Int], _ range: Range<Int>, of view: MatrixView) {
        func exchange<Bits>(_: Bits.Type) {
            for j in 0..<view.columns {
                let column = view.address.assumingMemoryBound(to: Bits.self) + j * view.columnStride
                for k in range { (column[k], column[pivots[k]]) = (column[pivots[k]], column[k]) }
            }
        }
        if view.type == .float64 { exchange(UInt64.self) } else { exchange(UInt32.self) }
    }

    public func solveUnitLower(_ panel: Matrix, _ right: Matrix) throws(LowRankError) {
        precondition(right.view.columnStride == 1 && right.rows <= panel.rows, "shapes of a triangular solve")
        precondition(right.rows <= panel.columns && panel.view.type == right.view.type, "operands of a triangular solve")
        try solveUnitLower(columnMajor(panel), right.view)
    }

    private func solveUnitLower(_ panel: MatrixView, _ right: MatrixView) throws(LowRankError) {
        if right.isEmpty { return }
        let width = kernels.panelColumns
        let chunk = 512
        let chunks = (right.columns + chunk - 1) / chunk
        let rows = min(width, right.rows)
        let workers = Self.isForOneThread(rows, rows, right.columns) ? 1 : min(threads, chunks)
        let space = kernels.solveWorkspace(rows)
        let workspace = try allocate(bytes: workers * space)
        defer { free(workspace) }
        for first in stride(from: 0, to: right.rows, by: width) {
            let end = min(first + width, right.rows)
            let triangle = panel[first..<end, first..<end]
            parallelFor(chunks, threads: workers) { index, worker in
                let part = right[first..<end, (index * chunk)..<min((index + 1) * chunk, right.columns)]
                kernels.solveUnitLower(
                    right.type.rawValue, part.rows, part.columns, triangle.address, panel.columnStride, part.address,
                    right.rowStride, workspace + worker * space)
            }
            if end == right.rows { break }
            try multiply(
                alpha: -1, panel[end..<right.rows, first..<end], right[rows: first..<end], beta: 1,
                into: right[rows: end..<right.rows])
        }
    }

    public func factorQR(_ panel: Matrix, triangle: MatrixView) throws(LowRankError) {
        let view = columnMajor(panel)
        let (m, r, width) = (view.rows, view.columns, kernels.panelColumns)
        precondition(m >= r && r == triangle.rows && r == triangle.columns, "shapes of a QR panel")
        let space = kernels.panelWorkspace(m)
        let workspace = try allocate(bytes: space + 6 * (r + 6) * view.type.size)
        defer { free(workspace) }
        let triangles = workspace + space
        let starts = Array(stride(from: 0, to: r, by: width))
        var reflections: [Reflections] = []
        for first in starts {
            let columns = first..<min(first + width, r)
            for earlier in reflections { try apply(earlier, transposed: true, to: columns, of: view) }
            let part = view[first..<m, columns]
            let scales = triangles + 6 * first * view.type.size
            kernels.factorQR(
                view.type.rawValue, part.rows, part.columns, part.address, view.columnStride, scales, workspace)
            if r > width { reflections.append(try makeReflections(of: view, columns, scales)) }
        }
        clear(triangle)
        for j in 0..<r { try copy(view[0..<(j + 1), j..<(j + 1)], to: triangle[0..<(j + 1), j..<(j + 1)]) }
        // From the last part on, as each takes the place of its own reflections.
        for (index, first) in starts.enumerated().reversed() {
            let columns = first..<min(first + width, r)
            let part = view[first..<m, columns]
            kernels.formQ(
                view.type.rawValue, part.rows, part.columns, part.address, view.columnStride,
                triangles + 6 * first * view.type.size, workspace)
            clear(view[0..<first, columns])
            for earlier in reflections.prefix(index).reversed() {
                try apply(earlier, transposed: false, to: columns, of: view)
            }
        }
    }

    /// `I - V T Vᵀ` of some columns of a panel.
    private struct Reflections {
        let columns: Range<Int>
        /// The first rows of V, unit lower triangular; the others are in the panel below.
        let top: Matrix
        /// T, upper triangular.
        let triangle: Matrix
    }

    /// T column by column: `T[:l, l] = -tau T[:l, :l] (VᵀV)[:l, l]`.
    private func makeReflections(
        of view: MatrixView, _ columns: Range<Int>, _ scales: UnsafeMutableRawPointer
    ) throws(LowRankError) -> Reflections {
        let (count, type) = (columns.count, view.type)
        let top = try makeMatrix(rows: count, columns: count, type: type, order: .columnMajor)
        try copy(view[columns, columns], to: top.view)
        makeUnitLower(top.view)
        let gram = try product(top.view.transposed, top.view)
        let below = view[columns.upperBound..<view.rows, columns]
        if !below.isEmpty { try multiply(alpha: 1, below.transposed, below, beta: 1, into: gram.view) }
        let triangle = try makeMatrix(rows: count, columns: count, type: type, order: .rowMajor)
        var lines = [[Double]](repeating: [Double](repeating: 0, count: count), count: count)
        for l in 0..<count {
            // On the diagonals of the kernels' triangles of 6 x 6.
            let at = MatrixView(
                address: scales + (l / 6 * 36 + l % 6 * 7) * type.size, type: type, rows: 1, columns: 1, rowStride: 1,
                columnStride: 1)
            let tau = values(of: at)[0]
            let products = values(of: gram.view[0..<count, l..<(l + 1)])
            for i in 0..<l { lines[i][l] = -tau * (i..<l).reduce(0) { $0 + lines[i][$1] * products[$1] } }
            lines[l][l] = tau
        }
        setRows(lines, of: triangle.view)
        return Reflections(columns: columns, top: top, triangle: triangle)
    }

    /// `C -= V T Vᵀ C` for some columns C of the panel, or with the transpose of T.
    private func apply(
        _ reflections: Reflections, transposed: Bool, to columns: Range<Int>, of view: MatrixView
    ) throws(LowRankError) {
        let rows = reflections.columns.upperBound..<view.rows
        let (upper, lower) = (view[reflections.columns, columns], view[rows, columns])
        let below = view[rows, reflections.columns]
        let dots = try product(reflections.top.view.transposed, upper)
        if !rows.isEmpty { try multiply(alpha: 1, below.transposed, lower, beta: 1, into: dots.view) }
        let triangle = reflections.triangle.view
        let weights = try product(transposed ? triangle.transposed : triangle, dots.view)
        try multiply(alpha: -1, reflections.top.view, weights.view, beta: 1, into: upper)
        if !rows.isEmpty { try multiply(alpha: -1, below, weights.view, beta: 1, into: lower) }
    }

    private func columnMajor(_ matrix: Matrix) -> MatrixView {
        let view = matrix.view
        precondition(view.rowStride == 1 && view.type == view.type.computeType, "a column-major panel")
        return view
    }
}
