// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0

/// Element types of matrices in memory.
public enum ScalarType: Int32, Sendable, CaseIterable {
    // The raw values are the storage codes of the kernels.
    /// IEEE 754 with 24 bits of precision.
    case float32 = 0
    /// IEEE 754 with 53 bits of precision.
    case float64 = 1
    /// The upper half of a float32, with 8 bits of precision.
    case bfloat16 = 2
    /// IEEE 754 with 11 bits of precision.
    case float16 = 3

    /// Bytes of one element.
    public var size: Int {
        switch self {
        case .float64: 8
        case .float32: 4
        case .bfloat16, .float16: 2
        }
    }

    /// Distance from 1 to the next larger value.
    public var epsilon: Double {
        switch self {
        case .float32: 0x1p-23
        case .float64: 0x1p-52
        case .bfloat16: 0x1p-7
        case .float16: 0x1p-10
        }
    }

    /// The largest finite value.
    public var greatestFinite: Double {
        switch self {
        case .float32: Double(Float.greatestFiniteMagnitude)
        case .float64: .greatestFiniteMagnitude
        case .bfloat16: 0x1.fep127
        case .float16: 65504
        }
    }

    /// The type that products of such elements are summed in: float64 for float64, float32 for all others.
    public var computeType: ScalarType { self == .float64 ? .float64 : .float32 }
}

extension ScalarType: CustomStringConvertible {
    public var description: String {
        switch self {
        case .float32: "float32"
        case .float64: "float64"
        case .bfloat16: "bfloat16"
        case .float16: "float16"
        }
    }
}
