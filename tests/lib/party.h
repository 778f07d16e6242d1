// SPDX-License-Identifier: Apache-2.0
/* A party: one rank's side of a world: tensors over buffers of exactly the right size, canaries, and comparisons. */
#ifndef LIB_PARTY_H
#define LIB_PARTY_H

#include <stdbool.h>

#include "lib/world.h"

/* An array behind a tensor; `whole` is what was allocated, of which the tensor may use every other byte. */
struct party_array {
    unsigned char *whole;
    unsigned char *on_device; /* the same on the backend's device; what the tensor points at. NULL on the CPU */
    size_t whole_bytes;
    muster_tensor tensor;
    int64_t shape[3];
    int64_t strides[3];
};

struct party {
    const struct world *world;
    int rank;
    struct party_array hidden, slots, weights, payload[MUSTER_EP_MAX_PAYLOADS];
    struct party_array out_hidden, out_scales, out_payload[MUSTER_EP_MAX_PAYLOADS], out_counts, out_source, out_loads,
        out_ranges, out_slots, out_weights;
    struct party_array results, out;
    int32_t dropped;
    int32_t *dropped_on_device;
    muster_ep_dispatch_args dispatch;
    muster_ep_combine_args combine;
    char why[512]; /* the first thing that was wrong */
};

/* Every output that the case has is asked for. A party may be used for one exchange; open a fresh one for the next. */
struct party *party_open(const struct world *world, int rank);
void party_close(struct party *p);

/* Sets an entry of topk_slots, where the library will read it. */
void party_route(struct party *p, int token, int k, int64_t slot);

/* Whether every output still holds nothing but canaries. */
bool party_untouched(struct party *p);

/* Compares every output of dispatch, byte by byte and canaries included, with what the oracle says. */
bool party_dispatched(struct party *p);

/* Runs this rank's experts on what it received, for combine. Not for cases in place. */
void party_experts(struct party *p);

/* The same for every case: in place, rows are read and results written in the exchange's own memory. */
muster_status party_compute(struct party *p, muster_ep *ep);

bool party_combined(struct party *p);

/*
 * Dispatch, experts, combine. The comparisons wait until the end: only a step whose verdict is good promises anything,
 * see party_right(). On an error of the library its status. On a device each waits for what it has enqueued, and says
 * nothing of what became of it.
 */
muster_status party_exchange(struct party *p, muster_ep *ep);
muster_status party_dispatch(struct party *p, muster_ep *ep);
muster_status party_combine(struct party *p, muster_ep *ep);

/* Compares everything that an exchange put out. */
bool party_right(struct party *p);

#endif
