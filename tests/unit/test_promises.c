// SPDX-License-Identifier: Apache-2.0
/*
 * The promises that can be kept or broken with ranks as threads of one process, one test each, named after the number.
 * 5 and 6 are about devices: tests/gpu/test_gpu_promises.c. 10 is about kernels without fault tolerance.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/mask.h"
#include "lib/backend.h"
#include "lib/pace.h"
#include "lib/rounds.h"
#include "muster/placement.h"

enum { OPERATION_MS = 200, STEP_MS = 600, SLACK_MS = 1500 };

static const struct exchange_case c = {
    .name = "promise", .hidden = 16, .max_tokens = 4, .slots = 2, .topk = 3, .tokens = TOKENS_UNEVEN};
static const struct exchange_case halves = {
    .name = "promise in halves", .hidden = 16, .max_tokens = 4, .slots = 2, .topk = 3, .halves = 1};

static struct cluster_options short_deadlines(int ranks)
{
    return (struct cluster_options){.ranks = ranks,
                                    .memory_bytes = 2 * rounds_memory_bytes(&c, 1, ranks),
                                    .operation_timeout_us = OPERATION_MS * 1000,
                                    .step_timeout_us = STEP_MS * 1000,
                                    .short_ms = OPERATION_MS};
}

/* Whether this is what an operation may return that cannot succeed. On a device it is the verdict's to say. */
static bool failed(muster_status status)
{
    if (test_backend)
        return status == MUSTER_OK;
    return status == MUSTER_ERR_TIMEOUT || status == MUSTER_ERR_PEER || status == MUSTER_ERR_VOID;
}

/* Ends the step, reads its verdict, which must say that the step is void, and returns it. */
static muster_verdict void_verdict(struct cluster_rank *self)
{
    expect_status(muster_step_end(self->group, backend_stream()), MUSTER_OK, "muster_step_end");
    muster_verdict verdict = cluster_verdict(self);
    expect(verdict.status != MUSTER_OK && verdict.reason != MUSTER_REASON_NONE, "the step is good");
    return verdict;
}

/* ---- promise 1: no call waits past its deadline ---- */

/* Where the peer stops. */
enum stall { STALL_BEFORE_STEP, STALL_IN_STEP, STALL_AFTER_DISPATCH, STALL_DEAD };

struct stalled {
    enum stall stall;
    const struct world *all, *without;
};

/* Rank 2: comes as far as it should and then stands still until the others have finished without it. */
static void stall(struct cluster_rank *self, muster_ep *ep)
{
    const struct stalled *s = self->context;
    struct party *p = party_open(s->all, self->rank);
    if (s->stall == STALL_IN_STEP || s->stall == STALL_AFTER_DISPATCH)
        expect_status(muster_step_begin(self->group, backend_stream()), MUSTER_OK, "step_begin");
    if (s->stall == STALL_AFTER_DISPATCH)
        expect_status(party_dispatch(p, ep), MUSTER_OK, "dispatch of the rank that will stall");
    party_close(p);
    backend_wait();
    cluster_barrier(self); /* the others have begun their step */
    if (s->stall == STALL_DEAD) {
        muster_ep_destroy(ep);
        cluster_die(self);
    }
    cluster_barrier(self);
    muster_ep_destroy(ep);
}

/* The others: the exchange fails no later than its deadline, and the view follows when the suspect is fenced. */
static void outwait(struct cluster_rank *self, muster_ep *ep)
{
    const struct stalled *s = self->context;
    struct party *p = party_open(s->all, self->rank);
    int limit = s->stall == STALL_BEFORE_STEP ? cluster_step_ms(self) : cluster_operation_ms(self);
    uint32_t epoch = cluster_await_view(self, 3, 0).epoch;
    struct pace begun = pace_begin();
    expect_status(muster_step_begin(self->group, backend_stream()), MUSTER_OK, "step_begin");
    muster_status status = s->stall == STALL_AFTER_DISPATCH ? party_dispatch(p, ep) : MUSTER_OK;
    expect_status(status, MUSTER_OK, "dispatch before the stall");
    backend_wait();
    cluster_barrier(self);
    struct pace pace = pace_begin();
    if (s->stall == STALL_AFTER_DISPATCH) {
        party_experts(p);
        status = party_combine(p, ep);
    } else {
        status = party_exchange(p, ep);
    }
    int ms = pace_ms(&pace);
    expectation(status)(failed(status), "an exchange with a stalled rank gave %s", muster_status_name(status));
    expect(ms < limit + SLACK_MS, "it took %d ms where %d were allowed", ms, limit);
    muster_reason reason = void_verdict(self).reason;
    ms = pace_wall_ms(&begun); /* from before the wait till after it */
    expect(s->stall == STALL_DEAD || reason != MUSTER_REASON_TIMEOUT || ms >= limit,
           "it gave up after %d ms, before its deadline of %d", ms, limit);
    pace = pace_begin();
    muster_group_wait_ready(self->group, 50000);
    expect(pace_ms(&pace) < 50 + SLACK_MS, "wait_ready(50 ms) took %d ms", pace_ms(&pace));
    muster_view view;
    expect_status(muster_group_view(self->group, &view), MUSTER_OK, "muster_group_view");
    if (s->stall != STALL_DEAD)
        cluster_fence(self->cluster, 2, view.incarnation[2] ? view.incarnation[2] : 1);
    cluster_await_view(self, 2, epoch);
    rounds_exchange(self, ep, s->without);
    party_close(p);
    cluster_barrier(self);
    muster_ep_destroy(ep);
}

static void wait_for_stalled(struct cluster_rank *self)
{
    muster_ep *ep = rounds_create(self, &c);
    rounds_exchange(self, ep, ((const struct stalled *)self->context)->all);
    cluster_barrier(self);
    if (self->rank == 2)
        stall(self, ep);
    else
        outwait(self, ep);
}

static void promise_1_no_call_waits_past_its_deadline(void **state)
{
    (void)state;
    struct world *all = world_make(&c, 3, mask_first(3), 1), *without = world_make(&c, 3, mask_first(2), 2);
    struct cluster_options options = short_deadlines(3);
    for (int i = STALL_BEFORE_STEP; i <= STALL_DEAD; i++) {
        struct stalled stalled = {(enum stall)i, all, without};
        assert_true(cluster_run(&options, wait_for_stalled, &stalled));
    }
    world_free(all);
    world_free(without);
}

/* ---- promise 2: a result is exact for one agreed mask, or its step is void ---- */

enum { CROWD = 6, SURVIVORS = 2, LAST_STEPS = 10 };

/* worlds[n]: with the ranks below n. Ranks die from the top, each somewhere else in its exchange. */
struct crowd {
    struct world *worlds[CROWD + 1];
};

static void die_within(struct cluster_rank *self, muster_ep *ep, struct party *p)
{
    expect_status(muster_step_begin(self->group, backend_stream()), MUSTER_OK, "step_begin");
    muster_status status = muster_ep_dispatch_send(ep, &p->dispatch, backend_stream());
    if (status == MUSTER_OK && self->rank < 5)
        status = muster_ep_dispatch_receive(ep, &p->dispatch, backend_stream());
    if (status == MUSTER_OK && self->rank < 4) {
        party_experts(p);
        status = muster_ep_combine_send(ep, &p->combine, backend_stream());
    }
    if (status == MUSTER_OK && self->rank < 3)
        status = muster_ep_combine_receive(ep, &p->combine, backend_stream());
    party_close(p);
    muster_ep_destroy(ep);
    cluster_die(self);
}

/* One step with the inputs that belong to the view; good steps are compared. Returns whether it was good. */
static bool crowd_step(struct cluster_rank *self, muster_ep *ep, const muster_view *view)
{
    const struct crowd *crowd = self->context;
    const struct world *world = crowd->worlds[view->active];
    struct party *p = party_open(world, self->rank);
    muster_view begun;
    expect_status(muster_step_begin(self->group, backend_stream()), MUSTER_OK, "step_begin");
    backend_wait();
    expect_status(muster_group_view(self->group, &begun), MUSTER_OK, "muster_group_view");
    muster_status status = begun.epoch == view->epoch ? party_exchange(p, ep) : MUSTER_ERR_VOID;
    expect_status(muster_step_end(self->group, backend_stream()), MUSTER_OK, "step_end");
    muster_verdict verdict = cluster_verdict(self);
    bool good = verdict.status == MUSTER_OK && verdict.epoch == view->epoch && begun.epoch == view->epoch;
    if (good) {
        expect_status(status, MUSTER_OK, "an operation of a good step");
        expect(mask_equal(verdict.mask, mask_first(view->active)), "the verdict's mask is not the view's");
        expect(party_right(p), "epoch %u: %s", verdict.epoch, p->why);
    }
    party_close(p);
    return good;
}

static void shrink_crowd(struct cluster_rank *self)
{
    const struct crowd *crowd = self->context;
    muster_ep *ep = rounds_create(self, &halves);
    uint32_t epoch = 0;
    for (int good = 0; good < LAST_STEPS;) {
        muster_view view;
        expect_status(muster_group_wait_ready(self->group, PACE_PATIENCE_MS * UINT64_C(1000)), MUSTER_OK, "wait_ready");
        expect_status(muster_group_view(self->group, &view), MUSTER_OK, "muster_group_view");
        good = view.epoch == epoch && view.active == SURVIVORS ? good : 0;
        epoch = view.epoch;
        if (self->rank == view.active - 1 && self->rank >= SURVIVORS && crowd_step(self, ep, &view))
            die_within(self, ep, party_open(crowd->worlds[view.active], self->rank));
        else if (self->rank != view.active - 1 || self->rank < SURVIVORS)
            good += crowd_step(self, ep, &view);
    }
    muster_ep_destroy(ep);
}

static void promise_2_a_result_is_exact_for_one_mask_or_void(void **state)
{
    (void)state;
    struct crowd crowd = {.worlds = {NULL}};
    struct cluster_options options = {.ranks = CROWD, .memory_bytes = rounds_memory_bytes(&halves, 1, CROWD)};
    for (int n = SURVIVORS; n <= CROWD; n++)
        crowd.worlds[n] = world_make(&halves, CROWD, mask_first(n), (uint64_t)(70 + n));
    assert_true(cluster_run(&options, shrink_crowd, &crowd));
    for (int n = 0; n <= CROWD; n++)
        world_free(crowd.worlds[n]);
}

/* ---- promise 3: one mask per epoch ---- */

enum { LOG_VIEWS = 512 };

/* Every view that any rank installed, and every verdict, as (epoch, mask). */
struct view_log {
    pthread_mutex_t lock;
    int count;
    struct {
        int rank;
        uint32_t incarnation; /* of the rank that saw it; 0: from a verdict, which may be read late */
        uint32_t epoch;
        muster_mask mask;
    } seen[LOG_VIEWS];
};

static struct view_log view_log = {.lock = PTHREAD_MUTEX_INITIALIZER};

static void log_view(int rank, uint32_t incarnation, uint32_t epoch, muster_mask mask)
{
    pthread_mutex_lock(&view_log.lock);
    if (view_log.count < LOG_VIEWS) {
        view_log.seen[view_log.count].rank = rank;
        view_log.seen[view_log.count].incarnation = incarnation;
        view_log.seen[view_log.count].epoch = epoch;
        view_log.seen[view_log.count++].mask = mask;
    }
    pthread_mutex_unlock(&view_log.lock);
}

static void on_view(void *context, const muster_view *view)
{
    const struct cluster_rank *self = context;
    log_view(self->rank, view->incarnation[self->rank], view->epoch, view->mask);
}

static void join_logged(struct cluster_rank *self)
{
    muster_group_config config = cluster_config(self);
    config.on_view = on_view;
    expect_status(cluster_join(self, &config), MUSTER_OK, "muster_group_create");
}

static void try_steps(struct cluster_rank *self, int steps)
{
    for (int i = 0; i < steps; i++) {
        muster_group_wait_ready(self->group, 20000);
        if (muster_step_begin(self->group, backend_stream()) != MUSTER_OK)
            return;
        cluster_sleep_ms(1);
        muster_step_end(self->group, backend_stream());
        muster_verdict verdict = cluster_verdict(self);
        if (verdict.status == MUSTER_OK)
            log_view(self->rank, 0, verdict.epoch, verdict.mask);
    }
}

/* Two ranks die at once, two others abort at once, one dies while that is going on, one comes back, one leaves. */
static void churn(struct cluster_rank *self)
{
    join_logged(self);
    cluster_barrier(self);
    if (self->rank == 0 || self->rank == 4)
        cluster_die(self);
    if (self->rank == 1 || self->rank == 2)
        muster_group_abort(self->group);
    try_steps(self, 5);
    if (self->rank == 6)
        cluster_die(self);
    muster_view view = cluster_await_view(self, 4, 0);
    cluster_barrier(self);
    if (self->rank == 5) {
        cluster_part(self);
        join_logged(self);
        expect(self->incarnation > view.incarnation[5], "rank 5 came back as incarnation %u", self->incarnation);
    } else {
        try_steps(self, 20);
    }
    cluster_await_view(self, 4, view.epoch);
    cluster_barrier(self);
    if (self->rank == 3) {
        expect_status(muster_group_leave(self->group), MUSTER_OK, "muster_group_leave");
        return;
    }
    try_steps(self, 5);
    cluster_await_view(self, 3, view.epoch);
}

static void views_are_one_per_epoch(void)
{
    for (int i = 0; i < view_log.count; i++)
        for (int j = 0; j < view_log.count; j++) {
            if (view_log.seen[i].epoch == view_log.seen[j].epoch)
                assert_true(mask_equal(view_log.seen[i].mask, view_log.seen[j].mask));
            /* The log is in order of time, so each process must see epochs grow. */
            if (i < j && view_log.seen[i].incarnation && view_log.seen[i].rank == view_log.seen[j].rank &&
                view_log.seen[i].incarnation == view_log.seen[j].incarnation)
                assert_true(view_log.seen[i].epoch < view_log.seen[j].epoch);
        }
}

static int epochs_logged(void)
{
    int epochs = 0;
    for (int i = 0; i < view_log.count; i++) {
        int j = 0;
        while (view_log.seen[j].epoch != view_log.seen[i].epoch)
            j++;
        epochs += i == j;
    }
    return epochs;
}

static void promise_3_one_mask_per_epoch(void **state)
{
    (void)state;
    struct cluster_options options = {.ranks = 7, .memory_bytes = 65536, .no_groups = 1};
    for (int run = 0; run < 3; run++) {
        view_log.count = 0;
        assert_true(cluster_run(&options, churn, NULL));
        assert_true(view_log.count < LOG_VIEWS);
        assert_true(epochs_logged() >= 4);
        views_are_one_per_epoch();
    }
}

/* ---- promise 4: nothing from an old epoch is ever read as new ---- */

/* How far rank 2 comes in the epoch that is aborted: what it sent until then must not count in the next. */
struct stale {
    bool through_combine;
    const struct world *old, *new;
    _Atomic int sends; /* of rank 2 in new epochs, counted before it begins */
};

enum { LATE_MS = 120 };

/* What each rank still has to do in the old epoch, which an abort has ended by now. */
static void finish_in_vain(struct cluster_rank *self, struct party *p, muster_ep *ep)
{
    const struct stale *s = self->context;
    muster_status status;
    if (s->through_combine)
        status = self->rank == 2 ? muster_ep_combine_receive(ep, &p->combine, backend_stream()) : party_combine(p, ep);
    else
        status =
            self->rank == 2 ? muster_ep_dispatch_receive(ep, &p->dispatch, backend_stream()) : party_dispatch(p, ep);
    expectation(status)(failed(status), "an operation of the aborted epoch gave %s", muster_status_name(status));
    if (!s->through_combine)
        expect(failed(party_combine(p, ep)), "a combine of the aborted epoch came to an end");
}

static void send_in_vain(struct cluster_rank *self, muster_ep *ep, uint32_t epoch)
{
    const struct stale *s = self->context;
    struct party *p = party_open(s->old, self->rank);
    expect_status(muster_step_begin(self->group, backend_stream()), MUSTER_OK, "step_begin");
    if (s->through_combine) {
        expect_status(party_dispatch(p, ep), MUSTER_OK, "dispatch in the old epoch");
        party_experts(p);
    }
    if (self->rank == 2 && s->through_combine)
        expect_status(muster_ep_combine_send(ep, &p->combine, backend_stream()), MUSTER_OK,
                      "combine_send in the old epoch");
    if (self->rank == 2 && !s->through_combine)
        expect_status(muster_ep_dispatch_send(ep, &p->dispatch, backend_stream()), MUSTER_OK,
                      "dispatch_send in the old epoch");
    backend_wait();
    cluster_barrier(self);
    if (self->rank == 0)
        expect_status(muster_group_abort(self->group), MUSTER_OK, "muster_group_abort");
    cluster_await_end(self, epoch);
    finish_in_vain(self, p, ep);
    void_verdict(self);
    party_close(p);
}

static void send_late(struct cluster_rank *self, struct stale *s)
{
    if (self->rank != 2)
        return;
    cluster_sleep_ms(LATE_MS);
    atomic_fetch_add(&s->sends, 1);
}

/* In the new epoch rank 2 is late; whoever takes its old flags for new does not wait, and reads the old rows. */
static void exchange_anew(struct cluster_rank *self, muster_ep *ep, int turn)
{
    struct stale *s = self->context;
    struct party *p = party_open(s->new, self->rank);
    expect_status(muster_step_begin(self->group, backend_stream()), MUSTER_OK, "step_begin");
    backend_wait();
    cluster_barrier(self);
    if (!s->through_combine)
        send_late(self, s);
    expect_status(party_dispatch(p, ep), MUSTER_OK, "dispatch in the new epoch");
    party_experts(p);
    if (s->through_combine)
        send_late(self, s);
    expect_status(party_combine(p, ep), MUSTER_OK, "combine in the new epoch");
    backend_wait();
    expect(atomic_load(&s->sends) > turn, "did not wait for the late rank");
    expect_status(muster_step_end(self->group, backend_stream()), MUSTER_OK, "step_end");
    expect_status(cluster_verdict(self).status, MUSTER_OK, "the verdict");
    expect(party_right(p), "%s", p->why);
    party_close(p);
}

static void flags_of_old_epochs(struct cluster_rank *self)
{
    muster_ep *ep = rounds_create(self, &halves);
    uint32_t epoch = cluster_await_view(self, 3, 0).epoch;
    cluster_barrier(self);
    for (int i = 0; i < 4; i++) { /* whichever bank comes next */
        send_in_vain(self, ep, epoch);
        epoch = cluster_await_view(self, 3, epoch).epoch;
        cluster_barrier(self);
        exchange_anew(self, ep, i);
        if (i % 2)
            rounds_exchange(self, ep, ((const struct stale *)self->context)->old);
    }
    muster_ep_destroy(ep);
}

static void promise_4_nothing_old_is_read_as_new(void **state)
{
    (void)state;
    struct world *old = world_make(&halves, 3, mask_first(3), 31), *new = world_make(&halves, 3, mask_first(3), 32);
    struct cluster_options options = {.ranks = 3, .memory_bytes = rounds_memory_bytes(&halves, 1, 3)};
    for (int i = 0; i < 2; i++) {
        struct stale stale = {.through_combine = i == 1, .old = old, .new = new};
        assert_true(cluster_run(&options, flags_of_old_epochs, &stale));
    }
    world_free(old);
    world_free(new);
}

/* The other half: no view without a suspect is ready before the suspect is fenced. */
static void suspect_not_fenced_yet(struct cluster_rank *self)
{
    const struct stalled *s = self->context;
    muster_ep *ep = rounds_create(self, &c);
    muster_view view = cluster_await_view(self, 3, 0);
    cluster_barrier(self);
    expect_status(muster_step_begin(self->group, backend_stream()), MUSTER_OK, "step_begin");
    backend_wait();
    cluster_barrier(self);
    uint32_t epoch = view.epoch;
    if (self->rank != 2) {
        struct party *p = party_open(s->all, self->rank);
        expect(failed(party_exchange(p, ep)), "an exchange without rank 2 worked");
        party_close(p);
        epoch = void_verdict(self).epoch;
        for (struct pace pace = pace_begin(); pace_wall_ms(&pace) < 300;)
            expect_status(muster_group_wait_ready(self->group, 20000), MUSTER_ERR_AGAIN, "wait_ready before the fence");
    }
    cluster_barrier(self); /* nobody fences while another still looks */
    if (self->rank != 2) {
        cluster_fence(self->cluster, 2, view.incarnation[2]);
        cluster_await_view(self, 2, epoch);
        rounds_exchange(self, ep, s->without);
    }
    cluster_barrier(self);
    muster_ep_destroy(ep);
}

static void promise_4_memory_waits_for_the_fence(void **state)
{
    (void)state;
    struct world *all = world_make(&c, 3, mask_first(3), 1), *without = world_make(&c, 3, mask_first(2), 2);
    struct cluster_options options = short_deadlines(3);
    struct stalled stalled = {STALL_IN_STEP, all, without};
    assert_true(cluster_run(&options, suspect_not_fenced_yet, &stalled));
    world_free(all);
    world_free(without);
}

/* ---- promise 7: exact numbers depend neither on placement nor on the number of ranks ---- */

enum { TOKENS = 13, EXPERTS = 7, TOPK = 3 };

/* The same tokens, experts and weights for every arrangement; only where things are differs. */
struct arrangement {
    int ranks, slots;
    int rotate; /* experts are placed from this one on */
    int block; /* tokens are dealt out in blocks of this many */
};

static const struct arrangement arrangements[] = {
    {1, 7, 0, 13}, {1, 7, 3, 1}, {2, 4, 0, 7}, {2, 4, 5, 1}, {3, 3, 0, 5}, {3, 4, 2, 2}, {4, 2, 0, 4}, {4, 3, 6, 1},
};

enum { ARRANGEMENTS = sizeof(arrangements) / sizeof(arrangements[0]) };

struct arranged {
    struct world *world;
    int32_t expert[64]; /* of each slot */
    int owner[TOKENS]; /* rank of each token */
    int position[TOKENS]; /* and its number there */
};

static void token_draw(const struct world *w, int token, unsigned char *hidden, int experts[TOPK], float *weights)
{
    uint64_t random = (uint64_t)token + 500;
    for (int h = 0; h < w->c.hidden; h++)
        oracle_encode(w->shape.type, hidden, (size_t)h, ((double)(world_random(&random) % 4001) - 2000.0) / 777.0);
    int first = (int)(world_random(&random) % EXPERTS);
    for (int k = 0; k < TOPK; k++) {
        experts[k] = (first + k * 2) % EXPERTS; /* distinct: 7 is prime */
        weights[k] = (float)(world_random(&random) % 1000) / 999.0f;
    }
}

static void arranged_place(struct arranged *a, const struct arrangement *how, muster_mask mask)
{
    int32_t placed[64];
    int slots = how->ranks * how->slots;
    assert_int_equal(muster_placement_initial(EXPERTS, how->ranks, how->slots, mask, placed), MUSTER_OK);
    for (int slot = 0; slot < slots; slot++)
        a->expert[slot] = placed[slot] < 0 ? -1 : (placed[slot] + how->rotate) % EXPERTS;
}

/* Any copy will do: tokens take turns. */
static int64_t arranged_slot(const struct arranged *a, int slots, int expert, int token)
{
    int found[64], count = 0;
    for (int slot = 0; slot < slots; slot++)
        if (a->expert[slot] == expert)
            found[count++] = slot;
    assert_true(count > 0);
    return found[token % count];
}

static void arranged_token(struct arranged *a, int token, int rank, int position)
{
    struct world *w = a->world;
    size_t row = (size_t)position;
    int experts[TOPK];
    size_t bytes = (size_t)w->c.hidden * oracle_type_bytes(w->shape.type);
    token_draw(w, token, w->hidden[rank] + row * bytes, experts, w->weights[rank] + row * TOPK);
    for (int k = 0; k < TOPK; k++)
        w->slots[rank][row * TOPK + (size_t)k] = arranged_slot(a, w->ranks * w->c.slots, experts[k], token);
    a->owner[token] = rank;
    a->position[token] = position;
}

static void arranged_make(struct arranged *a, const struct exchange_case *base, const struct arrangement *how,
                          muster_mask mask)
{
    struct exchange_case mine = *base;
    int held[MUSTER_MAX_RANKS] = {0};
    mine.slots = how->slots;
    a->world = world_draw(&mine, how->ranks, mask, 1);
    a->world->expert = a->expert;
    arranged_place(a, how, mask);
    for (int token = 0, rank = mask_next(mask, 0); token < TOKENS; token++) {
        arranged_token(a, token, rank, held[rank]);
        held[rank]++;
        if ((token + 1) % how->block == 0)
            rank = mask_next(mask, rank + 1) < 0 ? mask_next(mask, 0) : mask_next(mask, rank + 1);
    }
    for (int rank = 0; rank < how->ranks; rank++)
        world_tokens(a->world, rank, held[rank]);
    world_settle(a->world);
}

static void arranged_exchange(struct cluster_rank *self)
{
    const struct arranged *a = self->context;
    muster_ep *ep = rounds_create(self, &a->world->c);
    rounds_exchange(self, ep, a->world);
    muster_ep_destroy(ep);
}

/* The rows that the library gave were compared with world->combined byte for byte. */
static void arranged_same(const struct arranged *a, const struct arranged *b)
{
    size_t bytes = (size_t)a->world->c.hidden * oracle_type_bytes(a->world->shape.type);
    for (int token = 0; token < TOKENS; token++)
        assert_memory_equal(a->world->combined[a->owner[token]] + (size_t)a->position[token] * bytes,
                            b->world->combined[b->owner[token]] + (size_t)b->position[token] * bytes, bytes);
}

static void arrange_everything(const struct exchange_case *base)
{
    struct arranged all[ARRANGEMENTS];
    for (int i = 0; i < ARRANGEMENTS; i++) {
        int ranks = arrangements[i].ranks;
        arranged_make(&all[i], base, &arrangements[i], mask_first(ranks));
        struct cluster_options options = {.ranks = ranks,
                                          .memory_bytes = rounds_memory_bytes(&all[i].world->c, 1, ranks)};
        assert_true(cluster_run(&options, arranged_exchange, &all[i]));
        arranged_same(&all[0], &all[i]);
    }
    for (int i = 0; i < ARRANGEMENTS; i++)
        world_free(all[i].world);
}

static const struct exchange_case exact_bf16 = {.name = "exact bf16", .hidden = 24, .max_tokens = TOKENS, .topk = TOPK};
static const struct exchange_case exact_fp32 = {
    .name = "exact fp32", .hidden = 20, .max_tokens = TOKENS, .topk = TOPK, .type = ORACLE_FP32};
static const struct exchange_case exact_fp8 = {
    .name = "exact fp8", .hidden = 136, .max_tokens = TOKENS, .topk = TOPK, .quantise = MUSTER_EP_QUANTISE_FP8};

static void promise_7_exact_does_not_depend_on_placement(void **state)
{
    (void)state;
    arrange_everything(&exact_bf16);
    arrange_everything(&exact_fp32);
    arrange_everything(&exact_fp8);
}

/* And not on how many ranks are alive: the same tokens before and after a death. */
static void lose_one(struct cluster_rank *self)
{
    const struct arranged *a = self->context;
    muster_ep *ep = rounds_create(self, &a[0].world->c);
    rounds_exchange(self, ep, a[0].world);
    cluster_barrier(self);
    if (self->rank == 1) {
        muster_ep_destroy(ep);
        cluster_die(self);
    }
    cluster_await_view(self, 3, 0);
    rounds_exchange(self, ep, a[1].world);
    muster_ep_destroy(ep);
}

static void promise_7_exact_does_not_depend_on_who_is_alive(void **state)
{
    (void)state;
    static const struct arrangement four = {4, 3, 1, 2};
    struct arranged a[2];
    arranged_make(&a[0], &exact_bf16, &four, mask_first(4));
    arranged_make(&a[1], &exact_bf16, &four, mask_without(mask_first(4), 1));
    struct cluster_options options = {.ranks = 4, .memory_bytes = rounds_memory_bytes(&a[0].world->c, 1, 4)};
    assert_true(cluster_run(&options, lose_one, a));
    arranged_same(&a[0], &a[1]);
    world_free(a[0].world);
    world_free(a[1].world);
}

/* ---- promise 8: a falsely suspected rank can come back, as a new incarnation ---- */

/* Rank 2 was only slow. When it looks up again the others have gone on; it is told so, and joins anew. */
static muster_ep *come_back(struct cluster_rank *self, muster_ep *ep, uint32_t incarnation)
{
    muster_view view;
    cluster_barrier(self); /* asleep until the others have a view without it */
    muster_status status = MUSTER_OK;
    for (struct pace pace = pace_begin(); status == MUSTER_OK && pace_wall_ms(&pace) < cluster_patience_ms(self);
         cluster_sleep_ms(1))
        status = muster_group_view(self->group, &view);
    expect_in_time(status != MUSTER_OK, "nobody has expelled this rank");
    expect(status == MUSTER_ERR_EVICTED || status == MUSTER_ERR_STORE, "the expelled rank's group says %s",
           muster_status_name(status));
    expect(muster_last_error()[0], "no word about the eviction");
    expect_status(muster_step_begin(self->group, backend_stream()), status, "step_begin of an expelled rank");
    muster_ep_destroy(ep);
    cluster_part(self);
    muster_group_config config = cluster_config(self);
    expect_status(cluster_join(self, &config), MUSTER_OK, "joining again");
    expect(self->incarnation > incarnation, "it came back as incarnation %u after %u", self->incarnation, incarnation);
    return rounds_create(self, &c);
}

static void suspect_and_take_back(struct cluster_rank *self)
{
    const struct stalled *s = self->context;
    muster_ep *ep = rounds_create(self, &c);
    muster_view view = cluster_await_view(self, 3, 0);
    rounds_exchange(self, ep, s->all);
    cluster_barrier(self);
    expect_status(muster_step_begin(self->group, backend_stream()), MUSTER_OK, "step_begin");
    backend_wait();
    cluster_barrier(self);
    if (self->rank == 2) {
        ep = come_back(self, ep, view.incarnation[2]);
    } else {
        struct party *p = party_open(s->all, self->rank);
        expect(failed(party_exchange(p, ep)), "an exchange without rank 2 worked");
        party_close(p);
        void_verdict(self);
        cluster_fence(self->cluster, 2, view.incarnation[2]);
        view = cluster_await_view(self, 2, view.epoch);
        rounds_exchange(self, ep, s->without);
        cluster_barrier(self);
    }
    view = cluster_await_view(self, 3, view.epoch);
    expect(view.incarnation[2] > 1, "rank 2 is back as incarnation %u", view.incarnation[2]);
    cluster_barrier(self);
    rounds_exchange(self, ep, s->all);
    rounds_exchange(self, ep, s->all);
    muster_ep_destroy(ep);
}

static void promise_8_a_suspected_rank_can_come_back(void **state)
{
    (void)state;
    struct world *all = world_make(&c, 3, mask_first(3), 1), *without = world_make(&c, 3, mask_first(2), 2);
    struct cluster_options options = short_deadlines(3);
    struct stalled stalled = {STALL_IN_STEP, all, without};
    assert_true(cluster_run(&options, suspect_and_take_back, &stalled));
    world_free(all);
    world_free(without);
}

/* ---- promise 9: a failed operation says who, where and when (test_ep_arguments has the half about arguments) ---- */

static _Atomic int waits_reported;
static muster_wait_report last_wait;

static void on_wait(void *context, const muster_wait_report *report)
{
    const struct cluster_rank *self = context;
    if (self->rank != 0 || atomic_load(&waits_reported))
        return;
    last_wait = *report;
    atomic_store(&waits_reported, 1);
}

static void expect_said(const char *word)
{
    expect(strstr(muster_last_error(), word), "the error does not say \"%s\": \"%s\"", word, muster_last_error());
}

/* On the host the call says it; on a device the verdict alone does. */
static void wait_in_vain(struct party *p, muster_ep *ep, bool in_combine, uint32_t in_epoch)
{
    char epoch[16];
    if (in_combine)
        party_experts(p);
    muster_status status = in_combine ? party_combine(p, ep) : party_dispatch(p, ep);
    expect_status(status, backend_status(MUSTER_ERR_TIMEOUT), "waiting for a rank that stands still");
    if (test_backend && !in_combine)
        expect_status(party_combine(p, ep), MUSTER_OK, "combine in a void step");
    if (test_backend)
        return;
    snprintf(epoch, sizeof(epoch), "%u", in_epoch);
    expect_said("rank 1");
    expect_said(in_combine ? "combine" : "dispatch");
    expect_said(epoch);
}

static void fail_and_say_why(struct cluster_rank *self)
{
    const struct stalled *s = self->context;
    bool in_combine = s->stall == STALL_AFTER_DISPATCH;
    muster_ep *ep = rounds_create(self, &c);
    struct party *p = party_open(s->all, self->rank);
    muster_view view = cluster_await_view(self, 2, 0);
    cluster_barrier(self);
    expect_status(muster_step_begin(self->group, backend_stream()), MUSTER_OK, "step_begin");
    if (in_combine)
        expect_status(party_dispatch(p, ep), MUSTER_OK, "dispatch");
    backend_wait();
    cluster_barrier(self);
    if (self->rank == 0) {
        wait_in_vain(p, ep, in_combine, view.epoch);
        muster_verdict verdict = void_verdict(self);
        expect(verdict.reason == MUSTER_REASON_TIMEOUT && verdict.peer == 1 && verdict.epoch == view.epoch &&
                   verdict.phase == (in_combine ? MUSTER_PHASE_COMBINE : MUSTER_PHASE_DISPATCH),
               "the verdict says reason %d, peer %d, epoch %u, phase %d", (int)verdict.reason, (int)verdict.peer,
               verdict.epoch, (int)verdict.phase);
        cluster_fence(self->cluster, 1, view.incarnation[1]);
        cluster_await_view(self, 1, view.epoch);
    }
    cluster_barrier(self);
    party_close(p);
    muster_ep_destroy(ep);
}

/* The watchdog sees flags in host memory; into a device it cannot look. */
static void expect_report(muster_phase phase)
{
    if (test_backend)
        return;
    assert_int_equal(atomic_load(&waits_reported), 1);
    assert_string_equal(last_wait.operation, "ep");
    assert_int_equal(last_wait.phase, phase);
    assert_true(mask_equal(last_wait.missing, (muster_mask){{2, 0}}));
    assert_true(last_wait.expected > last_wait.observed[1]);
    assert_true(last_wait.elapsed_us > 0);
}

static void promise_9_a_failed_operation_says_why(void **state)
{
    (void)state;
    struct world *all = world_make(&c, 2, mask_first(2), 1);
    struct cluster_options options = short_deadlines(2);
    options.on_wait = on_wait;
    struct stalled stalled = {STALL_IN_STEP, all, NULL};
    atomic_store(&waits_reported, 0);
    assert_true(cluster_run(&options, fail_and_say_why, &stalled));
    expect_report(MUSTER_PHASE_DISPATCH);
    stalled.stall = STALL_AFTER_DISPATCH;
    atomic_store(&waits_reported, 0);
    assert_true(cluster_run(&options, fail_and_say_why, &stalled));
    expect_report(MUSTER_PHASE_COMBINE);
    world_free(all);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(promise_1_no_call_waits_past_its_deadline),
        cmocka_unit_test(promise_2_a_result_is_exact_for_one_mask_or_void),
        cmocka_unit_test(promise_3_one_mask_per_epoch),
        cmocka_unit_test(promise_4_nothing_old_is_read_as_new),
        cmocka_unit_test(promise_4_memory_waits_for_the_fence),
        cmocka_unit_test(promise_7_exact_does_not_depend_on_placement),
        cmocka_unit_test(promise_7_exact_does_not_depend_on_who_is_alive),
        cmocka_unit_test(promise_8_a_suspected_rank_can_come_back),
        cmocka_unit_test(promise_9_a_failed_operation_says_why),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
