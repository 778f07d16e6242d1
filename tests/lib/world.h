// SPDX-License-Identifier: Apache-2.0
/*
 * A world: one exchange seen from above. It holds the inputs of every rank, drawn from a seed, and what the oracle says
 * that every rank must receive, compute and get back. Worlds with the same case, ranks, mask and seed are the same, so
 * ranks in different processes can each make their own.
 */
#ifndef LIB_WORLD_H
#define LIB_WORLD_H

#include "muster/ep.h"
#include "oracle/oracle.h"

enum case_tokens { TOKENS_FULL, TOKENS_UNEVEN, TOKENS_MOSTLY_NONE, TOKENS_NONE };
enum case_routes { ROUTES_SPREAD, ROUTES_LOCAL, ROUTES_HOTSPOT, ROUTES_NONE };
/* wild: zeros, infinities, denormals and NaN among them; every: element i of a rank has the code i, types of 16 bits alone */
enum case_values { VALUES_PLAIN, VALUES_WILD, VALUES_EVERY };

struct exchange_case {
    const char *name;
    int hidden;
    int max_tokens;
    int slots; /* per rank */
    int topk;
    muster_ep_layout layout;
    muster_ep_combine_mode combine;
    muster_ep_quantise quantise, quantise_return;
    enum case_tokens tokens;
    enum case_routes routes;
    enum case_values values;
    enum oracle_type type; /* of hidden rows, results and the output */
    int masked;
    int load_stats;
    int ids64;
    int no_weights;
    int pad;
    int strided; /* inputs have padded rows and a byte offset, and strides are given everywhere */
    int in_place; /* rank-major, flat: rows are read and results written in the exchange's own memory */
    int halves; /* send and receive as two calls each */
    int payloads;
    struct {
        int elements;
        muster_dtype dtype;
    } payload[MUSTER_EP_MAX_PAYLOADS];
};

struct world {
    struct exchange_case c;
    int ranks;
    struct oracle_shape shape;
    const int32_t *expert; /* [ranks * slots]: which expert a slot computes; NULL: each slot is its own expert */

    /* Inputs: `in` points at the arrays below it. */
    struct oracle_rank in[MUSTER_MAX_RANKS];
    unsigned char *hidden[MUSTER_MAX_RANKS];
    int64_t *slots[MUSTER_MAX_RANKS];
    float *weights[MUSTER_MAX_RANKS];
    unsigned char *payload[MUSTER_MAX_RANKS][MUSTER_EP_MAX_PAYLOADS];

    /* What must come of them. */
    struct oracle_received received[MUSTER_MAX_RANKS];
    unsigned char *results[MUSTER_MAX_RANKS];
    unsigned char *combined[MUSTER_MAX_RANKS];
    int32_t *loads;
    int dropped[MUSTER_MAX_RANKS];
};

/* The library's type for one of the oracle's. */
muster_dtype case_dtype(enum oracle_type type);

/* The library's configuration for a case. */
muster_ep_config case_config(const struct exchange_case *c);

/* The inputs alone, for ranks in `mask`. Without masked mode routes avoid the others. Never fails (aborts instead). */
struct world *world_draw(const struct exchange_case *c, int ranks, muster_mask mask, uint64_t seed);

/* Sets how many tokens a rank has: its first `tokens` rows, at most max_tokens. To be done before world_settle. */
void world_tokens(struct world *w, int rank, int tokens);

/* Computes what must come of the inputs. */
void world_settle(struct world *w);

struct world *world_make(const struct exchange_case *c, int ranks, muster_mask mask, uint64_t seed);
void world_free(struct world *w);

/*
 * The experts of one rank, applied to what it received: fills `results`, rows that hold nothing with NaN. `received`
 * may point at the library's outputs.
 */
void world_experts(const struct world *w, int rank, const struct oracle_received *received, void *results);

/* Bytes of a whole results array of one rank. */
size_t world_results_bytes(const struct world *w);

/* The same random numbers everywhere: splitmix64. */
uint64_t world_random(uint64_t *state);

#endif
