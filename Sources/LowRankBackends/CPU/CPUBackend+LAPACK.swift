// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import CLAPACK
import Glibc
import LowRankCore

extension CPUBackend {
    public func factorSVD(_ matrix: Matrix) throws(LowRankError) -> (u: Matrix, s: [Double], vh: Matrix) {
        switch matrix.view.type {
        case .float64: try factorSVD(matrix, Double.self, dgesdd_) { Int($0) }
        default: try factorSVD(matrix, Float.self, sgesdd_) { Int($0) }
        }
    }

    private func factorSVD<Scalar>(
        _ matrix: Matrix, _: Scalar.Type,
        _ gesdd: (
            UnsafePointer<CChar>, UnsafePointer<Int32>, UnsafePointer<Int32>, UnsafeMutablePointer<Scalar>,
            UnsafePointer<Int32>, UnsafeMutablePointer<Scalar>, UnsafeMutablePointer<Scalar>, UnsafePointer<Int32>,
            UnsafeMutablePointer<Scalar>, UnsafePointer<Int32>, UnsafeMutablePointer<Scalar>, UnsafePointer<Int32>,
            UnsafeMutablePointer<Int32>, UnsafeMutablePointer<Int32>, Int
        ) -> Void,
        count: (Scalar) -> Int
    ) throws(LowRankError) -> (u: Matrix, s: [Double], vh: Matrix) {
        let (a, m, n) = try columnMajor(matrix, Scalar.self)
        let k = min(m, n)
        let type = matrix.view.type
        let u = try makeMatrix(rows: Int(m), columns: Int(k), type: type, order: .columnMajor)
        let vh = try makeMatrix(rows: Int(k), columns: Int(n), type: type, order: .columnMajor)
        let s = try makeMatrix(rows: Int(k), columns: 1, type: type, order: .columnMajor)
        let values = s.view.address.assumingMemoryBound(to: Scalar.self)
        let left = u.view.address.assumingMemoryBound(to: Scalar.self)
        let right = vh.view.address.assumingMemoryBound(to: Scalar.self)
        var integers = [Int32](repeating: 0, count: 8 * Int(k))
        var info: Int32 = 0
        // A workspace length of -1 asks for the best one, which comes back as a floating-point number.
        let query = try allocate(bytes: 64)
        defer { free(query) }
        let best = query.assumingMemoryBound(to: Scalar.self)
        gesdd("S", [m], [n], a, [m], values, left, [m], right, [k], best, [-1], &integers, &info, 1)
        try check(info, "gesdd")
        // A float32 can't hold every integer; round up.
        let length = count(best[0]) + count(best[0]) / (1 << 20) + 1
        let workLength = try int32(length)
        let memory = try allocate(bytes: length * MemoryLayout<Scalar>.stride)
        defer { free(memory) }
        let work = memory.assumingMemoryBound(to: Scalar.self)
        OpenBLASThreads.single {
            gesdd("S", [m], [n], a, [m], values, left, [m], right, [k], work, [workLength], &integers, &info, 1)
        }
        if info > 0 {
            throw .numericalFailure(operation: "gesdd", reason: "the dense SVD did not converge (info \(info))")
        }
        try check(info, "gesdd")
        return (u, self.values(of: s.view), vh)
    }

    public func symmetricEigenvalues(_ matrix: Matrix) throws(LowRankError) -> [Double] {
        let (a, n, _) = try columnMajor(matrix, Double.self)
        precondition(matrix.view.type == .float64 && matrix.rows == matrix.columns, "a symmetric matrix")
        var values = [Double](repeating: 0, count: Int(n))
        // For values alone: 64 columns at a time is LAPACK's own block, and two vectors beside it.
        let workLength = n * 66 + 1
        let memory = try allocate(bytes: Int(workLength) * MemoryLayout<Double>.stride)
        defer { free(memory) }
        let work = memory.assumingMemoryBound(to: Double.self)
        var integer: Int32 = 0
        var info: Int32 = 0
        OpenBLASThreads.single { dsyevd_("N", "L", [n], a, [n], &values, work, [workLength], &integer, [1], &info, 1, 1) }
        if info > 0 {
            throw .numericalFailure(operation: "syevd", reason: "the eigenvalues did not converge (info \(info))")
        }
        try check(info, "syevd")
        return values
    }

    public func factorSymmetric(_ matrix: Matrix, leading count: Int) throws(LowRankError) -> (values: [Double], vectors: Matrix) {
        let (a, n, columns) = try columnMajor(matrix, Double.self)
        precondition(matrix.view.type == .float64 && n == columns && count >= 1 && count <= matrix.rows, "a symmetric matrix")
        let (size, wanted) = (Int(n), try int32(count))
        let memory = try allocate(elements: 67 * size, type: .float64)
        defer { free(memory) }
        let diagonal = memory.assumingMemoryBound(to: Double.self)
        let (beside, tau, work) = (diagonal + size, diagonal + 2 * size, diagonal + 3 * size)
        beside[size - 1] = 0
        var info: Int32 = 0
        OpenBLASThreads.single { dsytrd_("L", [n], a, [n], diagonal, beside, tau, work, [64 * n], &info, 1) }
        try check(info, "sytrd")
        let (values, vectors) = try factorTridiagonal(UnsafePointer(diagonal), UnsafePointer(beside), size: size, leading: count)
        let leading = vectors.view.address.assumingMemoryBound(to: Double.self)
        OpenBLASThreads.single {
            dormtr_("L", "L", "N", [n], [wanted], a, [n], tau, leading, [n], work, [64 * n], &info, 1, 1, 1)
        }
        try check(info, "ormtr")
        // Ascending, as LAPACK has them.
        let result = try makeMatrix(rows: size, columns: count, type: .float64, order: .columnMajor)
        for j in 0..<count {
            try copy(vectors.view[columns: (count - 1 - j)..<(count - j)], to: result.view[columns: j..<(j + 1)])
        }
        return (values.reversed(), result)
    }

    /// The largest `count` eigenvalues, ascending, of a symmetric tridiagonal matrix, and their eigenvectors.
    private func factorTridiagonal(
        _ diagonal: UnsafePointer<Double>, _ beside: UnsafePointer<Double>, size: Int, leading count: Int
    ) throws(LowRankError) -> (values: [Double], vectors: Matrix) {
        if 5 * count < size, let result = try factorLeading(diagonal, beside, size: size, count: count) { return result }
        return try factorAll(diagonal, beside, size: size, leading: count)
    }

    /// Few eigenvectors one by one (MRRR); nil where clusters defeat it.
    private func factorLeading(
        _ diagonal: UnsafePointer<Double>, _ beside: UnsafePointer<Double>, size: Int, count: Int
    ) throws(LowRankError) -> (values: [Double], vectors: Matrix)? {
        let (n, wanted, workLength, integerLength) = (
            try int32(size), try int32(count), try int32(18 * size), try int32(10 * size)
        )
        // Both are overwritten.
        var d = Array(UnsafeBufferPointer(start: diagonal, count: size))
        var e = Array(UnsafeBufferPointer(start: beside, count: size))
        var values = [Double](repeating: 0, count: size)
        var (work, integers) = (
            [Double](repeating: 0, count: Int(workLength)), [Int32](repeating: 0, count: Int(integerLength))
        )
        var support = [Int32](repeating: 0, count: 2 * count)
        let z = try makeMatrix(rows: size, columns: count, type: .float64, order: .columnMajor)
        let vectors = z.view.address.assumingMemoryBound(to: Double.self)
        var (number, tries, info): (Int32, Int32, Int32) = (0, 1, 0)
        OpenBLASThreads.single {
            dstemr_(
                "V", "I", [n], &d, &e, [0], [0], [n - wanted + 1], [n], &number, &values, vectors, [n], [wanted], &support,
                &tries, &work, [workLength], &integers, [integerLength], &info, 1, 1)
        }
        try check(min(info, 0), "stemr")
        return info == 0 ? (Array(values[..<count]), z) : nil
    }

    /// All eigenvectors by dividing and conquering, which takes less time from about a fifth of them on.
    private func factorAll(
        _ diagonal: UnsafePointer<Double>, _ beside: UnsafePointer<Double>, size: Int, leading count: Int
    ) throws(LowRankError) -> (values: [Double], vectors: Matrix) {
        let (n, workLength, integerLength) = (try int32(size), try int32((4 + size) * size + 1), try int32(5 * size + 3))
        // Both are overwritten.
        var d = Array(UnsafeBufferPointer(start: diagonal, count: size))
        var e = Array(UnsafeBufferPointer(start: beside, count: size))
        var integers = [Int32](repeating: 0, count: Int(integerLength))
        let z = try makeMatrix(rows: size, columns: size, type: .float64, order: .columnMajor)
        let vectors = z.view.address.assumingMemoryBound(to: Double.self)
        let memory = try allocate(elements: Int(workLength), type: .float64)
        defer { free(memory) }
        let work = memory.assumingMemoryBound(to: Double.self)
        var info: Int32 = 0
        OpenBLASThreads.single {
            dstedc_("I", [n], &d, &e, vectors, [n], work, [workLength], &integers, [integerLength], &info, 1)
        }
        try check(min(info, 0), "stedc")
        if info > 0 {
            throw .numericalFailure(operation: "stedc", reason: "the eigenvalues did not converge (info \(info))")
        }
        let last = try makeMatrix(rows: size, columns: count, type: .float64, order: .columnMajor)
        try copy(z.view[columns: (size - count)..<size], to: last.view)
        return (Array(d[(size - count)...]), last)
    }

    /// LAPACK's view of an owned column-major matrix.
    private func columnMajor<Scalar>(
        _ matrix: Matrix, _: Scalar.Type
    ) throws(LowRankError) -> (address: UnsafeMutablePointer<Scalar>, rows: Int32, columns: Int32) {
        let view = matrix.view
        precondition(view.rowStride == 1 && view.type.size == MemoryLayout<Scalar>.stride, "a column-major panel")
        return (view.address.assumingMemoryBound(to: Scalar.self), try int32(view.rows), try int32(view.columns))
    }

    private func int32(_ value: Int) throws(LowRankError) -> Int32 {
        guard let small = Int32(exactly: value) else {
            throw .invalidShape(argument: "weight", expected: "dimensions below 2^31", got: "\(value)")
        }
        return small
    }

    private func check(_ info: Int32, _ routine: String) throws(LowRankError) {
        if info != 0 { throw .internal("\(routine) refused argument \(-info)") }
    }
}
