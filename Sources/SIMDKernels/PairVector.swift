// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
#if LOWRANK_BFLOAT16_PAIRS
    import CPUFeatures

    // Products of two bfloat16 operands, of which a packed element holds two along the depth: one instruction takes two
    // registers of such pairs and adds both products to a float32, where widened operands take two, and twice the
    // packed memory. Each product is exact and each of the two additions rounds once, as in the other sets; but numbers
    // below the smallest normal one, 2^-126, count as zero, as operands and as sums.

    // A register of packed pairs, or of float32 sums. The standard library's type: one of this module would bring weak
    // code for its copies.
    #if LOWRANK_AVX512
        typealias PairVector = SIMD32<UInt16>
    #else
        typealias PairVector = SIMD8<UInt16>
    #endif

    extension PairVector: StripWidth {
        @inline(__always) static var width: Int { FloatVector.width }
    }

    extension PairVector: ComputeVector {
        typealias Element = Float
        @inline(__always) private init(_ sums: FloatVector) { self = unsafeBitCast(sums, to: PairVector.self) }
        @inline(__always) private var sums: FloatVector { unsafeBitCast(self, to: FloatVector.self) }
        @inline(__always) init(repeating pair: Float) { self.init(FloatVector(repeating: pair)) }
        @inline(__always) static var lanes: Int { FloatVector.lanes }
        @inline(__always) static var depthSteps: Int { 2 }
        @inline(__always) static var zero: PairVector { PairVector(FloatVector.zero) }
        @inline(__always) static func + (a: Self, b: Self) -> Self { PairVector(a.sums + b.sums) }
        @inline(__always) static func * (a: Self, b: Self) -> Self { PairVector(a.sums * b.sums) }
        @inline(__always) static func / (a: Self, b: Self) -> Self { PairVector(a.sums / b.sums) }
        @inline(__always) func sumOfLanes() -> Float { sums.sumOfLanes() }
        @inline(__always) static func read(_ address: UnsafeRawPointer) -> PairVector { PairVector(.read(address)) }
        @inline(__always) func write(_ address: UnsafeMutableRawPointer) { sums.write(address) }

        @inline(__always) func accumulating(_ a: Self, _ b: Self) -> Self {
            #if LOWRANK_AVX512BF16
                PairVector(add_products_of_pairs(sums, a.sums, b.sums))
            #else
                var result = sums
                for i in 0..<FloatVector.lanes {
                    result[i] = addingProducts(result[i], a.sums[i].bitPattern, b.sums[i].bitPattern)
                }
                return PairVector(result)
            #endif
        }
    }

    /// A bfloat16 of an operand and the next one along the depth, in the low and the high half of a packed float32.
    struct BFloat16Pair: PackSource {
        var bits: UInt16

        @inline(__always) static var steps: Int { 2 }
        @inline(__always) static func packed<C: ComputeScalar>(_ first: UnsafePointer<Self>, next: Int) -> C {
            C(widening: Float(bitPattern: UInt32(first[0].bits) | UInt32(first[next].bits) &<< 16))
        }
        @inline(__always) static func packedLast<C: ComputeScalar>(_ first: UnsafePointer<Self>) -> C {
            C(widening: Float(bitPattern: UInt32(first[0].bits)))
        }
    }

    #if !LOWRANK_AVX512BF16
        /// What the instruction does in one lane, with the same bits: on any processor, for tests.
        @inline(__always)
        private func addingProducts(_ sum: Float, _ a: UInt32, _ b: UInt32) -> Float {
            let high = addingProduct(sum, a & 0xffff_0000, b & 0xffff_0000)
            return addingProduct(high, a &<< 16, b &<< 16)
        }

        /// `sum + a * b` of float32 bits, rounded once: float64 holds the product of two bfloat16, and enough bits of
        /// the sum that rounding it again does no harm.
        @inline(__always)
        private func addingProduct(_ sum: Float, _ a: UInt32, _ b: UInt32) -> Float {
            flushed(Float(Double(sum) + Double(flushed(Float(bitPattern: a))) * Double(flushed(Float(bitPattern: b)))))
        }

        @inline(__always)
        private func flushed(_ value: Float) -> Float {
            let bits = value.bitPattern
            return Float(bitPattern: bits & 0x7f80_0000 == 0 ? bits & 0x8000_0000 : bits)
        }
    #endif
#endif
