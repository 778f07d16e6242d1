// SPDX-License-Identifier: Apache-2.0
/* Lines for people, on stderr. MUSTER_LOG=error|warn|info|debug chooses how many. */
#ifndef CORE_LOG_H
#define CORE_LOG_H

#include <stdbool.h>

enum log_level { LOG_LEVEL_ERROR, LOG_LEVEL_WARN, LOG_LEVEL_INFO, LOG_LEVEL_DEBUG };

/* The rank that is put before each line of this thread's process; -1: none. */
void log_set_rank(int rank);
bool log_enabled(enum log_level level);
__attribute__((format(printf, 2, 3))) void log_line(enum log_level level, const char *format, ...);

#endif
