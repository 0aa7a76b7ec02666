// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankCore

extension CPUBackend {
    public func multiplyPair(
        _ g: MatrixView, _ b: MatrixView, into p: MatrixView, alpha: Double, _ h: MatrixView, into d: MatrixView
    ) throws(LowRankError) {
        try multiplyPair(g, b, into: p, alpha: alpha, h, into: d, rowsAtOnce: Self.rowsInCache(of: g))
    }

    /// The second product finds some rows of g where the first one left them: in the last level of the cache.
    package func multiplyPair(
        _ g: MatrixView, _ b: MatrixView, into p: MatrixView, alpha: Double, _ h: MatrixView, into d: MatrixView,
        rowsAtOnce: Int
    ) throws(LowRankError) {
        // What d's own type would round after each part is summed in one.
        let step = d.type == computeType(g, h, d) ? rowsAtOnce : max(g.rows, 1)
        var first = 0
        repeat {
            let rows = first..<min(first + step, g.rows)
            try multiply(alpha: 1, g[rows: rows], b, beta: 0, into: p[rows: rows])
            try multiply(alpha: alpha, g[rows: rows].transposed, h[rows: rows], beta: first == 0 ? 0 : 1, into: d)
            first += step
        } while first < g.rows
    }

    /// By g's shape and type alone: 8 MiB, in whole blocks of the depth that kernels sum in one go, two at least.
    private static func rowsInCache(of g: MatrixView) -> Int {
        let block = 256
        return max(2, (8 << 20) / max(1, g.columns * g.type.size) / block) * block
    }
}
