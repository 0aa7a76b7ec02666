// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankBackends
import LowRankCore
import LowRankFactorizations

/// PiSSA: `B = U_r sqrt(S_r / s)`, no core, `A = sqrt(S_r / s) V_rᵀ`, so that `s B A` is the truncated SVD.
///
/// Source: Meng, Wang, Zhang 2024, arXiv 2404.02948.
public enum PiSSA: Initializer {
    public static let name = "pissa"

    public static func startingFactors(
        of weight: MatrixView, rank: Int, scale: Double, options: InitializerOptions, downIn target: MatrixView?,
        on backend: some Backend
    ) throws(LowRankError) -> StartingFactors {
        if scale <= 0 {
            throw .invalidArgument(argument: "scale", expected: "scale > 0, whose square root PiSSA takes", got: "\(scale)")
        }
        let svd = try TruncatedSVD(
            of: weight, rank: rank, tolerance: options.tolerance, seed: options.seed, on: backend)
        let roots = try backend.makeMatrix(rows: rank, columns: 1, type: .float64, order: .columnMajor)
        backend.setValues(svd.s.map { (max($0, 0) / scale).squareRoot() }, of: roots.view)
        try backend.copy(svd.u.view, rowFactors: nil, columnFactors: roots.view, to: svd.u.view)
        try backend.copy(svd.vh.view, rowFactors: roots.view, columnFactors: nil, to: svd.vh.view)
        return StartingFactors(up: svd.u, core: .identity, down: svd.vh)
    }
}
