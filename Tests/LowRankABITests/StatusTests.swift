// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import CLowRank
import Glibc
import LowRankCore
import TestSupport
import Testing

@Suite struct StatusTests {
    @Test(
        arguments: [
            (.invalidShape, "test: expected a shape, got another"),
            (.invalidArgument, "test: expected a value, got another"),
            (.nonFinite, "test: expected finite values, got a NaN or infinity, the first one at [0, 0]"),
            (.readOnly, "test: expected writable memory, got a read-only array"),
            (.overlap, "test: expected memory of its own, got memory that overlaps itself"),
            (.unsupportedDtype, "test: expected a type, got another"),
            (.unsupportedDevice, "test: expected memory on the CPU or a CUDA device, got another device"),
            (.backendUnavailable, "test: not there"),
            (.numericalFailure, "test: asked for"),
            (.outOfMemory, "could not allocate 0 bytes for intermediate results"),
            (.internal, "internal error, please report it: test"),
        ] as [(lr_status_t, String)])
    func everyStatusCanBeAskedFor(status: lr_status_t, message: String) {
        #expect(lr_test_status(status) == status)
        #expect(lastMessage == message)
    }

    @Test func statusesAreNumberedWithoutGaps() {
        for status in 0...11 { #expect(lr_test_status(lr_status_t(status)) == lr_status_t(status)) }
    }

    @Test(arguments: [-1, 12, lr_status_t.max, lr_status_t.min])
    func otherNumbersAreRefused(status: lr_status_t) {
        #expect(lr_test_status(status) == .invalidArgument)
        #expect(lastMessage == "status: expected a status, got \(status)")
    }

    @Test func successLeavesTheMessage() {
        _ = lr_test_status(.overlap)
        let message = lastMessage
        #expect(lr_test_status(.ok) == .ok)
        #expect(lastMessage == message)
    }

    @Test func versionIsThatOfTheHeader() {
        #expect(lr_abi_version_major() == LR_ABI_VERSION_MAJOR)
        #expect(lr_abi_version_minor() == LR_ABI_VERSION_MINOR)
    }

    /// A thread that has not failed has no message, and never sees another's.
    @Test func messagesBelongToTheirThread() {
        final class Record: Sendable {
            let statuses: [lr_status_t]
            let messages = Guarded<[String]>([])
            init(_ statuses: [lr_status_t]) { self.statuses = statuses }
            func run() {
                messages.withLock { $0.append(lastMessage) }
                for status in statuses {
                    _ = lr_test_status(status)
                    usleep(100)
                    messages.withLock { $0.append(lastMessage) }
                }
            }
        }
        let cycle: [lr_status_t] = [.invalidShape, .overlap, .internal, .numericalFailure]
        let expected: [lr_status_t: String] = Dictionary(
            uniqueKeysWithValues: cycle.map { status in
                _ = lr_test_status(status)
                return (status, lastMessage)
            })
        let records = (0..<8).map { index in Record((0..<100).map { cycle[($0 + index) % 4] }) }
        let threads = records.map { record in
            var thread = pthread_t()
            let context = Unmanaged.passUnretained(record).toOpaque()
            let status = pthread_create(
                &thread, nil,
                { context in
                    if let context { Unmanaged<Record>.fromOpaque(context).takeUnretainedValue().run() }
                    return nil
                }, context)
            #expect(status == 0)
            return thread
        }
        for thread in threads { pthread_join(thread, nil) }
        for record in records {
            let messages = record.messages.withLock { $0 }
            #expect(messages == [""] + record.statuses.map { expected[$0] ?? "" })
        }
    }

    @Test func threadCountIsWithinItsRange() {
        ThreadCountSetting.withExclusiveAccess {
            let standard = lr_get_num_threads()
            #expect(standard >= 1)
            for count in [1, 3, 4096] as [Int32] {
                #expect(lr_set_num_threads(count) == .ok)
                #expect(lr_get_num_threads() == count)
            }
            for count in [-1, 4097, Int32.min, Int32.max] {
                #expect(lr_set_num_threads(count) == .invalidArgument)
                #expect(lastMessage == "count: expected 0 <= count <= 4096, got \(count)")
                #expect(lr_get_num_threads() == 4096)
            }
            #expect(lr_set_num_threads(0) == .ok)
            #expect(lr_get_num_threads() == standard)
        }
    }

    @Test func configurationIsAnObject() throws {
        let text = String(cString: try #require(lr_config()))
        #expect(text.hasPrefix("{\"") && text.hasSuffix("}"))
        for name in ["instruction_set", "blas", "threads", "thread_team"] {
            #expect(text.contains("\"\(name)\": "), "\(text)")
        }
        // The text stays where it is until the next call on this thread.
        #expect(String(cString: try #require(lr_config())) == text)
    }
}
