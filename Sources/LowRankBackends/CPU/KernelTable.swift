// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import CPUFeatures
import SIMDKernels

#if arch(x86_64)
    import SIMDKernelsAVX2
    import SIMDKernelsAVX512
    import SIMDKernelsAVX512BF16
#endif

/// The kernels of one instruction set. Sizes and strides are in elements, types are ``ScalarType`` raw values.
package struct KernelTable: Sendable {
    package typealias Multiply = @Sendable (
        _ rows: Int, _ columns: Int, _ depth: Int, _ alpha: Double,
        _ a: UnsafeRawPointer, _ aType: Int32, _ aRow: Int, _ aColumn: Int, _ packedA: UnsafeRawPointer?,
        _ b: UnsafeRawPointer, _ bType: Int32, _ bRow: Int, _ bColumn: Int, _ packedB: UnsafeRawPointer?,
        _ beta: Double, _ c: UnsafeMutableRawPointer, _ cType: Int32, _ cRow: Int, _ cColumn: Int,
        _ workspace: UnsafeMutableRawPointer
    ) -> Void
    package typealias Pack = @Sendable (
        _ asStrips: Bool, _ lines: Int, _ depth: Int, _ block: Int, _ source: UnsafeRawPointer, _ type: Int32,
        _ otherType: Int32, _ lineStride: Int, _ depthStride: Int, _ destination: UnsafeMutableRawPointer
    ) -> Void
    package typealias Gram = @Sendable (
        _ rows: Int, _ columns: Int, _ depth: Int, _ a: UnsafeRawPointer, _ aType: Int32, _ aRow: Int, _ aColumn: Int,
        _ x: UnsafeRawPointer, _ xType: Int32, _ xRow: Int, _ xColumn: Int, _ z: UnsafeMutableRawPointer,
        _ zLine: Int, _ workspace: UnsafeMutableRawPointer
    ) -> Void
    package typealias CopyScaled<C> = @Sendable (
        _ rows: Int, _ columns: Int, _ source: UnsafeRawPointer, _ sourceType: Int32, _ sourceRow: Int,
        _ sourceColumn: Int, _ rowFactors: UnsafePointer<C>?, _ columnFactors: UnsafePointer<C>?, _ beta: Double,
        _ target: UnsafeMutableRawPointer, _ targetType: Int32, _ targetRow: Int, _ targetColumn: Int
    ) -> Void
    package typealias Reduce<Result> = @Sendable (
        _ rows: Int, _ columns: Int, _ source: UnsafeRawPointer, _ type: Int32, _ row: Int, _ column: Int
    ) -> Result
    package typealias ColumnDots = @Sendable (
        _ rows: Int, _ columns: Int, _ a: UnsafeRawPointer, _ aType: Int32, _ aRow: Int, _ aColumn: Int,
        _ b: UnsafeRawPointer, _ bType: Int32, _ bRow: Int, _ bColumn: Int, _ sums: UnsafeMutablePointer<Double>
    ) -> Void
    /// LU of a column-major panel of float32 or float64.
    package typealias FactorLU = @Sendable (
        _ type: Int32, _ rows: Int, _ columns: Int, _ panel: UnsafeMutableRawPointer, _ line: Int,
        _ pivots: UnsafeMutablePointer<Int>, _ workspace: UnsafeMutableRawPointer
    ) -> Void
    /// A step of the QR of such a panel.
    package typealias FactorQR = @Sendable (
        _ type: Int32, _ rows: Int, _ columns: Int, _ panel: UnsafeMutableRawPointer, _ line: Int,
        _ triangles: UnsafeMutableRawPointer, _ workspace: UnsafeMutableRawPointer
    ) -> Void
    package typealias SolveUnitLower = @Sendable (
        _ type: Int32, _ rows: Int, _ columns: Int, _ panel: UnsafeRawPointer, _ line: Int,
        _ right: UnsafeMutableRawPointer, _ rightLine: Int, _ workspace: UnsafeMutableRawPointer
    ) -> Void

    /// The name by which LOWRANK_ISA asks for it.
    package var name: String
    /// float32 elements of a vector register.
    package let floatLanes: Int
    /// Whether products of two bfloat16 operands take two steps of the depth at once.
    package var multipliesPairs: Bool
    package var multiplyFloat32: Multiply
    package var multiplyFloat64: Multiply
    package var multiplyWorkspace: @Sendable (_ rows: Int, _ columns: Int, _ depth: Int) -> Int
    package var packFloat32: Pack
    package var packFloat64: Pack
    package var packedBytes: @Sendable (_ asStrips: Bool, _ lines: Int, _ inFloat64: Bool) -> Int
    package var gramFloat32: Gram
    package var gramFloat64: Gram
    package var gramWorkspace: @Sendable (_ columns: Int, _ depth: Int, _ isAcross: Bool) -> Int
    package var copyScaledFloat32: CopyScaled<Float>
    package var copyScaledFloat64: CopyScaled<Double>
    package var maxMagnitude: Reduce<Double>
    package var firstNonFinite: Reduce<Int>
    package var columnDots: ColumnDots
    /// Columns of a panel that the kernels take at once.
    package let panelColumns: Int
    package var panelWorkspace: @Sendable (_ rows: Int) -> Int
    package var factorLU: FactorLU
    package var factorQR: FactorQR
    package var formQ: FactorQR
    package var solveWorkspace: @Sendable (_ rows: Int) -> Int
    package var solveUnitLower: SolveUnitLower
}

extension KernelTable {
    /// Steps of the depth in a block of a packed operand, for every instruction set.
    package static let packedDepth = SIMDKernels.packedDepth()

    /// Lines behind Z that a Gram product may write to.
    package static let gramSlack = SIMDKernels.gramSlack()

    /// Element by element in float64: what the others are tested against.
    package static let reference = KernelTable(
        name: "reference", floatLanes: 2, multipliesPairs: false,
        multiplyFloat32: SIMDKernels.multiplyReference, multiplyFloat64: SIMDKernels.multiplyReference,
        multiplyWorkspace: { _, _, _ in 0 },
        packFloat32: { _, _, _, _, _, _, _, _, _, _ in }, packFloat64: { _, _, _, _, _, _, _, _, _, _ in },
        packedBytes: { _, _, _ in 0 },
        gramFloat32: SIMDKernels.gramReferenceFloat32, gramFloat64: SIMDKernels.gramReferenceFloat64,
        gramWorkspace: { _, _, _ in 0 },
        copyScaledFloat32: SIMDKernels.copyScaledReferenceFloat32,
        copyScaledFloat64: SIMDKernels.copyScaledReferenceFloat64,
        maxMagnitude: SIMDKernels.maxMagnitudeReference, firstNonFinite: SIMDKernels.firstNonFiniteReference,
        columnDots: SIMDKernels.columnDotsReference,
        panelColumns: SIMDKernels.panelColumns(), panelWorkspace: { _ in 0 }, factorLU: SIMDKernels.factorLUReference,
        factorQR: SIMDKernels.factorQRReference, formQ: SIMDKernels.formQReference, solveWorkspace: { _ in 0 },
        solveUnitLower: SIMDKernels.solveUnitLowerReference)

    /// What every CPU of the architecture runs.
    package static let baseline = KernelTable(
        name: "baseline", floatLanes: SIMDKernels.floatLanes(), multipliesPairs: SIMDKernels.multipliesPairs(),
        multiplyFloat32: SIMDKernels.multiplyFloat32, multiplyFloat64: SIMDKernels.multiplyFloat64,
        multiplyWorkspace: SIMDKernels.multiplyWorkspace,
        packFloat32: SIMDKernels.packFloat32, packFloat64: SIMDKernels.packFloat64, packedBytes: SIMDKernels.packedBytes,
        gramFloat32: SIMDKernels.gramFloat32, gramFloat64: SIMDKernels.gramFloat64,
        gramWorkspace: SIMDKernels.gramWorkspace,
        copyScaledFloat32: SIMDKernels.copyScaledFloat32, copyScaledFloat64: SIMDKernels.copyScaledFloat64,
        maxMagnitude: SIMDKernels.maxMagnitude, firstNonFinite: SIMDKernels.firstNonFinite,
        columnDots: SIMDKernels.columnDots,
        panelColumns: SIMDKernels.panelColumns(), panelWorkspace: SIMDKernels.panelWorkspace,
        factorLU: SIMDKernels.factorLU, factorQR: SIMDKernels.factorQR, formQ: SIMDKernels.formQ,
        solveWorkspace: SIMDKernels.solveWorkspace, solveUnitLower: SIMDKernels.solveUnitLower)

    #if arch(x86_64)
        private static let avx2 = KernelTable(
            name: "avx2", floatLanes: SIMDKernelsAVX2.floatLanes(),
            multipliesPairs: SIMDKernelsAVX2.multipliesPairs(),
            multiplyFloat32: SIMDKernelsAVX2.multiplyFloat32, multiplyFloat64: SIMDKernelsAVX2.multiplyFloat64,
            multiplyWorkspace: SIMDKernelsAVX2.multiplyWorkspace,
            packFloat32: SIMDKernelsAVX2.packFloat32, packFloat64: SIMDKernelsAVX2.packFloat64,
            packedBytes: SIMDKernelsAVX2.packedBytes,
            gramFloat32: SIMDKernelsAVX2.gramFloat32, gramFloat64: SIMDKernelsAVX2.gramFloat64,
            gramWorkspace: SIMDKernelsAVX2.gramWorkspace,
            copyScaledFloat32: SIMDKernelsAVX2.copyScaledFloat32, copyScaledFloat64: SIMDKernelsAVX2.copyScaledFloat64,
            maxMagnitude: SIMDKernelsAVX2.maxMagnitude, firstNonFinite: SIMDKernelsAVX2.firstNonFinite,
            columnDots: SIMDKernelsAVX2.columnDots,
            panelColumns: SIMDKernelsAVX2.panelColumns(), panelWorkspace: SIMDKernelsAVX2.panelWorkspace,
            factorLU: SIMDKernelsAVX2.factorLU, factorQR: SIMDKernelsAVX2.factorQR, formQ: SIMDKernelsAVX2.formQ,
            solveWorkspace: SIMDKernelsAVX2.solveWorkspace, solveUnitLower: SIMDKernelsAVX2.solveUnitLower)

        private static let avx512 = KernelTable(
            name: "avx512", floatLanes: SIMDKernelsAVX512.floatLanes(),
            multipliesPairs: SIMDKernelsAVX512.multipliesPairs(),
            multiplyFloat32: SIMDKernelsAVX512.multiplyFloat32, multiplyFloat64: SIMDKernelsAVX512.multiplyFloat64,
            multiplyWorkspace: SIMDKernelsAVX512.multiplyWorkspace,
            packFloat32: SIMDKernelsAVX512.packFloat32, packFloat64: SIMDKernelsAVX512.packFloat64,
            packedBytes: SIMDKernelsAVX512.packedBytes,
            gramFloat32: SIMDKernelsAVX512.gramFloat32, gramFloat64: SIMDKernelsAVX512.gramFloat64,
            gramWorkspace: SIMDKernelsAVX512.gramWorkspace,
            copyScaledFloat32: SIMDKernelsAVX512.copyScaledFloat32, copyScaledFloat64: SIMDKernelsAVX512.copyScaledFloat64,
            maxMagnitude: SIMDKernelsAVX512.maxMagnitude, firstNonFinite: SIMDKernelsAVX512.firstNonFinite,
            columnDots: SIMDKernelsAVX512.columnDots,
            panelColumns: SIMDKernelsAVX512.panelColumns(), panelWorkspace: SIMDKernelsAVX512.panelWorkspace,
            factorLU: SIMDKernelsAVX512.factorLU, factorQR: SIMDKernelsAVX512.factorQR, formQ: SIMDKernelsAVX512.formQ,
            solveWorkspace: SIMDKernelsAVX512.solveWorkspace, solveUnitLower: SIMDKernelsAVX512.solveUnitLower)

        private static let avx512bf16 = KernelTable(
            name: "avx512bf16", floatLanes: SIMDKernelsAVX512BF16.floatLanes(),
            multipliesPairs: SIMDKernelsAVX512BF16.multipliesPairs(),
            multiplyFloat32: SIMDKernelsAVX512BF16.multiplyFloat32,
            multiplyFloat64: SIMDKernelsAVX512BF16.multiplyFloat64,
            multiplyWorkspace: SIMDKernelsAVX512BF16.multiplyWorkspace,
            packFloat32: SIMDKernelsAVX512BF16.packFloat32, packFloat64: SIMDKernelsAVX512BF16.packFloat64,
            packedBytes: SIMDKernelsAVX512BF16.packedBytes,
            gramFloat32: SIMDKernelsAVX512BF16.gramFloat32, gramFloat64: SIMDKernelsAVX512BF16.gramFloat64,
            gramWorkspace: SIMDKernelsAVX512BF16.gramWorkspace,
            copyScaledFloat32: SIMDKernelsAVX512BF16.copyScaledFloat32,
            copyScaledFloat64: SIMDKernelsAVX512BF16.copyScaledFloat64,
            maxMagnitude: SIMDKernelsAVX512BF16.maxMagnitude, firstNonFinite: SIMDKernelsAVX512BF16.firstNonFinite,
            columnDots: SIMDKernelsAVX512BF16.columnDots,
            panelColumns: SIMDKernelsAVX512BF16.panelColumns(), panelWorkspace: SIMDKernelsAVX512BF16.panelWorkspace,
            factorLU: SIMDKernelsAVX512BF16.factorLU, factorQR: SIMDKernelsAVX512BF16.factorQR,
            formQ: SIMDKernelsAVX512BF16.formQ,
            solveWorkspace: SIMDKernelsAVX512BF16.solveWorkspace, solveUnitLower: SIMDKernelsAVX512BF16.solveUnitLower)
    #endif

    /// The tables that this CPU runs, the best one last.
    package static let available: [KernelTable] = {
        var tables = [reference, baseline]
        #if arch(x86_64)
            if cpu_has_avx2() { tables.append(avx2) }
            if cpu_has_avx512() { tables.append(avx512) }
            if cpu_has_avx512bf16() { tables.append(avx512bf16) }
        #endif
        return tables
    }()

    /// The table in use: the best one, or the one that LOWRANK_ISA names if this CPU runs it.
    package static let current: KernelTable =
        environmentChoice("LOWRANK_ISA", among: available.map { ($0.name, $0) }) ?? available[available.count - 1]
}
