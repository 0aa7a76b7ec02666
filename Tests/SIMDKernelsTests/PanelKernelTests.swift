// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
import LowRankBackends
import LowRankCore
import TestSupport
import Testing

/// What the panels' kernels touch: nothing but the panel, also where its columns lie further apart than its rows are many.
@Suite struct PanelKernelTests {
    private static let shapes = [(1, 1), (3, 2), (6, 6), (7, 7), (8, 6), (13, 7), (16, 6), (21, 13), (33, 18), (70, 20)]

    private func withWorkspace(_ bytes: Int, _ label: String, _ body: (UnsafeMutableRawPointer) -> Void) {
        let guardBytes = 256
        let workspace = UnsafeMutableRawPointer.allocate(byteCount: bytes + guardBytes, alignment: 64)
        defer { workspace.deallocate() }
        // Bytes of a NaN in every type, so that a workspace read before it is written shows.
        workspace.initializeMemory(as: UInt8.self, repeating: 0xff, count: bytes + guardBytes)
        body(workspace)
        let isIntact = (bytes..<(bytes + guardBytes)).allSatisfy { workspace.load(fromByteOffset: $0, as: UInt8.self) == 0xff }
        #expect(isIntact, "\(label): memory behind the workspace was written")
    }

    @Test(arguments: KernelTable.available, [ScalarType.float32, .float64])
    func panelsAlone(table: KernelTable, type: ScalarType) {
        for (m, r) in Self.shapes {
            let label = "\(table.name) \(type) \(m)x\(r)"
            let lu = TestMatrix(.gaussian(m, r, seed: 1), type, .paddedColumns)
            var pivots = [Int](repeating: -1, count: r + 1)
            withWorkspace(table.panelWorkspace(m), label) { workspace in
                table.factorLU(type.rawValue, m, r, lu.view.address, lu.view.columnStride, &pivots, workspace)
            }
            expectIntactGuard(lu, label: "\(label), LU")
            #expect(pivots[r] == -1 && pivots[..<r].enumerated().allSatisfy { $1 >= $0 && $1 < m }, "\(label): \(pivots)")

            let right = TestMatrix(.gaussian(r, 37, seed: 2), type, .paddedRows)
            withWorkspace(table.solveWorkspace(r), label) { workspace in
                table.solveUnitLower(
                    type.rawValue, r, 37, lu.view.address, lu.view.columnStride, right.view.address, right.view.rowStride,
                    workspace)
            }
            expectIntactGuard(right, lu, label: "\(label), solve")
            #expect(right.values.values.allSatisfy { $0.isFinite }, "\(label), solve")

            let start = RealMatrix.gaussian(m, r, seed: 3)
            let qr = TestMatrix(start, type, .paddedColumns)
            withWorkspace(6 * (r + 6) * type.size, label) { triangles in
                withWorkspace(table.panelWorkspace(m), label) { workspace in
                    table.factorQR(type.rawValue, m, r, qr.view.address, qr.view.columnStride, triangles, workspace)
                }
                withWorkspace(table.panelWorkspace(m), label) { workspace in
                    table.formQ(type.rawValue, m, r, qr.view.address, qr.view.columnStride, triangles, workspace)
                }
            }
            expectIntactGuard(qr, label: "\(label), QR")
            let q = qr.values
            expectSmall((q.transposed * q - .identity(r)).norm, size: m, norm: 1, type, within: .qr, "\(label), Q'Q")
        }
    }
}
