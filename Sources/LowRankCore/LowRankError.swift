// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0

/// Every way in which an operation of this library can fail.
public enum LowRankError: Error, Equatable {
    /// A dimension, a rank's range or two shapes do not fit. `expected` and `got` describe the argument's shape.
    case invalidShape(argument: String, expected: String, got: String)
    /// A value that is not a shape (a rank, a scale, a tolerance, a method's name) is out of its range.
    case invalidArgument(argument: String, expected: String, got: String)
    /// The result depends on an element that is a NaN or infinite; the first such element in row order.
    case nonFinite(argument: String, row: Int, column: Int)
    /// Memory that was to be written is read-only.
    case readOnly(argument: String)
    /// Memory that was to be written overlaps other memory of the same call.
    case overlap(argument: String, other: String)
    /// The element type is not one of ``ScalarType`` or does not fit this argument.
    case unsupportedType(argument: String, expected: String, got: String)
    /// The memory lies on a device that no backend serves.
    case unsupportedDevice(argument: String, got: String)
    /// The memory lies on another device than that of an earlier argument.
    case differentDevice(argument: String, expected: String, got: String)
    /// A backend's libraries are not there.
    case backendUnavailable(reason: String)
    /// Finite input for which no usable result was reached: overflow on the way, or no convergence.
    case numericalFailure(operation: String, reason: String)
    /// Memory for intermediate results was refused.
    case outOfMemory(bytes: Int)
    /// A bug of this library.
    case `internal`(String)
}

extension LowRankError: CustomStringConvertible {
    public var description: String {
        switch self {
        case .invalidShape(let argument, let expected, let got), .invalidArgument(let argument, let expected, let got),
            .unsupportedType(let argument, let expected, let got),
            .differentDevice(let argument, let expected, let got):
            "\(argument): expected \(expected), got \(got)"
        case .nonFinite(let argument, let row, let column):
            "\(argument): expected finite values, got a NaN or infinity, the first one at [\(row), \(column)]"
        case .readOnly(let argument):
            "\(argument): expected writable memory, got a read-only array"
        case .overlap(let argument, let other):
            "\(argument): expected memory of its own, got memory that overlaps \(other)"
        case .unsupportedDevice(let argument, let got):
            "\(argument): expected memory on the CPU or a CUDA device, got \(got)"
        case .backendUnavailable(let reason):
            reason
        case .numericalFailure(let operation, let reason):
            "\(operation): \(reason)"
        case .outOfMemory(let bytes):
            "could not allocate \(bytes) bytes for intermediate results"
        case .internal(let detail):
            "internal error, please report it: \(detail)"
        }
    }
}
