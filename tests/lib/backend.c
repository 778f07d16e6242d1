// SPDX-License-Identifier: Apache-2.0
#include "lib/backend.h"

#include <stdio.h>

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

int backend_has_ranks(int ranks)
{
    if (!test_backend || ranks <= test_backend->max_ranks)
        return 1;
    printf("[  SKIPPED ] %d ranks: this backend is tested with up to %d\n", ranks, test_backend->max_ranks);
    return 0;
}
