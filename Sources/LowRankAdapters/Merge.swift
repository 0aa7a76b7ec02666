// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankBackends
import LowRankCore

extension Factors {
    /// Adds the adapter to a weight, `W += s B C A`, in place.
    ///
    /// Entries of W that are not finite stay so; finite ones stay finite, or nothing is written.
    ///
    /// - Parameter weight: `[m, n]`, changed.
    /// - Throws: ``LowRankError/invalidShape(argument:expected:got:)``, ``LowRankError/nonFinite(argument:row:column:)`` for a
    ///   factor that is not finite, ``LowRankError/numericalFailure(operation:reason:)`` where a finite entry would leave the
    ///   range of the weight's type, `outOfMemory`; all before the first write.
    ///
    /// Accuracy: sums in float32, float64 where an operand is; each entry is rounded once to the weight's type.
    /// - Complexity: 2 m n r operations; workspace m r with a core. Twice that, and a few rows of W, where entries come near
    ///   the end of the weight's range.
    public func merge(into weight: MatrixView, on backend: some Backend) throws(LowRankError) {
        guard let merge = try startMerge(into: weight, on: backend) else { return }
        try finish(merge, answers: backend.answers(to: merge.questions), into: weight, on: backend)
    }

    /// The start of a merge, which changes nothing.
    struct PendingMerge {
        /// B C.
        let left: MatrixView
        /// What has to be asked before the weight is changed.
        let questions: [Question]
    }

    /// - Returns: nil where the weight has no element.
    func startMerge(into weight: MatrixView, on backend: some Backend) throws(LowRankError) -> PendingMerge? {
        try requireShape(weight, up.rows, down.columns, "weight")
        if weight.isEmpty { return nil }
        let left = try core.applied(toRightOf: up, in: weight.type, on: backend)
        let questions = [.largestColumnSquare(left.transposed), .largestColumnSquare(down)] + [core.view].compactMap { view in
            view.map { Question.isFinite($0) }
        }
        return PendingMerge(left: left, questions: questions)
    }

    /// Changes the weight.
    func finish(
        _ merge: PendingMerge, answers: [[Double]], into weight: MatrixView, on backend: some Backend
    ) throws(LowRankError) {
        let left = merge.left
        if answers.count == 3, answers[2] != [1] { try requireFinite(core.view, "core", on: backend) }
        let reach = largestDot(answers[0][0], answers[1][0])
        // A factor that is not finite makes that bound infinite, or a NaN.
        if !reach.isFinite {
            try requireFinite(up, "up", on: backend)
            try requireFinite(down, "down", on: backend)
        }
        if !backend.boundsSum(of: weight, reach: reach, scale: scale, computing: backend.computeType(left, down, weight)) {
            try requireFiniteSum(of: weight, left, on: backend)
        }
        try backend.multiply(alpha: scale, left, down, beta: 1, into: weight)
    }

    /// Computes `W + s left A` into rows of its own, and throws where a finite entry of W would not stay finite.
    private func requireFiniteSum(
        of weight: MatrixView, _ left: MatrixView, on backend: some Backend
    ) throws(LowRankError) {
        let blockRows = 64
        let trial = try backend.makeMatrix(
            rows: min(blockRows, weight.rows), columns: weight.columns, type: weight.type, order: .rowMajor)
        for first in stride(from: 0, to: weight.rows, by: blockRows) {
            let block = weight[rows: first..<min(first + blockRows, weight.rows)]
            let sum = trial.view[rows: 0..<block.rows]
            try backend.copy(block, to: sum)
            try backend.multiply(alpha: scale, left[rows: first..<(first + block.rows)], down, beta: 1, into: sum)
            guard let at = backend.firstNonFinite(in: sum) else { continue }
            for i in at.row..<block.rows {
                let (old, new) = (backend.values(of: block[rows: i..<(i + 1)]), backend.values(of: sum[rows: i..<(i + 1)]))
                guard let j = old.indices.first(where: { old[$0].isFinite && !new[$0].isFinite }) else { continue }
                throw .numericalFailure(
                    operation: "scale",
                    reason: "expected entries W + scale * B C A within the range of \(weight.type), got one beyond it at "
                        + "[\(first + i), \(j)], where W is \(old[j])")
            }
        }
    }
}

private func requireFinite(
    _ view: MatrixView?, _ argument: String, on backend: some Backend
) throws(LowRankError) {
    guard let view, let at = backend.firstNonFinite(in: view) else { return }
    throw .nonFinite(argument: argument, row: at.row, column: at.column)
}

/// A bound on the magnitude of every entry of a product, and of every partial sum of one: the largest norm of a row of the left
/// matrix times that of a column of the right one (Cauchy and Schwarz), of their squares. Not finite where one isn't.
private func largestDot(_ row: Double, _ column: Double) -> Double {
    // The squares of small numbers may vanish; what is added is more than is lost.
    (row + 0x1p-1000).squareRoot() * (column + 0x1p-1000).squareRoot()
}

extension Backend {
    /// Whether no finite entry of `weight + scale * product` can leave the weight's range, where the product's entries and
    /// their partial sums are at most `reach`. W is read only if the change could matter to its largest number.
    fileprivate func boundsSum(of weight: MatrixView, reach: Double, scale: Double, computing type: ScalarType) -> Bool {
        // Twice, for what rounding adds to the sums.
        let change = 2 * scale.magnitude * reach
        let isInRange = [2 * reach, scale.magnitude, change].allSatisfy { $0 < type.greatestFinite }
        if !isInRange { return false }
        let largest = weight.type.greatestFinite
        // Less than half the distance of the largest numbers rounds back to them.
        if change < largest * weight.type.epsilon / 4 { return true }
        return maxMagnitude(of: weight) + change < largest
    }
}
