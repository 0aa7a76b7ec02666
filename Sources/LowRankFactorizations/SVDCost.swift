// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0

/// What the ways to an SVD of an [m, n] matrix, m >= n, cost, in multiply-additions of a float32 product: the model by
/// which a way is chosen. It depends on shapes and spectra alone, so that results do not depend on the machine.
///
/// The factors were measured on one core with AVX2.
struct SVDCost {
    let rows: Double
    let columns: Double
    let rank: Double

    init(rows: Int, columns: Int, rank: Int) {
        (self.rows, self.columns) = (Double(max(rows, columns)), Double(min(rows, columns)))
        self.rank = Double(rank)
    }

    /// The eigenvectors of WᵀW: half of a product in float64, the reduction to a tridiagonal matrix (half of it products
    /// of a matrix with a vector, which leave the cache at n of about 1500), its vectors, and two passes in the end.
    var gram: Double {
        let product = 1.5 * rows * columns * columns
        let reduction = 2 / 3 * columns * columns * columns * (4 + columns / 400)
        let vectors = min(10 * rank * columns * 100, 2 * columns * columns * columns) + 2 * rank * columns * columns
        return product + reduction + vectors + check
    }

    /// LAPACK's SVD of a copy.
    var dense: Double { 4 * rows * columns * columns + 10 * columns * columns * columns + check }

    /// A column of a Krylov space: two products with W, which few columns make little use of, two with a basis of a few
    /// times the rank, and what a long column's memory costs.
    var krylovColumn: Double { 2.6 * rows * columns + 12 * rank * columns + 60 * rows }

    /// A Krylov space for the spectra of pretrained weights: as many columns as those need, and the eigenvectors of its
    /// projection, which are found a few times.
    var likelyKrylov: Double {
        let columns = 4 * rank + 100
        return columns * krylovColumn + 12 * columns * columns * columns
    }

    private var check: Double { 3 * rows * columns * rank }
}
