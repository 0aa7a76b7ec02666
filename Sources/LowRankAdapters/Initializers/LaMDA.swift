// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankBackends
import LowRankCore
import LowRankFactorizations

/// LaMDA: B = U_r, C = diag(S_r) as a full r x r matrix, A = V_rᵀ.
///
/// Source: Azizi, Kundu, Pedram 2024, arXiv 2406.12832. The start of the core is this project's reading of the paper.
public enum LaMDA: Initializer {
    public static let name = "lamda"

    public static func startingFactors(
        of weight: MatrixView, rank: Int, scale: Double, options: InitializerOptions, downIn target: MatrixView?,
        on backend: some Backend
    ) throws(LowRankError) -> StartingFactors {
        let svd = try TruncatedSVD(
            of: weight, rank: rank, tolerance: options.tolerance, seed: options.seed, on: backend)
        let core = try backend.makeMatrix(rows: rank, columns: rank, type: svd.u.view.type, order: .rowMajor)
        backend.clear(core.view)
        backend.setValues(svd.s, of: core.view.diagonal)
        return StartingFactors(up: svd.u, core: .square(core), down: svd.vh)
    }
}
