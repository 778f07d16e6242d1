// SPDX-License-Identifier: Apache-2.0
/* The sentence behind a status. The first function that sees an error words it; callers pass the status on. */
#ifndef CORE_ERROR_H
#define CORE_ERROR_H

#include "muster/status.h"

/* Sets muster_last_error() of this thread and returns `status`, so that a check reads: return error_set(...). */
__attribute__((format(printf, 2, 3))) muster_status error_set(muster_status status, const char *format, ...);

#endif
