// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0

// The entries of the panels' factorisations, as those of Entries.swift. Panels are column-major, of float32 or float64 (the
// type's code), at most as many columns as `panelColumns`; lines lead from column to column, in elements.

/// Columns that the kernels take at once; wider panels are factored in parts, between which products do most of the work.
@inline(never)
public func panelColumns() -> Int { 96 }

/// Bytes of workspace that `factorLU`, `factorQR` and `formQ` need for a panel of so many rows.
@inline(never)
public func panelWorkspace(_ rows: Int) -> Int {
    max(panelWorkspaceBytes(FloatVector.self, rows: rows), panelWorkspaceBytes(DoubleVector.self, rows: rows))
}

/// L and U in place of the panel; row k was exchanged with row `pivots[k]`, in the order of k.
@inline(never)
public func factorLU(
    _ type: Int32, _ rows: Int, _ columns: Int, _ panel: UnsafeMutableRawPointer, _ line: Int,
    _ pivots: UnsafeMutablePointer<Int>, _ workspace: UnsafeMutableRawPointer
) {
    if type == StorageCode.float64 {
        factorLU(
            DoubleVector.self, rows: rows, columns: columns, panel: panel.assumingMemoryBound(to: Double.self),
            panelLine: line, pivots: pivots, workspace: workspace.assumingMemoryBound(to: Double.self))
    } else {
        factorLU(
            FloatVector.self, rows: rows, columns: columns, panel: panel.assumingMemoryBound(to: Float.self),
            panelLine: line, pivots: pivots, workspace: workspace.assumingMemoryBound(to: Float.self))
    }
}

/// R on and above the diagonal of the panel, the reflections below it, and in `triangles` what belongs to them: six elements
/// for each column, for whole groups of six.
@inline(never)
public func factorQR(
    _ type: Int32, _ rows: Int, _ columns: Int, _ panel: UnsafeMutableRawPointer, _ line: Int,
    _ triangles: UnsafeMutableRawPointer, _ workspace: UnsafeMutableRawPointer
) {
    if type == StorageCode.float64 {
        factorQR(
            DoubleVector.self, rows: rows, columns: columns, panel: panel.assumingMemoryBound(to: Double.self),
            panelLine: line, triangles: triangles.assumingMemoryBound(to: Double.self),
            workspace: workspace.assumingMemoryBound(to: Double.self))
    } else {
        factorQR(
            FloatVector.self, rows: rows, columns: columns, panel: panel.assumingMemoryBound(to: Float.self),
            panelLine: line, triangles: triangles.assumingMemoryBound(to: Float.self),
            workspace: workspace.assumingMemoryBound(to: Float.self))
    }
}

/// Q's first columns in place of the reflections that `factorQR` left.
@inline(never)
public func formQ(
    _ type: Int32, _ rows: Int, _ columns: Int, _ panel: UnsafeMutableRawPointer, _ line: Int,
    _ triangles: UnsafeMutableRawPointer, _ workspace: UnsafeMutableRawPointer
) {
    if type == StorageCode.float64 {
        formQ(
            DoubleVector.self, rows: rows, columns: columns, panel: panel.assumingMemoryBound(to: Double.self),
            panelLine: line, triangles: triangles.assumingMemoryBound(to: Double.self),
            workspace: workspace.assumingMemoryBound(to: Double.self))
    } else {
        formQ(
            FloatVector.self, rows: rows, columns: columns, panel: panel.assumingMemoryBound(to: Float.self),
            panelLine: line, triangles: triangles.assumingMemoryBound(to: Float.self),
            workspace: workspace.assumingMemoryBound(to: Float.self))
    }
}

/// Bytes of workspace of `solveUnitLower` for a triangle of so many rows.
@inline(never)
public func solveWorkspace(_ rows: Int) -> Int {
    max(
        solveWorkspaceBytes(FloatVector.self, rows: rows), solveWorkspaceBytes(DoubleVector.self, rows: rows))
}

/// `right = L^-1 right` for the unit lower triangle of a panel's first rows; `right` is row-major.
@inline(never)
public func solveUnitLower(
    _ type: Int32, _ rows: Int, _ columns: Int, _ panel: UnsafeRawPointer, _ line: Int,
    _ right: UnsafeMutableRawPointer, _ rightLine: Int, _ workspace: UnsafeMutableRawPointer
) {
    if type == StorageCode.float64 {
        solveUnitLower(
            DoubleVector.self, rows: rows, columns: columns, lower: panel.assumingMemoryBound(to: Double.self),
            lowerLine: line, right: right.assumingMemoryBound(to: Double.self), rightLine: rightLine,
            workspace: workspace.assumingMemoryBound(to: Double.self))
    } else {
        solveUnitLower(
            FloatVector.self, rows: rows, columns: columns, lower: panel.assumingMemoryBound(to: Float.self),
            lowerLine: line, right: right.assumingMemoryBound(to: Float.self), rightLine: rightLine,
            workspace: workspace.assumingMemoryBound(to: Float.self))
    }
}
