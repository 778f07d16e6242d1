// SPDX-License-Identifier: Apache-2.0
#include "lib/backend.h"

#include <stdio.h>
#include <string.h>

void *backend_stream(void)
{
    return test_backend ? test_backend->stream() : NULL;
}

void backend_wait(void)
{
    char nothing = 0;
    if (test_backend)
        test_backend->copy(&nothing, &nothing, 0);
}

muster_status backend_status(muster_status status)
{
    return test_backend ? MUSTER_OK : status;
}

void backend_copy(void *to, const void *from, size_t bytes)
{
    if (test_backend)
        test_backend->copy(to, from, bytes);
    else
        memcpy(to, from, bytes);
}

int backend_has_ranks(int ranks)
{
    if (!test_backend || ranks <= test_backend->max_ranks)
        return 1;
    printf("[  SKIPPED ] %d ranks: this backend is tested with up to %d\n", ranks, test_backend->max_ranks);
    return 0;
}
