// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankBackends
import LowRankCore

extension Factors {
    /// Adds the adapter to a weight, `W += s B C A`, in place.
    ///
    /// - Parameter weight: `[m, n]`, changed.
    /// - Throws: ``LowRankError/invalidShape(argument:expected:got:)``, ``LowRankError/nonFinite(argument:row:column:)`` for a
    ///   factor that is not finite, `outOfMemory`; all before the first write.
    ///
    /// Accuracy: sums in float32, float64 where an operand is; each entry is rounded once to the weight's type.
    /// - Complexity: 2 m n r operations; workspace m r with a core.
    public func merge(into weight: MatrixView, on backend: some Backend) throws(LowRankError) {
        try requireShape(weight, up.rows, down.columns, "weight")
        for (name, view) in [("up", up), ("core", core.view), ("down", down)] {
            if let view, let at = backend.firstNonFinite(in: view) {
                throw .nonFinite(argument: name, row: at.row, column: at.column)
            }
        }
        let left = try core.applied(toRightOf: up, on: backend)
        try backend.multiply(alpha: scale, left, down, beta: 1, into: weight)
    }
}
