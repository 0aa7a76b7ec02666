// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
#ifndef LOWRANK_FORK_STATE_H
#define LOWRANK_FORK_STATE_H

#include <stdbool.h>

/// Whether this process is a fork of the one that loaded the library, in which no thread of that one runs.
bool fork_state_is_child(void);

#endif
