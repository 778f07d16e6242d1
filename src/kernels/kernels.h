// SPDX-License-Identifier: Apache-2.0
/*
 * What a kernel is given: plain structs, the same for every backend. Kernels know nothing of groups, stores or threads;
 * they read these structs, move bytes between the regions of the ranks, and report through the control block.
 */
#ifndef KERNELS_KERNELS_H
#define KERNELS_KERNELS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/mask.h"
#include "core/stamp.h"
#include "muster/ep.h"
#include "muster/group.h"

/*
 * Region header: the first bytes of every rank's symmetric region, at the same offset everywhere.
 * step_word[p] is written by rank p alone: stamp(epoch, 2 * step number + 1) when p has begun that step of the epoch,
 * stamp(epoch, 2 * step number + 2) when it has ended it. So a waiting rank can tell a peer that is late inside a step
 * from one that has not come to it, or has gone past it.
 */
struct region_header {
    struct {
        _Atomic uint64_t word;
        uint64_t pad[7]; /* a cache line each: written by different ranks */
    } step_word[MUSTER_MAX_RANKS];
};

/*
 * Where this rank's agent and its kernels meet; private to the process. The agent writes the first part, kernels write
 * the second.
 */
struct kernel_control {
    _Atomic uint32_t live_epoch; /* only grows; a kernel whose step has another epoch returns */
    _Atomic uint64_t operation_timeout_ns; /* of one wait */
    _Atomic uint64_t step_timeout_ns; /* of a wait on a rank that has not begun the step */
    uint32_t spin; /* polls before a wait gives its core away; fixed at creation */

    _Atomic uint64_t failure; /* first failure of the step, packed by failure_pack(); 0 = none; sticky */
    _Atomic uint64_t failure_detail; /* MUSTER_REASON_VALUE: token << 32 | k */
    _Atomic uint64_t waiting_for[2]; /* the peers that the running kernel waits for; 0 when it does not wait */
    _Atomic uint64_t waiting_since_ns;
    _Atomic uint64_t overdue[2]; /* written before a TIMEOUT failure: the peers whose deadline had passed */
};

/* The step's own copy of the installed view; what step_begin took is what every kernel of the step uses. */
struct kernel_step {
    struct kernel_control *control;
    uint32_t epoch;
    uint64_t number; /* in this epoch, from 0; from half the first sequence number in tests that start late */
    int32_t rank;
    int32_t ranks;
    muster_mask mask; /* ranks that take part: the view, narrowed in masked mode */
    unsigned char *const *peers; /* [ranks] base of each rank's region here; NULL where it is not mapped */
};

/* failure word: reason 8 bits | phase 8 | peer + 1 in 16 | epoch 24. */
static inline uint64_t failure_pack(muster_reason reason, muster_phase phase, int peer, uint32_t epoch)
{
    return (uint64_t)reason | (uint64_t)phase << 8 | (uint64_t)(uint16_t)(peer + 1) << 16 | (uint64_t)epoch << 32;
}

static inline muster_reason failure_reason(uint64_t failure)
{
    return (muster_reason)(failure & 0xff);
}

static inline muster_phase failure_phase(uint64_t failure)
{
    return (muster_phase)(failure >> 8 & 0xff);
}

static inline int failure_peer(uint64_t failure)
{
    return (int)(failure >> 16 & 0xffff) - 1;
}

static inline uint32_t failure_epoch(uint64_t failure)
{
    return (uint32_t)(failure >> 32);
}

/* X14: a kernel records why it gave up once, the first writer wins, and returns. */
static inline void failure_record(struct kernel_control *control, uint64_t failure)
{
    uint64_t none = 0;
    atomic_compare_exchange_strong(&control->failure, &none, failure);
}

/*
 * The exchange (MoE dispatch and combine). R = ranks, S = slots, T = tokens, K = topk, H = hidden.
 *
 * A line is what one peer tells another: a flag, and what is written before it. Each has a cache line of its own, since
 * each has another writer. Line p of an array in a rank's region is written by rank p alone.
 */
struct exchange_line {
    _Atomic uint64_t flag; /* stamp of the newest dispatch or combine that the peer has finished sending */
    uint64_t mask[2]; /* dispatch: the ranks that the peer takes to be part of it */
    uint64_t step; /* dispatch: the number of the peer's step in the epoch */
    uint32_t rows; /* dispatch: rows that came with it */
    uint32_t pad[7];
};

enum { EXCHANGE_MAX_ARRAYS = 2 + MUSTER_EP_MAX_PAYLOADS };

/* One array whose rows travel: hidden states first, then scales if quantised, then the caller's payloads. */
struct exchange_array {
    uint64_t offset; /* of [R][T] rows */
    size_t row_bytes;
};

/* What an exchange is, and where its parts lie in every region: a pure function of config and rank count (X6). */
struct exchange_shape {
    int32_t ranks, slots, tokens, topk, hidden;
    bool expert_major, exact, masked, load_stats;
    bool fp32; /* rows of hidden states and results are fp32; otherwise bf16 */
    muster_ep_quantise quantise;
    int32_t arrays;
    struct exchange_array array[EXCHANGE_MAX_ARRAYS];
    size_t result_bytes; /* of one row of H in fp32 or bf16 */
    uint64_t dispatch_line; /* [R] lines */
    uint64_t combine_line; /* [R] lines */
    uint64_t loads; /* [R][R * S] int32; with load_stats */
    uint64_t row_token; /* [R][T] int32 */
    uint64_t row_slot; /* [R][T][K] int32: local slot or -1 */
    uint64_t row_weight; /* [R][T][K] fp32 */
    uint64_t results; /* reduced: [R][T] rows, read by their home ranks */
    uint64_t home; /* exact: [T][K] rows, written by the ranks of the experts */
    uint64_t begin, end; /* all of the above */
};

/* A caller's input: `stride` bytes from row to row. */
struct row_input {
    const unsigned char *data;
    size_t stride;
};

struct dispatch_send_args {
    uint64_t stamp;
    int32_t tokens;
    struct row_input input[EXCHANGE_MAX_ARRAYS]; /* by array; the one of the scales is not used */
    struct row_input topk_slots; /* [tokens, K] */
    bool wide; /* int64 ids, otherwise int32 */
    struct row_input topk_weights; /* [tokens, K] fp32; data NULL: all 1 */
    int32_t *dropped_routes; /* never NULL */
};

/* Outputs are compact; those with a NULL pointer are not wanted. */
struct dispatch_receive_args {
    uint64_t stamp;
    unsigned char *output[EXCHANGE_MAX_ARRAYS];
    int32_t *counts, *source, *loads, *slots;
    int64_t *ranges;
    float *weights;
    bool pad_ids;
    int32_t invalid_id;
};

/* results: [S][R*T] or [R][T] rows; data NULL: they already lie in the region. */
struct combine_send_args {
    uint64_t stamp;
    struct row_input results;
    size_t block_stride; /* bytes from one slot or source rank to the next */
};

struct combine_receive_args {
    uint64_t stamp;
    unsigned char *out; /* [tokens, H], tokens as dispatched */
};

/*
 * A backend. The four operations of an exchange are called in the order dispatch send, dispatch receive, combine send,
 * combine receive; each reports a failure through step->control and returns; after a failure the pair starts over.
 */
struct kernel_ops {
    size_t size;
    const char *name;
    /* What an exchange keeps from one operation to the next; NULL: no memory. The shape is copied. */
    void *(*exchange_create)(const struct exchange_shape *shape);
    void (*exchange_destroy)(void *exchange);
    void (*dispatch_send)(void *exchange, const struct kernel_step *step, const struct dispatch_send_args *args);
    void (*dispatch_receive)(void *exchange, const struct kernel_step *step, const struct dispatch_receive_args *args);
    void (*combine_send)(void *exchange, const struct kernel_step *step, const struct combine_send_args *args);
    void (*combine_receive)(void *exchange, const struct kernel_step *step, const struct combine_receive_args *args);
};

extern const struct kernel_ops cpu_kernel_ops;

#endif
