// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
#ifndef LOWRANK_PYTHON_EXTENSION_H
#define LOWRANK_PYTHON_EXTENSION_H

/// Entry point that Python calls for `import lowrank_swift._native`; returns the module definition (multi-phase).
struct _object *PyInit__native(void);

#endif
