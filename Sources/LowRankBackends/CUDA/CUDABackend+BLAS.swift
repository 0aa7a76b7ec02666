// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import CCUDA
import LowRankCore

// Products that cuBLAS can do: of one type, with a unit stride in each matrix.

extension CUDABackend {
    /// `c = alpha * a b + beta * c` by cuBLAS.
    /// - Returns: false, with nothing done, where it has no such product.
    func multiplyWithBLAS(
        alpha: Double, _ a: MatrixView, _ b: MatrixView, beta: Double, into c: MatrixView
    ) throws(LowRankError) -> Bool {
        guard a.columns > 0, a.type == b.type, c.type == a.type || (c.type == .float32 && a.type.size == 2),
            let left = BLASOperand(a), let right = BLASOperand(b), let target = BLASOperand(c)
        else { return false }
        // cuBLAS writes columns: a c of rows is the transposed product.
        if target.operation == LR_CUBLAS_OP_T {
            return try multiplyWithBLAS(alpha: alpha, b.transposed, a.transposed, beta: beta, into: c.transposed)
        }
        guard let m = Int32(exactly: c.rows), let n = Int32(exactly: c.columns), let k = Int32(exactly: a.columns) else {
            return false
        }
        if session.isPlanning { return true }
        let (blas, handle) = (session.device.libraries.blas, try session.libraryHandles().blas)
        let inFloat64 = a.type == .float64
        let compute = Int32(inFloat64 ? LR_CUBLAS_COMPUTE_64F : LR_CUBLAS_COMPUTE_32F)
        func gemm(_ alpha: UnsafeRawPointer, _ beta: UnsafeRawPointer) -> Int32 {
            blas.cublasGemmEx(
                handle, left.operation, right.operation, m, n, k, alpha, left.address, left.type, left.leading, right.address,
                right.type, right.leading, beta, target.address, target.type, target.leading, compute,
                Int32(LR_CUBLAS_GEMM_DEFAULT))
        }
        let status = inFloat64 ? gemm([alpha], [beta]) : gemm([Float(alpha)], [Float(beta)])
        // Which strides and types go together is not all documented; own kernels take what is refused.
        if Int(status) == LR_CUBLAS_STATUS_NOT_SUPPORTED { return false }
        try blas.check(status, "cublasGemmEx")
        return true
    }

    /// The product of float32 matrices into a 16-bit c that is small beside them, by way of float32: cuBLAS has no other.
    /// - Returns: false, with nothing done, where the operands are others.
    func multiplyBeforeRounding(
        alpha: Double, _ a: MatrixView, _ b: MatrixView, beta: Double, into c: MatrixView
    ) throws(LowRankError) -> Bool {
        let isSmall = 2 * c.rows * c.columns <= max(a.rows, b.columns) * a.columns
        guard isSmall, a.type == .float32, b.type == .float32, c.type.size == 2 else { return false }
        let order: StorageOrder = c.runsAlongColumns ? .columnMajor : .rowMajor
        let product = try makeMatrix(rows: c.rows, columns: c.columns, type: .float32, order: order).view
        guard try multiplyWithBLAS(alpha: alpha, a, b, beta: 0, into: product) else { return false }
        try accumulate(product, beta: beta, into: c)
        return true
    }

    /// The product of a large 16-bit matrix and a narrow float32 one, as three products of 16-bit matrices on tensor cores
    /// instead of a float32 copy of the large one: the narrow one is the sum of three 16-bit terms, to its last bit or nearly
    /// so, which stand side by side in one matrix. Of bfloat16 terms what lies below 2^-133 is lost.
    /// - Returns: false, with nothing done, where the operands are others.
    func multiplyInTerms(
        alpha: Double, _ a: MatrixView, _ b: MatrixView, beta: Double, into c: MatrixView
    ) throws(LowRankError) -> Bool {
        if a.type == .float32 && b.type.size == 2 {
            return try multiplyInTerms(alpha: alpha, b.transposed, a.transposed, beta: beta, into: c.transposed)
        }
        let isLarge = a.rows >= 4 * b.columns && a.rows * a.columns >= 1 << 14
        guard isLarge, a.type.size == 2, b.type == .float32, c.type != .float64, BLASOperand(a) != nil else { return false }
        let count = Int(LR_TERMS)
        // As b and c lie in memory.
        let terms = try makeMatrix(
            rows: b.rows, columns: count * b.columns, type: a.type, order: b.runsAlongColumns ? .columnMajor : .rowMajor
        ).view
        let sums = try makeMatrix(
            rows: a.rows, columns: count * b.columns, type: .float32, order: c.runsAlongColumns ? .columnMajor : .rowMajor
        ).view
        // The range of bfloat16 is float32's; float16 needs a scale.
        if a.type == .bfloat16 {
            return try multiply(a, b, terms: terms, sums: sums, magnitude: 0, alpha: alpha, beta: beta, into: c)
        }
        return try withReduction(of: b, kind: LR_MAX_MAGNITUDE) { (magnitude) throws(LowRankError) in
            try multiply(
                a, b, terms: terms, sums: sums, magnitude: magnitude.cudaAddress, alpha: alpha, beta: beta, into: c)
        }
    }

    private func multiply(
        _ a: MatrixView, _ b: MatrixView, terms: MatrixView, sums: MatrixView, magnitude: lr_cuda_address, alpha: Double,
        beta: Double, into c: MatrixView
    ) throws(LowRankError) -> Bool {
        let (term, sum) = (terms[columns: 0..<b.columns], sums[columns: 0..<b.columns])
        let source = term.runsAlongColumns ? b.transposed : b
        let split = lr_split_terms_arguments(
            source: source.onDevice, target: term.lines.onDevice, magnitude: magnitude,
            step: Int64(b.columns * terms.columnStride))
        try session.launch(.splitTerms, split, elements: source.groups)
        guard try multiplyWithBLAS(alpha: 1, a, terms, beta: 0, into: sums) else { return false }
        try sumSlices(
            sum, count: Int(LR_TERMS), step: b.columns * sums.columnStride, magnitude: magnitude, alpha: alpha, beta: beta,
            into: c)
        return true
    }
}

/// A matrix as BLAS takes it: columns of elements that follow each other, or the transpose of such.
private struct BLASOperand {
    let address: lr_cuda_address
    let type: Int32
    let operation: Int32
    let leading: Int32

    init?(_ view: MatrixView) {
        let leading: Int
        // The stride along a single row or column may be anything.
        if (view.rows == 1 || view.rowStride == 1) && (view.columns == 1 || view.columnStride >= view.rows) {
            operation = Int32(LR_CUBLAS_OP_N)
            leading = view.columns == 1 ? view.rows : view.columnStride
        } else if (view.columns == 1 || view.columnStride == 1) && (view.rows == 1 || view.rowStride >= view.columns) {
            operation = Int32(LR_CUBLAS_OP_T)
            leading = view.rows == 1 ? view.columns : view.rowStride
        } else {
            return nil
        }
        guard let leading = Int32(exactly: leading) else { return nil }
        self.leading = leading
        address = view.address.cudaAddress
        switch view.type {
        case .float32: type = Int32(LR_CUDA_R_32F)
        case .float64: type = Int32(LR_CUDA_R_64F)
        case .float16: type = Int32(LR_CUDA_R_16F)
        case .bfloat16: type = Int32(LR_CUDA_R_16BF)
        }
    }
}
