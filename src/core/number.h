// SPDX-License-Identifier: Apache-2.0
/* Numbers that people and launchers write. */
#ifndef CORE_NUMBER_H
#define CORE_NUMBER_H

#include <stdbool.h>
#include <stdint.h>

/*
 * Decimal digits and nothing else: no space, no sign, no prefix, nothing behind. False, and *number as it was: it is
 * something else, or not from minimum to maximum.
 */
static inline bool number_parse(const char *text, uint64_t minimum, uint64_t maximum, uint64_t *number)
{
    uint64_t value = 0;
    const char *at = text;
    for (; *at >= '0' && *at <= '9'; at++)
        if (__builtin_mul_overflow(value, UINT64_C(10), &value) ||
            __builtin_add_overflow(value, (uint64_t)(*at - '0'), &value))
            return false;
    if (at == text || *at || value < minimum || value > maximum)
        return false;
    *number = value;
    return true;
}

#endif
