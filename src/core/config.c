// SPDX-License-Identifier: Apache-2.0
#include "core/config.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "core/log.h"
#include "core/number.h"
#include "core/stamp.h"

extern char **environ;

#define SECOND_US UINT64_C(1000000)

static const struct config_setting settings[CONFIG_KEYS] = {
    [CONFIG_RANK] = {"MUSTER_RANK", "", "", 0, 127, "this process's rank; set by `muster run`"},
    [CONFIG_RANKS] = {"MUSTER_RANKS", "", "", 1, 128, "ranks in the group; set by `muster run`"},
    [CONFIG_STORE] = {"MUSTER_STORE", "", "", 0, 0,
                      "where the store is: fd:N or unix:@NAME; with commas, what to try in order; set by `muster run`"},
    [CONFIG_TOOL] = {"MUSTER_TOOL", "", "", 0, 0,
                     "path of the tool `muster`, to start a sidecar store under launchers other than `muster run`"},
    [CONFIG_OPERATION_TIMEOUT_US] = {"MUSTER_OPERATION_TIMEOUT_US", "1000000", "us", 1000, 3600 * SECOND_US,
                                     "deadline of one wait for peers inside a step"},
    [CONFIG_STEP_TIMEOUT_US] = {"MUSTER_STEP_TIMEOUT_US", "30000000", "us", 1000, 86400 * SECOND_US,
                                "deadline for a rank to begin its step, or to get ready for a view"},
    [CONFIG_START_TIMEOUT_US] = {"MUSTER_START_TIMEOUT_US", "60000000", "us", 1000, 86400 * SECOND_US,
                                 "deadline for all ranks to arrive"},
    [CONFIG_FENCE_TIMEOUT_US] = {"MUSTER_FENCE_TIMEOUT_US", "10000000", "us", 1000, 3600 * SECOND_US,
                                 "how long a killed suspect may take to exit before the group gives up"},
    [CONFIG_LEASE_US] = {"MUSTER_LEASE_US", "5000000", "us", 10000, 3600 * SECOND_US,
                         "a rank stops when it has heard nothing from the store for this long"},
    [CONFIG_SPIN] = {"MUSTER_SPIN", "", "polls", 0, 1000000000,
                     "polls before a waiting rank gives its core away; default: 20000 with a core per rank, else 200"},
    [CONFIG_MULTIPROCESSORS] =
        {"MUSTER_MULTIPROCESSORS", "0", "", 0, 1024,
         "multiprocessors of a GPU that a rank's kernels may use; 0: all; they take four at least"},
    [CONFIG_PLAN] = {"MUSTER_PLAN", "0", "", 0, 3,
                     "how rows travel between GPUs; 0: by the number of the rank's tokens, 1: as for few tokens, 2: as "
                     "for many, with "
                     "few multiprocessors, 3: in words, where the exchange can, as for the fewest"},
    [CONFIG_LOG] = {"MUSTER_LOG", "warn", "", 0, 0, "how much is told on stderr: error, warn, info or debug"},
    [CONFIG_TRACE] = {"MUSTER_TRACE", "", "", 0, 0, "file for Chrome trace events, written at the end; %r = rank"},
    [CONFIG_FAULT] = {"MUSTER_FAULT", "", "", 0, 0, "fault point to arm: POINT:KILL|STOP|NONE[:COUNT] (for tests)"},
    [CONFIG_FAULT_LIST] = {"MUSTER_FAULT_LIST", "", "", 0, 1 << 20,
                           "file descriptor that gets the name of each fault point reached (for tests)"},
    [CONFIG_FIRST_EPOCH] = {"MUSTER_FIRST_EPOCH", "1", "", 1, STAMP_MAX_EPOCH, "number of the first epoch (for tests)"},
    [CONFIG_FIRST_SEQUENCE] = {"MUSTER_FIRST_SEQUENCE", "0", "", 0, STAMP_MAX_SEQUENCE - STAMP_SEQUENCE_RESERVE,
                               "first sequence number of each epoch (for tests)"},
};

const struct config_setting *config_setting(enum config_key key)
{
    return &settings[key];
}

const char *config_text(enum config_key key, const char **source)
{
    const char *value = getenv(settings[key].name);
    if (source)
        *source = value ? "environment" : "default";
    return value ? value : settings[key].initial;
}

uint64_t config_number(enum config_key key)
{
    static _Atomic bool warned[CONFIG_KEYS];
    const struct config_setting *setting = &settings[key];
    const char *text = getenv(setting->name);
    uint64_t number = 0;
    if (text && number_parse(text, setting->minimum, setting->maximum, &number))
        return number;
    if (text && !atomic_exchange(&warned[key], true))
        log_line(LOG_LEVEL_WARN, "%s=\"%s\" is not a number from %llu to %llu; using \"%s\"", setting->name, text,
                 (unsigned long long)setting->minimum, (unsigned long long)setting->maximum, setting->initial);
    number_parse(setting->initial, setting->minimum, setting->maximum, &number);
    return number;
}

bool config_given(enum config_key key)
{
    const char *text = getenv(settings[key].name);
    return text && *text;
}

static bool config_known(const char *name, size_t length)
{
    for (int key = 0; key < CONFIG_KEYS; key++)
        if (strlen(settings[key].name) == length && strncmp(settings[key].name, name, length) == 0)
            return true;
    return false;
}

/* What begins with MUSTER_TEST_ is for the tests. */
void config_check(void)
{
    for (char **entry = environ; *entry; entry++) {
        size_t length = strcspn(*entry, "=");
        bool ours = strncmp(*entry, "MUSTER_", 7) == 0, test = strncmp(*entry, "MUSTER_TEST_", 12) == 0;
        if (ours && !test && !config_known(*entry, length))
            log_line(LOG_LEVEL_WARN, "unknown setting %.*s: `muster info` lists all of them", (int)length, *entry);
    }
}
