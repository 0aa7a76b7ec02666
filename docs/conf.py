# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Sphinx's configuration for the user's guide; `make docs` builds it."""

from __future__ import annotations

from lowrank_swift import __version__

project = "lowrank_swift"
author = "the lowrank_swift authors"
copyright = author  # Sphinx's name for it
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

# The docstrings name arguments in single backquotes.
default_role = "code"
autodoc_type_aliases = {"Array": "Tensor"}
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"lowrank_swift {release}"
