// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import CLowRank
import LowRank

@c @implementation
public func lr_initialize(
    _ method: UnsafePointer<CChar>?, _ weight: UnsafeMutablePointer<DLTensor>?, _ rank: Int64, _ scale: Double,
    _ options: UnsafePointer<lr_initialize_options_t>?, _ in_place: Int32, _ out_up: UnsafeMutablePointer<DLTensor>?,
    _ out_core: UnsafeMutablePointer<DLTensor>?, _ out_down: UnsafeMutablePointer<DLTensor>?
) -> lr_status_t {
    call { () throws(LowRankError) in
        guard let method else {
            throw .invalidArgument(argument: "method", expected: "a name", got: "a null pointer")
        }
        let initializer = try Initializers.named(String(cString: method))
        let (weight, rank) = try checkedWeight(weight, rank)
        let up = try Tensor(out_up, "up")
        let core = try Tensor.core(out_core)
        let down = try Tensor(out_down, "down")
        let device = try requireSeparate(outputs: [up, core, down], inputs: [weight])
        if in_place != 0 { try requireSeparate(outputs: [weight]) }
        let target = try Factors(up: up.view, core: Core(core), down: down.view, scale: scale)
        let options = try InitializerOptions(options)
        try device.run { (backend) throws(LowRankError) in
            try initializer.initialize(
                weight.view, rank: rank, into: target, inPlace: in_place != 0, options: options, on: backend)
        }
    }
}

extension InitializerOptions {
    init(_ options: UnsafePointer<lr_initialize_options_t>?) throws(LowRankError) {
        self.init()
        guard let options = options?.pointee else { return }
        tolerance = options.tol
        seed = options.seed
        guard let name = options.diagonal.map({ String(cString: $0) }) else { return }
        guard let diagonal = LoLDU.StartingDiagonal(rawValue: name) else {
            let names = LoLDU.StartingDiagonal.allCases.map { "\"\($0.rawValue)\"" }.joined(separator: ", ")
            throw .invalidArgument(argument: "diagonal", expected: "one of \(names)", got: "\"\(name)\"")
        }
        self.diagonal = diagonal
    }
}

@c @implementation
public func lr_adapter_forward(
    _ x: UnsafePointer<DLTensor>?, _ down: UnsafePointer<DLTensor>?, _ core: UnsafePointer<DLTensor>?,
    _ up: UnsafePointer<DLTensor>?, _ scale: Double, _ out: UnsafeMutablePointer<DLTensor>?,
    _ out_h: UnsafeMutablePointer<DLTensor>?
) -> lr_status_t {
    call { () throws(LowRankError) in
        let x = try Tensor(x, "x")
        let (down, core, up) = (try Tensor.optional(down, "down"), try Tensor.core(core), try Tensor(up, "up"))
        let out = try Tensor(out, "out")
        guard let down else {
            if out_h != nil {
                throw .invalidArgument(argument: "out_h", expected: "none for an adapter without down", got: "a tensor")
            }
            let device = try requireSeparate(outputs: [out], inputs: [x, core, up])
            let upProjection = try UpProjection(up: up.view, core: Core(core), scale: scale)
            return try device.enqueue { (backend) throws(LowRankError) in
                try upProjection.addForward(x.view, to: out.view, on: backend)
            }
        }
        let h = try Tensor(out_h, "out_h")
        let device = try requireSeparate(outputs: [out, h], inputs: [x, down, core, up])
        let factors = try Factors(up: up.view, core: Core(core), down: down.view, scale: scale)
        try device.enqueue { (backend) throws(LowRankError) in
            try factors.addForward(x.view, to: out.view, keeping: h.view, on: backend)
        }
    }
}

@c @implementation
public func lr_adapter_backward(
    _ grad: UnsafePointer<DLTensor>?, _ x: UnsafePointer<DLTensor>?, _ h: UnsafePointer<DLTensor>?,
    _ down: UnsafePointer<DLTensor>?, _ core: UnsafePointer<DLTensor>?, _ up: UnsafePointer<DLTensor>?,
    _ scale: Double, _ frozen_columns: Int64, _ out_x: UnsafeMutablePointer<DLTensor>?,
    _ out_down: UnsafeMutablePointer<DLTensor>?, _ out_core: UnsafeMutablePointer<DLTensor>?,
    _ out_up: UnsafeMutablePointer<DLTensor>?
) -> lr_status_t {
    call { () throws(LowRankError) in
        let grad = try Tensor(grad, "grad")
        let x = try Tensor.optional(x, "x")
        let h = try Tensor.optional(h, "h")
        let (down, core, up) = (try Tensor.optional(down, "down"), try Tensor.core(core), try Tensor(up, "up"))
        let dx = try Tensor.optional(out_x, "out_x")
        let dDown = try Tensor.optional(out_down, "out_down")
        let dCore = try Tensor.core(out_core, "out_core")
        let dUp = try Tensor.optional(out_up, "out_up")
        let device = try requireSeparate(outputs: [dx, dDown, dCore, dUp], inputs: [grad, x, h, down, core, up])
        let gradients = Gradients(
            x: dx?.view, down: dDown?.view, core: dCore?.view, up: dUp?.view, frozenColumns: Int(frozen_columns))
        guard let down else {
            if x != nil {
                throw .invalidArgument(argument: "x", expected: "none for an adapter without down", got: "a tensor")
            }
            let upProjection = try UpProjection(up: up.view, core: Core(core), scale: scale)
            return try device.enqueue { (backend) throws(LowRankError) in
                try upProjection.backward(grad.view, h: h?.view, into: gradients, on: backend)
            }
        }
        let factors = try Factors(up: up.view, core: Core(core), down: down.view, scale: scale)
        try device.enqueue { (backend) throws(LowRankError) in
            try factors.backward(grad.view, x: x?.view, h: h?.view, into: gradients, on: backend)
        }
    }
}

@c @implementation
public func lr_effective_up(
    _ up: UnsafePointer<DLTensor>?, _ core: UnsafePointer<DLTensor>?, _ start: UnsafePointer<DLTensor>?,
    _ out: UnsafeMutablePointer<DLTensor>?
) -> lr_status_t {
    call { () throws(LowRankError) in
        let (up, core) = (try Tensor(up, "up"), try Tensor.core(core))
        let start = try Tensor.optional(start, "start")
        let out = try Tensor(out, "out")
        let device = try requireSeparate(outputs: [out], inputs: [up, core, start])
        let effective = try EffectiveUp(up: up.view, core: Core(core))
        try device.enqueue { (backend) throws(LowRankError) in
            try effective.write(minus: start?.view, to: out.view, on: backend)
        }
    }
}

@c @implementation
public func lr_effective_up_backward(
    _ grad: UnsafePointer<DLTensor>?, _ up: UnsafePointer<DLTensor>?, _ core: UnsafePointer<DLTensor>?,
    _ frozen_columns: Int64, _ out_up: UnsafeMutablePointer<DLTensor>?, _ out_core: UnsafeMutablePointer<DLTensor>?
) -> lr_status_t {
    call { () throws(LowRankError) in
        let grad = try Tensor(grad, "grad")
        let (up, core) = (try Tensor(up, "up"), try Tensor.core(core))
        let dUp = try Tensor.optional(out_up, "out_up")
        let dCore = try Tensor.core(out_core, "out_core")
        let device = try requireSeparate(outputs: [dUp, dCore], inputs: [grad, up, core])
        let effective = try EffectiveUp(up: up.view, core: Core(core))
        let gradients = Gradients(core: dCore?.view, up: dUp?.view, frozenColumns: Int(frozen_columns))
        try device.enqueue { (backend) throws(LowRankError) in
            try effective.backward(grad.view, into: gradients, on: backend)
        }
    }
}

@c @implementation
public func lr_base_product(
    _ x: UnsafePointer<DLTensor>?, _ weight: UnsafePointer<DLTensor>?, _ bias: UnsafePointer<DLTensor>?,
    _ out: UnsafeMutablePointer<DLTensor>?
) -> lr_status_t {
    call { () throws(LowRankError) in
        let (x, weight) = (try Tensor(x, "x"), try Tensor(weight, "weight"))
        let bias = try Tensor.optional(bias, "bias", dimensions: 1...1)
        let out = try Tensor(out, "out")
        for tensor in [x, weight, bias, out].compactMap({ $0 }) { try tensor.require(.float32) }
        try x.require(x.view.rows, weight.view.columns)
        try bias?.require(1, weight.view.rows)
        try out.require(x.view.rows, weight.view.rows)
        let device = try requireSeparate(outputs: [out], inputs: [x, weight, bias])
        if device != .cpu { throw .unsupportedDevice(argument: x.argument, got: "\(device), where OpenBLAS does not work") }
        try CPUBackend.shared.baseProduct(x.view, weight.view, bias: bias?.view, into: out.view)
    }
}

@c @implementation
public func lr_change_forward(
    _ x: UnsafePointer<DLTensor>?, _ down: UnsafePointer<DLTensor>?, _ up: UnsafePointer<DLTensor>?,
    _ start_down: UnsafePointer<DLTensor>?, _ start_up: UnsafePointer<DLTensor>?, _ scale: Double,
    _ out: UnsafeMutablePointer<DLTensor>?, _ out_h: UnsafeMutablePointer<DLTensor>?
) -> lr_status_t {
    call { () throws(LowRankError) in
        let (x, down, up) = (try Tensor(x, "x"), try Tensor(down, "down"), try Tensor(up, "up"))
        let (startDown, startUp) = (try Tensor(start_down, "start_down"), try Tensor(start_up, "start_up"))
        let (out, h) = (try Tensor(out, "out"), try Tensor(out_h, "out_h"))
        let device = try requireSeparate(outputs: [out, h], inputs: [x, down, up, startDown, startUp])
        let factors = try Factors(up: up.view, core: .identity, down: down.view, scale: scale)
        let change = try Change(factors, startUp: startUp.view, startDown: startDown.view)
        try device.enqueue { (backend) throws(LowRankError) in
            try change.addForward(x.view, to: out.view, keeping: h.view, on: backend)
        }
    }
}

@c @implementation
public func lr_change_backward(
    _ grad: UnsafePointer<DLTensor>?, _ x: UnsafePointer<DLTensor>?, _ h: UnsafePointer<DLTensor>?,
    _ down: UnsafePointer<DLTensor>?, _ up: UnsafePointer<DLTensor>?, _ start_down: UnsafePointer<DLTensor>?,
    _ start_up: UnsafePointer<DLTensor>?, _ scale: Double, _ out_x: UnsafeMutablePointer<DLTensor>?,
    _ out_down: UnsafeMutablePointer<DLTensor>?, _ out_up: UnsafeMutablePointer<DLTensor>?
) -> lr_status_t {
    call { () throws(LowRankError) in
        let grad = try Tensor(grad, "grad")
        let (x, h) = (try Tensor.optional(x, "x"), try Tensor.optional(h, "h"))
        let (down, up) = (try Tensor(down, "down"), try Tensor(up, "up"))
        let (startDown, startUp) = (try Tensor(start_down, "start_down"), try Tensor(start_up, "start_up"))
        let dx = try Tensor.optional(out_x, "out_x")
        let (dDown, dUp) = (try Tensor.optional(out_down, "out_down"), try Tensor.optional(out_up, "out_up"))
        let device = try requireSeparate(outputs: [dx, dDown, dUp], inputs: [grad, x, h, down, up, startDown, startUp])
        let factors = try Factors(up: up.view, core: .identity, down: down.view, scale: scale)
        let change = try Change(factors, startUp: startUp.view, startDown: startDown.view)
        let gradients = Gradients(x: dx?.view, down: dDown?.view, up: dUp?.view)
        try device.enqueue { (backend) throws(LowRankError) in
            try change.backward(grad.view, x: x?.view, h: h?.view, into: gradients, on: backend)
        }
    }
}

@c @implementation
public func lr_merge(
    _ weight: UnsafeMutablePointer<DLTensor>?, _ down: UnsafePointer<DLTensor>?, _ core: UnsafePointer<DLTensor>?,
    _ up: UnsafePointer<DLTensor>?, _ scale: Double
) -> lr_status_t {
    call { () throws(LowRankError) in
        let weight = try Tensor(weight, "weight")
        let (down, core, up) = (try Tensor(down, "down"), try Tensor.core(core), try Tensor(up, "up"))
        let device = try requireSeparate(outputs: [weight], inputs: [down, core, up])
        let factors = try Factors(up: up.view, core: Core(core), down: down.view, scale: scale)
        try device.run { (backend) throws(LowRankError) in try factors.merge(into: weight.view, on: backend) }
    }
}
