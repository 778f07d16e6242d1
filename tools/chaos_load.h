// SPDX-License-Identifier: Apache-2.0
/*
 * What is exchanged while ranks die, and what must come of it. That of `muster perf` does not do: here every step has
 * rows of its own, so that nothing left over from an older one can pass for right; routes lead to members of the view
 * alone; and what must come is known to the byte.
 *
 * Everything follows from the seed, the epoch, the step in that epoch and the pair in that step, so every rank knows
 * every other rank's tokens. Values are bf16 of magnitude 1 to 2, weights multiples of 1/64 that add up to 1, and an
 * expert gives back what it was given. So no sum is ever rounded: with weights a token comes home as it left, without
 * them as often as it has been to a rank.
 */
#ifndef TOOLS_CHAOS_LOAD_H
#define TOOLS_CHAOS_LOAD_H

#include <stddef.h>
#include <stdint.h>

#include "chaos_board.h"
#include "muster/ep.h"

/* One token's. Routes that are not used are -1, with weight 0. */
struct chaos_routes {
    int32_t slot[MUSTER_EP_MAX_TOPK];
    float weight[MUSTER_EP_MAX_TOPK];
};

/* Where in the life of a group a pair stands. */
struct chaos_when {
    uint32_t epoch;
    uint64_t step; /* of the epoch, counted from 0 */
    int32_t pair; /* of the step */
    muster_mask mask;
};

struct chaos_load {
    const struct chaos_shape *shape;
    uint64_t key;
    muster_mask mask;
    struct chaos_routes *routes; /* [ranks][tokens]; of ranks in the mask */
};

/* Which token lies in a row that was received. */
struct chaos_origin {
    int32_t rank, token;
};

/* splitmix64 (Steele, Lea and Flood, 2014): every seed, also a small one, gives a well-mixed sequence. */
uint64_t chaos_random(uint64_t *state);

bool chaos_load_open(struct chaos_load *load, const struct chaos_shape *shape);
void chaos_load_close(struct chaos_load *load);

/* The load of one pair; what is asked below is about the one that was set last. */
void chaos_load_set(struct chaos_load *load, const struct chaos_when *when);

const struct chaos_routes *chaos_load_routes(const struct chaos_load *load, int32_t rank, int32_t token);

/* The hidden states of a token, `hidden` bf16 values. */
void chaos_load_row(const struct chaos_load *load, int32_t rank, int32_t token, uint16_t *row);

/*
 * What must lie in a block that `rank` receives, in order: of its slot `block` (expert-major), or from the source rank
 * `block` (by_rank: rank-major). Returns how many rows; there is room for ranks * tokens.
 */
int32_t chaos_load_block(const struct chaos_load *load, bool by_rank, int32_t rank, int32_t block,
                         struct chaos_origin *rows);

/* What comes home of a token. */
void chaos_load_home(const struct chaos_load *load, bool by_rank, int32_t rank, int32_t token, uint16_t *row);

#endif
