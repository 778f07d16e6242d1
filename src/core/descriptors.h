// SPDX-License-Identifier: Apache-2.0
/* The limit of open files, for messages about descriptors that could not be had. */
#ifndef CORE_DESCRIPTORS_H
#define CORE_DESCRIPTORS_H

#include <stdint.h>

/* The soft limit (ulimit -n); 0 if it is not known. */
uint64_t descriptors_limit(void);

#endif
