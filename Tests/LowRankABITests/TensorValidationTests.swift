// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import CLowRank
import LowRankCore
import TestSupport
import Testing

/// Each argument of each function, spoiled in each way: a status, a message that names it, nothing written.
@Suite struct TensorValidationTests {
    /// Runs a call after one argument was spoiled.
    private func expectRefusal(
        _ names: (call: String, argument: String), _ status: lr_status_t, _ message: (String) -> String,
        sourceLocation: SourceLocation = #_sourceLocation, spoil: (TestTensor) -> Void
    ) throws {
        let call = try TestCall.named(names.call)
        let before = call.arguments.map { $0.tensor.bits }
        spoil(try call(names.argument))
        let got = call()
        let label = "\(names.call), \(names.argument)"
        #expect(got == status, "\(label): \(lastMessage)", sourceLocation: sourceLocation)
        let text = message(names.argument)
        #expect(
            lastMessage.hasPrefix(text), "\(label): \"\(lastMessage)\", not \"\(text)\"", sourceLocation: sourceLocation
        )
        for (argument, bits) in zip(call.arguments, before) {
            // A NaN-filled output that is refused is still NaN; memory is the matrix's own, whatever the tensor says.
            #expect(
                argument.tensor.bits == bits, "\(label): \(argument.name) was written", sourceLocation: sourceLocation)
            expectIntactGuard(argument.tensor.matrix, label: label, sourceLocation: sourceLocation)
        }
    }

    @Test func goodArgumentsSucceed() {
        for call in TestCall.all {
            #expect(call() == .ok, "\(call.name): \(lastMessage)")
            for argument in call.arguments {
                let isWritten = argument.tensor.values.values.allSatisfy { !$0.isNaN }
                #expect(isWritten || argument.name == "out_perm", "\(call.name): \(argument.name)")
                expectIntactGuard(argument.tensor.matrix, label: "\(call.name), \(argument.name)")
            }
        }
    }

    @Test(arguments: TestCall.allArguments)
    func nullPointers(names: (call: String, argument: String)) throws {
        let call = try TestCall.named(names.call)
        let isOptional = call.arguments.contains { $0.name == names.argument && $0.isOptional }
        let status = call(without: [names.argument])
        let label = "\(names.call) without \(names.argument): \(lastMessage)"
        if names == ("lr_adapter_backward", "core") {
            #expect(status == .invalidArgument && lastMessage.hasPrefix("out_core: expected none"), "\(label)")
        } else if names == ("lr_effective_up_backward", "core") {
            #expect(status == .invalidArgument && lastMessage.hasPrefix("out_core: expected none"), "\(label)")
        } else if names == ("lr_adapter_forward", "down") {
            #expect(status == .invalidArgument && lastMessage.hasPrefix("out_h: expected none"), "\(label)")
        } else if names == ("lr_adapter_backward", "down") {
            #expect(status == .invalidArgument && lastMessage.hasPrefix("x: expected none"), "\(label)")
        } else if ["x", "h"].contains(names.argument) && ["lr_adapter_backward", "lr_change_backward"].contains(names.call) {
            // Optional, but the outputs asked for need it.
            #expect(status == .invalidArgument && lastMessage.hasPrefix("\(names.argument): expected "), "\(label)")
        } else if isOptional {
            #expect(status == .ok, "\(label)")
        } else if names.argument == "core" {
            // An output that the method has and the caller forgot.
            #expect(status == .invalidShape && lastMessage.hasPrefix("core: expected shape "), "\(label)")
        } else {
            #expect(status == .invalidArgument, "\(label)")
            #expect(lastMessage == "\(names.argument): expected a tensor, got a null pointer")
        }
    }

    @Test(arguments: TestCall.allArguments)
    func wrongNumbersOfDimensions(names: (call: String, argument: String)) throws {
        for count in [0, 3, 9] {
            try expectRefusal(names, .invalidShape, { "\($0): expected " }) { tensor in
                tensor.setShape([Int](repeating: 1, count: count), strides: [])
            }
        }
        for count in [-1, Int32.min, Int32.max] {
            try expectRefusal(names, .invalidShape, { "\($0): expected " }) { $0.pointer.pointee.ndim = count }
        }
        try expectRefusal(names, .invalidShape, { "\($0): expected " }) { $0.pointer.pointee.shape = nil }
    }

    @Test(arguments: TestCall.allArguments)
    func wrongTypes(names: (call: String, argument: String)) throws {
        let expected = names.argument == "out_perm" ? "int64" : "float32, float64, bfloat16 or float16"
        for (code, bits, lanes, got) in [
            (kDLInt, 32, 1, "int32"), (kDLUInt, 8, 1, "uint8"), (kDLFloat, 8, 1, "float8"),
            (kDLFloat, 128, 1, "float128"),
            (kDLBfloat, 32, 1, "bfloat32"), (5, 64, 1, "complex64"), (6, 8, 1, "bool"),
            (kDLFloat, 32, 4, "DLPack type code 2, 32 bits, 4 lanes"),
            (kDLFloat, 32, 0, "DLPack type code 2, 32 bits, 0 lanes"),
            (200, 7, 1, "DLPack type code 200, 7 bits, 1 lanes"),
        ] {
            try expectRefusal(names, .unsupportedDtype, { "\($0): expected \(expected), got \(got)" }) { tensor in
                tensor.pointer.pointee.dtype = DLDataType(code: UInt8(code), bits: UInt8(bits), lanes: UInt16(lanes))
            }
        }
    }

    @Test(arguments: TestCall.allArguments)
    func otherDevices(names: (call: String, argument: String)) throws {
        for (type, id, got) in [
            (kDLCUDA, -1, "(2, -1)"), (4, 0, "(4, 0)"), (-7, 0, "(-7, 0)"),
        ] {
            let message = "expected memory on the CPU or a CUDA device, got DLPack device \(got)"
            try expectRefusal(names, .unsupportedDevice, { "\($0): \(message)" }) { tensor in
                tensor.pointer.pointee.device = DLDevice(device_type: Int32(type), device_id: Int32(id))
                // Memory of another device must not be looked at.
                tensor.pointer.pointee.data = nil
            }
        }
    }

    @Test(arguments: TestCall.allArguments)
    func oneOnAnotherDevice(names: (call: String, argument: String)) throws {
        let call = try TestCall.named(names.call)
        if call.arguments.count == 1 { return }
        try call(names.argument).pointer.pointee.device = DLDevice(device_type: Int32(kDLCUDA), device_id: 1)
        #expect(call() == .unsupportedDevice)
        #expect(lastMessage.contains("expected memory on") && lastMessage.contains("CUDA device 1"), "\(lastMessage)")
    }

    @Test(arguments: TestCall.allArguments)
    func wrongShapes(names: (call: String, argument: String)) throws {
        for size in [-1, Int.min] {
            try expectRefusal(names, .invalidShape, { "\($0): expected dimensions of at least 0, got [" }) { tensor in
                tensor.setShape([2, size].suffix(tensor.dimensions), strides: [])
            }
        }
        // A size that fits no other argument; any of those that disagree may be named.
        let call = try TestCall.named(names.call)
        let tensor = try call(names.argument)
        tensor.setShape(tensor.dimensions == 1 ? [2] : [2, 2], strides: [1, 2].suffix(tensor.dimensions))
        let status = call()
        // A weight of 2 x 2 is too small for the rank.
        #expect(
            status == .invalidShape || (status == .invalidArgument && lastMessage.hasPrefix("rank: ")), "\(lastMessage)"
        )
        #expect(lastMessage.contains(": expected ") && lastMessage.contains(", got "), "\(lastMessage)")
    }

    @Test(arguments: TestCall.allArguments)
    func wrongMemory(names: (call: String, argument: String)) throws {
        try expectRefusal(names, .invalidArgument, { "\($0): expected memory, got a null pointer" }) { tensor in
            tensor.pointer.pointee.data = nil
        }
        for offset in [1, 2, 3] {
            try expectRefusal(names, .invalidArgument, { "\($0): expected memory aligned to its " }) { tensor in
                tensor.pointer.pointee.byte_offset = UInt64(offset)
            }
        }
    }

    /// Sizes and strides whose products overflow somewhere must be refused, not trap.
    @Test(arguments: TestCall.allArguments)
    func overflowingLayouts(names: (call: String, argument: String)) throws {
        let huge = [1 << 57, 1 << 59, 1 << 60, 1 << 61, 1 << 62, Int.max, -(1 << 57), -(1 << 60), -(1 << 62), Int.min]
        for stride in huge {
            try expectRefusal(names, .invalidShape, { "\($0): expected a tensor that fits the address space, got [" }) {
                tensor in
                tensor.setShape(
                    [Int](repeating: 2, count: tensor.dimensions),
                    strides: [Int](repeating: stride, count: tensor.dimensions))
            }
        }
        for size in [1 << 55, 1 << 60, 1 << 62, Int.max] {
            try expectRefusal(names, .invalidShape, { "\($0): expected a tensor that fits the address space, got [" }) {
                tensor in
                tensor.setShape([Int](repeating: size, count: tensor.dimensions), strides: [1, 1])
            }
            try expectRefusal(names, .invalidShape, { "\($0): expected a tensor that fits the address space, got [" }) {
                tensor in
                tensor.setShape([Int](repeating: size, count: tensor.dimensions), strides: [])
                tensor.pointer.pointee.strides = nil
            }
        }
        try expectRefusal(names, .invalidShape, { "\($0): expected " }) { tensor in
            tensor.setShape([Int](repeating: 2, count: 32), strides: [Int](repeating: 1 << 56, count: 32))
        }
        for offset in [1 << 57, UInt64(Int.max), UInt64(Int.max) + 1, UInt64.max - 7] {
            try expectRefusal(names, .invalidShape, { "\($0): expected a tensor that fits the address space, got [" }) {
                tensor in
                tensor.pointer.pointee.byte_offset = offset
            }
        }
    }

    /// Outputs that share memory with themselves or with any other argument.
    @Test(arguments: TestCall.allArguments)
    func overlaps(names: (call: String, argument: String)) throws {
        let role = try TestCall.named(names.call).arguments.first { $0.name == names.argument }?.role
        if role == .input { return }
        try expectRefusal(names, .overlap, { "\($0): expected memory of its own, got memory that overlaps itself" }) {
            tensor in
            let view = tensor.matrix.view
            if tensor.dimensions == 1 { tensor.setShape([view.columns], strides: [0]) }
            if tensor.dimensions == 2 { tensor.setShape([view.rows, view.columns], strides: [0, 1]) }
        }
        let call = try TestCall.named(names.call)
        for other in call.arguments where other.name != names.argument {
            let spoiled = try TestCall.named(names.call)
            // The other argument's memory is the longer or the shorter one; both begin at the same element.
            let output = try spoiled(names.argument)
            output.pointer.pointee.data = try spoiled(other.name).pointer.pointee.data
            let status = spoiled()
            #expect(status == .overlap, "\(names.call), \(names.argument) over \(other.name): \(lastMessage)")
            #expect(lastMessage.contains(names.argument) && lastMessage.contains(other.name), "\(lastMessage)")
        }
    }

    @Test func matrixOverlappingItselfWithoutAZeroStride() throws {
        for strides in [[1, 1], [2, 2], [-3, 3], [1, 3], [2, 4]] {
            try expectRefusal(("lr_qr", "out_q"), .overlap, { "\($0): expected memory of its own" }) { tensor in
                tensor.setShape([9, 3], strides: strides)
            }
        }
    }
}
