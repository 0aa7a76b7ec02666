# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""The version number, which the build reads from here."""

__version__ = "0.1.0.dev0"
