// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import Glibc
import LowRankCore
import Testing

/// How large a ratio `residual / (max(m, n) * norm(A) * eps)` may be: the one table of tolerances, from LAPACK's tests.
public enum Limit: String, Sendable {
    case qr
    case ldu
    case svd
    case product

    public var ratio: Double {
        switch self {
        case .qr, .ldu, .product: 30
        case .svd: 50
        }
    }
}

/// Expects `residual` to be within the limit for an m x n problem of the given norm; records the ratio.
///
/// - Parameters:
///   - size: max(m, n), and the depth of a product where that is larger.
///   - norm: What the residual is relative to: norm(A), or the product of norms. Where it is 0 the residual must be.
public func expectSmall(
    _ residual: Double, size: Int, norm: Double, _ type: ScalarType, within limit: Limit,
    _ label: @autoclosure () -> String, sourceLocation: SourceLocation = #_sourceLocation
) {
    let unit = Double(max(size, 1)) * norm * type.epsilon
    let ratio = residual == 0 ? 0 : residual / unit
    WorstRatios.shared.record(ratio, limit, label())
    #expect(
        ratio <= limit.ratio, "\(limit.rawValue) ratio \(ratio), residual \(residual), \(type): \(label())",
        sourceLocation: sourceLocation)
}

/// Expects equal entries, where a NaN equals a NaN.
public func expectEqual(
    _ got: RealMatrix, _ expected: RealMatrix, _ label: @autoclosure () -> String,
    sourceLocation: SourceLocation = #_sourceLocation
) {
    if got.isIdentical(to: expected) { return }
    Issue.record("\(label()): \(got.firstDifference(from: expected))", sourceLocation: sourceLocation)
}

/// Expects elements of these bits, where any NaN stands for any other.
///
/// - Parameter inputs: What the elements were made from, for messages.
public func expectBits(
    _ matrix: TestMatrix, _ expected: [UInt64], from inputs: [UInt64], _ label: @autoclosure () -> String,
    sourceLocation: SourceLocation = #_sourceLocation
) {
    let type = matrix.view.type
    let got = matrix.bits
    #expect(got.count == expected.count, sourceLocation: sourceLocation)
    for (index, (bits, wanted)) in zip(got, expected).enumerated() where bits != wanted {
        if type.value(of: bits).isNaN && type.value(of: wanted).isNaN { continue }
        let numbers = [inputs[index], bits, wanted].map { "0x" + String($0, radix: 16) }
        let message = "bits \(numbers[0]) became \(numbers[1]), not \(numbers[2])"
        Issue.record("\(label()): \(message)", sourceLocation: sourceLocation)
        return
    }
}

/// Expects all results to have the bits of the first. (Comparing arrays in the expectation itself would have every
/// difference worked out, which takes minutes for large ones.)
///
/// - Parameter cases: What each result was made with.
public func expectSameBits(
    _ results: [[UInt64]], cases: [String], _ label: @autoclosure () -> String,
    sourceLocation: SourceLocation = #_sourceLocation
) {
    for (result, name) in zip(results, cases) where result != results[0] {
        let differences = zip(result, results[0]).filter { $0 != $1 }.count
        Issue.record(
            "\(label()): \(differences) of \(result.count) elements differ between \(cases[0]) and \(name)",
            sourceLocation: sourceLocation)
    }
}

/// Expects the memory between and around a matrix's elements to be untouched.
public func expectIntactGuard(
    _ matrices: TestMatrix..., label: @autoclosure () -> String, sourceLocation: SourceLocation = #_sourceLocation
) {
    for (index, matrix) in matrices.enumerated() where !matrix.isGuardIntact {
        Issue.record("\(label()): memory outside of matrix \(index) was written", sourceLocation: sourceLocation)
    }
}

/// The worst ratio of each kind, printed when the process ends.
private final class WorstRatios: Sendable {
    static let shared = WorstRatios()

    private let worst = Guarded<[Limit: (ratio: Double, label: String)]>([:])

    private init() {
        atexit { WorstRatios.shared.printAll() }
    }

    func record(_ ratio: Double, _ limit: Limit, _ label: String) {
        worst.withLock { worst in
            if let known = worst[limit], known.ratio >= ratio { return }
            worst[limit] = (ratio, label)
        }
    }

    private func printAll() {
        let worst = worst.withLock { $0 }
        for (limit, entry) in worst.sorted(by: { $0.key.rawValue < $1.key.rawValue }) {
            print("worst \(limit.rawValue) ratio: \(entry.ratio) of \(limit.ratio) (\(entry.label))")
        }
    }
}
