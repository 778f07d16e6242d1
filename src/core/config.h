// SPDX-License-Identifier: Apache-2.0
/*
 * Settings: one table of every MUSTER_ environment variable, with type, range, default and help. `muster info` prints
 * it; a MUSTER_ variable that is not in it is warned about once.
 */
#ifndef CORE_CONFIG_H
#define CORE_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum config_key {
    CONFIG_RANK,
    CONFIG_RANKS,
    CONFIG_STORE,
    CONFIG_TOOL,
    CONFIG_OPERATION_TIMEOUT_US,
    CONFIG_STEP_TIMEOUT_US,
    CONFIG_START_TIMEOUT_US,
    CONFIG_FENCE_TIMEOUT_US,
    CONFIG_LEASE_US,
    CONFIG_SPIN,
    CONFIG_MULTIPROCESSORS,
    CONFIG_PLAN,
    CONFIG_LOG,
    CONFIG_TRACE,
    CONFIG_FAULT,
    CONFIG_FAULT_LIST,
    CONFIG_FIRST_EPOCH,
    CONFIG_FIRST_SEQUENCE,
    CONFIG_KEYS,
};

struct config_setting {
    const char *name; /* environment variable */
    const char *initial; /* default, as text; "" = none */
    const char *unit;
    uint64_t minimum, maximum; /* of numbers; both 0 for text */
    const char *help;
};

const struct config_setting *config_setting(enum config_key key);

/* The value as text, and where it came from: "default" or "environment". *source may be NULL. */
const char *config_text(enum config_key key, const char **source);

/* The value of a number. A malformed or out-of-range environment value is warned about once and the default taken. */
uint64_t config_number(enum config_key key);

/* Whether the environment has a value for it. */
bool config_given(enum config_key key);

/* Warns about MUSTER_ variables that are not in the table; called once, when the first group is created. */
void config_check(void);

#endif
