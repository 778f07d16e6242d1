// SPDX-License-Identifier: Apache-2.0
/*
 * model.safetensors.index.json: any bytes give an index or an error. In an index every name can be found, every shard is
 * a file of the folder, and each is some tensor's.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "weights/shard_index.h"

#define REQUIRE(condition) ((condition) ? (void)0 : abort())

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

static void check_shard(const struct shard_index *index, size_t shard)
{
    size_t users = 0;
    for (size_t i = 0; i < index->tensors; i++)
        users += index->entry[i].shard == shard;
    REQUIRE(users > 0);
    REQUIRE(strchr(index->shard[shard], '/') == NULL && index->shard[shard][0] != '\0');
    REQUIRE(shard == 0 || strcmp(index->shard[shard - 1], index->shard[shard]) < 0);
}

static void check_index(const struct shard_index *index)
{
    REQUIRE(index->tensors > 0 && index->shards > 0 && index->shards <= index->tensors);
    for (size_t i = 0; i < index->tensors; i++) {
        REQUIRE(index->entry[i].shard < index->shards);
        REQUIRE(shard_index_find(index, index->entry[i].tensor) == &index->entry[i]);
    }
    for (size_t shard = 0; shard < index->shards; shard++)
        check_shard(index, shard);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    struct shard_index index;
    char error[256] = "";
    if (shard_index_parse((const char *)bytes, size, "fuzz", &index, error, sizeof(error)) != 0) {
        REQUIRE(strncmp(error, "fuzz: ", 6) == 0);
        return 0;
    }
    check_index(&index);
    shard_index_free(&index);
    return 0;
}
