// SPDX-License-Identifier: Apache-2.0
/* The memory that blocks of dispatch and combine are given at their launch: as much as a multiprocessor has. */
#include <cstring>

#include "simt/engine.h"

enum { BYTES = 228 << 10 };

alignas(128) thread_local unsigned char dispatch_shared[BYTES];
alignas(128) thread_local unsigned char combine_shared[BYTES];

/* As other kernels may have left it. */
void simt_begin_block()
{
    memset(dispatch_shared, 0xa5, sizeof dispatch_shared);
    memset(combine_shared, 0xa5, sizeof combine_shared);
}
