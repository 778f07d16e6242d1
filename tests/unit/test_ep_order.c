// SPDX-License-Identifier: Apache-2.0
/*
 * The order of calls: what is allowed when, and that a call out of order changes nothing. It is the same on a device, but
 * for void steps, which only the device knows of: there a pair has to be finished like any other, and does nothing.
 */
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

static const struct exchange_case plain = {.name = "plain", .hidden = 16, .max_tokens = 4, .slots = 2, .topk = 2};
static const struct exchange_case rank_major = {.name = "rank-major",
                                                .hidden = 16,
                                                .max_tokens = 4,
                                                .slots = 2,
                                                .topk = 2,
                                                .layout = MUSTER_EP_RANK_MAJOR,
                                                .combine = MUSTER_EP_REDUCED};

static const struct exchange_case flat = {.name = "flat",
                                          .hidden = 16,
                                          .max_tokens = 4,
                                          .slots = 2,
                                          .topk = 2,
                                          .layout = MUSTER_EP_FLAT,
                                          .combine = MUSTER_EP_REDUCED};

static void expect_order(muster_status status, const char *call)
{
    expect(status == MUSTER_ERR_ORDER, "%s gave %s", call, muster_status_name(status));
    expect(muster_last_error()[0], "%s: no word about it", call);
}

static void refuse_before_dispatch(struct party *p, muster_ep *ep)
{
    expect_order(muster_ep_combine(ep, &p->combine, backend_stream()), "combine without dispatch");
    expect_order(muster_ep_combine_send(ep, &p->combine, backend_stream()), "combine_send without dispatch");
    expect_order(muster_ep_combine_receive(ep, &p->combine, backend_stream()), "combine_receive without dispatch");
    expect_order(muster_ep_dispatch_receive(ep, &p->dispatch, backend_stream()), "dispatch_receive without send");
    expect(party_untouched(p), "%s", p->why);
}

static void refuse_between_halves(struct party *p, muster_ep *ep)
{
    expect_order(muster_ep_dispatch(ep, &p->dispatch, backend_stream()), "dispatch after dispatch_send");
    expect_order(muster_ep_dispatch_send(ep, &p->dispatch, backend_stream()), "a second dispatch_send");
    expect_order(muster_ep_combine(ep, &p->combine, backend_stream()), "combine before dispatch_receive");
    expect_order(muster_ep_combine_send(ep, &p->combine, backend_stream()), "combine_send before dispatch_receive");
    expect_order(muster_ep_combine_receive(ep, &p->combine, backend_stream()),
                 "combine_receive before dispatch_receive");
    expect(party_untouched(p), "%s", p->why);
}

static void refuse_after_dispatch(struct party *p, muster_ep *ep)
{
    struct party *canaries = party_open(p->world, p->rank);
    expect_order(muster_ep_dispatch(ep, &canaries->dispatch, backend_stream()), "a second dispatch");
    expect_order(muster_ep_dispatch_send(ep, &canaries->dispatch, backend_stream()), "dispatch_send after dispatch");
    expect_order(muster_ep_dispatch_receive(ep, &canaries->dispatch, backend_stream()), "a second dispatch_receive");
    expect_order(muster_ep_combine_receive(ep, &canaries->combine, backend_stream()), "combine_receive before send");
    expect(party_untouched(canaries), "%s", canaries->why);
    party_close(canaries);
}

static void refuse_after_combine_send(struct party *p, muster_ep *ep)
{
    struct party *canaries = party_open(p->world, p->rank);
    expect_order(muster_ep_combine(ep, &canaries->combine, backend_stream()), "combine after combine_send");
    expect_order(muster_ep_combine_send(ep, &canaries->combine, backend_stream()), "a second combine_send");
    expect_order(muster_ep_dispatch(ep, &canaries->dispatch, backend_stream()), "dispatch before combine_receive");
    expect(party_untouched(canaries), "%s", canaries->why);
    party_close(canaries);
}

/*
 * One exchange in halves, everything that is out of order tried at each joint; it still comes out right. In the caller's own
 * step only the step's end is tried: an operation that is refused there voids it (test_ep_refusal).
 */
static void try_everything(struct cluster_rank *self, muster_ep *ep, bool in_step)
{
    struct party *p = party_open(self->context, self->rank);
    if (in_step)
        expect_status(muster_step_begin(self->group, backend_stream()), MUSTER_OK, "muster_step_begin");
    else
        refuse_before_dispatch(p, ep);
    expect_status(muster_ep_dispatch_send(ep, &p->dispatch, backend_stream()), MUSTER_OK, "dispatch_send");
    expect_order(muster_step_end(self->group, backend_stream()), "step_end with half a dispatch");
    if (!in_step)
        refuse_between_halves(p, ep);
    expect_status(muster_ep_dispatch_receive(ep, &p->dispatch, backend_stream()), MUSTER_OK, "dispatch_receive");
    expect_order(muster_step_end(self->group, backend_stream()), "step_end between dispatch and combine");
    if (!in_step)
        refuse_after_dispatch(p, ep);
    party_experts(p);
    expect_status(muster_ep_combine_send(ep, &p->combine, backend_stream()), MUSTER_OK, "combine_send");
    expect_order(muster_step_end(self->group, backend_stream()), "step_end with half a combine");
    if (!in_step)
        refuse_after_combine_send(p, ep);
    expect_status(muster_ep_combine_receive(ep, &p->combine, backend_stream()), MUSTER_OK, "combine_receive");
    if (!in_step)
        expect_order(muster_ep_combine_receive(ep, &p->combine, backend_stream()), "a second combine_receive");
    if (in_step)
        expect_status(muster_step_end(self->group, backend_stream()), MUSTER_OK, "muster_step_end");
    expect_status(cluster_verdict(self).status, MUSTER_OK, "the verdict");
    expect(party_right(p), "%s", p->why);
    party_close(p);
}

static void exchange_order(struct cluster_rank *self)
{
    const struct world *world = self->context;
    muster_ep *ep = rounds_create(self, &world->c);
    try_everything(self, ep, true);
    try_everything(self, ep, false);
    rounds_exchange(self, ep, world);
    muster_ep_destroy(ep);
}

static void run_two(const struct exchange_case *c, cluster_function *function)
{
    struct cluster_options options = {.ranks = 2, .memory_bytes = 2 * rounds_memory_bytes(c, 1, 2)};
    struct world *world = world_make(c, 2, mask_first(2), 3);
    assert_true(cluster_run(&options, function, world));
    world_free(world);
}

static void exchanges_go_in_order(void **state)
{
    (void)state;
    run_two(&plain, exchange_order);
    run_two(&rank_major, exchange_order);
    run_two(&flat, exchange_order);
}

static void step_order(struct cluster_rank *self)
{
    muster_verdict verdict;
    muster_ep *ep = rounds_create(self, &plain), *late = NULL;
    muster_ep_config config = case_config(&plain);
    expect_order(muster_step_end(self->group, backend_stream()), "step_end without begin");
    expect_status(muster_step_verdict(self->group, &verdict), MUSTER_ERR_AGAIN, "verdict without a step");
    if (!test_backend)
        expect_status(muster_step_begin(self->group, self), MUSTER_ERR_ARGUMENT, "step_begin on a stream");
    expect_status(muster_step_begin(self->group, backend_stream()), MUSTER_OK, "step_begin");
    expect_order(muster_step_begin(self->group, backend_stream()), "a second step_begin");
    expect_order(muster_ep_create(self->group, &config, &late), "ep_create in a step");
    expect_status(muster_step_verdict(self->group, &verdict), MUSTER_ERR_AGAIN, "verdict of an open step");
    expect_status(muster_step_end(self->group, backend_stream()), MUSTER_OK, "step_end");
    expect_order(muster_step_end(self->group, backend_stream()), "a second step_end");
    expect_status(cluster_verdict(self).status, MUSTER_OK, "the verdict of an empty step");
    expect_status(muster_step_verdict(self->group, &verdict), MUSTER_ERR_AGAIN, "a second verdict");
    rounds_exchange(self, ep, self->context);
    muster_ep_destroy(ep);
}

static void steps_go_in_order(void **state)
{
    (void)state;
    run_two(&plain, step_order);
}

/*
 * Verdicts are numbered and queued, 64 of them, oldest first. A device, which may run replays that no call has begun,
 * keeps more; see verdicts_of_a_device_are_overwritten.
 */
static void verdict_queue(struct cluster_rank *self)
{
    for (int i = 0; i < 64; i++) {
        expect_status(muster_step_begin(self->group, backend_stream()), MUSTER_OK, "step_begin");
        expect_status(muster_step_end(self->group, backend_stream()), MUSTER_OK, "step_end");
    }
    if (!test_backend)
        expect_order(muster_step_begin(self->group, backend_stream()), "step_begin with a full queue");
    uint64_t first = cluster_verdict(self).step;
    expect_status(muster_step_begin(self->group, backend_stream()), MUSTER_OK, "step_begin with room again");
    expect_status(muster_step_end(self->group, backend_stream()), MUSTER_OK, "step_end");
    for (uint64_t step = first + 1; step <= first + 64; step++) {
        muster_verdict verdict = cluster_verdict(self);
        expect(verdict.step == step && verdict.status == MUSTER_OK, "verdict %llu came instead of %llu",
               (unsigned long long)verdict.step, (unsigned long long)step);
    }
    expect(first == 1, "the first step has number %llu", (unsigned long long)first);
}

static void verdicts_queue_up(void **state)
{
    (void)state;
    run_two(&plain, verdict_queue);
}

/* On the host every operation says at once that the step is void. */
static void meet_void_step(struct cluster_rank *self, struct party *p, muster_ep *ep)
{
    const struct world *world = p->world;
    while (muster_group_wait_ready(self->group, 0) == MUSTER_OK)
        cluster_sleep_ms(1);
    struct party *first_to_know = party_open(world, self->rank);
    muster_status status = muster_ep_dispatch(ep, &first_to_know->dispatch, backend_stream());
    expect(status == MUSTER_ERR_VOID || status == MUSTER_ERR_PEER, "dispatch in an aborted epoch gave %s",
           muster_status_name(status));
    party_close(first_to_know);
    expect_status(muster_ep_dispatch(ep, &p->dispatch, backend_stream()), MUSTER_ERR_VOID, "dispatch in a void step");
    expect_status(muster_ep_dispatch_send(ep, &p->dispatch, backend_stream()), MUSTER_ERR_VOID,
                  "dispatch_send in a void step");
    expect_status(muster_ep_combine(ep, &p->combine, backend_stream()), MUSTER_ERR_VOID, "combine in a void step");
    expect(party_untouched(p), "%s", p->why);
}

static void exchange_in_vain(struct party *p, muster_ep *ep)
{
    expect_status(muster_ep_dispatch(ep, &p->dispatch, backend_stream()), backend_status(MUSTER_ERR_VOID),
                  "dispatch in a void step");
    expect_status(muster_ep_combine(ep, &p->combine, backend_stream()), backend_status(MUSTER_ERR_VOID),
                  "combine in a void step");
    expect(party_untouched(p), "%s", p->why);
}

/*
 * A step that begins before a void verdict was read is void too. On the host it says that; on a device, what the step
 * before had failed of.
 */
static void expect_void_and_unread(muster_verdict first, muster_verdict second)
{
    muster_reason reason = test_backend ? first.reason : MUSTER_REASON_UNREAD;
    expect(first.status == MUSTER_ERR_PEER && first.reason == MUSTER_REASON_EPOCH, "the aborted step: %s, reason %d",
           muster_status_name(first.status), (int)first.reason);
    expect(second.status != MUSTER_OK && second.reason == reason, "the step after it: %s, reason %d",
           muster_status_name(second.status), (int)second.reason);
}

/* In a void step every operation does nothing; nor is a step good before the verdict was read. */
static void calls_in_void_step(struct cluster_rank *self)
{
    const struct world *world = self->context;
    muster_ep *ep = rounds_create(self, &world->c);
    struct party *p = party_open(world, self->rank);
    uint32_t epoch = cluster_await_view(self, 2, 0).epoch;
    cluster_barrier(self);
    expect_status(muster_step_begin(self->group, backend_stream()), MUSTER_OK, "step_begin");
    backend_wait();
    cluster_barrier(self);
    if (self->rank == 0)
        expect_status(muster_group_abort(self->group), MUSTER_OK, "muster_group_abort");
    if (!test_backend)
        meet_void_step(self, p, ep);
    cluster_await_end(self, epoch);
    exchange_in_vain(p, ep);
    expect_status(muster_step_end(self->group, backend_stream()), MUSTER_OK, "step_end");
    cluster_barrier(self);
    expect_status(muster_step_begin(self->group, backend_stream()), MUSTER_OK, "step_begin before the verdict is read");
    exchange_in_vain(p, ep);
    expect_status(muster_step_end(self->group, backend_stream()), MUSTER_OK, "step_end");
    muster_verdict first = cluster_verdict(self), second = cluster_verdict(self);
    expect_void_and_unread(first, second);
    cluster_await_view(self, 2, epoch);
    cluster_barrier(self);
    rounds_exchange(self, ep, world);
    party_close(p);
    muster_ep_destroy(ep);
}

static void void_steps_do_nothing(void **state)
{
    (void)state;
    run_two(&plain, calls_in_void_step);
}

/* Whoever falls further behind than a device keeps verdicts loses some, and sees that by their numbers. */
static void overwritten_verdicts(struct cluster_rank *self)
{
    enum { KEPT = 1024, STEPS = KEPT + 40 };
    uint64_t last = 0;
    muster_verdict verdict;
    for (int i = 0; i < STEPS; i++) {
        expect_status(muster_step_begin(self->group, backend_stream()), MUSTER_OK, "step_begin");
        expect_status(muster_step_end(self->group, backend_stream()), MUSTER_OK, "step_end");
    }
    backend_wait();
    while (muster_step_verdict(self->group, &verdict) == MUSTER_OK) {
        expect(verdict.status == MUSTER_OK && verdict.step > last, "verdict %llu after %llu: %s",
               (unsigned long long)verdict.step, (unsigned long long)last, muster_status_name(verdict.status));
        last = verdict.step;
    }
    expect(last == STEPS, "the last verdict is of step %llu", (unsigned long long)last);
}

static void verdicts_of_a_device_are_overwritten(void **state)
{
    (void)state;
    if (test_backend)
        run_two(&plain, overwritten_verdicts);
}

static void nothing_in_place(struct cluster_rank *self)
{
    const struct world *world = self->context;
    muster_ep *ep = rounds_create(self, &world->c);
    muster_tensor tensor = {.ndim = 99};
    const char *layout = world->c.name;
    expect_status(muster_ep_received(ep, &tensor), MUSTER_ERR_ARGUMENT, layout);
    expect(strstr(muster_last_error(), "muster_ep_received") && strstr(muster_last_error(), "MUSTER_EP_RANK_MAJOR"),
           "%s: the error does not name the layout: \"%s\"", layout, muster_last_error());
    expect_status(muster_ep_results(ep, &tensor), MUSTER_ERR_ARGUMENT, layout);
    expect(strstr(muster_last_error(), "muster_ep_results") && strstr(muster_last_error(), "MUSTER_EP_RANK_MAJOR"),
           "%s: the error does not name the layout: \"%s\"", layout, muster_last_error());
    expect(tensor.ndim == 99, "a refused call wrote its output");
    muster_ep_destroy(ep);
}

static void expert_major_is_never_in_place(void **state)
{
    (void)state;
    run_two(&plain, nothing_in_place);
}

/* With quantise_return rows can be read in place, but none can be written. */
static void results_only_as_they_are(struct cluster_rank *self)
{
    const struct world *world = self->context;
    muster_ep *ep = rounds_create(self, &world->c);
    muster_tensor tensor = {.ndim = 99};
    expect_status(muster_ep_results(ep, &tensor), MUSTER_ERR_ARGUMENT, "results with quantise_return");
    expect(strstr(muster_last_error(), "quantise_return"), "the error does not name it: \"%s\"", muster_last_error());
    expect(tensor.ndim == 99, "a refused call wrote its output");
    expect_status(muster_ep_received(ep, &tensor), MUSTER_OK, "received with quantise_return");
    rounds_exchange(self, ep, world);
    muster_ep_destroy(ep);
}

static void results_in_place_are_not_quantised(void **state)
{
    (void)state;
    struct exchange_case c = rank_major;
    c.quantise_return = MUSTER_EP_QUANTISE_FP8;
    run_two(&c, results_only_as_they_are);
    c.layout = MUSTER_EP_FLAT;
    run_two(&c, results_only_as_they_are);
}

/* After leaving, a handle only serves to be destroyed; the others go on. */
static void leave_first(struct cluster_rank *self)
{
    const struct world *world = self->context;
    muster_ep *ep = rounds_create(self, &world->c);
    rounds_exchange(self, ep, world);
    cluster_barrier(self);
    if (self->rank == 1) {
        muster_ep_destroy(ep);
        expect_status(muster_group_leave(self->group), MUSTER_OK, "muster_group_leave");
        expect_status(muster_step_begin(self->group, backend_stream()), MUSTER_ERR_LEFT, "step_begin after leave");
        muster_view view;
        expect_status(muster_group_view(self->group, &view), MUSTER_ERR_LEFT, "view after leave");
        return;
    }
    cluster_await_view(self, 1, 0);
    struct world *alone = world_make(&world->c, 2, mask_first(1), 4);
    rounds_exchange(self, ep, alone);
    world_free(alone);
    muster_ep_destroy(ep);
}

static void leaving_ends_the_handle(void **state)
{
    (void)state;
    run_two(&plain, leave_first);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(exchanges_go_in_order),
        cmocka_unit_test(steps_go_in_order),
        cmocka_unit_test(verdicts_queue_up),
        cmocka_unit_test(void_steps_do_nothing),
        cmocka_unit_test(verdicts_of_a_device_are_overwritten),
        cmocka_unit_test(expert_major_is_never_in_place),
        cmocka_unit_test(results_in_place_are_not_quantised),
        cmocka_unit_test(leaving_ends_the_handle),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
