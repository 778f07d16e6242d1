// SPDX-License-Identifier: Apache-2.0
#include "core/mask.h"

#include <stdio.h>

void mask_text(muster_mask m, char *text, size_t bytes)
{
    size_t used = 0;
    text[0] = 0;
    for (int r = mask_next(m, 0); r >= 0 && used + 8 < bytes; r = mask_next(m, r + 1))
        used += (size_t)snprintf(text + used, bytes - used, "%s%d", used ? ", " : "", r);
}
