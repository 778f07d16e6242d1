// SPDX-License-Identifier: Apache-2.0
/* Files of weights are mapped read-only. What a mapping cannot prevent is a file cut short while it is mapped. */
#ifndef WEIGHTS_MAP_H
#define WEIGHTS_MAP_H

#include <stddef.h>

#include "weights/refuse.h"

/* Maps the regular file to->label. NULL and 0 bytes for an empty one. Returns 0, or -1 with the reason. */
int map_file(const struct refusal *to, void **mapping, size_t *size);
void unmap_file(void *mapping, size_t size);

#endif
