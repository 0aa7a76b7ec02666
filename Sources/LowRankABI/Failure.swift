// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import CLowRank
import Glibc
import LowRank

extension LowRankError {
    /// The C ABI's status for this error: the one table.
    var status: lr_status_t {
        switch self {
        case .invalidShape: lr_status_t(LR_STATUS_INVALID_SHAPE)
        case .invalidArgument: lr_status_t(LR_STATUS_INVALID_ARGUMENT)
        case .nonFinite: lr_status_t(LR_STATUS_NON_FINITE)
        case .readOnly: lr_status_t(LR_STATUS_READ_ONLY)
        case .overlap: lr_status_t(LR_STATUS_OVERLAP)
        case .unsupportedType: lr_status_t(LR_STATUS_UNSUPPORTED_DTYPE)
        case .unsupportedDevice, .differentDevice: lr_status_t(LR_STATUS_UNSUPPORTED_DEVICE)
        case .backendUnavailable: lr_status_t(LR_STATUS_BACKEND_UNAVAILABLE)
        case .numericalFailure: lr_status_t(LR_STATUS_NUMERICAL_FAILURE)
        case .outOfMemory: lr_status_t(LR_STATUS_OUT_OF_MEMORY)
        case .internal: lr_status_t(LR_STATUS_INTERNAL)
        }
    }
}

/// Runs the body of an entry point: success, or the error's status with its message kept for this thread.
func call(_ body: () throws(LowRankError) -> Void) -> lr_status_t {
    do {
        try body()
        return lr_status_t(LR_STATUS_OK)
    } catch {
        lastErrorMessage.set(error.description)
        return error.status
    }
}

/// A C string of its own for each thread, freed with the thread.
struct ThreadString: Sendable {
    private let key: pthread_key_t

    init() {
        var key = pthread_key_t()
        pthread_key_create(&key) { free($0) }
        self.key = key
    }

    func set(_ text: String) {
        free(pthread_getspecific(key))
        pthread_setspecific(key, strdup(text))
    }

    /// The text set last on this thread.
    var pointer: UnsafePointer<CChar>? {
        pthread_getspecific(key).map { UnsafePointer($0.assumingMemoryBound(to: CChar.self)) }
    }
}

let lastErrorMessage = ThreadString()
