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
 * Raises the soft limit of open files to `needed` if it is lower. False when the hard limit does not allow that; what is
 * to be said of it is in `text` then.
 */
bool inherited_raise_descriptors(uint64_t needed, char *text, size_t bytes);

/* In a child, before exec: the limit of open files that we got. Allocates nothing. */
void inherited_give_back_descriptors(void);

#endif
