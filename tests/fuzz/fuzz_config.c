// SPDX-License-Identifier: Apache-2.0
/* config.json of a model: any bytes give a configuration or an error, and nothing else. */
#include <stddef.h>
#include <stdint.h>

#include "config.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    struct model_config config;
    model_config_parse((const char *)bytes, size, "fuzz", &config);
    return 0;
}
