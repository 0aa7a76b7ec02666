// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import CCUDA
import LowRankCore

extension CUDABackend {
    /// By cuSOLVER, column after column.
    func factorQRByHouseholder(_ panel: Matrix, triangle: MatrixView) throws(LowRankError) {
        let view = panel.view
        let solver = device.solver
        let (handle, a) = (try session.libraryHandles().solver, view.address.cudaAddress)
        let (m, n) = (try int32(view.rows), try int32(view.columns))
        let isWide = view.type == .float64
        var (factoring, forming): (Int32, Int32) = (0, 0)
        try solver.check(
            (isWide ? solver.cusolverDnDgeqrf_bufferSize : solver.cusolverDnSgeqrf_bufferSize)(handle, m, n, a, m, &factoring),
            "geqrf_bufferSize")
        let size = view.type.size
        try session.withMemory(bytes: view.columns * size + 16) { (tau) throws(LowRankError) in
            try solver.check(
                (isWide ? solver.cusolverDnDorgqr_bufferSize : solver.cusolverDnSorgqr_bufferSize)(
                    handle, m, n, n, a, m, tau.cudaAddress, &forming), "orgqr_bufferSize")
            let count = max(factoring, forming)
            try session.withMemory(bytes: Int(count) * size + 16) { (work) throws(LowRankError) in
                // The status of a refused argument lies behind the workspace; it would be a bug of ours, and is not waited for.
                let info = work.cudaAddress + lr_cuda_address(Int(count) * size)
                try solver.check(
                    (isWide ? solver.cusolverDnDgeqrf : solver.cusolverDnSgeqrf)(
                        handle, m, n, a, m, tau.cudaAddress, work.cudaAddress, count, info), "geqrf")
                let arguments = lr_upper_triangle_arguments(
                    source: view[rows: 0..<view.columns].onDevice, target: triangle.onDevice)
                try session.launch(.upperTriangle, arguments, elements: triangle.rows * triangle.columns)
                try solver.check(
                    (isWide ? solver.cusolverDnDorgqr : solver.cusolverDnSorgqr)(
                        handle, m, n, n, a, m, tau.cudaAddress, work.cudaAddress, count, info), "orgqr")
            }
        }
    }

    package func solveUnitLower(_ panel: Matrix, _ right: Matrix) throws(LowRankError) {
        try solveUnitLower(panel.view, right.view)
    }

    func solveUnitLower(_ l: MatrixView, _ x: MatrixView) throws(LowRankError) {
        precondition(x.columnStride == 1 && x.rows <= l.rows && l.type == x.type, "operands of a triangular solve")
        if x.isEmpty { return }
        let (blas, handle) = (device.blas, try session.libraryHandles().blas)
        // Row-major X is column-major X^T, and L X = B is X^T L^T = B^T.
        let (n, r) = (try int32(x.columns), try int32(x.rows))
        let (leadingL, leadingX) = (try int32(l.columnStride), try int32(max(x.rowStride, x.columns)))
        let (right, lower, transposed) = (Int32(LR_CUBLAS_SIDE_RIGHT), Int32(LR_CUBLAS_FILL_LOWER), Int32(LR_CUBLAS_OP_T))
        let (addressL, addressX, unit) = (l.address.cudaAddress, x.address.cudaAddress, Int32(LR_CUBLAS_DIAG_UNIT))
        if l.type == .float64 {
            try blas.check(
                blas.cublasDtrsm_v2(handle, right, lower, transposed, unit, n, r, [1], addressL, leadingL, addressX, leadingX),
                "trsm")
        } else {
            try blas.check(
                blas.cublasStrsm_v2(handle, right, lower, transposed, unit, n, r, [1], addressL, leadingL, addressX, leadingX),
                "trsm")
        }
    }

    private var device: CUDALibraries { session.device.libraries }

    private func int32(_ value: Int) throws(LowRankError) -> Int32 {
        guard let small = Int32(exactly: value) else {
            throw .invalidShape(argument: "weight", expected: "dimensions below 2^31", got: "\(value)")
        }
        return small
    }

    // MARK: Small dense problems, on the host

    // The matrices have the dimension of a projection, some hundreds; only the dense path of an SVD, which is chosen for small
    // weights and where nothing else has reached a tolerance, copies a whole weight.

    package func factorSVD(_ matrix: Matrix) throws(LowRankError) -> (u: Matrix, s: [Double], vh: Matrix) {
        let found = try CPUBackend.shared.factorSVD(try onHost(matrix))
        return (try fromHost(found.u), found.s, try fromHost(found.vh))
    }

    package func symmetricEigenvalues(_ matrix: Matrix) throws(LowRankError) -> [Double] {
        try CPUBackend.shared.symmetricEigenvalues(try onHost(matrix))
    }

    package func factorSymmetric(
        _ matrix: Matrix, leading count: Int
    ) throws(LowRankError) -> (values: [Double], vectors: Matrix) {
        let found = try CPUBackend.shared.factorSymmetric(try onHost(matrix), leading: count)
        return (found.values, try fromHost(found.vectors))
    }

    /// A copy of a column-major matrix on the host.
    private func onHost(_ matrix: Matrix) throws(LowRankError) -> Matrix {
        let view = matrix.view
        let copy = try CPUBackend.shared.makeMatrix(
            rows: view.rows, columns: view.columns, type: view.type, order: .columnMajor)
        try session.requireNoFailure()
        try session.read(view.address, to: copy.view.address, bytes: view.rows * view.columns * view.type.size)
        return copy
    }

    /// A copy of a column-major matrix on the device.
    private func fromHost(_ matrix: Matrix) throws(LowRankError) -> Matrix {
        let view = matrix.view
        let copy = try makeMatrix(rows: view.rows, columns: view.columns, type: view.type, order: .columnMajor)
        try session.write(view.address, to: copy.view.address, bytes: view.rows * view.columns * view.type.size)
        return copy
    }
}
