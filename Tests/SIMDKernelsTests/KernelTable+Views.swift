// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankBackends
import LowRankCore
import TestSupport
import Testing

// One kernel call each, on whole matrices: what a backend does for one block.

extension KernelTable {
    /// `c = alpha * a b + beta * c`, with a workspace of the size asked for and a guard behind it. The kernel packs the
    /// operands, or gets them packed.
    func multiply(
        _ alpha: Double, _ a: TestMatrix, _ b: TestMatrix, beta: Double, into c: TestMatrix,
        packed: (a: Bool, b: Bool) = (false, false), label: String, sourceLocation: SourceLocation = #_sourceLocation
    ) {
        let inFloat64 = [a, b, c].contains { $0.view.type == .float64 }
        let (a, b, c) = (a.view, b.view, c.view)
        let needed = multiplyWorkspace(c.rows, c.columns, a.columns)
        let guardBytes = 256
        let workspace = UnsafeMutableRawPointer.allocate(byteCount: needed + guardBytes, alignment: 64)
        defer { workspace.deallocate() }
        // Bytes of a NaN in every type, so that a workspace read before it is written shows.
        workspace.initializeMemory(as: UInt8.self, repeating: 0xff, count: needed + guardBytes)
        let packedA = packed.a ? pack(a, asStrips: false, with: b.type, inFloat64) : nil
        let packedB = packed.b ? pack(b.transposed, asStrips: true, with: a.type, inFloat64) : nil
        defer {
            packedA?.deallocate()
            packedB?.deallocate()
        }
        let kernel = inFloat64 ? multiplyFloat64 : multiplyFloat32
        kernel(
            c.rows, c.columns, a.columns, alpha, a.address, a.type.rawValue, a.rowStride, a.columnStride, packedA,
            b.address, b.type.rawValue, b.rowStride, b.columnStride, packedB,
            beta, c.address, c.type.rawValue, c.rowStride, c.columnStride, workspace)
        let isIntact = (needed..<(needed + guardBytes)).allSatisfy {
            workspace.load(fromByteOffset: $0, as: UInt8.self) == 0xff
        }
        #expect(isIntact, "\(label): memory behind the workspace was written", sourceLocation: sourceLocation)
    }

    /// An operand packed for a product with one of another type, in memory of the size asked for: bytes of a NaN where
    /// nothing was written. The caller frees it.
    func pack(
        _ lines: MatrixView, asStrips: Bool, with otherType: ScalarType, _ inFloat64: Bool
    ) -> UnsafeMutableRawPointer {
        let blocks = (lines.columns + Self.packedDepth - 1) / Self.packedDepth
        let size = blocks * packedBytes(asStrips, lines.rows, inFloat64)
        let memory = UnsafeMutableRawPointer.allocate(byteCount: size, alignment: 64)
        memory.initializeMemory(as: UInt8.self, repeating: 0xff, count: size)
        for block in 0..<blocks {
            (inFloat64 ? packFloat64 : packFloat32)(
                asStrips, lines.rows, lines.columns, block, lines.address, lines.type.rawValue, otherType.rawValue,
                lines.rowStride, lines.columnStride, memory)
        }
        return memory
    }

    /// `target = diag(rowFactors) source diag(columnFactors) + beta * target` in float32 or float64.
    func copyScaled(
        _ source: TestMatrix, rowFactors: [Double]? = nil, columnFactors: [Double]? = nil, beta: Double = 0,
        to target: TestMatrix, inFloat64: Bool
    ) {
        let (source, target) = (source.view, target.view)
        if inFloat64 {
            withLine(rowFactors) { rowLine in
                withLine(columnFactors) { columnLine in
                    copyScaledFloat64(
                        source.rows, source.columns, source.address, source.type.rawValue, source.rowStride,
                        source.columnStride, rowLine, columnLine, beta, target.address, target.type.rawValue,
                        target.rowStride, target.columnStride)
                }
            }
        } else {
            withLine(rowFactors?.map { Float($0) }) { rowLine in
                withLine(columnFactors?.map { Float($0) }) { columnLine in
                    copyScaledFloat32(
                        source.rows, source.columns, source.address, source.type.rawValue, source.rowStride,
                        source.columnStride, rowLine, columnLine, beta, target.address, target.type.rawValue,
                        target.rowStride, target.columnStride)
                }
            }
        }
    }

    private func withLine<Element>(_ values: [Element]?, _ body: (UnsafePointer<Element>?) -> Void) {
        guard let values else { return body(nil) }
        values.withUnsafeBufferPointer { body($0.baseAddress) }
    }

    func maxMagnitude(of matrix: TestMatrix) -> Double {
        let view = matrix.view
        return maxMagnitude(
            view.rows, view.columns, view.address, view.type.rawValue, view.rowStride, view.columnStride)
    }

    func firstNonFinite(in matrix: TestMatrix) -> Int {
        let view = matrix.view
        return firstNonFinite(
            view.rows, view.columns, view.address, view.type.rawValue, view.rowStride, view.columnStride)
    }

    /// Adds the column products of a and b to `sums`.
    func addColumnDots(_ a: TestMatrix, _ b: TestMatrix, to sums: inout [Double]) {
        let (a, b) = (a.view, b.view)
        sums.withUnsafeMutableBufferPointer { buffer in
            guard let target = buffer.baseAddress else { return }
            columnDots(
                a.rows, a.columns, a.address, a.type.rawValue, a.rowStride, a.columnStride,
                b.address, b.type.rawValue, b.rowStride, b.columnStride, target)
        }
    }
}
