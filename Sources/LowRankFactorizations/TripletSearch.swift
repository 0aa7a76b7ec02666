// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankBackends
import LowRankCore

/// The search for leading singular triplets whose residuals are at most `bound * s[0]`, along one path or more.
struct TripletSearch<Device: Backend> {
    /// W, with the scale and the passes of the search.
    private(set) var weight: ScaledWeight<Device>
    /// The bound of the residuals; once the triplets are found, the one that was kept.
    private(set) var bound: Double

    private let source: MatrixView
    private let rank: Int
    private let seed: UInt64
    private let backend: Device
    /// What is computed in: near the rounding of the weight's own precision, float64.
    private let type: ScalarType
    private let cost: SVDCost

    /// Columns that one pass multiplies. Fewer need fewer columns in all, more make better use of a pass.
    private static var blockColumns: Int { 16 }

    init(of source: MatrixView, rank: Int, bound: Double, seed: UInt64, on backend: Device) {
        weight = ScaledWeight(source, on: backend)
        let own = source.type.computeType
        type = bound < 64 * own.epsilon ? .float64 : own
        cost = SVDCost(rows: source.rows, columns: source.columns, rank: rank)
        (self.source, self.rank, self.bound, self.seed, self.backend) = (source, rank, bound, seed, backend)
    }

    /// The triplets, from the first path that leads to the bound.
    ///
    /// - Parameter isFree: The Krylov space may be given up as soon as an exact path looks cheaper.
    mutating func triplets(startingOn path: TruncatedSVD.Path, isFree: Bool) throws(LowRankError) -> CheckedTriplets {
        if path == .krylov, let found = try krylovTriplets(isFree: isFree) { return found }
        weight.isTransposed = source.rows < source.columns
        if path != .dense, bound >= TruncatedSVD.Path.smallestGramBound, let found = try gramTriplets() { return found }
        let found = try denseTriplets()
        if found.areWithin(bound) { return found }
        // LAPACK's backward error is some ten rounding units. In float64 nothing does better.
        let reached = found.residual / found.s[0]
        let rounding = 64 * type.epsilon
        guard bound < rounding, reached <= rounding else {
            throw .numericalFailure(
                operation: "svd",
                reason: "expected residuals of at most tol = \(bound) of the largest singular value, got \(reached) after "
                    + "\(weight.passes) passes over the weight")
        }
        bound = reached
        return found
    }

    // MARK: Exact paths

    /// The eigenvectors of WᵀW, or nil where rounding spoils them.
    private mutating func gramTriplets() throws(LowRankError) -> CheckedTriplets? {
        let n = weight.matrix.columns
        weight.passes += 1
        let gram = try backend.gramMatrix(of: weight.matrix)
        let norm = backend.values(of: gram.view.diagonal).reduce(0, +).squareRoot()
        _ = try weight.fitScale(to: norm)
        // The squares are those of the weight as it is.
        guard norm > 0x1p-400, norm < 0x1p400 else { return nil }
        let (_, vectors) = try backend.factorSymmetric(gram, leading: rank)
        let right = try backend.makeMatrix(rows: n, columns: rank, type: type, order: .rowMajor)
        try backend.copy(vectors.view, to: right.view)
        var orthonormalizer = Orthonormalizer(seed: seed, on: backend)
        let found = try CheckedTriplets.extracted(from: right, of: &weight, &orthonormalizer, on: backend)
        return found.areWithin(bound) ? found : nil
    }

    private mutating func denseTriplets() throws(LowRankError) -> CheckedTriplets {
        let (m, n) = (weight.matrix.rows, weight.matrix.columns)
        _ = try weight.fitScale(to: backend.maxMagnitude(of: source))
        let copy = try backend.makeMatrix(rows: m, columns: n, type: type, order: .columnMajor)
        let factors = try backend.makeMatrix(rows: n, columns: 1, type: .float64, order: .columnMajor)
        backend.setValues([Double](repeating: weight.scale, count: n), of: factors.view)
        weight.passes += 1
        try backend.copy(weight.matrix, rowFactors: nil, columnFactors: weight.scale == 1 ? nil : factors.view, to: copy.view)
        let (u, s, vh) = try backend.factorSVD(copy)
        let left = try backend.makeMatrix(rows: m, columns: rank, type: type, order: .rowMajor)
        let right = try backend.makeMatrix(rows: n, columns: rank, type: type, order: .rowMajor)
        try backend.copy(u.view[columns: 0..<rank], to: left.view)
        try backend.copy(vh.view[rows: 0..<rank].transposed, to: right.view)
        return try .measured(left: left, s: Array(s[..<rank]), right: right, of: &weight, on: backend)
    }

    // MARK: Krylov space

    /// Grows a Krylov space until the triplets converge; nil where an exact path promises to be cheaper.
    private mutating func krylovTriplets(isFree: Bool) throws(LowRankError) -> CheckedTriplets? {
        // Products with WᵀW read whole rows, which from memory saves more time than a basis of the longer side takes.
        let isInCache = source.rows * source.columns <= 1 << 21
        weight.isTransposed = source.columns > (isInCache ? 1 : 4) * source.rows
        let (m, n) = (weight.matrix.rows, weight.matrix.columns)
        guard min(m, n) >= 2 * Self.blockColumns else { return nil }
        // At most half as many numbers as W holds, but room for the triplets and a restart.
        let memory = min(max(m * n / (2 * (m + n)), 8 * (rank + Self.blockColumns)), n)
        var space = try KrylovSpace(
            of: weight, blockColumns: Self.blockColumns, capacity: memory, type: type, seed: seed, on: backend)
        defer { weight = space.weight }
        let budget = isFree ? min(cost.gram, cost.dense) / cost.krylovColumn : Double(16 * n)
        var forecast = ConvergenceForecast(bound: bound, first: rank + 2 * Self.blockColumns)
        // The next one tells whether the space has seen all that a new start brought in.
        var wanted = rank
        var reached = Double.infinity
        while Double(space.columnsGrown) <= budget {
            let limit = min(memory, n - space.blockColumns)
            if space.dimension + space.blockColumns > limit {
                // What the space can't hold, an exact path finds.
                if limit < memory || wanted + 2 * space.blockColumns > limit { return nil }
                let kept = min(wanted + (limit - wanted) / 3, space.dimension)
                try space.restart(keeping: space.ritzTriplets(kept))
            }
            try space.grow()
            if space.columnsGrown < forecast.nextCheck || space.dimension < wanted { continue }
            let triplets = try space.ritzTriplets(wanted)
            let largest = triplets.s[0]
            let residual = try space.residuals(of: triplets).max() ?? 0
            if residual <= forecast.threshold * largest {
                if mayMissCopies(triplets.s, startingColumns: space.startingColumns) {
                    // The new columns need some steps to show what they bring in.
                    if space.dimension + 3 * (space.blockColumns + Self.blockColumns) > n { return nil }
                    if space.dimension + space.blockColumns > memory { try space.restart(keeping: triplets) }
                    try space.addRandomColumns(Self.blockColumns)
                    wanted = min(rank + 1, n)
                    forecast.waitFor(3 * space.blockColumns, after: space.columnsGrown)
                    continue
                }
                let found = try space.checked(triplets.prefix(rank))
                if found.areWithin(bound) { return found }
                // Rounding; nothing is gained by removing it where it comes back as large.
                if found.residual > 0.5 * reached { return nil }
                reached = found.residual
                try space.restart(from: found)
                forecast.waitFor(3 * Self.blockColumns, after: space.columnsGrown)
                continue
            }
            forecast.record(residual / largest, at: space.columnsGrown, step: space.blockColumns)
            // Convergence accelerates, so the forecast is about twice of what comes.
            if isFree, let left = forecast.columnsLeft, 0.5 * left > budget { return nil }
        }
        return nil
    }

    /// Whether a value stands so often among the first that the space may hold no more copies of it: then copies that are
    /// missing would belong before the smaller values at the end.
    private func mayMissCopies(_ s: [Double], startingColumns: Int) -> Bool {
        let resolution = bound * s[0]
        return s.indices.contains { i in
            let last = i + startingColumns - 1
            return last < rank - 1 && s[i] - s[last] <= resolution && s[last] - s[rank - 1] > resolution
        }
    }
}

/// When to look at a Krylov space's residuals: each look costs the eigenvectors of the projection.
struct ConvergenceForecast {
    /// Columns at which the next look pays.
    private(set) var nextCheck: Int
    /// The estimate, relative to the largest value, at which the triplets are checked with products.
    let threshold: Double
    /// Columns until the bound is reached if residuals go on falling by the same factor in equal steps; nil where they
    /// have not fallen.
    private(set) var columnsLeft: Double?

    private let bound: Double
    /// The last three looks: columns, and the binary logarithm of the residual.
    private var looks: [(columns: Double, height: Double)] = []

    init(bound: Double, first: Int) {
        self.bound = bound
        threshold = 0.9 * bound
        nextCheck = first
    }

    /// Notes a residual that is not small enough.
    mutating func record(_ residual: Double, at columns: Int, step: Int) {
        looks = looks.suffix(2) + [(Double(columns), residual.logarithm)]
        columnsLeft = nil
        var ahead = Double.infinity
        let speeds = zip(looks, looks.dropFirst()).map { ($0.height - $1.height) / ($1.columns - $0.columns) }
        if let speed = speeds.last, speed > 0 {
            let height = max(residual.logarithm - threshold.logarithm, 0)
            columnsLeft = height / speed
            ahead = 0.7 * height / speed
            if speeds.count == 2, speed > speeds[0], speeds[0] > 0 {
                // A parabola through the last three looks.
                let acceleration = 2 * (speed - speeds[0]) / (looks[2].columns - looks[0].columns)
                let present = speed + acceleration * (looks[2].columns - looks[1].columns) / 2
                ahead = ((present * present + 2 * acceleration * height).squareRoot() - present) / acceleration
            }
        }
        // A forecast is good for so far.
        ahead = min(ahead, Double(columns) / 3)
        nextCheck = columns + step * max(1, Int((0.9 * ahead / Double(step)).rounded(.up)))
    }

    /// No look before so many columns more.
    mutating func waitFor(_ count: Int, after columns: Int) {
        nextCheck = columns + count
        looks = []
    }
}

extension Double {
    /// The binary logarithm of a positive number to ten binary places; far below all others for zero.
    fileprivate var logarithm: Double {
        if self <= 0 { return -1100 }
        var (result, rest, place) = (Double(exponent), significand, 0.5)
        for _ in 0..<10 {
            rest *= rest
            if rest >= 2 {
                result += place
                rest /= 2
            }
            place /= 2
        }
        return result
    }
}
