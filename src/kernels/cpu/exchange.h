// SPDX-License-Identifier: Apache-2.0
/* The exchange on the CPU: what a rank keeps from one operation of a pair to the next, private to the process. */
#ifndef CPU_EXCHANGE_H
#define CPU_EXCHANGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/fault.h"
#include "kernels/cpu/rows.h"
#include "kernels/kernels.h"

/* This rank's tokens: to which ranks their rows go, and where on them. Made by route_plan(). */
struct send_plan {
    int32_t tokens;
    int32_t *rows; /* [R] rows for each rank */
    int32_t *token; /* [R][T] which token row j of a rank is; ascending */
    int32_t *slot; /* [R][T][K] local slots of the row's routes, -1 elsewhere: travels with the row */
    float *weight; /* [R][T][K] travels with the row */
    int32_t *loads; /* [R * S] routes to each slot */
    int32_t *parts; /* [T] rows that combine adds up for a token ... */
    int32_t *from; /* [T][K] ... reduced: from which rank, ascending; exact: for which k, ascending */
    int32_t *row; /* [T][K] reduced: which row of that rank's results */
    float *scale; /* [T][K] exact: its weight; reduced: 1, the ranks having weighted */
    int32_t *first; /* [R] flat: at which row of a rank's results those for this rank begin, as it has told */
    /* Marks of the token that was planned last, so that nothing need be cleared between tokens. */
    uint32_t mark;
    uint32_t *slot_mark; /* [R * S] */
    uint32_t *rank_mark; /* [R] */
};

/* What came, in private copies: they are checked once, and what a peer stores later cannot undo the check (X9). */
struct received {
    int32_t *rows; /* [R] rows from each rank; 0 for ranks that take no part */
    int32_t *first; /* [R] rows from all ranks before */
    int32_t *token; /* expert-major, below: [R * T], packed by `first` */
    int32_t *slot; /* [R * T][K] */
    float *weight; /* [R * T][K] */
    int32_t *begin; /* [S][R] first row of a source within a slot */
    int32_t *count; /* [S][R] rows of a source within a slot */
    int32_t *cursor; /* [S] next row of each slot while one source is walked through */
};

struct cpu_exchange {
    struct exchange_shape shape;
    struct send_plan plan;
    struct received received;
    const struct rows_arithmetic *rows;
    int32_t chunk; /* tokens that are sent at a time: what is quantised or read once then stays in the cache */
    unsigned char *codes; /* [chunk][H] fp8 */
    unsigned char *scales; /* [chunk][ceil(H / 128)] fp32 */
    unsigned char *scratch; /* [K + 1] rows on their way home, for rows that cannot be used in place */
};

/* The place at `offset` in the region of `rank`. */
static inline unsigned char *exchange_at(const struct kernel_step *step, int rank, uint64_t offset)
{
    return step->peers[rank] + offset;
}

static inline struct exchange_line *exchange_lines(const struct kernel_step *step, int rank, uint64_t offset)
{
    return (struct exchange_line *)(void *)exchange_at(step, rank, offset);
}

/* Index of row j of rank r in an array of [R][T] rows. */
static inline size_t exchange_row(const struct exchange_shape *shape, int rank, int32_t j)
{
    return (size_t)rank * (size_t)shape->tokens + (size_t)j;
}

/* Where the caller's arrays and the results have the first row of a source. */
static inline size_t exchange_first_row(const struct cpu_exchange *x, int rank)
{
    return x->shape.flat ? (size_t)x->received.first[rank] : exchange_row(&x->shape, rank, 0);
}

/* Rank-major and flat: the caller's result for row j of a source. */
static inline const unsigned char *exchange_result(const struct cpu_exchange *x, const struct combine_send_args *args,
                                                   int rank, int32_t j)
{
    size_t row = (size_t)j + (x->shape.flat ? exchange_first_row(x, rank) : 0);
    return args->results.data + (size_t)rank * args->block_stride + row * args->results.stride;
}

/* Stores `count` rows one after the other: in one go if the input is compact. */
void exchange_copy_rows(unsigned char *to, const struct row_input *from, size_t row_bytes, int32_t count);

/* The active ranks in the order in which they are served: from the next one upwards, so that not all begin with the
 * same, and this rank itself last. */
struct exchange_order {
    int count;
    int rank[MUSTER_MAX_RANKS];
};

void exchange_order(const struct kernel_step *step, struct exchange_order *order);

/* Raises line[this rank].flag on every active rank; `between` is reached after the first. */
void exchange_raise(const struct kernel_step *step, const struct exchange_order *order, uint64_t line, uint64_t stamp,
                    enum fault_point between);

/* Reason VALUE: detail says which entry of this rank's topk_slots (peer -1), or what came from `peer`. */
void exchange_refuse(const struct kernel_step *step, muster_phase phase, int peer, uint64_t detail);

/*
 * Plans where every route goes. False at the first entry that is out of range, named twice, or inactive without masked
 * mode; *bad is then token << 32 | k.
 */
bool route_plan(struct cpu_exchange *x, const struct kernel_step *step, const struct dispatch_send_args *args,
                uint64_t *bad);

void dispatch_send(void *exchange, const struct kernel_step *step, const struct dispatch_send_args *args);
void dispatch_receive(void *exchange, const struct kernel_step *step, const struct dispatch_receive_args *args);
void combine_send(void *exchange, const struct kernel_step *step, const struct combine_send_args *args);
void combine_receive(void *exchange, const struct kernel_step *step, const struct combine_receive_args *args);

#endif
