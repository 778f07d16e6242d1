// SPDX-License-Identifier: Apache-2.0
/* shard_model MODEL_DIR FOLDER SHARDS: the same model in FOLDER, its checkpoint split over SHARDS files. */
#include <stdio.h>
#include <stdlib.h>

#include "lib/sharded.h"

int main(int argc, char **argv)
{
    if (argc != 4 || atoi(argv[3]) < 1) {
        fprintf(stderr, "usage: shard_model MODEL_DIR FOLDER SHARDS\n");
        return 2;
    }
    sharded_copy(argv[1], argv[2], atoi(argv[3]));
    return 0;
}
