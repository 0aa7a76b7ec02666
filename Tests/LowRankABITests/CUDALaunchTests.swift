// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import CLowRank
import LowRank
import TestSupport
import Testing

/// How often factorisations on a device launch something, and how often the host waits for it: most of the time that they take
/// beside reading the weight.
@Suite struct CUDALaunchTests {
    /// What a call did.
    private struct Counts: Equatable, CustomStringConvertible {
        /// Kernels, products and solves.
        var launches: Int
        var waits: Int

        var description: String { "\(launches) launches, \(waits) waits" }

        static func of(_ double: CUDADouble) -> Counts {
            let launches = [
                "cuLaunchKernel", "cublasGemmEx", "cublasStrsm_v2", "cublasDtrsm_v2", "cusolverDnSgeqrf", "cusolverDnSorgqr",
            ]
            let waits = double.calls("cuStreamSynchronize")
            return Counts(launches: launches.map { double.calls($0) }.reduce(0, +), waits: waits)
        }

        static func - (after: Counts, before: Counts) -> Counts {
            Counts(launches: after.launches - before.launches, waits: after.waits - before.waits)
        }
    }

    private func counts(
        _ name: String, _ type: ScalarType, m: Int = 200, n: Int = 180, r: Int = 32
    ) throws -> Counts {
        var made = TestCall.Arguments()
        (made.m, made.n, made.r, made.type) = (m, n, r, type)
        return try TestCall.$made.withValue(made) {
            let call = try TestCall.named(name)
            var result = Counts(launches: 0, waits: 0)
            try CUDADouble.withWarmDevice { double in
                let moved = call.arguments.map { $0.tensor.moved(to: double) }
                let before = Counts.of(double)
                #expect(call() == .ok, "\(name): \(lastMessage)")
                result = Counts.of(double) - before
                double.run(nil)
                withExtendedLifetime(moved) {}
            }
            return result
        }
    }

    /// A weight is changed only once all is known, for which the host waits once; an LU takes its pivots before.
    @Test func launchesAndWaits() throws {
        let r = 32
        let cases: [(name: String, type: ScalarType, counts: Counts)] = [
            ("lr_initialize olora", .float32, Counts(launches: 7, waits: 1)),
            ("lr_initialize olora", .bfloat16, Counts(launches: 10, waits: 1)),
            ("lr_qr", .float32, Counts(launches: 6, waits: 1)),
            ("lr_merge", .float32, Counts(launches: 3, waits: 1)),
            ("lr_initialize loldu", .float32, Counts(launches: r + 16, waits: 2)),
            ("lr_initialize loldu", .bfloat16, Counts(launches: r + 17, waits: 2)),
            ("lr_ldu", .float32, Counts(launches: r + 14, waits: 3)),
        ]
        for (name, type, expected) in cases {
            let got = try counts(name, type, r: r)
            #expect(got == expected, "\(name) \(type)")
        }
    }

    /// A Krylov space of a weight whose singular values fall slowly: one wait a step, and a few for each look at what has
    /// converged.
    @Test(arguments: [ScalarType.float32, .bfloat16])
    func waitsOfTheSVD(type: ScalarType) throws {
        let got = try counts("lr_svd", type, m: 420, n: 400, r: 16)
        #expect(got.waits <= 39, "\(got)")
    }
}
