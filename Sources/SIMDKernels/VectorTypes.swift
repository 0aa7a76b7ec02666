// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0

// Register widths of the instruction set that this target is built for.
#if LOWRANK_AVX512
    typealias FloatVector = SIMD16<Float>
    typealias DoubleVector = SIMD8<Double>
#elseif LOWRANK_AVX2
    typealias FloatVector = SIMD8<Float>
    typealias DoubleVector = SIMD4<Double>
#else
    typealias FloatVector = SIMD4<Float>
    typealias DoubleVector = SIMD2<Double>
#endif

/// A register of `lanes` elements; what the micro tile asks of it.
protocol ComputeVector: BitwiseCopyable, StripWidth {
    associatedtype Element: ComputeScalar
    static var lanes: Int { get }
    /// Steps of the depth in one element of a packed operand.
    static var depthSteps: Int { get }
    static var zero: Self { get }
    init(repeating value: Element)
    static func + (a: Self, b: Self) -> Self
    static func * (a: Self, b: Self) -> Self
    static func / (a: Self, b: Self) -> Self
    func sumOfLanes() -> Element
    /// `self + a * b` for elements of packed operands, fused where the instruction set has it.
    func accumulating(_ a: Self, _ b: Self) -> Self
    /// Reads and writes at any address. Part of the protocol, because the standard library's generic forms would leave
    /// weak copies of themselves in every instruction set's objects.
    static func read(_ address: UnsafeRawPointer) -> Self
    func write(_ address: UnsafeMutableRawPointer)
}

extension FloatVector: ComputeVector {
    typealias Element = Float
    @inline(__always) func sumOfLanes() -> Float {
        #if LOWRANK_AVX512
            return sumOfFour((lowHalf + highHalf).lowHalf + (lowHalf + highHalf).highHalf)
        #elseif LOWRANK_AVX2
            return sumOfFour(lowHalf + highHalf)
        #else
            return sumOfFour(self)
        #endif
    }
    @inline(__always) static var lanes: Int { scalarCount }
    @inline(__always) static var depthSteps: Int { 1 }
    @inline(__always) func accumulating(_ a: Self, _ b: Self) -> Self { fused(self, a, b) }
    @inline(__always) static func read(_ address: UnsafeRawPointer) -> FloatVector {
        address.loadUnaligned(as: FloatVector.self)
    }
    @inline(__always) func write(_ address: UnsafeMutableRawPointer) {
        address.storeBytes(of: self, as: FloatVector.self)
    }
}

extension DoubleVector: ComputeVector {
    typealias Element = Double
    @inline(__always) func sumOfLanes() -> Double {
        #if LOWRANK_AVX512
            return sumOfFour(lowHalf + highHalf)
        #elseif LOWRANK_AVX2
            return sumOfFour(self)
        #else
            return self[0] + self[1]
        #endif
    }
    @inline(__always) static var lanes: Int { scalarCount }
    @inline(__always) static var depthSteps: Int { 1 }
    @inline(__always) func accumulating(_ a: Self, _ b: Self) -> Self { fused(self, a, b) }
    @inline(__always) static func read(_ address: UnsafeRawPointer) -> DoubleVector {
        address.loadUnaligned(as: DoubleVector.self)
    }
    @inline(__always) func write(_ address: UnsafeMutableRawPointer) {
        address.storeBytes(of: self, as: DoubleVector.self)
    }
}

/// The standard library's own sum of the widest vectors would leave a weak copy of itself.
@inline(__always)
private func sumOfFour<Scalar: FloatingPoint>(_ v: SIMD4<Scalar>) -> Scalar { (v[0] + v[1]) + (v[2] + v[3]) }

/// Without FMA `addingProduct` would be a library call per lane.
@inline(__always)
private func fused<V: SIMD>(_ sum: V, _ a: V, _ b: V) -> V where V.Scalar: FloatingPoint {
    #if LOWRANK_BASELINE
        sum + a * b
    #else
        sum.addingProduct(a, b)
    #endif
}
