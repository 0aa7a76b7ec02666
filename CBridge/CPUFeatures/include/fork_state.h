// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
#ifndef LOWRANK_FORK_STATE_H
#define LOWRANK_FORK_STATE_H

#include <stdbool.h>

/// Whether this process is a fork of the one that loaded the library, in which no thread of that one runs.
bool fork_state_is_child(void);

/// Takes a lock of the whole process, which fork() waits for: no child gets it taken by a thread that it hasn't got.
void fork_safe_lock(void);

/// Gives the lock back.
void fork_safe_unlock(void);

#endif
