// SPDX-License-Identifier: Apache-2.0
/*
 * X18: an operation that is refused within a step is missing from it, so the step is void, for the caller that looks at
 * verdicts alone as well. The peers learn it as they learn of any operation that does not come. Outside of a step, and in one
 * that the exchange's own dispatch has opened, a refused call leaves everything as it was.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "core/mask.h"
#include "lib/backend.h"
#include "lib/rounds.h"

static const struct exchange_case plain = {
    .name = "plain", .hidden = 16, .max_tokens = 4, .slots = 2, .topk = 2, .masked = 1};
static const struct exchange_case in_halves = {
    .name = "in halves", .hidden = 16, .max_tokens = 4, .slots = 2, .topk = 2, .masked = 1, .halves = 1};

/* The first wrong call of a step. Those before it are right, and so are those after it. */
enum refusal {
    WRONG_MASK,
    EARLY_COMBINE,
    EARLY_RECEIVE,
    WRONG_DISPATCH,
    DISPATCH_TWICE,
    WRONG_COMBINE,
    NO_ARGUMENTS,
    WRONG_STREAM,
    REFUSALS
};

struct expected {
    const char *text;
    muster_status status;
    muster_phase phase;
};

static const struct expected expected[REFUSALS] = {
    [WRONG_MASK] = {"a mask without this rank", MUSTER_ERR_ARGUMENT, MUSTER_PHASE_NONE},
    [EARLY_COMBINE] = {"a combine without a dispatch", MUSTER_ERR_ORDER, MUSTER_PHASE_COMBINE},
    [EARLY_RECEIVE] = {"a receive half without a send half", MUSTER_ERR_ORDER, MUSTER_PHASE_DISPATCH},
    [WRONG_DISPATCH] = {"a dispatch without its counts", MUSTER_ERR_ARGUMENT, MUSTER_PHASE_DISPATCH},
    [DISPATCH_TWICE] = {"a second dispatch", MUSTER_ERR_ORDER, MUSTER_PHASE_DISPATCH},
    [WRONG_COMBINE] = {"a combine without its output", MUSTER_ERR_ARGUMENT, MUSTER_PHASE_COMBINE},
    [NO_ARGUMENTS] = {"a combine without arguments", MUSTER_ERR_ARGUMENT, MUSTER_PHASE_COMBINE},
    [WRONG_STREAM] = {"a stream where there are none", MUSTER_ERR_ARGUMENT, MUSTER_PHASE_COMBINE},
};

static muster_status without_counts(struct party *p, muster_ep *ep)
{
    p->dispatch.out_counts = NULL;
    muster_status status = p->world->c.halves ? muster_ep_dispatch_receive(ep, &p->dispatch, backend_stream())
                                              : muster_ep_dispatch(ep, &p->dispatch, backend_stream());
    p->dispatch.out_counts = &p->out_counts.tensor;
    return status;
}

static muster_status without_output(struct party *p, muster_ep *ep)
{
    p->combine.out = NULL;
    muster_status status = p->world->c.halves ? muster_ep_combine_receive(ep, &p->combine, backend_stream())
                                              : muster_ep_combine(ep, &p->combine, backend_stream());
    p->combine.out = &p->out.tensor;
    return status;
}

static muster_status call_wrongly(struct party *p, muster_ep *ep, enum refusal refusal)
{
    int no_stream = 0;
    muster_mask nobody = {{0, 0}};
    switch (refusal) {
    case WRONG_MASK: return muster_ep_set_mask(ep, nobody, backend_stream());
    case EARLY_COMBINE: return muster_ep_combine(ep, &p->combine, backend_stream());
    case EARLY_RECEIVE: return muster_ep_dispatch_receive(ep, &p->dispatch, backend_stream());
    case WRONG_DISPATCH: return without_counts(p, ep);
    case DISPATCH_TWICE: return muster_ep_dispatch(ep, &p->dispatch, backend_stream());
    case WRONG_COMBINE: return without_output(p, ep);
    case NO_ARGUMENTS: return muster_ep_combine(ep, NULL, backend_stream());
    case WRONG_STREAM: return muster_ep_combine(ep, &p->combine, &no_stream);
    default: return MUSTER_OK;
    }
}

/* What comes before the wrong call in the step; peers do it meanwhile, and may have to wait for it. */
static void call_before(struct party *p, muster_ep *ep, enum refusal refusal)
{
    bool halves = p->world->c.halves;
    if (refusal < DISPATCH_TWICE && !(refusal == WRONG_DISPATCH && halves))
        return;
    if (refusal == WRONG_DISPATCH) {
        expect_status(muster_ep_dispatch_send(ep, &p->dispatch, backend_stream()), MUSTER_OK, "dispatch_send");
        return;
    }
    expect_status(party_dispatch(p, ep), MUSTER_OK, "dispatch");
    party_experts(p);
    if (refusal == WRONG_COMBINE && halves)
        expect_status(muster_ep_combine_send(ep, &p->combine, backend_stream()), MUSTER_OK, "combine_send");
}

static void expect_void(struct party *p, muster_ep *ep)
{
    expect_status(muster_ep_dispatch(ep, &p->dispatch, backend_stream()), MUSTER_ERR_VOID, "dispatch after a refusal");
    expect_status(muster_ep_combine(ep, &p->combine, backend_stream()), MUSTER_ERR_VOID, "combine after a refusal");
}

/* As a caller does that looks at verdicts alone: what follows is called all the same, and the step is ended. */
static void be_refused(struct cluster_rank *self, muster_ep *ep, enum refusal refusal)
{
    const struct expected *e = &expected[refusal];
    struct party *p = party_open(self->context, self->rank);
    expect_status(muster_step_begin(self->group, backend_stream()), MUSTER_OK, "step_begin");
    backend_wait();
    cluster_barrier(self);
    call_before(p, ep, refusal);
    expect_status(call_wrongly(p, ep, refusal), e->status, e->text);
    expect_void(p, ep);
    expect_status(muster_step_end(self->group, backend_stream()), MUSTER_OK, "step_end");
    muster_verdict v = cluster_verdict(self);
    bool told = v.reason == MUSTER_REASON_EPOCH && refusal >= DISPATCH_TWICE; /* by the peer, which may be done */
    expect(v.status != MUSTER_OK && (told || v.reason == MUSTER_REASON_ARGUMENT), "%s: verdict %s, reason %d", e->text,
           muster_status_name(v.status), (int)v.reason);
    if (!told)
        expect(v.status == MUSTER_ERR_ARGUMENT && v.phase == e->phase && v.peer == -1 && v.token == -1,
               "%s: verdict %s, phase %d, peer %d, token %d", e->text, muster_status_name(v.status), (int)v.phase,
               (int)v.peer, (int)v.token);
    party_close(p);
}

static void meet_refusal(struct cluster_rank *self, muster_ep *ep, enum refusal refusal)
{
    const struct expected *e = &expected[refusal];
    struct party *p = party_open(self->context, self->rank);
    bool has_all = refusal == WRONG_COMBINE && p->world->c.halves; /* the other's results have come home */
    expect_status(muster_step_begin(self->group, backend_stream()), MUSTER_OK, "step_begin");
    backend_wait();
    cluster_barrier(self);
    if (party_dispatch(p, ep) == MUSTER_OK) {
        party_experts(p);
        muster_status status = party_combine(p, ep);
        expect(has_all || status == MUSTER_ERR_PEER || status == backend_status(MUSTER_ERR_VOID),
               "the peer of %s got %s", e->text, muster_status_name(status));
    }
    expect_status(muster_step_end(self->group, backend_stream()), MUSTER_OK, "step_end");
    muster_verdict v = cluster_verdict(self);
    expect(has_all || v.reason == MUSTER_REASON_REFUSED || v.reason == MUSTER_REASON_EPOCH,
           "the peer of %s: verdict %s, reason %d", e->text, muster_status_name(v.status), (int)v.reason);
    party_close(p);
}

static void refuse_in_steps(struct cluster_rank *self)
{
    const struct world *world = self->context;
    muster_ep *ep = rounds_create(self, &world->c);
    uint32_t epoch = cluster_await_view(self, 2, 0).epoch;
    for (int i = 0; i < REFUSALS; i++) {
        if (i == WRONG_STREAM && test_backend)
            continue;
        cluster_at(expected[i].text);
        if (self->rank == 0)
            be_refused(self, ep, (enum refusal)i);
        else
            meet_refusal(self, ep, (enum refusal)i);
        epoch = cluster_await_view(self, 2, epoch).epoch;
        rounds_exchange(self, ep, world);
        cluster_barrier(self); /* the next refusal ends this epoch, whoever still works in it */
    }
    muster_ep_destroy(ep);
}

static void run_two(const struct exchange_case *c, cluster_function *function)
{
    struct cluster_options options = {.ranks = 2, .memory_bytes = 2 * rounds_memory_bytes(c, 1, 2)};
    struct world *world = world_make(c, 2, mask_first(2), 3);
    assert_true(cluster_run(&options, function, world));
    world_free(world);
}

static void a_refused_operation_voids_its_step(void **state)
{
    (void)state;
    run_two(&plain, refuse_in_steps);
    run_two(&in_halves, refuse_in_steps);
}

/* No step is open, or one that the exchange itself has opened: the right call after the wrong one is all it takes. */
static void refuse_elsewhere(struct cluster_rank *self)
{
    const struct world *world = self->context;
    muster_ep *ep = rounds_create(self, &world->c);
    for (int i = 0; i < REFUSALS; i++) {
        struct party *p = party_open(world, self->rank);
        if (i == WRONG_STREAM && test_backend)
            continue;
        cluster_at(expected[i].text);
        call_before(p, ep, (enum refusal)i);
        expect_status(call_wrongly(p, ep, (enum refusal)i), expected[i].status, expected[i].text);
        if (i < WRONG_DISPATCH || (i == WRONG_DISPATCH && !world->c.halves))
            expect_status(party_dispatch(p, ep), MUSTER_OK, "dispatch");
        else if (i == WRONG_DISPATCH)
            expect_status(muster_ep_dispatch_receive(ep, &p->dispatch, backend_stream()), MUSTER_OK,
                          "dispatch_receive");
        backend_wait();
        party_experts(p);
        if (i == WRONG_COMBINE && world->c.halves)
            expect_status(muster_ep_combine_receive(ep, &p->combine, backend_stream()), MUSTER_OK, "combine_receive");
        else
            expect_status(party_combine(p, ep), MUSTER_OK, "combine");
        expect_status(cluster_verdict(self).status, MUSTER_OK, "the verdict");
        expect(party_right(p), "%s", p->why);
        party_close(p);
    }
    muster_ep_destroy(ep);
}

static void a_refused_call_elsewhere_touches_nothing(void **state)
{
    (void)state;
    run_two(&plain, refuse_elsewhere);
    run_two(&in_halves, refuse_elsewhere);
}

/* Two exchanges in a step that the first one's dispatch has opened: what the second is refused is missing there as well. */
static void refuse_in_anothers_step(struct cluster_rank *self)
{
    const struct world *world = self->context;
    muster_ep *first = rounds_create(self, &world->c), *second = rounds_create(self, &world->c);
    uint32_t epoch = cluster_await_view(self, 2, 0).epoch;
    struct party *p = party_open(world, self->rank);
    expect_status(party_dispatch(p, first), MUSTER_OK, "dispatch of the first");
    cluster_barrier(self);
    expect_status(without_counts(p, second), MUSTER_ERR_ARGUMENT, "dispatch of the second");
    party_experts(p);
    expect_status(party_combine(p, first), MUSTER_ERR_VOID, "combine of the first");
    muster_verdict v = cluster_verdict(self);
    expect(v.reason == MUSTER_REASON_ARGUMENT || v.reason == MUSTER_REASON_EPOCH, "verdict %s, reason %d",
           muster_status_name(v.status), (int)v.reason);
    party_close(p);
    cluster_await_view(self, 2, epoch);
    rounds_exchange(self, first, world);
    rounds_exchange(self, second, world);
    muster_ep_destroy(second);
    muster_ep_destroy(first);
}

static void a_refusal_in_anothers_step_voids_it(void **state)
{
    (void)state;
    run_two(&plain, refuse_in_anothers_step);
}

/* An exchange that is destroyed between its halves has left its operation out, too. */
static void destroy_half_done(struct cluster_rank *self)
{
    const struct world *world = self->context;
    muster_ep *ep = rounds_create(self, &world->c);
    uint32_t epoch = cluster_await_view(self, 2, 0).epoch;
    struct party *p = party_open(world, self->rank);
    expect_status(muster_step_begin(self->group, backend_stream()), MUSTER_OK, "step_begin");
    expect_status(party_dispatch(p, ep), MUSTER_OK, "dispatch");
    cluster_barrier(self);
    muster_ep_destroy(ep);
    expect_status(muster_step_end(self->group, backend_stream()), MUSTER_OK, "step_end");
    expect(cluster_verdict(self).status != MUSTER_OK, "a step with half an exchange is good");
    party_close(p);
    cluster_await_view(self, 2, epoch);
    ep = rounds_create(self, &world->c);
    rounds_exchange(self, ep, world);
    muster_ep_destroy(ep);
}

static void half_an_exchange_is_no_good_step(void **state)
{
    (void)state;
    run_two(&plain, destroy_half_done);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_refused_operation_voids_its_step),
        cmocka_unit_test(a_refused_call_elsewhere_touches_nothing),
        cmocka_unit_test(a_refusal_in_anothers_step_voids_it),
        cmocka_unit_test(half_an_exchange_is_no_good_step),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
