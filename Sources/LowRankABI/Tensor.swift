// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import CLowRank
import LowRank

/// A DLPack tensor of a call, checked once: device, dtype, dimensions, strides.
struct Tensor {
    let argument: String
    let device: Device
    let view: MatrixView
    /// Dimensions as the caller gave them: a vector [r] is seen as a matrix [1, r].
    let dimensions: Int
    /// The bytes between the lowest and the highest element.
    let extent: Range<UInt>
}

/// Element types that a tensor may have.
private func scalarType(_ type: DLDataType) -> ScalarType? {
    switch (Int(type.code), type.bits, type.lanes) {
    case (kDLFloat, 32, 1): .float32
    case (kDLFloat, 64, 1): .float64
    case (kDLFloat, 16, 1): .float16
    case (kDLBfloat, 16, 1): .bfloat16
    default: nil
    }
}

private let supportedTypes = "float32, float64, bfloat16 or float16"

func describe(_ type: DLDataType) -> String {
    let names = [kDLInt: "int", kDLUInt: "uint", kDLFloat: "float", kDLBfloat: "bfloat", 5: "complex", 6: "bool"]
    guard type.lanes == 1, let name = names[Int(type.code)] else {
        return "DLPack type code \(type.code), \(type.bits) bits, \(type.lanes) lanes"
    }
    return name == "bool" ? name : "\(name)\(type.bits)"
}

/// The layout of a tensor before its element type is looked at.
struct Layout {
    let shape: [Int]
    let strides: [Int]
    let address: UnsafeMutableRawPointer
    let extent: Range<UInt>

    var description: String { "\(shape.count) dimensions (shape \(shape))" }

    init(_ tensor: UnsafePointer<DLTensor>, elementSize: Int, _ argument: String) throws(LowRankError) {
        let source = tensor.pointee
        let count = Int(source.ndim)
        guard (0...Self.maxDimensions).contains(count), count == 0 || source.shape != nil else {
            throw .invalidShape(
                argument: argument, expected: "a DLPack tensor of at most \(Self.maxDimensions) dimensions", got: "\(count)")
        }
        var shape: [Int] = []
        for i in 0..<count { shape.append(Int(source.shape[i])) }
        guard shape.allSatisfy({ $0 >= 0 }) else {
            throw .invalidShape(argument: argument, expected: "dimensions of at least 0", got: "\(shape)")
        }
        var strides = [Int](repeating: 1, count: count)
        if let given = source.strides {
            for i in 0..<count { strides[i] = Int(given[i]) }
        } else {
            for i in stride(from: count - 2, through: 0, by: -1) {
                let (product, overflows) = strides[i + 1].multipliedReportingOverflow(by: max(shape[i + 1], 1))
                if overflows { throw Self.tooLarge(argument, shape) }
                strides[i] = product
            }
        }
        let isEmpty = shape.contains(0)
        // A stride along which there is no step may hold anything, also what overflows.
        for i in 0..<count where isEmpty || shape[i] == 1 { strides[i] = 1 }
        self.shape = shape
        self.strides = strides
        if isEmpty {
            if shape.contains(where: { $0 > Self.maxBytes }) { throw Self.tooLarge(argument, shape) }
            // Nothing is read or written; views need some address all the same.
            address = UnsafeMutableRawPointer(bitPattern: 64).unsafelyUnwrapped
            extent = 0..<0
            return
        }
        guard let data = source.data else {
            throw .invalidArgument(argument: argument, expected: "memory", got: "a null pointer")
        }
        var elements = 1.0
        for size in shape { elements *= Double(size) }
        if elements > Self.maxElements || source.byte_offset > UInt64(Self.maxBytes) { throw Self.tooLarge(argument, shape) }
        address = data + Int(source.byte_offset)
        guard UInt(bitPattern: address) % UInt(elementSize) == 0 else {
            throw .invalidArgument(
                argument: argument, expected: "memory aligned to its \(elementSize) byte elements", got: "\(address)")
        }
        var low = 0
        var high = 0
        for (size, stride) in zip(shape, strides) where size > 1 {
            let (reach, overflows) = (size - 1).multipliedReportingOverflow(by: stride)
            let (bytes, bytesOverflow) = reach.multipliedReportingOverflow(by: elementSize)
            if overflows || bytesOverflow || bytes.magnitude > UInt(Self.maxBytes) { throw Self.tooLarge(argument, shape) }
            if bytes < 0 { low += bytes } else { high += bytes }
        }
        let start = UInt(bitPattern: address)
        if low.magnitude > start || UInt.max - start < UInt(high + elementSize) { throw Self.tooLarge(argument, shape) }
        extent = (start - low.magnitude)..<(start + UInt(high + elementSize))
    }

    // Bounds far beyond any memory, below which no sum or product of sizes in this library overflows.
    private static let maxDimensions = 32
    private static let maxElements = 0x1p53
    private static let maxBytes = 1 << 56

    private static func tooLarge(_ argument: String, _ shape: [Int]) -> LowRankError {
        .invalidShape(argument: argument, expected: "a tensor that fits the address space", got: "\(shape)")
    }
}

extension Tensor {
    /// Reads a float matrix `[rows, columns]`, or a vector where `dimensions` allows it.
    init(
        _ tensor: UnsafePointer<DLTensor>?, _ argument: String, dimensions: ClosedRange<Int> = 2...2
    ) throws(LowRankError) {
        guard let tensor else {
            throw .invalidArgument(argument: argument, expected: "a tensor", got: "a null pointer")
        }
        device = try Device(tensor.pointee.device, argument)
        guard let type = scalarType(tensor.pointee.dtype) else {
            throw .unsupportedType(argument: argument, expected: supportedTypes, got: describe(tensor.pointee.dtype))
        }
        let layout = try Layout(tensor, elementSize: type.size, argument)
        let count = layout.shape.count
        guard dimensions.contains(count) else {
            let expected = dimensions.count == 1 ? "\(dimensions.lowerBound)" : "\(dimensions.lowerBound) or \(dimensions.upperBound)"
            let noun = dimensions == 1...1 ? "dimension" : "dimensions"
            throw .invalidShape(argument: argument, expected: "\(expected) \(noun)", got: layout.description)
        }
        self.argument = argument
        self.dimensions = count
        extent = layout.extent
        view = MatrixView(
            address: layout.address, type: type, rows: count == 1 ? 1 : layout.shape[0],
            columns: layout.shape[count - 1], rowStride: count == 1 ? 0 : layout.strides[0],
            columnStride: layout.strides[count - 1])
    }

    /// Reads a tensor that may be absent.
    static func optional(
        _ tensor: UnsafePointer<DLTensor>?, _ argument: String, dimensions: ClosedRange<Int> = 2...2
    ) throws(LowRankError) -> Tensor? {
        try tensor == nil ? nil : Tensor(tensor, argument, dimensions: dimensions)
    }

    /// A core: none, a vector or a matrix.
    static func core(_ tensor: UnsafePointer<DLTensor>?, _ argument: String = "core") throws(LowRankError) -> Tensor? {
        try optional(tensor, argument, dimensions: 1...2)
    }

    /// Throws unless the elements have the type given.
    func require(_ type: ScalarType) throws(LowRankError) {
        if view.type != type { throw .unsupportedType(argument: argument, expected: "\(type)", got: "\(view.type)") }
    }

    /// Throws unless the shape is the one given.
    func require(_ rows: Int, _ columns: Int) throws(LowRankError) {
        if view.rows != rows || view.columns != columns {
            let expected = dimensions == 1 ? "[\(columns)]" : "[\(rows), \(columns)]"
            throw .invalidShape(
                argument: argument, expected: "shape \(expected)", got: dimensions == 1 ? "[\(view.columns)]" : view.shape)
        }
    }
}

extension Core {
    init(_ tensor: Tensor?) {
        self = tensor.map { $0.dimensions == 1 ? .diagonal($0.view) : .square($0.view) } ?? .identity
    }
}

/// Throws where the tensors of a call are not all on one device, or an output shares memory with another tensor of the
/// call or with itself.
/// - Returns: The device.
@discardableResult
func requireSeparate(outputs: [Tensor?], inputs: [Tensor?] = []) throws(LowRankError) -> Device {
    let outputs = outputs.compactMap { $0 }
    let inputs = inputs.compactMap { $0 }
    // A call names its main input first.
    guard let first = inputs.first ?? outputs.first else { return .cpu }
    if let other = outputs.first(where: { $0.device != first.device }) ?? inputs.first(where: { $0.device != first.device }) {
        throw .differentDevice(
            argument: other.argument, expected: "memory on \(first.device), where \(first.argument) is",
            got: "memory on \(other.device)")
    }
    for (i, output) in outputs.enumerated() {
        if output.view.overlapsItself {
            throw .overlap(argument: output.argument, other: "itself")
        }
        for other in outputs[(i + 1)...] + inputs where !output.extent.isEmpty && output.extent.overlaps(other.extent) {
            throw .overlap(argument: output.argument, other: other.argument)
        }
    }
    return first.device
}

extension MatrixView {
    /// Whether two elements share an address.
    fileprivate var overlapsItself: Bool {
        if rows <= 1 { return columns > 1 && columnStride == 0 }
        if columns <= 1 { return rowStride == 0 }
        // i steps of one stride meet j of the other first where both are divided by their common divisor.
        let divisor = max(greatestCommonDivisor(rowStride.magnitude, columnStride.magnitude), 1)
        return columnStride.magnitude / divisor < UInt(rows) && rowStride.magnitude / divisor < UInt(columns)
    }
}

private func greatestCommonDivisor(_ a: UInt, _ b: UInt) -> UInt {
    var (a, b) = (a, b)
    while b != 0 { (a, b) = (b, a % b) }
    return a
}
