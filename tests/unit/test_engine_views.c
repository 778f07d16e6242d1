// SPDX-License-Identifier: Apache-2.0
/*
 * View changes under a model: a step that a death makes void leaves no trace, the survivors load what was lost and read
 * on, a rank that comes back takes part again, and every logit is the same bits as in one undisturbed prefill.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdatomic.h>

#include "core/clock.h"
#include "core/mask.h"
#include "state.h"
#include "test_engine.h"

enum { RANKS = 4, VICTIM = 3, CHUNK = 9, PREFIX = 2 * CHUNK };

static struct reference reference;

static int make_reference(void **state)
{
    (void)state;
    return reference_make(&reference) ? 0 : -1;
}

/* ---- A rank that reads its own text ---- */

struct member {
    struct cluster_rank *self;
    struct engine *engine;
    struct reader reader;
};

/* Where a dying rank's engine stays: a rank that dies tidies nothing up. */
static struct member *lost[MUSTER_MAX_RANKS * 8];
static atomic_int lost_count;

static struct member *member_open(struct cluster_rank *self, int32_t slots)
{
    struct member *m = calloc(1, sizeof(*m));
    expect(m != NULL, "no memory");
    m->self = self;
    m->engine = engine_start(self, slots, TEXT_TOKENS);
    m->reader.text = self->rank % TEXTS;
    m->reader.want = ENGINE_LOGITS_ALL;
    expect_status(engine_sequence_new(m->engine, TEXT_TOKENS, &m->reader.sequence), MUSTER_OK, "engine_sequence_new");
    return m;
}

static void member_close(struct member *m)
{
    engine_sequence_free(m->reader.sequence);
    engine_close(m->engine);
    free(m);
}

static void member_die(struct member *m)
{
    lost[atomic_fetch_add(&lost_count, 1)] = m;
    cluster_die(m->self);
}

/* One step that must be good. */
static void member_read(struct member *m, int32_t count)
{
    struct engine_item item = reader_item(&m->reader, &reference, count);
    cluster_at("engine_step");
    expect_status(engine_step(m->engine, count ? &item : NULL, count != 0, NULL), MUSTER_OK, "engine_step");
    reader_compare(&m->reader, &reference, count);
}

static void member_read_to_end(struct member *m)
{
    while (reader_at(&m->reader) < TEXT_TOKENS) {
        int32_t left = TEXT_TOKENS - reader_at(&m->reader);
        member_read(m, left < CHUNK ? left : CHUNK);
    }
}

/* One step that a death makes void: nothing that the caller can see may have changed. */
static void member_read_in_vain(struct member *m)
{
    int32_t before = reader_at(&m->reader);
    muster_verdict verdict = {0};
    struct engine_item item = reader_item(&m->reader, &reference, CHUNK);
    cluster_at("a step that becomes void");
    muster_status status = engine_step(m->engine, &item, 1, &verdict);
    expect(status == MUSTER_ERR_PEER || status == MUSTER_ERR_VOID, "the step gave %s", muster_status_name(status));
    expect(verdict.status == status && verdict.step > 0, "the verdict says %s", muster_status_name(verdict.status));
    expect(reader_at(&m->reader) == before, "the sequence has grown to %d", reader_at(&m->reader));
    uint32_t untouched = 0xffffffff;
    for (int v = 0; v < VOCABULARY; v++)
        expect(memcmp(&m->reader.logits[0][v], &untouched, 4) == 0, "logits were written");
    expect(muster_step_verdict(m->self->group, &verdict) == MUSTER_ERR_AGAIN, "the verdict was left in the queue");
}

static void member_await(struct member *m, int32_t active)
{
    muster_view view = {0};
    struct pace pace = pace_begin();
    cluster_at("waiting for a view");
    while (!view.ready || view.active != active) {
        muster_status status = engine_wait_ready(m->engine, 5000);
        expect(status == MUSTER_OK || status == MUSTER_ERR_AGAIN, "engine_wait_ready: %s", muster_last_error());
        expect_status(muster_group_view(m->self->group, &view), MUSTER_OK, "muster_group_view");
        expect(pace_wall_ms(&pace) < PACE_PATIENCE_MS, "no ready view of %d ranks: %d active in epoch %u", active,
               view.active, view.epoch);
    }
}

static uint64_t member_loaded(const struct member *m)
{
    struct engine_statistics s;
    engine_statistics(m->engine, &s);
    return s.experts_loaded;
}

/* ---- Deaths ---- */

struct death {
    int32_t slots;
    int32_t layer; /* before whose dispatch the victim dies; -1: it does not begin the step */
    uint64_t orphans; /* experts of a layer that had their only copy on the victim */
    atomic_ullong loaded; /* by all survivors */
};

/* Takes part in the step without tokens, up to one layer; there its peers wait for it in vain. */
static void die_in_layer(struct member *m, int32_t layer)
{
    m->engine->batch.count = 0;
    expect_status(muster_step_begin(m->self->group, NULL), MUSTER_OK, "muster_step_begin");
    for (int32_t l = 0; l < layer; l++)
        expect_status(experts_layer(m->engine, l), MUSTER_OK, "a layer");
    member_die(m);
}

static void death_function(struct cluster_rank *self)
{
    struct death *d = self->context;
    struct member *m = member_open(self, d->slots);
    while (reader_at(&m->reader) < PREFIX)
        member_read(m, CHUNK);
    cluster_barrier(self); /* everybody's step is good: a death could still make it void for some */
    if (self->rank == VICTIM && d->layer < 0)
        member_die(m);
    if (self->rank == VICTIM)
        die_in_layer(m, d->layer);
    member_read_in_vain(m);
    member_await(m, RANKS - 1);
    atomic_fetch_add(&d->loaded, member_loaded(m));
    member_read_to_end(m);
    member_close(m);
}

/* Experts whose every copy is on a rank outside the mask. */
static uint64_t count_orphans(int32_t slots, muster_mask mask)
{
    int32_t table[RANKS * EXPERTS];
    uint64_t orphans = 0;
    assert_int_equal(muster_placement_initial(EXPERTS, RANKS, slots, mask_first(RANKS), table), MUSTER_OK);
    for (int32_t expert = 0; expert < EXPERTS; expert++) {
        int32_t copies = 0;
        for (int32_t s = 0; s < RANKS * slots; s++)
            copies += table[s] == expert && mask_has(mask, s / slots);
        orphans += copies == 0;
    }
    return orphans;
}

/* Nothing moves but what was lost: the survivors load each orphan once, in every layer. */
static void run_death(int32_t slots, int32_t layer)
{
    struct death d = {.slots = slots, .layer = layer};
    struct cluster_options options = engine_cluster(RANKS, slots, TEXT_TOKENS);
    uint64_t orphans = count_orphans(slots, mask_without(mask_first(RANKS), VICTIM));
    if (!cluster_run(&options, death_function, &d))
        fail_msg("%d slots, death in layer %d", slots, layer);
    assert_int_equal(atomic_load(&d.loaded), orphans * LAYERS);
}

static void test_death_before_step(void **state)
{
    (void)state;
    assert_true(count_orphans(11, mask_without(mask_first(RANKS), VICTIM)) > 0);
    run_death(11, -1);
}

static void test_death_in_each_layer(void **state)
{
    (void)state;
    for (int32_t layer = 0; layer < LAYERS; layer++)
        run_death(11, layer);
}

/* With a copy of everything elsewhere nothing is loaded. */
static void test_death_with_copies(void **state)
{
    (void)state;
    assert_int_equal(count_orphans(16, mask_without(mask_first(RANKS), VICTIM)), 0);
    run_death(16, 2);
}

/* ---- Two deaths, one after the other ---- */

static void two_deaths_function(struct cluster_rank *self)
{
    struct member *m = member_open(self, 16);
    member_read(m, CHUNK);
    cluster_barrier(self);
    if (self->rank == 1)
        die_in_layer(m, 1);
    member_read_in_vain(m);
    member_await(m, 3);
    member_read(m, CHUNK);
    cluster_barrier(self);
    if (self->rank == 0)
        die_in_layer(m, 3);
    member_read_in_vain(m);
    member_await(m, 2);
    expect(member_loaded(m) > 0, "nothing was loaded");
    member_read_to_end(m);
    member_close(m);
}

static void test_two_deaths(void **state)
{
    (void)state;
    struct cluster_options options = engine_cluster(RANKS, 16, TEXT_TOKENS);
    assert_true(cluster_run(&options, two_deaths_function, NULL));
}

/* ---- A rank leaves and comes back ---- */

static void return_function(struct cluster_rank *self)
{
    struct member *m = member_open(self, 11);
    member_read(m, CHUNK);
    cluster_barrier(self); /* nobody is in a step: the leave makes none void */
    if (self->rank == VICTIM) {
        member_close(m);
        cluster_part(self);
    } else {
        member_await(m, RANKS - 1);
        member_read(m, CHUNK);
        atomic_fetch_add((atomic_ullong *)self->context, member_loaded(m));
    }
    cluster_barrier(self);
    if (self->rank == VICTIM) {
        muster_group_config config = cluster_config(self);
        cluster_at("coming back");
        expect_status(cluster_join(self, &config), MUSTER_OK, "muster_group_create");
        expect(self->incarnation == 2, "incarnation %u", self->incarnation);
        m = member_open(self, 11);
    }
    member_await(m, RANKS);
    cluster_barrier(self); /* all begin the first step of the new view */
    /* The one that came back has more to read; the others take part until it has come to the end. */
    for (int32_t step = 0; step * CHUNK < TEXT_TOKENS; step++) {
        int32_t left = TEXT_TOKENS - reader_at(&m->reader);
        member_read(m, left < CHUNK ? left : CHUNK);
    }
    expect(reader_at(&m->reader) == TEXT_TOKENS, "read %d tokens", reader_at(&m->reader));
    struct engine_statistics s;
    engine_statistics(m->engine, &s);
    expect(s.remote_routes > 0 && s.void_steps == 0, "%llu remote routes, %llu void steps",
           (unsigned long long)s.remote_routes, (unsigned long long)s.void_steps);
    member_close(m);
}

static void test_return(void **state)
{
    (void)state;
    struct cluster_options options = engine_cluster(RANKS, 11, TEXT_TOKENS);
    atomic_ullong loaded = 0;
    assert_true(cluster_run(&options, return_function, &loaded));
    assert_true(atomic_load(&loaded) > 0);
}

/* ---- A same-mask epoch ---- */

static void abort_function(struct cluster_rank *self)
{
    struct member *m = member_open(self, 8);
    muster_view view;
    member_read(m, CHUNK);
    expect_status(muster_group_view(self->group, &view), MUSTER_OK, "muster_group_view");
    uint32_t before = view.epoch;
    cluster_barrier(self);
    if (self->rank == 1)
        expect_status(muster_group_abort(self->group), MUSTER_OK, "muster_group_abort");
    for (struct pace pace = pace_begin(); view.epoch == before; cluster_sleep_ms(1)) {
        expect_status(muster_group_view(self->group, &view), MUSTER_OK, "muster_group_view");
        expect(pace_wall_ms(&pace) < PACE_PATIENCE_MS, "no new epoch came");
    }
    member_await(m, RANKS);
    cluster_barrier(self);
    expect(member_loaded(m) == 0, "experts were loaded though nobody left");
    member_read_to_end(m);
    member_close(m);
}

static void test_same_mask_epoch(void **state)
{
    (void)state;
    struct cluster_options options = engine_cluster(RANKS, 8, TEXT_TOKENS);
    assert_true(cluster_run(&options, abort_function, NULL));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_death_before_step),
        cmocka_unit_test(test_death_in_each_layer),
        cmocka_unit_test(test_death_with_copies),
        cmocka_unit_test(test_two_deaths),
        cmocka_unit_test(test_return),
        cmocka_unit_test(test_same_mask_epoch),
    };
    return cmocka_run_group_tests(tests, make_reference, NULL);
}
