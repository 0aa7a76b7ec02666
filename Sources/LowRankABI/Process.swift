// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import CLowRank
import LowRank

@c @implementation
public func lr_abi_version_major() -> Int32 { LR_ABI_VERSION_MAJOR }

@c @implementation
public func lr_abi_version_minor() -> Int32 { LR_ABI_VERSION_MINOR }

private let emptyString: StaticString = ""

@c @implementation
public func lr_last_error_message() -> UnsafePointer<CChar>? {
    lastErrorMessage.pointer ?? UnsafeRawPointer(emptyString.utf8Start).assumingMemoryBound(to: CChar.self)
}

private let configuration = ThreadString()

@c @implementation
public func lr_config() -> UnsafePointer<CChar>? {
    let fields = (CPUBackend.configuration + CUDABackend.configuration).map { "\"\($0.name)\": \($0.json)" }
    configuration.set("{" + fields.joined(separator: ", ") + "}")
    return configuration.pointer
}

@c @implementation
public func lr_set_num_threads(_ count: Int32) -> lr_status_t {
    call { () throws(LowRankError) in
        guard (0...CPUBackend.maxThreadCount).contains(Int(count)) else {
            throw .invalidArgument(
                argument: "count", expected: "0 <= count <= \(CPUBackend.maxThreadCount)", got: "\(count)")
        }
        CPUBackend.setThreadCount(Int(count))
    }
}

@c @implementation
public func lr_get_num_threads() -> Int32 { Int32(CPUBackend.threadCount) }

@c @implementation
public func lr_test_status(_ status: lr_status_t) -> lr_status_t {
    call { () throws(LowRankError) in
        let examples: [LowRankError] = [
            .invalidShape(argument: "test", expected: "a shape", got: "another"),
            .invalidArgument(argument: "test", expected: "a value", got: "another"),
            .nonFinite(argument: "test", row: 0, column: 0), .readOnly(argument: "test"),
            .overlap(argument: "test", other: "itself"),
            .unsupportedType(argument: "test", expected: "a type", got: "another"),
            .unsupportedDevice(argument: "test", got: "another device"),
            .differentDevice(argument: "test", expected: "a device", got: "another"), .backendUnavailable(reason: "test: not there"),
            .numericalFailure(operation: "test", reason: "asked for"), .outOfMemory(bytes: 0), .internal("test"),
        ]
        if status == lr_status_t(LR_STATUS_OK) { return }
        if let error = examples.first(where: { $0.status == status }) { throw error }
        throw .invalidArgument(argument: "status", expected: "a status", got: "\(status)")
    }
}
