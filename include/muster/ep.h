// SPDX-License-Identifier: Apache-2.0
/* Expert parallelism: send each token to the ranks that hold its experts, bring the results home and sum them. */
#ifndef MUSTER_EP_H
#define MUSTER_EP_H

#include <stddef.h>
#include <stdint.h>

#include "muster/group.h"
#include "muster/memory.h"
#include "muster/status.h"

#ifdef __cplusplus
extern "C" {
#endif

#define MUSTER_EP_MAX_TOPK 32
#define MUSTER_EP_MAX_PAYLOADS 7
#define MUSTER_EP_FP8_GROUP 128

/*
 * An exchange: dispatch and combine over one set of buffers. One thread at a time, one outstanding pair.
 *
 * A call that is refused (ARGUMENT, UNSUPPORTED, ORDER) touches nothing. In an open step its operation is missing, on this
 * rank and for its peers: the step is void, with MUSTER_REASON_ARGUMENT and the operation's phase, and what follows in it
 * returns VOID. Not where this exchange's dispatch has opened the step, which stays open for the right call.
 *
 * With a device (see group.h) dispatch, combine, their halves and muster_ep_set_mask() only enqueue, and may be
 * captured in a graph. When the call is made: handles, sizes, shapes, types, devices, strides, overlaps, the order of
 * calls. When the stream comes to it: every value in device memory, and everything about peers; of that the step's
 * verdict tells. Tensors are then borrowed until the stream has passed the operation, or for the life of the graph;
 * their structs for the call only.
 */
typedef struct muster_ep muster_ep;

/* How received rows lie. R = ranks, S = slots_per_rank, T = max_tokens, K = topk. */
typedef enum muster_ep_layout {
    /*
     * One row per (token, local slot): hidden [S, R*T, H], packed from row 0 of each slot in (source rank, token)
     * order. The rank's experts read it; combine weights and sums.
     */
    MUSTER_EP_EXPERT_MAJOR = 0,
    /*
     * One row per (token, rank): hidden [R, T, H], row (s, j) being the j-th token of source s that routes here, with
     * its local slots and weights. The caller weights and sums its experts' results into that row.
     */
    MUSTER_EP_RANK_MAJOR = 1,
    /*
     * Rank-major without the gaps, for large batches: hidden [R*T, H], the rows of source 0 from row 0, those of source
     * 1 right behind them, and so on; the counts tell them apart.
     */
    MUSTER_EP_FLAT = 2,
} muster_ep_layout;

typedef enum muster_ep_combine_mode {
    /* Every expert's row comes home, is weighted there and added in top-k order in fp32. Needs expert-major. */
    MUSTER_EP_EXACT = 0,
    /*
     * Each rank weights and adds its experts' rows for a token in top-k order in fp32, rounds once to `dtype` (or
     * quantises once: quantise_return); the home rank adds the ranks in rank order. With rank-major and flat the caller
     * has done the first half.
     */
    MUSTER_EP_REDUCED = 1,
} muster_ep_combine_mode;

typedef enum muster_ep_quantise {
    MUSTER_EP_QUANTISE_NONE = 0,
    MUSTER_EP_QUANTISE_FP8 = 1, /* e4m3, per 128 values: scale = max(amax, 1e-4) / 448, fp32 */
    MUSTER_EP_QUANTISE_FP8_POW2 = 2, /* the scale rounded up to a power of two */
} muster_ep_quantise;

/* One more row that travels with each token. */
typedef struct muster_ep_payload {
    const char *name; /* for error messages; at most 31 bytes are kept */
    int32_t elements; /* per token; 1.. */
    muster_dtype dtype; /* 1, 2, 4 or 8 bytes per element */
} muster_ep_payload;

/* Fixed for the exchange's life, the same on all ranks. Start from MUSTER_EP_CONFIG_INIT. */
typedef struct muster_ep_config {
    size_t size;
    int32_t hidden; /* elements of a row; hidden * sizeof(dtype) is a multiple of 16 bytes */
    muster_dtype dtype; /* MUSTER_BF16, MUSTER_FP16 or MUSTER_FP32: of hidden states, expert results, the output */
    int32_t max_tokens; /* per rank and dispatch, 1..65536 */
    int32_t slots_per_rank; /* 1..; slot ids are rank * slots_per_rank + i */
    int32_t topk; /* routes per token, 1..32; unused ones are -1 */
    muster_ep_layout layout;
    muster_ep_combine_mode combine;
    muster_ep_quantise quantise; /* hidden rows arrive as fp8 with scales */
    int32_t masked; /* 1: muster_ep_set_mask is allowed; routes to inactive ranks become -1 and are reported */
    int32_t load_stats; /* 1: dispatch gathers every rank's routes per slot */
    int32_t payload_count;
    muster_ep_payload payload[MUSTER_EP_MAX_PAYLOADS];
    /*
     * Rows of results go home as fp8 with scales, those for this rank's own tokens as well: what was to be rounded to
     * `dtype` on the way is quantised instead, a reduced combine's sums straight from fp32. At home a value is code *
     * scale in fp32, weighted and added as always; `out` is of `dtype`. Independent of `quantise`.
     */
    muster_ep_quantise quantise_return;
} muster_ep_config;

#define MUSTER_EP_CONFIG_INIT                                                    \
    {                                                                            \
        .size = sizeof(muster_ep_config), .dtype = { MUSTER_TYPE_BFLOAT, 16, 1 } \
    }

/*
 * What dispatch is given and where it puts what arrived. `n` = tokens of this rank (0..max_tokens), the first dimension
 * of every input. Optional pointers may be NULL. Outputs are contiguous, do not overlap anything, and past the counts
 * they are untouched, unless pad_ids is set. With a CUDA group all tensors lie on the group's device; managed memory is
 * refused. A graph freezes n: routes of -1 pad it.
 */
typedef struct muster_ep_dispatch_args {
    size_t size;

    /* Inputs. */
    const muster_tensor *hidden; /* [n, H] dtype */
    const muster_tensor *topk_slots; /* [n, K] int32 or int64: slot ids; -1 = no route; no slot twice per token */
    const muster_tensor *topk_weights; /* [n, K] fp32; NULL = all 1 */
    const muster_tensor *payload[MUSTER_EP_MAX_PAYLOADS]; /* [n, elements] each */

    /* Outputs, all layouts. [...] is [S, R*T] for expert-major, [R, T] for rank-major and [R*T] for flat. */
    const muster_tensor *out_hidden; /* [..., H] dtype, or fp8 when quantised. NULL: see ep_received */
    const muster_tensor *out_scales; /* [..., ceil(H/128)] fp32, when quantised */
    const muster_tensor *out_payload[MUSTER_EP_MAX_PAYLOADS]; /* [..., elements]; optional */
    const muster_tensor *out_counts; /* int32: rows per local slot [S], or rows per source rank [R] */
    const muster_tensor *out_source; /* [..., 2] int32: (source rank, token) of each row; optional */
    const muster_tensor *out_loads; /* [R, R*S] int32: routes from rank to slot; only with load_stats; optional */

    /* Not rank-major. [S, R] int64: begin << 32 | count, per (slot, source rank); flat: [R], per source rank; optional */
    const muster_tensor *out_ranges;

    /* Rank-major and flat only. */
    const muster_tensor *out_slots; /* [..., K] int32: local slot 0..S-1 of each route to this rank, else -1 */
    const muster_tensor *out_weights; /* [..., K] fp32: its weight, else 0 */

    /*
     * 1: rows past the count get invalid_id in out_slots (rank-major, flat) or in both fields of out_source
     * (expert-major), so that a kernel over the whole array can skip them.
     */
    int32_t pad_ids;
    int32_t invalid_id;

    /*
     * Masked mode: how many routes of this rank were dropped because their rank is inactive; may be NULL. With a CUDA
     * group this is memory that the device can write (pinned or its own), which is not checked, and it is written in
     * stream order by the send half, in void steps perhaps not.
     */
    int32_t *dropped_routes;
} muster_ep_dispatch_args;

#define MUSTER_EP_DISPATCH_INIT                                   \
    {                                                             \
        .size = sizeof(muster_ep_dispatch_args), .invalid_id = -1 \
    }

typedef struct muster_ep_combine_args {
    size_t size;
    /*
     * Each row where dispatch put it. Expert-major: [S, R*T, H]. Rank-major [R, T, H] and flat [R*T, H]: weighted and
     * summed over this rank's experts. NULL, not in expert-major, takes what the caller wrote into the tensor of
     * muster_ep_results(), where there is one. Flat results may not lie in the tensor of muster_ep_received().
     */
    const muster_tensor *results;
    const muster_tensor *out; /* [n, H] dtype; rows without any route become 0 */
} muster_ep_combine_args;

#define MUSTER_EP_COMBINE_INIT                 \
    {                                          \
        .size = sizeof(muster_ep_combine_args) \
    }

/*
 * Symmetric memory that an exchange needs on each rank, in bytes, for muster_group_config.memory_bytes.
 * Pure arithmetic. Errors: ARGUMENT, for a configuration of more than 2^60 bytes as well.
 */
MUSTER_API muster_status muster_ep_memory_bytes(const muster_ep_config *config, int32_t ranks, uint64_t *bytes);

/*
 * Creates an exchange. Collective: blocks until the configurations of all members were compared, at most
 * start_timeout_us. No step may be open. On failure *ep is untouched.
 * CUDA: takes its part of the group's memory and nothing else of the device, and waits for no kernel; not during
 * capture. A GPU takes at most 16384 slots of all ranks together, and fewer where its blocks have too little shared memory to
 * count for them (sm_86, sm_89).
 * Errors: ARGUMENT, UNSUPPORTED (more than 200 exchanges of a group at a time; CUDA: too many slots), MISMATCH,
 * MEMORY (names the bytes that are missing), ORDER, TIMEOUT, the group's sticky error.
 */
MUSTER_API muster_status muster_ep_create(muster_group *group, const muster_ep_config *config, muster_ep **ep);

/*
 * Frees the exchange. Local, does not block. Its symmetric memory stays with the group, so kernels that are still
 * enqueued do no harm; graphs of it are not launched any more. NULL is allowed; in a forked child it does nothing.
 */
MUSTER_API void muster_ep_destroy(muster_ep *ep);

/*
 * Masked mode: from the next dispatch on only ranks in `mask` take part. `mask` is a subset of the view, holds this
 * rank, is the same on all ranks and within an epoch only shrinks. Nobody waits for a rank that is left out: one that
 * still works on its last combine may find its step void (MUSTER_REASON_LEFT_OUT; not on CUDA, where results are pushed
 * to it). Does not block.
 * CUDA: enqueued, between pairs. Whether the mask fits the view is known on the device: one that does not voids the
 * next step, whose verdict has MUSTER_REASON_VALUE. A mask holds until the epoch ends; one that the device comes to before
 * the view is ready, or in a void step, may not be kept.
 * Errors: ARGUMENT, ORDER.
 */
MUSTER_API muster_status muster_ep_set_mask(muster_ep *ep, muster_mask mask, void *stream);

/*
 * Sends this rank's tokens and receives those that route here. Blocks (CPU) until every active rank's rows have come,
 * at most operation_timeout_us, or step_timeout_us for ranks that have not begun the step. Opens a step of its own when
 * none is open; the matching combine closes it.
 * Errors: ARGUMENT: nothing was touched; if a value inside topk_slots is at fault, the step is void as well and its
 * verdict names token and k. ORDER: a dispatch is outstanding. VOID, TIMEOUT, PEER: the step is void, the outputs are
 * unspecified.
 * CUDA: enqueued; outputs may be used behind it on the stream. ARGUMENT (not for values), ORDER and SYSTEM (CUDA
 * refused the launch) alone are the call's; all else is the verdict's, and after a bad value no peer is told of
 * any row, so none uses one. Then, or when a peer does not come, what follows in the step does nothing: kernels of the
 * caller's that read the outputs must stand any bytes there, counts too.
 */
MUSTER_API muster_status muster_ep_dispatch(muster_ep *ep, const muster_ep_dispatch_args *args, void *stream);

/*
 * The two halves of dispatch, to compute in between. Send does not wait for peers and borrows the inputs only for the
 * call (CUDA: until the stream has passed it); receive is given the outputs of the same args struct (its inputs are
 * ignored), and waits. CUDA: a kernel each; the second on another stream only behind an event of the first; flat, the
 * send half waits until every active rank has begun its own, since where rows go depends on the counts of all.
 */
MUSTER_API muster_status muster_ep_dispatch_send(muster_ep *ep, const muster_ep_dispatch_args *args, void *stream);
MUSTER_API muster_status muster_ep_dispatch_receive(muster_ep *ep, const muster_ep_dispatch_args *args, void *stream);

/*
 * Rank-major and flat: the received hidden rows, [R, T, H] or [R*T, H], where a dispatch with out_hidden NULL leaves them:
 * in the exchange's own memory, from dispatch to the matching combine (send half). Rows past the counts may be anything.
 * `tensor` points at storage inside the exchange, which is the same for its whole life; on CUDA "from ... to" is the
 * order of the stream. Nothing is copied for it, except flat on the CPU. Errors: ARGUMENT (layout).
 */
MUSTER_API muster_status muster_ep_received(muster_ep *ep, muster_tensor *tensor);

/*
 * Rank-major and flat: where the caller may write its results, [R, T, H] or [R*T, H], in the places of the received rows,
 * so that combine need not copy them: writable from dispatch's return to the combine's send half. Not with
 * quantise_return, whose rows do not go home as they are. Errors: ARGUMENT (layout, quantise_return).
 */
MUSTER_API muster_status muster_ep_results(muster_ep *ep, muster_tensor *tensor);

/*
 * Sends the results home and sums what comes for this rank's tokens. Blocks like dispatch. Errors: like dispatch;
 * ORDER if no dispatch is outstanding.
 * CUDA: enqueued like dispatch; `out` may be used behind it, and counts when the verdict is good. Closes the step that
 * dispatch opened. It is called in void steps too: the calls cannot know.
 */
MUSTER_API muster_status muster_ep_combine(muster_ep *ep, const muster_ep_combine_args *args, void *stream);

/* The two halves of combine: send borrows `results` (CUDA: until the stream has passed it), receive fills `out`. */
MUSTER_API muster_status muster_ep_combine_send(muster_ep *ep, const muster_ep_combine_args *args, void *stream);
MUSTER_API muster_status muster_ep_combine_receive(muster_ep *ep, const muster_ep_combine_args *args, void *stream);

#ifdef __cplusplus
}
#endif
#endif
