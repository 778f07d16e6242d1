// SPDX-License-Identifier: Apache-2.0
#include "tool.h"

#include "core/number.h"

uint64_t tool_number(struct argp_state *state, const char *option, const char *text, uint64_t minimum, uint64_t maximum)
{
    uint64_t value = 0;
    if (!number_parse(text, minimum, maximum, &value))
        argp_error(state, "--%s is \"%s\"; it must be a number from %llu to %llu", option, text,
                   (unsigned long long)minimum, (unsigned long long)maximum);
    return value;
}

int32_t tool_number32(struct argp_state *state, const char *option, const char *text, int32_t minimum, int32_t maximum)
{
    return (int32_t)tool_number(state, option, text, (uint64_t)minimum, (uint64_t)maximum);
}
