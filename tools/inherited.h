// SPDX-License-Identifier: Apache-2.0
/*
 * What this process got from the one that started it, where that would hurt: streams that are closed, signals that are
 * ignored or blocked, too low a limit of open files.
 */
#ifndef TOOLS_INHERITED_H
#define TOOLS_INHERITED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* To be called first, while there is one thread. */
void inherited_repair(void);

/*
 * Raises the soft limit of open files, if it is lower, so that the store of so many ranks can be hosted here, with
 * `more` descriptors for each, beside what is open now. False when the hard limit does not allow that; `text` says so
 * then.
 */
bool inherited_make_room(int32_t ranks, int32_t more, char *text, size_t bytes);

/* In a child, before exec: the limit of open files that we got. Allocates nothing. */
void inherited_give_back_descriptors(void);

#endif
