// SPDX-License-Identifier: Apache-2.0
#include "core/descriptors.h"

#include <sys/resource.h>

uint64_t descriptors_limit(void)
{
    struct rlimit limit;
    return getrlimit(RLIMIT_NOFILE, &limit) == 0 ? limit.rlim_cur : 0;
}
