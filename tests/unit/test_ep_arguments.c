// SPDX-License-Identifier: Apache-2.0
/*
 * Promise 9, first half: an argument error names the argument and the limit and touches nothing. Every tensor of every
 * call is made wrong in every way; after each refusal the outputs hold nothing but canaries, and a correct exchange in
 * the same place works. What lies in a device's memory is read there: a bad id is in the verdict, and not in the call's
 * status.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/mask.h"
#include "lib/backend.h"
#include "lib/rounds.h"

enum tensor_fault {
    SPOIL_MISSING,
    SPOIL_NDIM_LESS,
    SPOIL_NDIM_MORE,
    SPOIL_FIRST_EXTENT,
    SPOIL_LAST_EXTENT,
    SPOIL_NEGATIVE_EXTENT,
    SPOIL_TYPE_CODE,
    SPOIL_TYPE_BITS,
    SPOIL_TYPE_LANES,
    SPOIL_DEVICE,
    SPOIL_DEVICE_INDEX, /* of memory that a host has no two of */
    SPOIL_MANAGED,
    SPOIL_LAST_STRIDE,
    SPOIL_NO_DATA,
    SPOIL_NO_SHAPE,
    SPOIL_OVERLAP,
    SPOIL_COUNT,
};

static const char *const fault_texts[SPOIL_COUNT] = {
    "missing",
    "one dimension less",
    "one dimension more",
    "wrong first extent",
    "wrong last extent",
    "negative extent",
    "wrong type code",
    "wrong type bits",
    "two lanes",
    "on another device",
    "on the next device",
    "in managed memory",
    "last stride 2",
    "no data",
    "no shape",
    "overlapping an input",
};

enum tensor_use { INPUT = 1, OUTPUT = 2, REQUIRED = 4 };

/* One tensor of one call, as seen from outside. */
struct target {
    const char *name;
    const muster_tensor **field;
    unsigned use;
};

struct spoilt {
    muster_tensor tensor;
    int64_t shape[4];
    int64_t strides[4];
};

/* Copies the tensor and makes the copy wrong. `other` is an input that outputs can be laid over. */
static void spoil(struct spoilt *s, const muster_tensor *right, enum tensor_fault fault, const muster_tensor *other)
{
    s->tensor = *right;
    for (int d = 0; d < 4; d++)
        s->shape[d] = d < right->ndim ? right->shape[d] : 1;
    s->strides[right->ndim - 1] = 1;
    for (int d = right->ndim - 2; d >= 0; d--)
        s->strides[d] = s->strides[d + 1] * s->shape[d + 1];
    s->strides[right->ndim] = 1;
    s->tensor.shape = s->shape;
    switch (fault) {
    case SPOIL_NDIM_LESS: s->tensor.ndim--; break;
    case SPOIL_NDIM_MORE: s->tensor.ndim++; break;
    case SPOIL_FIRST_EXTENT: s->shape[0]++; break;
    case SPOIL_LAST_EXTENT: s->shape[right->ndim - 1]++; break;
    case SPOIL_NEGATIVE_EXTENT: s->shape[0] = -1; break;
    case SPOIL_TYPE_CODE:
        s->tensor.dtype.code = 6; /* bool */
        break;
    case SPOIL_TYPE_BITS: s->tensor.dtype.bits = (uint8_t)(s->tensor.dtype.bits * 4); break;
    case SPOIL_TYPE_LANES: s->tensor.dtype.lanes = 2; break;
    case SPOIL_DEVICE: s->tensor.device.type = test_backend ? MUSTER_DEVICE_CPU : MUSTER_DEVICE_CUDA; break;
    case SPOIL_DEVICE_INDEX: s->tensor.device.index++; break;
    case SPOIL_MANAGED: s->tensor.device.type = MUSTER_DEVICE_CUDA_MANAGED; break;
    case SPOIL_LAST_STRIDE:
        s->strides[right->ndim - 1] = 2;
        s->tensor.strides = s->strides;
        break;
    case SPOIL_NO_DATA: s->tensor.data = NULL; break;
    case SPOIL_NO_SHAPE: s->tensor.shape = NULL; break;
    case SPOIL_OVERLAP:
        s->tensor.data = other->data;
        s->tensor.byte_offset = other->byte_offset;
        break;
    default: break;
    }
}

static bool fault_applies(const struct target *t, enum tensor_fault fault)
{
    if (!*t->field)
        return false;
    if (fault == SPOIL_MISSING)
        return t->use & REQUIRED;
    if (fault == SPOIL_DEVICE_INDEX)
        return test_backend;
    return fault != SPOIL_OVERLAP || (t->use & OUTPUT);
}

typedef muster_status call_function(struct party *p, muster_ep *ep);

static muster_status call_dispatch(struct party *p, muster_ep *ep)
{
    return muster_ep_dispatch(ep, &p->dispatch, backend_stream());
}

static muster_status call_combine(struct party *p, muster_ep *ep)
{
    return muster_ep_combine(ep, &p->combine, backend_stream());
}

static void expect_refused(struct party *p, muster_status status, const char *name, const char *what)
{
    expect(status == MUSTER_ERR_ARGUMENT, "%s %s gave %s (%s)", name, what, muster_status_name(status),
           muster_last_error());
    expect(strstr(muster_last_error(), name), "%s %s: the error does not name it: \"%s\"", name, what,
           muster_last_error());
    expect(party_untouched(p), "%s %s: %s", name, what, p->why);
}

/* The limit of a wrong extent is the right one. */
static void expect_extent_named(const muster_tensor *right, enum tensor_fault fault, const char *name)
{
    char number[24];
    if (fault != SPOIL_FIRST_EXTENT && fault != SPOIL_LAST_EXTENT)
        return;
    int d = fault == SPOIL_FIRST_EXTENT ? 0 : right->ndim - 1;
    snprintf(number, sizeof(number), "%lld", (long long)right->shape[d]);
    expect(strstr(muster_last_error(), number), "%s %s: the error does not say %s: \"%s\"", name, fault_texts[fault],
           number, muster_last_error());
}

static void refuse_tensor(struct party *p, muster_ep *ep, call_function *call, const struct target *t,
                          enum tensor_fault fault)
{
    const muster_tensor *right = *t->field;
    struct spoilt spoilt = {.tensor = {0}};
    spoil(&spoilt, right, fault, call == call_dispatch ? p->dispatch.hidden : p->combine.results);
    *t->field = fault == SPOIL_MISSING ? NULL : &spoilt.tensor;
    muster_status status = call(p, ep);
    expect_refused(p, status, t->name, fault_texts[fault]);
    expect_extent_named(right, fault, t->name);
    *t->field = right;
}

enum { MAX_TARGETS = 24 };

static int dispatch_targets(struct party *p, struct target targets[MAX_TARGETS])
{
    muster_ep_dispatch_args *d = &p->dispatch;
    unsigned scales = p->world->c.quantise ? REQUIRED : 0;
    unsigned in_caller = p->world->c.layout == MUSTER_EP_EXPERT_MAJOR ? REQUIRED : 0;
    const struct target all[] = {
        {"hidden", &d->hidden, INPUT | REQUIRED},
        {"topk_slots", &d->topk_slots, INPUT | REQUIRED},
        {"topk_weights", &d->topk_weights, INPUT},
        {"payload", &d->payload[0], INPUT | REQUIRED},
        {"payload", &d->payload[1], INPUT | REQUIRED},
        {"out_hidden", &d->out_hidden, OUTPUT | in_caller},
        {"out_scales", &d->out_scales, OUTPUT | scales},
        {"out_payload", &d->out_payload[0], OUTPUT},
        {"out_counts", &d->out_counts, OUTPUT | REQUIRED},
        {"out_source", &d->out_source, OUTPUT},
        {"out_loads", &d->out_loads, OUTPUT},
        {"out_ranges", &d->out_ranges, OUTPUT},
        {"out_slots", &d->out_slots, OUTPUT | REQUIRED},
        {"out_weights", &d->out_weights, OUTPUT | REQUIRED},
    };
    memcpy(targets, all, sizeof(all));
    return (int)(sizeof(all) / sizeof(all[0]));
}

static int combine_targets(struct party *p, struct target targets[MAX_TARGETS])
{
    muster_ep_combine_args *c = &p->combine;
    bool in_place = p->world->c.layout != MUSTER_EP_EXPERT_MAJOR && !p->world->c.quantise_return;
    unsigned in_caller = in_place ? 0 : REQUIRED;
    const struct target all[] = {
        {"results", &c->results, INPUT | in_caller},
        {"out", &c->out, OUTPUT | REQUIRED},
    };
    memcpy(targets, all, sizeof(all));
    return (int)(sizeof(all) / sizeof(all[0]));
}

/* Rank 0 makes the wrong call; both make the right one after it. */
static void refuse_dispatches(struct cluster_rank *self, muster_ep *ep)
{
    const struct world *world = self->context;
    struct target targets[MAX_TARGETS];
    for (int t = 0, count = 1; t < count; t++)
        for (int fault = 0; fault < SPOIL_COUNT; fault++) {
            struct party *p = party_open(world, self->rank);
            count = dispatch_targets(p, targets);
            bool applies = fault_applies(&targets[t], (enum tensor_fault)fault);
            if (applies && self->rank == 0)
                refuse_tensor(p, ep, call_dispatch, &targets[t], (enum tensor_fault)fault);
            party_close(p);
            if (applies)
                rounds_exchange(self, ep, world);
        }
}

/* The wrong combine comes between a right dispatch and a right combine. */
static void refuse_combines(struct cluster_rank *self, muster_ep *ep)
{
    const struct world *world = self->context;
    struct party *p = party_open(world, self->rank), *canaries = party_open(world, self->rank);
    struct target targets[MAX_TARGETS];
    expect_status(party_dispatch(p, ep), MUSTER_OK, "muster_ep_dispatch");
    canaries->combine.results = p->combine.results;
    int count = combine_targets(canaries, targets);
    for (int t = 0; t < count; t++)
        for (int fault = 0; fault < SPOIL_COUNT; fault++)
            if (fault_applies(&targets[t], (enum tensor_fault)fault))
                refuse_tensor(canaries, ep, call_combine, &targets[t], (enum tensor_fault)fault);
    party_experts(p);
    expect_status(party_combine(p, ep), MUSTER_OK, "muster_ep_combine");
    expect_status(cluster_verdict(self).status, MUSTER_OK, "the verdict");
    expect(party_right(p), "%s", p->why);
    party_close(canaries);
    party_close(p);
}

static void spoil_tensors(struct cluster_rank *self)
{
    const struct world *world = self->context;
    muster_ep *ep = rounds_create(self, &world->c);
    refuse_dispatches(self, ep);
    refuse_combines(self, ep);
    muster_ep_destroy(ep);
}

static void run_on(const struct exchange_case *c, int ranks, cluster_function *function)
{
    struct cluster_options options = {.ranks = ranks, .memory_bytes = rounds_memory_bytes(c, 1, ranks)};
    struct world *world = world_make(c, ranks, mask_first(ranks), 5);
    assert_true(cluster_run(&options, function, world));
    world_free(world);
}

#define TWO_PAYLOADS .payloads = 2, .payload = {{3, {MUSTER_TYPE_INT, 32, 1}}, {5, {MUSTER_TYPE_UINT, 8, 1}}}

static const struct exchange_case expert_major = {.name = "expert-major",
                                                  .hidden = 136,
                                                  .max_tokens = 4,
                                                  .slots = 3,
                                                  .topk = 2,
                                                  .load_stats = 1,
                                                  .quantise = MUSTER_EP_QUANTISE_FP8,
                                                  TWO_PAYLOADS};
static const struct exchange_case rank_major = {.name = "rank-major",
                                                .hidden = 24,
                                                .max_tokens = 4,
                                                .slots = 3,
                                                .topk = 2,
                                                .layout = MUSTER_EP_RANK_MAJOR,
                                                .combine = MUSTER_EP_REDUCED,
                                                .ids64 = 1,
                                                TWO_PAYLOADS};

static const struct exchange_case returned = {.name = "rank-major, fp8 home",
                                              .hidden = 136,
                                              .max_tokens = 4,
                                              .slots = 3,
                                              .topk = 2,
                                              .layout = MUSTER_EP_RANK_MAJOR,
                                              .combine = MUSTER_EP_REDUCED,
                                              .quantise_return = MUSTER_EP_QUANTISE_FP8,
                                              TWO_PAYLOADS};

static const struct exchange_case flat = {.name = "flat",
                                          .hidden = 136,
                                          .max_tokens = 4,
                                          .slots = 3,
                                          .topk = 2,
                                          .layout = MUSTER_EP_FLAT,
                                          .combine = MUSTER_EP_REDUCED,
                                          .load_stats = 1,
                                          .quantise = MUSTER_EP_QUANTISE_FP8,
                                          TWO_PAYLOADS};

static void wrong_tensors_expert_major(void **state)
{
    (void)state;
    run_on(&expert_major, 2, spoil_tensors);
}

static void wrong_tensors_rank_major(void **state)
{
    (void)state;
    run_on(&rank_major, 2, spoil_tensors);
}

static void wrong_tensors_quantised_return(void **state)
{
    (void)state;
    run_on(&returned, 2, spoil_tensors);
}

/* Rows are [ranks * max_tokens, ...], and an error about one says so. */
static void wrong_tensors_flat(void **state)
{
    (void)state;
    run_on(&flat, 2, spoil_tensors);
}

static void refuse_blocks(struct cluster_rank *self)
{
    const struct world *world = self->context;
    muster_ep *ep = rounds_create(self, &world->c);
    struct party *p = party_open(world, self->rank);
    int64_t blocks[3] = {2, 4, 136}; /* as in rank-major: the same bytes */
    muster_tensor tensor = *p->dispatch.out_hidden;
    tensor.ndim = 3;
    tensor.shape = blocks;
    p->dispatch.out_hidden = &tensor;
    expect_refused(p, call_dispatch(p, ep), "out_hidden", "in blocks");
    expect(strstr(muster_last_error(), "[2, 4, 136]") && strstr(muster_last_error(), "[8, 136]"),
           "the error does not say what it has and what it must have: \"%s\"", muster_last_error());
    party_close(p);
    rounds_exchange(self, ep, world);
    muster_ep_destroy(ep);
}

static void flat_rows_are_no_blocks(void **state)
{
    (void)state;
    run_on(&flat, 2, refuse_blocks);
}

/*
 * Where an exchange keeps rows that it quantises on their way home is no place for the caller's results. An exchange
 * before it, which does not quantise them and is otherwise alike, shows where that is.
 */
static void refuse_own_memory(struct cluster_rank *self)
{
    const struct world *world = self->context;
    struct exchange_case alike = world->c;
    alike.quantise_return = MUSTER_EP_QUANTISE_NONE;
    muster_ep *before = rounds_create(self, &alike), *ep = rounds_create(self, &world->c);
    struct party *p = party_open(world, self->rank), *canaries = party_open(world, self->rank);
    muster_tensor there, tensor = *p->combine.results;
    expect_status(muster_ep_results(before, &there), MUSTER_OK, "muster_ep_results");
    tensor.data = (char *)there.data + there.byte_offset + rounds_memory_bytes(&alike, 1, world->ranks);
    expect_status(party_dispatch(p, ep), MUSTER_OK, "muster_ep_dispatch");
    canaries->combine.results = &tensor;
    expect_refused(canaries, call_combine(canaries, ep), "own memory", "in its place in the region");
    party_experts(p);
    expect_status(party_combine(p, ep), MUSTER_OK, "muster_ep_combine");
    expect_status(cluster_verdict(self).status, MUSTER_OK, "the verdict");
    expect(party_right(p), "%s", p->why);
    party_close(canaries);
    party_close(p);
    muster_ep_destroy(ep);
    muster_ep_destroy(before);
}

static void quantised_results_are_not_taken_in_place(void **state)
{
    (void)state;
    struct exchange_case cases[2] = {returned, flat};
    cases[1].quantise_return = MUSTER_EP_QUANTISE_FP8;
    for (int i = 0; i < 2; i++) {
        struct cluster_options options = {.ranks = 2, .memory_bytes = 3 * rounds_memory_bytes(&cases[i], 1, 2)};
        struct world *world = world_make(&cases[i], 2, mask_first(2), 5);
        assert_true(cluster_run(&options, refuse_own_memory, world));
        world_free(world);
    }
}

/* The tensors that the exchange gives may be handed back to it, but only as they are and to the call that they are for. */
static void hand_in_results(struct cluster_rank *self)
{
    const struct world *world = self->context;
    muster_ep *ep = rounds_create(self, &world->c);
    struct party *p = party_open(world, self->rank), *canaries = party_open(world, self->rank);
    muster_tensor received, results;
    expect_status(muster_ep_received(ep, &received), MUSTER_OK, "muster_ep_received");
    expect_status(muster_ep_results(ep, &results), MUSTER_OK, "muster_ep_results");
    canaries->dispatch.out_hidden = &received;
    expect_refused(canaries, call_dispatch(canaries, ep), "own memory", "received as out_hidden");
    expect_status(party_dispatch(p, ep), MUSTER_OK, "muster_ep_dispatch");
    muster_tensor moved = results;
    moved.byte_offset = (uint64_t)world->c.hidden * 2;
    canaries->combine.results = &moved;
    expect_refused(canaries, call_combine(canaries, ep), "own memory", "results in place, but a row further");
    canaries->combine.results = &received;
    if (world->c.layout == MUSTER_EP_FLAT)
        expect_refused(canaries, call_combine(canaries, ep), "own memory", "flat results among received rows");
    expect_status(party_compute(p, ep), MUSTER_OK, "experts");
    p->combine.results = &results;
    expect_status(party_combine(p, ep), MUSTER_OK, "muster_ep_combine");
    expect_status(cluster_verdict(self).status, MUSTER_OK, "the verdict");
    expect(party_right(p), "%s", p->why);
    party_close(canaries);
    party_close(p);
    muster_ep_destroy(ep);
}

static void tensors_in_place_are_handed_in(void **state)
{
    (void)state;
    struct exchange_case c = rank_major;
    c.in_place = 1;
    run_on(&c, 2, hand_in_results);
    c.layout = MUSTER_EP_FLAT;
    run_on(&c, 2, hand_in_results);
}

/* ---- what is wrong with the call as a whole ---- */

static void refuse_calls(struct cluster_rank *self)
{
    const struct world *world = self->context;
    muster_ep *ep = rounds_create(self, &world->c);
    struct party *p = party_open(world, self->rank);
    int no_stream = 0;
    expect_refused(p, muster_ep_dispatch(ep, NULL, backend_stream()), "args", "NULL");
    if (!test_backend)
        expect_refused(p, muster_ep_dispatch(ep, &p->dispatch, &no_stream), "stream", "not NULL");
    p->dispatch.size = sizeof(p->dispatch) - 1;
    expect_refused(p, call_dispatch(p, ep), "size", "too small");
    p->dispatch.size = sizeof(p->dispatch);
    expect_refused(p, muster_ep_dispatch(NULL, &p->dispatch, backend_stream()), "ep", "NULL");
    p->dispatch.payload[5] = p->dispatch.payload[0];
    expect_refused(p, call_dispatch(p, ep), "payload", "beyond payload_count");
    p->dispatch.payload[5] = NULL;
    const muster_tensor *counts = p->dispatch.out_counts;
    struct spoilt inside = {.tensor = *counts};
    inside.tensor.data = (char *)p->out_source.tensor.data + 8;
    p->dispatch.out_counts = &inside.tensor;
    expect_refused(p, call_dispatch(p, ep), "out_counts", "inside another output");
    struct spoilt beyond = {.tensor = *counts};
    beyond.tensor.byte_offset = UINT64_MAX - 63; /* before its data, if the sum wraps */
    p->dispatch.out_counts = &beyond.tensor;
    expect_refused(p, call_dispatch(p, ep), "out_counts", "beyond any memory");
    expect(strstr(muster_last_error(), "byte_offset"), "the error does not name byte_offset: \"%s\"",
           muster_last_error());
    party_close(p);
    rounds_exchange(self, ep, world);
    muster_ep_destroy(ep);
}

static void wrong_calls(void **state)
{
    (void)state;
    run_on(&expert_major, 2, refuse_calls);
}

/* Outputs that belong to the other layout, or to a feature that is off, are a misunderstanding worth naming. */
static void refuse_strangers(struct cluster_rank *self)
{
    const struct world *world = self->context;
    muster_ep *ep = rounds_create(self, &world->c);
    struct party *p = party_open(world, self->rank);
    p->dispatch.out_ranges = p->dispatch.out_counts;
    expect_refused(p, call_dispatch(p, ep), "out_ranges", "in rank-major");
    p->dispatch.out_ranges = NULL;
    p->dispatch.out_loads = p->dispatch.out_source;
    expect_refused(p, call_dispatch(p, ep), "out_loads", "without load_stats");
    p->dispatch.out_loads = NULL;
    p->dispatch.out_scales = p->dispatch.out_weights;
    expect_refused(p, call_dispatch(p, ep), "out_scales", "without quantise");
    party_close(p);
    rounds_exchange(self, ep, world);
    muster_ep_destroy(ep);
}

static void outputs_of_other_configurations(void **state)
{
    (void)state;
    run_on(&rank_major, 2, refuse_strangers);
}

static void refuse_too_many(struct cluster_rank *self)
{
    const struct world *world = self->context;
    struct exchange_case larger = world->c;
    larger.max_tokens = world->c.max_tokens + 1;
    struct world *more = world_draw(&larger, world->ranks, mask_first(world->ranks), 6);
    muster_ep *ep = rounds_create(self, &world->c);
    struct party *p = party_open(world, self->rank), *big = party_open(more, self->rank);
    p->dispatch.hidden = big->dispatch.hidden;
    p->dispatch.topk_slots = big->dispatch.topk_slots;
    p->dispatch.topk_weights = big->dispatch.topk_weights;
    p->dispatch.payload[0] = big->dispatch.payload[0];
    p->dispatch.payload[1] = big->dispatch.payload[1];
    expect_refused(p, call_dispatch(p, ep), "hidden", "with too many tokens");
    expect(strstr(muster_last_error(), "max_tokens") && strstr(muster_last_error(), "4"),
           "the error does not name the limit: \"%s\"", muster_last_error());
    party_close(big);
    party_close(p);
    world_free(more);
    rounds_exchange(self, ep, world);
    muster_ep_destroy(ep);
}

static void too_many_tokens(void **state)
{
    (void)state;
    run_on(&expert_major, 2, refuse_too_many);
}

/* ---- values: these void the step, since every rank has to learn that the operation will not come ---- */

struct value_fault {
    const char *text;
    int token, k;
    int64_t value;
    const char *limit; /* what the message must say */
};

/* Rank 1 has slots 3, 4, 5. The token's other route is set to slot 0 first. */
static const struct value_fault value_faults[] = {
    {"one too large", 2, 1, 6, "6"},
    {"far too large", 0, 0, INT32_MAX, "6"},
    {"minus two", 3, 1, -2, "-2"},
    {"named twice", 1, 1, 0, "once"},
};

static void value_set(struct party *p, const struct value_fault *fault)
{
    for (int k = 0; k < 2; k++)
        party_route(p, fault->token, k, k == fault->k ? fault->value : 0);
}

static void expect_value_verdict(struct cluster_rank *self, const struct value_fault *fault)
{
    muster_verdict v = cluster_verdict(self);
    expect(v.status != MUSTER_OK && v.reason == MUSTER_REASON_VALUE, "%s: verdict %s, reason %d", fault->text,
           muster_status_name(v.status), (int)v.reason);
    expect(v.token == fault->token && v.k == fault->k, "%s: verdict names token %d, k %d", fault->text, (int)v.token,
           (int)v.k);
    expect(v.phase == MUSTER_PHASE_DISPATCH, "%s: verdict names phase %d", fault->text, (int)v.phase);
}

static void expect_value_refused(struct party *p, muster_ep *ep, const struct value_fault *fault)
{
    expect_refused(p, call_dispatch(p, ep), "topk_slots", fault->text);
    expect(strstr(muster_last_error(), fault->limit), "%s: the error does not say \"%s\": \"%s\"", fault->text,
           fault->limit, muster_last_error());
}

static void refuse_value(struct cluster_rank *self, muster_ep *ep, const struct world *world,
                         const struct value_fault *fault, bool in_step)
{
    struct party *p = party_open(world, self->rank);
    value_set(p, fault);
    if (in_step)
        expect_status(muster_step_begin(self->group, backend_stream()), MUSTER_OK, "muster_step_begin");
    backend_wait();
    cluster_barrier(self); /* the peer has begun its step of the same epoch */
    if (test_backend)
        expect_status(call_dispatch(p, ep), MUSTER_OK, "dispatch of a value that the device will refuse");
    else
        expect_value_refused(p, ep, fault);
    if (in_step || test_backend)
        expect_status(call_combine(p, ep), backend_status(MUSTER_ERR_VOID), "combine in a void step");
    if (!test_backend) /* a device's outputs are unspecified */
        expect(party_untouched(p), "%s", p->why);
    if (in_step)
        expect_status(muster_step_end(self->group, backend_stream()), MUSTER_OK, "muster_step_end");
    expect_value_verdict(self, fault);
    party_close(p);
}

/* The peer learns that the dispatch that it waits for will not come, long before any deadline. */
static void meet_refusal(struct cluster_rank *self, muster_ep *ep, const struct world *world, bool in_step)
{
    struct party *p = party_open(world, self->rank);
    if (in_step)
        expect_status(muster_step_begin(self->group, backend_stream()), MUSTER_OK, "muster_step_begin");
    expect_status(muster_ep_dispatch_send(ep, &p->dispatch, backend_stream()), MUSTER_OK, "dispatch_send of the peer");
    rounds_wait_sent(&world->c);
    cluster_barrier(self);
    muster_status status = muster_ep_dispatch_receive(ep, &p->dispatch, backend_stream());
    expect(test_backend ? status == MUSTER_OK : status == MUSTER_ERR_PEER || status == MUSTER_ERR_VOID,
           "the peer of a refused dispatch got %s", muster_status_name(status));
    if (test_backend)
        expect_status(call_combine(p, ep), MUSTER_OK, "combine in a void step");
    if (in_step)
        expect_status(muster_step_end(self->group, backend_stream()), MUSTER_OK, "muster_step_end");
    muster_verdict v = cluster_verdict(self);
    bool late =
        v.reason == MUSTER_REASON_NOT_READY && test_backend && world->c.layout == MUSTER_EP_FLAT; /* not waited for */
    expect(v.status != MUSTER_OK && (late || v.reason == MUSTER_REASON_REFUSED || v.reason == MUSTER_REASON_EPOCH),
           "the peer's verdict is %s, reason %d", muster_status_name(v.status), (int)v.reason);
    expect(party_untouched(p), "the peer was told of a refused dispatch: %s", p->why); /* X11 */
    party_close(p);
}

static void refuse_values(struct cluster_rank *self)
{
    const struct world *world = self->context;
    muster_ep *ep = rounds_create(self, &world->c);
    uint32_t epoch = cluster_await_view(self, 2, 0).epoch;
    for (size_t i = 0; i < 2 * sizeof(value_faults) / sizeof(value_faults[0]); i++) {
        cluster_at(value_faults[i / 2].text);
        if (self->rank == 0)
            refuse_value(self, ep, world, &value_faults[i / 2], i % 2 == 0);
        else
            meet_refusal(self, ep, world, i % 2 == 0);
        muster_view view = cluster_await_view(self, 2, epoch);
        epoch = view.epoch;
        rounds_exchange(self, ep, world);
        cluster_barrier(self); /* the next refusal ends this epoch, whoever still works in it */
    }
    muster_ep_destroy(ep);
}

static void wrong_values(void **state)
{
    (void)state;
    struct exchange_case c = expert_major;
    run_on(&c, 2, refuse_values);
    c.ids64 = 1;
    run_on(&c, 2, refuse_values);
    run_on(&rank_major, 2, refuse_values);
    run_on(&flat, 2, refuse_values);
}

/* 64-bit ids are not cut to 32 bits before they are judged. */
static void refuse_wide_value(struct cluster_rank *self)
{
    static const struct value_fault fault = {"2^32 + 1", 0, 1, (INT64_C(1) << 32) + 1, "6"};
    const struct world *world = self->context;
    muster_ep *ep = rounds_create(self, &world->c);
    if (self->rank == 0)
        refuse_value(self, ep, world, &fault, true);
    else
        meet_refusal(self, ep, world, true);
    muster_ep_destroy(ep);
}

static void wide_values(void **state)
{
    (void)state;
    run_on(&rank_major, 2, refuse_wide_value);
}

/* Without masked mode a route to a rank that has died is a bad value too: the caller's placement is out of date. */
static void refuse_dead_route(struct cluster_rank *self)
{
    static const struct value_fault fault = {"to a dead rank", 1, 0, 7, "rank 2"};
    const struct world *world = self->context;
    muster_ep *ep = rounds_create(self, &world->c);
    cluster_barrier(self);
    if (self->rank == 2) {
        muster_ep_destroy(ep);
        cluster_die(self);
    }
    muster_view view = cluster_await_view(self, 2, 0);
    struct world *without = world_make(&world->c, 3, mask_without(mask_first(3), 2), 8);
    if (self->rank == 0)
        refuse_value(self, ep, without, &fault, true);
    else
        meet_refusal(self, ep, without, true);
    cluster_await_view(self, 2, view.epoch);
    rounds_exchange(self, ep, without);
    world_free(without);
    muster_ep_destroy(ep);
}

static void route_to_a_dead_rank(void **state)
{
    (void)state;
    run_on(&rank_major, 3, refuse_dead_route);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(wrong_tensors_expert_major),
        cmocka_unit_test(wrong_tensors_rank_major),
        cmocka_unit_test(wrong_tensors_quantised_return),
        cmocka_unit_test(wrong_tensors_flat),
        cmocka_unit_test(flat_rows_are_no_blocks),
        cmocka_unit_test(quantised_results_are_not_taken_in_place),
        cmocka_unit_test(tensors_in_place_are_handed_in),
        cmocka_unit_test(wrong_calls),
        cmocka_unit_test(outputs_of_other_configurations),
        cmocka_unit_test(too_many_tokens),
        cmocka_unit_test(wrong_values),
        cmocka_unit_test(wide_values),
        cmocka_unit_test(route_to_a_dead_rank),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
