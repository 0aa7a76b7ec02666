// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import CLowRank
import LowRank

/// Where a tensor's memory is.
enum Device: Equatable {
    case cpu
    case cuda(Int)

    init(_ device: DLDevice, _ argument: String) throws(LowRankError) {
        switch Int(device.device_type) {
        case kDLCPU, kDLCUDAHost: self = .cpu
        case kDLCUDA where device.device_id >= 0: self = .cuda(Int(device.device_id))
        default:
            throw .unsupportedDevice(
                argument: argument, got: "DLPack device (\(device.device_type), \(device.device_id))")
        }
    }

    /// Runs the body on the device's backend.
    func run(_ body: (any Backend) throws(LowRankError) -> Void) throws(LowRankError) {
        switch self {
        case .cpu: try body(Self.cpuBackend)
        case .cuda(let ordinal): try CUDABackend.run(onDevice: ordinal, body)
        }
    }

    /// As ``run(_:)``, for a body that reads no result: it may run twice, the first time without effect.
    func enqueue(_ body: (any Backend) throws(LowRankError) -> Void) throws(LowRankError) {
        switch self {
        case .cpu: try body(Self.cpuBackend)
        case .cuda(let ordinal): try CUDABackend.enqueue(onDevice: ordinal, body)
        }
    }

    private static let cpuBackend: any Backend = CPUBackend.shared
}

extension Device: CustomStringConvertible {
    var description: String {
        switch self {
        case .cpu: "the CPU"
        case .cuda(let ordinal): "CUDA device \(ordinal)"
        }
    }
}
