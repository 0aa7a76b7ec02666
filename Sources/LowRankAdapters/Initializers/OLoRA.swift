// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankBackends
import LowRankCore
import LowRankFactorizations

/// OLoRA: B = Q_r, no core, A = R_r of `W = Q R`.
///
/// Source: Büyükakyüz 2024, arXiv 2406.01775. Truncated: equal to the leading part of a full QR up to rounding.
public enum OLoRA: Initializer {
    public static let name = "olora"

    public static func startingFactors(
        of weight: MatrixView, rank: Int, scale: Double, options: InitializerOptions, downIn target: MatrixView?,
        on backend: some Backend
    ) throws(LowRankError) -> StartingFactors {
        let (qr, check) = try TruncatedQR.started(of: weight, rank: rank, upperIn: target, on: backend)
        return factors(qr).checked(by: check.map(factors))
    }

    private static func factors(_ qr: TruncatedQR) -> StartingFactors {
        StartingFactors(up: qr.q, core: .identity, down: qr.r)
    }
}
