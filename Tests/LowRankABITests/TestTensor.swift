// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import CLowRank
import LowRankCore
import TestSupport

/// A DLPack tensor over a test matrix, every field of which a test may spoil.
final class TestTensor {
    /// What the C functions take.
    let pointer: UnsafeMutablePointer<DLTensor>
    let matrix: TestMatrix
    private let sizes: UnsafeMutablePointer<Int64>
    private static let room = 64

    /// A matrix, or with `dimensions: 1` the vector that its one row holds.
    init(_ matrix: TestMatrix, dimensions: Int = 2) {
        let view = matrix.view
        self.matrix = matrix
        // Shape and strides, with room for more dimensions than there are.
        sizes = .allocate(capacity: 2 * Self.room)
        sizes.initialize(repeating: 1, count: 2 * Self.room)
        pointer = .allocate(capacity: 1)
        pointer.initialize(
            to: DLTensor(
                data: view.address, device: DLDevice(device_type: Int32(kDLCPU), device_id: 0), ndim: Int32(dimensions),
                dtype: Self.type(view.type), shape: sizes, strides: sizes + Self.room, byte_offset: 0))
        if dimensions == 1 {
            setShape([view.columns], strides: [view.columnStride])
        } else {
            setShape([view.rows, view.columns], strides: [view.rowStride, view.columnStride])
        }
    }

    convenience init(
        undefined rows: Int, _ columns: Int, _ type: ScalarType = .float32, _ layout: Layout = .rowMajor,
        dimensions: Int = 2
    ) {
        self.init(TestMatrix(undefined: rows, columns, type, layout), dimensions: dimensions)
    }

    /// A vector of int64, in memory that is seen as float64 elsewhere.
    static func indices(_ count: Int, layout: Layout = .rowMajor) -> TestTensor {
        let tensor = TestTensor(undefined: 1, count, .float64, layout, dimensions: 1)
        tensor.pointer.pointee.dtype = DLDataType(code: UInt8(kDLInt), bits: 64, lanes: 1)
        return tensor
    }

    deinit {
        pointer.deallocate()
        sizes.deallocate()
    }

    static func type(_ type: ScalarType) -> DLDataType {
        DLDataType(code: UInt8(type == .bfloat16 ? kDLBfloat : kDLFloat), bits: UInt8(8 * type.size), lanes: 1)
    }

    var dimensions: Int { Int(pointer.pointee.ndim) }

    /// Other sizes and strides over the same memory.
    func setShape(_ shape: some Collection<Int>, strides: some Collection<Int>) {
        pointer.pointee.ndim = Int32(shape.count)
        for (i, size) in shape.enumerated() { sizes[i] = Int64(size) }
        for (i, stride) in strides.enumerated() { sizes[Self.room + i] = Int64(stride) }
    }

    /// Moves the tensor to a device; what is returned keeps its memory there, and can copy it back.
    func moved(to double: CUDADouble, device: Int32 = 0) -> DeviceMatrix {
        let moved = DeviceMatrix(matrix, on: double, device: device)
        pointer.pointee.data = moved.address
        pointer.pointee.device = DLDevice(device_type: Int32(kDLCUDA), device_id: device)
        return moved
    }

    /// The elements as int64.
    var indices: [Int] { matrix.bits.map { Int(bitPattern: UInt($0)) } }
    var values: RealMatrix { matrix.values }
    var bits: [UInt64] { matrix.bits }
}

/// The text of the last failure on this thread.
var lastMessage: String {
    lr_last_error_message().map { String(cString: $0) } ?? "a null pointer"
}

extension lr_status_t {
    static let ok = lr_status_t(LR_STATUS_OK)
    static let invalidShape = lr_status_t(LR_STATUS_INVALID_SHAPE)
    static let invalidArgument = lr_status_t(LR_STATUS_INVALID_ARGUMENT)
    static let nonFinite = lr_status_t(LR_STATUS_NON_FINITE)
    static let readOnly = lr_status_t(LR_STATUS_READ_ONLY)
    static let overlap = lr_status_t(LR_STATUS_OVERLAP)
    static let unsupportedDtype = lr_status_t(LR_STATUS_UNSUPPORTED_DTYPE)
    static let unsupportedDevice = lr_status_t(LR_STATUS_UNSUPPORTED_DEVICE)
    static let backendUnavailable = lr_status_t(LR_STATUS_BACKEND_UNAVAILABLE)
    static let numericalFailure = lr_status_t(LR_STATUS_NUMERICAL_FAILURE)
    static let outOfMemory = lr_status_t(LR_STATUS_OUT_OF_MEMORY)
    static let `internal` = lr_status_t(LR_STATUS_INTERNAL)
}
