// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
#include "fork_state.h"

#include <pthread.h>
#include <stdatomic.h>

static atomic_bool is_child;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

void fork_safe_lock(void) { pthread_mutex_lock(&lock); }

void fork_safe_unlock(void) { pthread_mutex_unlock(&lock); }

static void enter_child(void) {
  atomic_store(&is_child, true);
  fork_safe_unlock();
}

// When the library is loaded: a first call from a forked child would come too late.
__attribute__((constructor)) static void watch_fork(void) {
  pthread_atfork(fork_safe_lock, fork_safe_unlock, enter_child);
}

bool fork_state_is_child(void) { return atomic_load(&is_child); }
