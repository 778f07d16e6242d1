// SPDX-License-Identifier: Apache-2.0
/* Masked mode, several exchanges in one step, and results that do not change from run to run. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "core/mask.h"
#include "lib/backend.h"
#include "lib/rounds.h"

enum { RANKS = 4, DEAD = 2 };

static const struct exchange_case masked_cases[] = {
    {.name = "masked exact",
     .hidden = 16,
     .max_tokens = 6,
     .slots = 2,
     .topk = 3,
     .tokens = TOKENS_UNEVEN,
     .masked = 1,
     .load_stats = 1,
     .pad = 1},
    {.name = "masked reduced fp8",
     .hidden = 136,
     .max_tokens = 6,
     .slots = 2,
     .topk = 3,
     .masked = 1,
     .combine = MUSTER_EP_REDUCED,
     .quantise = MUSTER_EP_QUANTISE_FP8},
    {.name = "masked rank-major",
     .hidden = 16,
     .max_tokens = 6,
     .slots = 2,
     .topk = 3,
     .masked = 1,
     .load_stats = 1,
     .layout = MUSTER_EP_RANK_MAJOR,
     .combine = MUSTER_EP_REDUCED,
     .pad = 1,
     .tokens = TOKENS_UNEVEN},
    {.name = "masked rank-major in place",
     .hidden = 16,
     .max_tokens = 6,
     .slots = 2,
     .topk = 3,
     .masked = 1,
     .layout = MUSTER_EP_RANK_MAJOR,
     .combine = MUSTER_EP_REDUCED,
     .in_place = 1},
    {.name = "masked reduced, fp8 home",
     .hidden = 136,
     .max_tokens = 6,
     .slots = 2,
     .topk = 3,
     .masked = 1,
     .combine = MUSTER_EP_REDUCED,
     .quantise_return = MUSTER_EP_QUANTISE_FP8,
     .tokens = TOKENS_UNEVEN},
    {.name = "masked flat",
     .hidden = 136,
     .max_tokens = 6,
     .slots = 2,
     .topk = 3,
     .masked = 1,
     .load_stats = 1,
     .layout = MUSTER_EP_FLAT,
     .combine = MUSTER_EP_REDUCED,
     .quantise = MUSTER_EP_QUANTISE_FP8,
     .pad = 1,
     .tokens = TOKENS_UNEVEN},
    {.name = "masked flat in place",
     .hidden = 16,
     .max_tokens = 6,
     .slots = 2,
     .topk = 3,
     .masked = 1,
     .layout = MUSTER_EP_FLAT,
     .combine = MUSTER_EP_REDUCED,
     .in_place = 1,
     .tokens = TOKENS_UNEVEN},
};

enum { MASKED_CASES = sizeof(masked_cases) / sizeof(masked_cases[0]) };

/* Some of them. */
enum {
    MASKED_RANK_MAJOR = 2,
    MASKED_RANK_MAJOR_IN_PLACE = 3,
    MASKED_HOME_FP8 = 4,
    MASKED_FLAT = 5,
    MASKED_FLAT_IN_PLACE = 6
};

/* Worlds of one case: with everybody, without DEAD, and without rank 0 as well. */
struct worlds {
    const struct exchange_case *c;
    struct world *all, *without, *pair;
};

static void worlds_make(struct worlds *w, const struct exchange_case *c)
{
    muster_mask all = mask_first(RANKS), without = mask_without(all, DEAD);
    w->c = c;
    w->all = world_make(c, RANKS, all, 21);
    w->without = world_make(c, RANKS, without, 22);
    w->pair = world_make(c, RANKS, mask_without(without, 0), 23);
}

static void worlds_free(struct worlds *w)
{
    world_free(w->all);
    world_free(w->without);
    world_free(w->pair);
}

static void run_four(const struct exchange_case *c, cluster_function *function)
{
    struct worlds worlds;
    struct cluster_options options = {.ranks = RANKS, .memory_bytes = rounds_memory_bytes(c, 1, RANKS)};
    worlds_make(&worlds, c);
    assert_true(cluster_run(&options, function, &worlds));
    worlds_free(&worlds);
}

static void all_ones(struct cluster_rank *self)
{
    const struct worlds *worlds = self->context;
    muster_ep *ep = rounds_create(self, worlds->c);
    rounds_exchange(self, ep, worlds->all);
    expect_status(muster_ep_set_mask(ep, mask_first(RANKS), backend_stream()), MUSTER_OK, "muster_ep_set_mask");
    rounds_exchange(self, ep, worlds->all);
    muster_ep_destroy(ep);
}

/* Both exchanges are compared with the same bytes. */
static void mask_of_all_ones_is_no_mask(void **state)
{
    (void)state;
    for (int i = 0; i < MASKED_CASES; i++)
        run_four(&masked_cases[i], all_ones);
}

/* The rank outside the mask calls nothing at all; first one rank is out, then two. */
static void exchange_without(struct cluster_rank *self)
{
    const struct worlds *worlds = self->context;
    muster_ep *ep = rounds_create(self, worlds->c);
    muster_mask without = mask_without(mask_first(RANKS), DEAD), pair = mask_without(without, 0);
    rounds_exchange(self, ep, worlds->all);
    cluster_barrier(self);
    for (int round = 0; round < 3 && self->rank != DEAD; round++) {
        if (round < 2)
            expect_status(muster_ep_set_mask(ep, without, backend_stream()), MUSTER_OK, "muster_ep_set_mask");
        rounds_exchange(self, ep, worlds->without);
    }
    /* The others no longer wait for a rank that they leave out: it must have finished what it still wants. */
    cluster_barrier(self);
    for (int round = 0; round < 2 && mask_has(pair, self->rank); round++) {
        expect_status(muster_ep_set_mask(ep, pair, backend_stream()), MUSTER_OK, "muster_ep_set_mask");
        rounds_exchange(self, ep, worlds->pair);
    }
    cluster_barrier(self);
    muster_ep_destroy(ep);
}

static void masked_rank_is_not_waited_for(void **state)
{
    (void)state;
    for (int i = 0; i < MASKED_CASES; i++)
        run_four(&masked_cases[i], exchange_without);
}

/*
 * The masked rank's received rows lie open to it (rank-major, flat): two exchanges show where, whichever bank they
 * use, and then two exchanges of the others must leave them as they are.
 */
static void watch_own_memory(struct cluster_rank *self)
{
    const struct worlds *worlds = self->context;
    muster_ep *ep = rounds_create(self, worlds->c);
    size_t bytes = world_results_bytes(worlds->all);
    const unsigned char *place[2] = {NULL, NULL};
    for (int round = 0; round < 2; round++) {
        muster_tensor t;
        rounds_exchange(self, ep, worlds->all);
        expect_status(muster_ep_received(ep, &t), MUSTER_OK, "muster_ep_received");
        place[round] = (const unsigned char *)t.data + t.byte_offset;
    }
    unsigned char *before = malloc(2 * bytes), *after = malloc(2 * bytes);
    expect(before && after, "out of memory");
    cluster_barrier(self);
    backend_copy(before, place[0], bytes);
    backend_copy(before + bytes, place[1], bytes);
    for (int round = 0; round < 2 && self->rank != DEAD; round++) {
        expect_status(muster_ep_set_mask(ep, mask_without(mask_first(RANKS), DEAD), backend_stream()), MUSTER_OK,
                      "set_mask");
        rounds_exchange(self, ep, worlds->without);
    }
    cluster_barrier(self);
    backend_copy(after, place[0], bytes);
    backend_copy(after + bytes, place[1], bytes);
    bool same = memcmp(before, after, 2 * bytes) == 0;
    expect(self->rank != DEAD || same, "somebody stored into the masked rank's memory");
    expect(self->rank == DEAD || !same, "no store is seen where there must be one: the test looks at the wrong place");
    free(before);
    free(after);
    muster_ep_destroy(ep);
}

static void masked_rank_gets_no_store(void **state)
{
    (void)state;
    run_four(&masked_cases[MASKED_RANK_MAJOR_IN_PLACE], watch_own_memory);
    run_four(&masked_cases[MASKED_FLAT_IN_PLACE], watch_own_memory);
}

/*
 * DEAD returns its results, then the others go on, by themselves or to a dispatch that DEAD is still part of, and only
 * then does DEAD read theirs.
 */
static void return_results(struct party *p, muster_ep *ep)
{
    expect_status(party_dispatch(p, ep), MUSTER_OK, "dispatch");
    expect_status(party_compute(p, ep), MUSTER_OK, "experts");
    expect_status(muster_ep_combine_send(ep, &p->combine, backend_stream()), MUSTER_OK, "combine_send");
}

static void take_results(struct cluster_rank *self, struct party *p, muster_ep *ep)
{
    expect_status(muster_ep_combine_receive(ep, &p->combine, backend_stream()), MUSTER_OK, "combine_receive");
    expect_status(cluster_verdict(self).status, MUSTER_OK, "the verdict");
    expect(party_right(p), "%s", p->why);
    party_close(p);
}

/* On the host DEAD reads the others' memory, and finds that they no longer wait for it. */
static void expect_left_out(struct cluster_rank *self, struct party *p, muster_ep *ep)
{
    expect_status(muster_ep_combine_receive(ep, &p->combine, backend_stream()), MUSTER_ERR_PEER,
                  "combine_receive, left out");
    expect(strstr(muster_last_error(), "mask"), "the error does not speak of the mask: %s", muster_last_error());
    muster_verdict verdict = cluster_verdict(self);
    expect(verdict.reason == MUSTER_REASON_LEFT_OUT && verdict.peer == 0, "verdict: reason %d, peer %d",
           (int)verdict.reason, verdict.peer);
    party_close(p);
}

static void left_out_while_reading(struct cluster_rank *self)
{
    const struct worlds *worlds = self->context;
    muster_ep *ep = rounds_create(self, worlds->c);
    uint32_t epoch = cluster_await_view(self, RANKS, 0).epoch;
    struct party *p = party_open(worlds->all, self->rank);
    return_results(p, ep);
    if (self->rank != DEAD) {
        take_results(self, p, ep);
        expect_status(muster_ep_set_mask(ep, mask_without(mask_first(RANKS), DEAD), backend_stream()), MUSTER_OK,
                      "set_mask");
        rounds_exchange(self, ep, worlds->without);
    }
    cluster_barrier(self);
    if (self->rank == DEAD && !test_backend) {
        expect_left_out(self, p, ep); /* a failed step ends the epoch, for everybody */
    } else if (self->rank == DEAD) {
        take_results(self, p, ep); /* on a device results were pushed into DEAD's own memory, where nobody stores now */
        expect_status(muster_group_abort(self->group), MUSTER_OK, "muster_group_abort"); /* to widen the mask again */
    }
    cluster_await_view(self, RANKS, epoch);
    cluster_barrier(self);
    rounds_exchange(self, ep, worlds->all);
    muster_ep_destroy(ep);
}

static void waited_for_while_reading(struct cluster_rank *self)
{
    const struct worlds *worlds = self->context;
    muster_ep *ep = rounds_create(self, worlds->c);
    struct party *p = party_open(worlds->all, self->rank), *next = party_open(worlds->all, self->rank);
    return_results(p, ep);
    if (self->rank == DEAD)
        cluster_barrier(self);
    take_results(self, p, ep);
    expect_status(muster_ep_dispatch_send(ep, &next->dispatch, backend_stream()), MUSTER_OK, "dispatch_send");
    rounds_wait_sent(worlds->c);
    if (self->rank != DEAD)
        cluster_barrier(self);
    expect_status(muster_ep_dispatch_receive(ep, &next->dispatch, backend_stream()), MUSTER_OK, "dispatch_receive");
    expect_status(party_compute(next, ep), MUSTER_OK, "experts");
    expect_status(muster_ep_combine_send(ep, &next->combine, backend_stream()), MUSTER_OK, "combine_send");
    take_results(self, next, ep);
    muster_ep_destroy(ep);
}

/* X16 */
static void rank_that_is_left_out_too_early_notices(void **state)
{
    (void)state;
    static const int reduced[] = {MASKED_RANK_MAJOR, MASKED_HOME_FP8, MASKED_FLAT, MASKED_FLAT_IN_PLACE};
    for (size_t i = 0; i < sizeof(reduced) / sizeof(reduced[0]); i++) {
        run_four(&masked_cases[reduced[i]], left_out_while_reading);
        run_four(&masked_cases[reduced[i]], waited_for_while_reading);
    }
}

/*
 * DEAD and rank 0 have come home from the pair before and do not know that they are left out of the next: their rows go to
 * the others while these still use what they have received.
 */
static void left_out_unaware(struct cluster_rank *self)
{
    const struct worlds *worlds = self->context;
    muster_ep *ep = rounds_create(self, worlds->c);
    muster_mask pair = mask_without(mask_without(mask_first(RANKS), DEAD), 0);
    bool out = !mask_has(pair, self->rank);
    rounds_exchange(self, ep, worlds->all);
    cluster_barrier(self);
    struct party *p = party_open(out ? worlds->all : worlds->pair, self->rank);
    if (!out) {
        expect_status(muster_ep_set_mask(ep, pair, NULL), MUSTER_OK, "set_mask");
        expect_status(party_dispatch(p, ep), MUSTER_OK, "dispatch");
    }
    cluster_barrier(self);
    if (out)
        expect_status(muster_ep_dispatch_send(ep, &p->dispatch, NULL), MUSTER_OK, "dispatch_send, left out");
    cluster_barrier(self);
    if (!out) {
        expect_status(party_compute(p, ep), MUSTER_OK, "experts");
        expect_status(party_combine(p, ep), MUSTER_OK, "combine");
        expect_status(cluster_verdict(self).status, MUSTER_OK, "the verdict");
        expect(party_right(p), "%s", p->why);
    }
    cluster_barrier(self);
    party_close(p);
    muster_ep_destroy(ep);
}

/* X7. On a device a half that is enqueued and given up ends in a deadline, and that is another test. */
static void rank_that_is_left_out_unaware_does_no_harm(void **state)
{
    (void)state;
    for (int i = 0; i < MASKED_CASES && !test_backend; i++)
        run_four(&masked_cases[i], left_out_unaware);
}

/* A mask that this rank cannot be part of is refused by the call on every backend. */
static void refuse_mask(muster_ep *ep, muster_mask mask, const char *what)
{
    muster_status status = muster_ep_set_mask(ep, mask, backend_stream());
    expect(status == MUSTER_ERR_ARGUMENT && strstr(muster_last_error(), "mask"), "%s gave %s: \"%s\"", what,
           muster_status_name(status), muster_last_error());
}

/*
 * Whether a mask fits the view and the masks before is known where the step is: on a device the call enqueues, the step
 * that would use the mask is void, and the epoch ends for everybody. Rank 0 tries; returns the epoch to go on in.
 */
static uint32_t refuse_mask_of_step(struct cluster_rank *self, muster_ep *ep, muster_mask mask, int active,
                                    uint32_t epoch, const char *what)
{
    cluster_barrier(self);
    if (!test_backend) {
        if (self->rank == 0)
            refuse_mask(ep, mask, what);
        return epoch;
    }
    if (self->rank == 0) {
        expect_status(muster_ep_set_mask(ep, mask, backend_stream()), MUSTER_OK, what);
        expect_status(muster_step_begin(self->group, backend_stream()), MUSTER_OK, "step_begin");
        expect_status(muster_step_end(self->group, backend_stream()), MUSTER_OK, "step_end");
        muster_verdict verdict = cluster_verdict(self);
        expect(verdict.status == MUSTER_ERR_ARGUMENT && verdict.reason == MUSTER_REASON_VALUE && verdict.token == -1,
               "%s: verdict %s, reason %d, token %d", what, muster_status_name(verdict.status), (int)verdict.reason,
               (int)verdict.token);
    }
    epoch = cluster_await_view(self, active, epoch).epoch;
    cluster_barrier(self);
    return epoch;
}

static void refuse_masks(struct cluster_rank *self)
{
    const struct worlds *worlds = self->context;
    muster_ep *ep = rounds_create(self, worlds->c);
    muster_mask all = mask_first(RANKS), without = mask_without(all, DEAD);
    uint32_t epoch = cluster_await_view(self, RANKS, 0).epoch;
    refuse_mask(ep, mask_without(all, self->rank), "a mask without this rank");
    epoch =
        refuse_mask_of_step(self, ep, mask_with(all, RANKS), RANKS, epoch, "a mask with a rank that does not exist");
    rounds_exchange(self, ep, worlds->all); /* refused masks changed nothing */
    cluster_barrier(self);
    if (self->rank != DEAD) {
        expect_status(muster_ep_set_mask(ep, without, backend_stream()), MUSTER_OK, "muster_ep_set_mask");
        rounds_exchange(self, ep, worlds->without);
    }
    uint32_t narrowed = epoch;
    epoch = refuse_mask_of_step(self, ep, all, RANKS, epoch, "a mask that grows");
    if (self->rank != DEAD && epoch == narrowed)
        rounds_exchange(self, ep, worlds->without);
    cluster_barrier(self);
    if (self->rank == 0)
        expect_status(muster_group_abort(self->group), MUSTER_OK, "muster_group_abort");
    cluster_await_view(self, RANKS, epoch);
    cluster_barrier(self);
    expect_status(muster_ep_set_mask(ep, all, backend_stream()), MUSTER_OK, "widening the mask in a new epoch");
    rounds_exchange(self, ep, worlds->all);
    muster_ep_destroy(ep);
}

static void masks_only_shrink_within_an_epoch(void **state)
{
    (void)state;
    run_four(&masked_cases[0], refuse_masks);
}

static void mask_order(struct cluster_rank *self)
{
    const struct worlds *worlds = self->context;
    muster_ep *ep = rounds_create(self, worlds->c);
    struct party *p = party_open(worlds->all, self->rank);
    muster_mask without = mask_with(mask_without(mask_first(RANKS), DEAD), self->rank);
    expect_status(party_dispatch(p, ep), MUSTER_OK, "dispatch");
    expect_status(muster_ep_set_mask(ep, without, backend_stream()), MUSTER_ERR_ORDER, "set_mask before combine");
    party_experts(p);
    expect_status(party_combine(p, ep), MUSTER_OK, "combine");
    expect_status(cluster_verdict(self).status, MUSTER_OK, "the verdict");
    expect(party_right(p), "%s", p->why);
    party_close(p);
    rounds_exchange(self, ep, worlds->all);
    muster_ep_destroy(ep);
}

static void mask_is_fixed_between_dispatch_and_combine(void **state)
{
    (void)state;
    run_four(&masked_cases[0], mask_order);
}

static void refuse_unmasked(struct cluster_rank *self)
{
    const struct exchange_case plain = {.name = "not masked", .hidden = 16, .max_tokens = 2, .slots = 1, .topk = 1};
    muster_ep *ep = rounds_create(self, &plain);
    muster_status status = muster_ep_set_mask(ep, mask_first(1), backend_stream());
    expect((status == MUSTER_ERR_ORDER || status == MUSTER_ERR_ARGUMENT) && strstr(muster_last_error(), "masked"),
           "set_mask without masked mode gave %s: \"%s\"", muster_status_name(status), muster_last_error());
    muster_ep_destroy(ep);
}

static void set_mask_needs_masked_mode(void **state)
{
    (void)state;
    struct cluster_options options = {.ranks = 1, .memory_bytes = 1 << 20};
    assert_true(cluster_run(&options, refuse_unmasked, NULL));
}

/* In masked mode a rank that is really dead needs no mask: routes to it become -1 and are counted. */
static void lose_a_rank(struct cluster_rank *self)
{
    const struct worlds *worlds = self->context;
    muster_ep *ep = rounds_create(self, worlds->c);
    rounds_exchange(self, ep, worlds->all);
    cluster_barrier(self);
    if (self->rank == DEAD) {
        muster_ep_destroy(ep);
        cluster_die(self);
    }
    uint32_t epoch = cluster_await_view(self, RANKS - 1, 0).epoch;
    rounds_exchange(self, ep, worlds->without);
    expect_status(muster_ep_set_mask(ep, mask_without(mask_first(RANKS), DEAD), backend_stream()), MUSTER_OK,
                  "set_mask");
    refuse_mask_of_step(self, ep, mask_first(RANKS), RANKS - 1, epoch, "a mask with a rank outside the view");
    rounds_exchange(self, ep, worlds->without);
    muster_ep_destroy(ep);
}

static void routes_to_a_dead_rank_are_dropped(void **state)
{
    (void)state;
    for (int i = 0; i < MASKED_CASES; i++)
        run_four(&masked_cases[i], lose_a_rank);
}

/* ---- several exchanges ---- */

static const struct exchange_case pair_cases[] = {
    {.name = "first of two", .hidden = 32, .max_tokens = 5, .slots = 2, .topk = 3, .tokens = TOKENS_UNEVEN},
    {.name = "second of two",
     .hidden = 16,
     .max_tokens = 7,
     .slots = 3,
     .topk = 2,
     .combine = MUSTER_EP_REDUCED,
     .quantise = MUSTER_EP_QUANTISE_FP8_POW2},
};

struct pair_worlds {
    struct world *world[2][3]; /* [exchange][round] */
};

static void interleave_once(struct cluster_rank *self, muster_ep *const ep[2], const struct pair_worlds *w, int round)
{
    struct party *a = party_open(w->world[0][round], self->rank), *b = party_open(w->world[1][round], self->rank);
    expect_status(muster_step_begin(self->group, backend_stream()), MUSTER_OK, "step_begin");
    expect_status(muster_ep_dispatch_send(ep[0], &a->dispatch, backend_stream()), MUSTER_OK, "send of the first");
    expect_status(muster_ep_dispatch_send(ep[1], &b->dispatch, backend_stream()), MUSTER_OK, "send of the second");
    expect_status(muster_ep_dispatch_receive(ep[0], &a->dispatch, backend_stream()), MUSTER_OK, "receive of the first");
    party_experts(a);
    expect_status(muster_ep_combine_send(ep[0], &a->combine, backend_stream()), MUSTER_OK, "combine of the first");
    expect_status(muster_ep_dispatch_receive(ep[1], &b->dispatch, backend_stream()), MUSTER_OK,
                  "receive of the second");
    party_experts(b);
    expect_status(muster_ep_combine_send(ep[1], &b->combine, backend_stream()), MUSTER_OK, "combine of the second");
    expect_status(muster_ep_combine_receive(ep[1], &b->combine, backend_stream()), MUSTER_OK, "results of the second");
    expect_status(muster_ep_combine_receive(ep[0], &a->combine, backend_stream()), MUSTER_OK, "results of the first");
    expect_status(muster_step_end(self->group, backend_stream()), MUSTER_OK, "step_end");
    expect_status(cluster_verdict(self).status, MUSTER_OK, "the verdict");
    expect(party_right(a), "%s", a->why);
    expect(party_right(b), "%s", b->why);
    party_close(a);
    party_close(b);
}

static void interleave(struct cluster_rank *self)
{
    const struct pair_worlds *worlds = self->context;
    muster_ep *ep[2] = {rounds_create(self, &pair_cases[0]), rounds_create(self, &pair_cases[1])};
    for (int round = 0; round < 3; round++)
        interleave_once(self, ep, worlds, round);
    muster_ep_destroy(ep[0]);
    muster_ep_destroy(ep[1]);
}

/* Four layers, one after the other, in one step with one verdict. */
static void layers(struct cluster_rank *self)
{
    const struct pair_worlds *worlds = self->context;
    muster_ep *ep = rounds_create(self, &pair_cases[0]);
    struct party *p[4];
    expect_status(muster_step_begin(self->group, backend_stream()), MUSTER_OK, "step_begin");
    for (int layer = 0; layer < 4; layer++) {
        p[layer] = party_open(worlds->world[0][layer % 3], self->rank);
        expect_status(party_exchange(p[layer], ep), MUSTER_OK, "a layer");
    }
    expect_status(muster_step_end(self->group, backend_stream()), MUSTER_OK, "step_end");
    expect_status(cluster_verdict(self).status, MUSTER_OK, "the verdict");
    for (int layer = 0; layer < 4; layer++) {
        expect(party_right(p[layer]), "layer %d: %s", layer, p[layer]->why);
        party_close(p[layer]);
    }
    muster_ep_destroy(ep);
}

static void run_pairs(cluster_function *function)
{
    struct pair_worlds worlds;
    for (int i = 0; i < 6; i++)
        worlds.world[i / 3][i % 3] = world_make(&pair_cases[i / 3], 3, mask_first(3), (uint64_t)(40 + i));
    struct cluster_options options = {.ranks = 3, .memory_bytes = rounds_memory_bytes(pair_cases, 2, 3)};
    assert_true(cluster_run(&options, function, &worlds));
    for (int i = 0; i < 6; i++)
        world_free(worlds.world[i / 3][i % 3]);
}

static void two_exchanges_interleave_in_one_step(void **state)
{
    (void)state;
    run_pairs(interleave);
}

static void many_layers_make_one_step(void **state)
{
    (void)state;
    run_pairs(layers);
}

/* ---- the same bytes on every run ---- */

static void repeat(struct cluster_rank *self)
{
    const struct worlds *worlds = self->context;
    muster_ep *ep = rounds_create(self, worlds->c);
    uint64_t random = (uint64_t)self->rank + 1;
    for (int run = 0; run < 12; run++) {
        cluster_sleep_ms((int)(world_random(&random) % 4)); /* another order of arrival each time */
        rounds_exchange(self, ep, worlds->all);
    }
    muster_ep_destroy(ep);
}

static void every_run_gives_the_same_bytes(void **state)
{
    (void)state;
    for (int i = 0; i < MASKED_CASES; i++)
        run_four(&masked_cases[i], repeat);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(mask_of_all_ones_is_no_mask),
        cmocka_unit_test(masked_rank_is_not_waited_for),
        cmocka_unit_test(masked_rank_gets_no_store),
        cmocka_unit_test(rank_that_is_left_out_too_early_notices),
        cmocka_unit_test(rank_that_is_left_out_unaware_does_no_harm),
        cmocka_unit_test(masks_only_shrink_within_an_epoch),
        cmocka_unit_test(mask_is_fixed_between_dispatch_and_combine),
        cmocka_unit_test(set_mask_needs_masked_mode),
        cmocka_unit_test(routes_to_a_dead_rank_are_dropped),
        cmocka_unit_test(two_exchanges_interleave_in_one_step),
        cmocka_unit_test(many_layers_make_one_step),
        cmocka_unit_test(every_run_gives_the_same_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
