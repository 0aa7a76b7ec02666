// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankBackends
import LowRankCore

/// What has to be asked about a result before anything of the caller's depends on it. A device may not have computed it yet,
/// and the host waits once for all that it asks together.
package struct PendingCheck<Result> {
    /// What to ask.
    package let questions: [Question]
    /// Takes the answers.
    ///
    /// - Returns: nil where the result is right; else the one to use in its place, which is.
    /// - Throws: What makes the result impossible.
    package let resolve: ([[Double]]) throws(LowRankError) -> Result?

    /// The result, or the one to use in its place.
    func resolved(_ result: Result, on backend: some Backend) throws(LowRankError) -> Result {
        try resolve(backend.answers(to: questions)) ?? result
    }

    /// The same check of what is made of the result.
    package func map<Other>(_ transform: @escaping (Result) -> Other) -> PendingCheck<Other> {
        PendingCheck<Other>(questions: questions) { (answers) throws(LowRankError) in
            let other = try resolve(answers)
            return other.map(transform)
        }
    }
}
