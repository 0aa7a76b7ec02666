// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
#include "fork_state.h"

#include <pthread.h>
#include <stdatomic.h>

static atomic_bool is_child;

static void enter_child(void) { atomic_store(&is_child, true); }

// When the library is loaded: a first call from a forked child would come too late.
__attribute__((constructor)) static void watch_fork(void) { pthread_atfork(NULL, NULL, enter_child); }

bool fork_state_is_child(void) { return atomic_load(&is_child); }
