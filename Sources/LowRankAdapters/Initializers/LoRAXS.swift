// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankBackends
import LowRankCore
import LowRankFactorizations

/// LoRA-XS: `B = U_r diag(S_r)`, `A = V_rᵀ`, and a full r x r core of zeros, which alone trains.
///
/// `s B C A` is zero, so that an in-place form leaves the weight as it is.
/// Source: Bałazy, Banaei, Aberer, Tabor 2024, arXiv 2405.17604. There the core starts near zero, here at it.
public enum LoRAXS: Initializer {
    public static let name = "lora_xs"

    public static func startingFactors(
        of weight: MatrixView, rank: Int, scale: Double, options: InitializerOptions, downIn target: MatrixView?,
        on backend: some Backend
    ) throws(LowRankError) -> StartingFactors {
        let svd = try TruncatedSVD(
            of: weight, rank: rank, tolerance: options.tolerance, seed: options.seed, on: backend)
        let values = try backend.makeMatrix(rows: rank, columns: 1, type: .float64, order: .columnMajor)
        backend.setValues(svd.s, of: values.view)
        try backend.copy(svd.u.view, rowFactors: nil, columnFactors: values.view, to: svd.u.view)
        let core = try backend.makeMatrix(rows: rank, columns: rank, type: svd.u.view.type, order: .rowMajor)
        backend.clear(core.view)
        return StartingFactors(up: svd.u, core: .square(core), down: svd.vh)
    }
}
