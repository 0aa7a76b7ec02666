// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import CLowRank
import LowRank
import TestSupport
import Testing

/// The calls of the C ABI on tensors of a device, which is the test double, give what they give on the CPU.
@Suite struct CUDACallTests {
    /// A call for the CPU's own products of float32.
    private static let hostName = "lr_base_product"
    private static let names = TestCall.all.map(\.name).filter { $0 != hostName }
    private static let adapterNames = [
        "lr_adapter_forward", "lr_adapter_backward", "lr_effective_up", "lr_effective_up_backward",
    ]
    /// Calls that read no result of the device.
    private static let enqueuingNames = adapterNames + ["lr_change_forward", "lr_change_backward"]

    private func made(
        _ sizes: (m: Int, n: Int, r: Int, tokens: Int), _ type: ScalarType = .float32, _ layout: Layout = .rowMajor,
        squareCore: Bool = false
    ) -> TestCall.Arguments {
        var made = TestCall.Arguments()
        (made.m, made.n, made.r, made.tokens) = sizes
        (made.type, made.layout, made.hasSquareCore) = (type, layout, squareCore)
        return made
    }

    /// Makes a call on the CPU and on a device, and expects about equal results.
    ///
    /// - Parameters:
    ///   - stream: The stream that the thread has set, and that alone is run.
    ///   - around: Runs the call on the device.
    private func compare(
        _ name: String, _ made: TestCall.Arguments, without missing: Set<String> = [], device: Int32 = 0,
        stream: UnsafeMutableRawPointer? = nil, sourceLocation: SourceLocation = #_sourceLocation,
        around: (CUDADouble, () -> Void) -> Void = { $1() }
    ) throws {
        try TestCall.$made.withValue(made) {
            let (host, call, start) = (try TestCall.named(name), try TestCall.named(name), try TestCall.named(name))
            let label = "\(name) \(made.m)x\(made.n) r=\(made.r) T=\(made.tokens) \(made.type) \(made.layout)"
            #expect(host(without: missing) == .ok, "\(label): \(lastMessage)", sourceLocation: sourceLocation)
            try CUDADouble.withWarmDevice(sourceLocation: sourceLocation) { double in
                let moved = call.arguments.map { $0.tensor.moved(to: double, device: device) }
                around(double) {
                    #expect(call(without: missing) == .ok, "\(label): \(lastMessage)", sourceLocation: sourceLocation)
                }
                double.run(stream)
                for matrix in moved { matrix.download() }
            }
            for (i, (got, expected)) in zip(call.arguments, host.arguments).enumerated() {
                // What is left of a weight may be much smaller than the weight.
                let norm = got.role == .changed ? start.arguments[i].tensor.values.norm : 0
                expectClose(got, expected, from: norm, made, "\(label), \(got.name)", sourceLocation)
            }
        }
    }

    /// Expects numbers that differ by float32's rounding of sums, and then by a rounding of the type.
    private func expectClose(
        _ got: TestCall.Argument, _ expected: TestCall.Argument, from start: Double, _ made: TestCall.Arguments,
        _ label: String, _ sourceLocation: SourceLocation
    ) {
        expectIntactGuard(got.tensor.matrix, label: label, sourceLocation: sourceLocation)
        let (values, wanted) = (got.tensor.values, expected.tensor.values)
        // Not written, or numbers of another kind.
        if got.role == .input || got.name == "out_perm" || !wanted.norm.isFinite {
            #expect(got.tensor.bits == expected.tensor.bits, "\(label)", sourceLocation: sourceLocation)
            return
        }
        let (size, norm) = (max(made.m, made.n, made.tokens), max(wanted.norm, start))
        let rounding = made.type.size == 2 ? 2 * made.type.epsilon : 0
        let difference = (values - wanted).norm - rounding * norm
        expectSmall(
            values.values.allSatisfy(\.isFinite) ? max(difference, 0) : .infinity, size: size, norm: norm,
            made.type.computeType, within: .product, label, sourceLocation: sourceLocation)
    }

    @Test(arguments: names, ScalarType.allCases)
    func resultsAreTheCPUs(name: String, type: ScalarType) throws {
        for layout in Layout.allCases { try compare(name, made((9, 7, 3, 5), type, layout)) }
        for sizes in [(70, 65, 17, 33), (65, 130, 16, 64), (33, 32, 32, 1), (1, 1, 1, 1)] {
            try compare(name, made(sizes, type, squareCore: true))
        }
        // So large that products of a 16-bit weight have ways of their own.
        if type.size == 2 { try compare(name, made((150, 120, 8, 130), type)) }
    }

    @Test(arguments: adapterNames)
    func whatIsNotAskedForIsNotComputed(name: String) throws {
        for argument in try TestCall.named(name).arguments where argument.isOptional {
            // Without a core there is no gradient of it.
            let missing: Set = argument.name == "core" ? ["core", "out_core"] : [argument.name]
            try compare(name, made((9, 7, 3, 5)), without: missing)
        }
        try compare(name, made((9, 7, 3, 0)))
    }

    /// The host goes on at once, so that a graph can be captured.
    @Test(arguments: enqueuingNames, [ScalarType.float32, .bfloat16])
    func adaptersDoNotWait(name: String, type: ScalarType) throws {
        for isSquare in [false, true] {
            try compare(name, made((70, 65, 17, 33), type, squareCore: isSquare)) { double, call in
                let waits = ["cuStreamSynchronize", "cuMemcpyDtoHAsync_v2", "cuMemcpyHtoDAsync_v2", "cuMemFree_v2"]
                let before = waits.map { double.calls($0) }
                double.whileCapturing(call)
                #expect(waits.map { double.calls($0) } == before)
            }
        }
    }

    /// A forward on a stream, perhaps while the stream is captured.
    private func forward(on stream: Int, isCapturing: Bool = false) throws -> (status: lr_status_t, setsStream: Bool) {
        let call = try TestCall.named("lr_adapter_forward")
        var result = (status: lr_status_t.ok, setsStream: false)
        CUDADouble.withExclusiveAccess(keepsMemory: true) { double in
            let moved = call.arguments.map { $0.tensor.moved(to: double) }
            #expect(lr_cuda_set_stream(0, UnsafeMutableRawPointer(bitPattern: stream)) == .ok)
            let before = double.calls("cublasSetStream_v2")
            if isCapturing {
                double.whileCapturing { result.status = call() }
            } else {
                result.status = call()
            }
            result.setsStream = double.calls("cublasSetStream_v2") > before
            double.run(UnsafeMutableRawPointer(bitPattern: stream))
            #expect(lr_cuda_set_stream(0, nil) == .ok)
            withExtendedLifetime(moved) {}
        }
        return result
    }

    /// A graph's handles, and so its workspace, are nobody else's, however many streams there are.
    @Test func graphsKeepTheirHandles() throws {
        let streams = (0..<20).map { 0x1000 + 16 * $0 }
        CUDADouble.withExclusiveAccess(keepsMemory: true) { _ in #expect(lr_cuda_warmup(0) == .ok) }
        let own = 0x2000
        #expect(try forward(on: own).status == .ok)
        #expect(try forward(on: own, isCapturing: true) == (.ok, false))
        #expect(try forward(on: own) == (.ok, true), "work outside of the graph has handles of its own")
        for stream in streams { #expect(try forward(on: stream).status == .ok) }
        #expect(try forward(on: own, isCapturing: true) == (.ok, false))
    }

    /// Streams that never did anything before they are captured take what is kept in reserve, which is then made anew.
    @Test func newStreamsCanBeCaptured() throws {
        CUDADouble.withExclusiveAccess(keepsMemory: true) { _ in #expect(lr_cuda_warmup(0) == .ok) }
        for stream in [0x3000, 0x3010, 0x3020] {
            #expect(try forward(on: stream, isCapturing: true) == (.ok, true), "\(lastMessage)")
            #expect(try forward(on: 0x3030).status == .ok)
        }
        #expect(try forward(on: 0x3040, isCapturing: true).status == .ok)
        #expect(try forward(on: 0x3050, isCapturing: true).status == .backendUnavailable)
        #expect(lastMessage.contains("warmup"), "\(lastMessage)")
    }

    /// Makes a call and counts the kernels and products that it enqueues.
    private func launches(_ name: String, _ made: TestCall.Arguments, without missing: Set<String> = []) throws -> Int {
        var count = 0
        try compare(name, made, without: missing) { double, call in
            let launches = { double.calls("cuLaunchKernel") + double.calls("cublasGemmEx") }
            let before = launches()
            call()
            count = launches() - before
        }
        return count
    }

    /// Two stand between a layer and its adapter's output: h, and what is added. Types as where everything has one, and as
    /// where what trains is of float32 beside 16 bits, with autocast or without.
    @Test(arguments: ScalarType.allCases)
    func launchesOfAForward(type: ScalarType) throws {
        let mixtures: [[String: ScalarType]] = [
            [:], ["down": .float32, "up": .float32, "core": .float32], ["core": .float32], ["up": .float32],
            ["x": .float32, "down": .float32, "up": .float32, "core": .float32], ["x": .float64],
        ]
        // Of one token, beyond 32 columns, and with more than one block of everything.
        let sizes = [(70, 65, 17, 33), (72, 300, 64, 1), (40, 300, 33, 130)]
        for (i, types) in mixtures.enumerated() {
            for (isSquare, missing) in [(false, ["core"]), (false, []), (true, [])] as [(Bool, Set<String>)] {
                var made = made(sizes[i % 3], type, squareCore: isSquare)
                made.types = types
                let count = try launches("lr_adapter_forward", made, without: missing)
                #expect(count == 2, "\(type) \(types) \(sizes[i % 3]) square core: \(isSquare), without \(missing)")
            }
        }
    }

    @Test(arguments: [ScalarType.float32, .bfloat16])
    func launchesOfAnIntactBase(type: ScalarType) throws {
        for (name, isSquare, wanted) in [
            ("lr_effective_up", false, 2), ("lr_effective_up", true, 2), ("lr_change_forward", false, 4),
        ] as [(String, Bool, Int)] {
            let count = try launches(name, made((70, 65, 17, 33), type, squareCore: isSquare))
            #expect(count == wanted, "\(name) \(type) square core: \(isSquare)")
        }
    }

    /// All that a call keeps between its steps is one block, and there are calls that keep something.
    @Test(arguments: ScalarType.allCases)
    func intermediateMemoryIsOneBlock(type: ScalarType) throws {
        var blocks = 0
        for name in Self.enqueuingNames {
            for isSquare in [false, true] {
                try compare(name, made((70, 65, 17, 330), type, squareCore: isSquare)) { double, call in
                    let before = double.calls("cuMemAllocAsync")
                    call()
                    let count = double.calls("cuMemAllocAsync") - before
                    #expect(count <= 1, "\(name) \(type) square core: \(isSquare)")
                    blocks += count
                }
            }
        }
        #expect(blocks > 0)
    }

    @Test(arguments: names)
    func allWorkIsOnTheStream(name: String) throws {
        let stream = UnsafeMutableRawPointer(bitPattern: 0x51)
        CUDADouble.withExclusiveAccess(keepsMemory: true) { double in
            #expect(lr_cuda_set_stream(0, stream) == .ok)
            #expect(lr_cuda_warmup(0) == .ok, "\(lastMessage)")
            #expect(lr_cuda_set_stream(0, nil) == .ok)
        }
        try compare(name, made((20, 24, 8, 6)), stream: stream) { double, call in
            #expect(lr_cuda_set_stream(0, stream) == .ok)
            call()
            #expect(lr_cuda_set_stream(0, nil) == .ok)
        }
    }

    /// The second device's context becomes the current one for the time of the call.
    @Test(arguments: names)
    func secondDevice(name: String) throws {
        CUDADouble.withExclusiveAccess(keepsMemory: true) { _ in #expect(lr_cuda_warmup(1) == .ok, "\(lastMessage)") }
        try compare(name, made((9, 7, 3, 5)), device: 1)
    }

    @Test(arguments: TestCall.allArguments)
    func tensorsOfTwoDevices(call name: String, argument: String) throws {
        let call = try TestCall.named(name)
        guard call.arguments.count > 1, let index = call.arguments.firstIndex(where: { $0.name == argument }) else {
            return
        }
        for (device, other) in [(0, 1), (1, 0), (0, -1)] as [(Int32, Int32)] {
            try CUDADouble.withWarmDevice { double in
                let moved = call.arguments.enumerated().map { i, argument in
                    i == index && other < 0
                        ? nil : argument.tensor.moved(to: double, device: i == index ? other : device)
                }
                if other < 0 {
                    call.arguments[index].tensor.pointer.pointee.device = DLDevice(
                        device_type: Int32(kDLCPU), device_id: 0)
                }
                #expect(call() == .unsupportedDevice, "\(lastMessage)")
                #expect(lastMessage.contains("CUDA device \(device)"), "\(lastMessage)")
                withExtendedLifetime(moved) {}
            }
        }
    }

    /// Whatever call to CUDA fails, ours fails, keeps no memory, and leaves a weight that was to be changed as it was.
    @Test(arguments: names, ["cuLaunchKernel", "cuMemAllocAsync", "cuMemcpyDtoHAsync_v2", "cublasGemmEx"])
    func failures(name: String, symbol: String) throws {
        guard name != "lr_check_weight" else { return }
        for count in 0..<Int32(200) {
            let call = try TestCall.named(name)
            var status = lr_status_t.ok
            try CUDADouble.withWarmDevice { double in
                let moved = call.arguments.map { $0.tensor.moved(to: double) }
                let before = call.arguments.map(\.tensor.bits)
                double.fail(symbol, after: count, status: symbol == "cuMemAllocAsync" ? 2 : 1)
                status = call()
                double.fail(symbol, after: .max, status: 0)
                double.run(nil)
                for matrix in moved { matrix.download() }
                if status == .ok { return }
                #expect(
                    status == (symbol == "cuMemAllocAsync" ? .outOfMemory : .internal),
                    "\(symbol) \(count): \(lastMessage)")
                // Calls whose memory is one block have it before they write anything.
                let isIntact = symbol == "cuMemAllocAsync" && Self.enqueuingNames.contains(name)
                for (argument, bits) in zip(call.arguments, before) where isIntact || argument.name == "weight" {
                    #expect(argument.tensor.bits == bits, "\(symbol) \(count): \(argument.name) has changed")
                }
            }
            if status == .ok { return }
        }
        Issue.record("\(name) never succeeds")
    }

    @Test(arguments: [
        "lr_qr", "lr_ldu", "lr_svd", "lr_merge", "lr_initialize olora", "lr_initialize loldu", "lr_initialize lamda",
    ])
    func nonFiniteWeights(name: String) throws {
        let call = try TestCall.named(name)
        let argument = name == "lr_merge" ? "down" : "weight"
        try call(argument).matrix.setBits(ScalarType.float32.bits(of: .nan), 2, 1)
        let weight = try call("weight").bits
        try CUDADouble.withWarmDevice { double in
            let moved = call.arguments.map { $0.tensor.moved(to: double) }
            #expect(call() == .nonFinite)
            #expect(
                lastMessage == "\(argument): expected finite values, got a NaN or infinity, the first one at [2, 1]")
            double.run(nil)
            for matrix in moved { matrix.download() }
        }
        #expect(try call("weight").bits == weight)
    }

    @Test func theBaseProductIsTheCPUs() throws {
        let call = try TestCall.named(Self.hostName)
        try CUDADouble.withWarmDevice { double in
            let moved = call.arguments.map { $0.tensor.moved(to: double) }
            #expect(call() == .unsupportedDevice, "\(lastMessage)")
            withExtendedLifetime(moved) {}
        }
    }

    @Test func devicesThatAreNotThere() throws {
        let call = TestCall.qr
        for device in [2, 63, 64, Int32.max] {
            try CUDADouble.withWarmDevice { double in
                let moved = call.arguments.map { $0.tensor.moved(to: double) }
                for argument in call.arguments { argument.tensor.pointer.pointee.device.device_id = device }
                let status = call()
                #expect(status == .backendUnavailable || status == .unsupportedDevice)
                #expect(lastMessage.contains("CUDA device \(device)"), "\(lastMessage)")
                withExtendedLifetime(moved) {}
            }
        }
    }
}
