// SPDX-License-Identifier: Apache-2.0
/*
 * What a kernel is given: plain structs, the same for every backend. Kernels know nothing of groups, stores or threads;
 * they read these structs, move bytes between the regions of the ranks, and report through the control block.
 */
#ifndef KERNELS_KERNELS_H
#define KERNELS_KERNELS_H

#include <assert.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/mask.h"
#include "core/stamp.h"
#include "kernels/exchange.h"
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
 * Everything in a region begins on a multiple of this. A GPU's memory and its links move lines of 128 bytes, or two of them at a
 * time: rows of whole lines that begin within one take a tenth more time (docs/performance.md).
 */
enum { REGION_ALIGNMENT = 256 };

static_assert(sizeof(struct region_header) % REGION_ALIGNMENT == 0, "what follows it is aligned");

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

/* Whether the detail beside it names an entry of this rank's input: token << 32 | k. */
static inline bool failure_names_entry(uint64_t failure)
{
    return failure_reason(failure) == MUSTER_REASON_VALUE && failure_peer(failure) < 0;
}

/* X14: a kernel records why it gave up once, the first writer wins, and returns. */
static inline void failure_record(struct kernel_control *control, uint64_t failure)
{
    uint64_t none = 0;
    atomic_compare_exchange_strong(&control->failure, &none, failure);
}

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
