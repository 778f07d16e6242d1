// SPDX-License-Identifier: Apache-2.0
/* Whether a path leads to something that can be run. */
#ifndef CORE_PROGRAM_H
#define CORE_PROGRAM_H

#include <stdbool.h>

/* A regular file, or a link to one, that this user may execute. A folder may be "executable", too, and is none. */
bool program_is(const char *path);

#endif
