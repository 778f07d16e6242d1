// SPDX-License-Identifier: Apache-2.0
/* The sidecar: a store in a process of its own, for ranks that were not started by `muster run`. */
#ifndef CONTROL_SIDECAR_H
#define CONTROL_SIDECAR_H

#include <stdint.h>

#include "muster/status.h"

/*
 * Makes sure that a store serves unix:@NAME: if none does, starts the tool (`muster store`), which outlives this
 * process and ends when its last client has gone. Of several ranks that do this at once one wins. Blocks until the
 * store listens, at most timeout_us. Errors: SYSTEM (the tool was not found or failed: names where it was looked for).
 */
muster_status sidecar_ensure(const char *name, int32_t ranks, uint64_t timeout_us);

#endif
