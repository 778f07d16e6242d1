// SPDX-License-Identifier: Apache-2.0
/*
 * What the exchange's flags rest on, tried on the links of this host: rows go from one GPU to another and back, as fast as they
 * can, with a flag behind each, and every value that is read after its flag must be the new one.
 */
#ifndef GPU_LINKS_H
#define GPU_LINKS_H

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* How a row and its flag leave. */
enum links_way {
    LINKS_STORES, /* ordinary stores of a block, a barrier, a release: dispatch of few tokens (dispatch_push.cuh) */
    LINKS_ENGINE, /* the bulk copy engine; another warp fences, and stores the flag: dispatch of many (post.cuh) */
    LINKS_UNFENCED /* the engine, whose word that the row is stored is taken for its arrival: wrong, for comparison */
};

struct links_found {
    unsigned long long checked, wrong; /* values of 4 bytes */
    int late; /* a flag did not come within some seconds */
};

/*
 * Between two devices of this process, in both directions at the same time; with one == other within it. Blocks until all rounds
 * are over, or one is late. Returns NULL, or what CUDA says is wrong.
 */
const char *links_try(int one, int other, enum links_way way, uint32_t rounds, struct links_found *found);

/* Whether each of two devices can map the other's memory. */
bool links_exist(int one, int other);

#ifdef __cplusplus
}
#endif

#endif
