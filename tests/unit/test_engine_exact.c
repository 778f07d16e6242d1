// SPDX-License-Identifier: Apache-2.0
/*
 * Promise 7, for the whole model: the logits at a position are the same bits by decoding, by prefill and by any
 * chunking, in any batch, on 1 to 4 ranks. Every text is read once by one prefill on one rank; the rest is held to that.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdatomic.h>

#include "lib/sharded.h"
#include "test_engine.h"

enum { READERS = 3, BATCH_TOKENS = 40, MAX_RANKS = 4 };

static struct reference reference;

static int make_reference(void **state)
{
    (void)state;
    return reference_make(&reference) ? 0 : -1;
}

/* How the readers of a rank take their texts. */
struct plan {
    int32_t ranks, slots;
    int32_t readers; /* of each rank; reader i of rank r reads text (r + i) % TEXTS */
    int32_t chunk; /* tokens per step; 0: thrown by dice */
    int32_t idle; /* ranks from this one on have no readers at all */
    uint32_t seed;
    atomic_int ended; /* ranks whose readers have come to the end */
};

struct crowd {
    struct reader reader[READERS];
    struct engine_item item[READERS];
    struct reader *in_step[READERS];
    int32_t count;
};

static int32_t choose_chunk(const struct plan *plan, uint32_t *seed, int32_t left, int32_t budget)
{
    int32_t chunk = plan->chunk ? plan->chunk : (int32_t)dice(seed, BATCH_TOKENS + 1);
    chunk = chunk < left ? chunk : left;
    return chunk < budget ? chunk : budget;
}

/* Fills the items of one step; a reader may pause. */
static void choose_items(struct crowd *c, const struct plan *plan, int32_t readers, uint32_t *seed)
{
    int32_t budget = BATCH_TOKENS;
    c->count = 0;
    for (int32_t i = 0; i < readers; i++) {
        struct reader *r = &c->reader[i];
        int32_t chunk = choose_chunk(plan, seed, TEXT_TOKENS - reader_at(r), budget);
        if (chunk == 0)
            continue;
        r->want = plan->chunk ? ENGINE_LOGITS_ALL : (enum engine_logits)dice(seed, 3);
        c->in_step[c->count] = r;
        c->item[c->count++] = reader_item(r, &reference, chunk);
        budget -= chunk;
    }
}

static bool crowd_ended(const struct crowd *c, int32_t readers)
{
    for (int32_t i = 0; i < readers; i++)
        if (reader_at(&c->reader[i]) < TEXT_TOKENS)
            return false;
    return true;
}

static void read_step(struct engine *engine, struct crowd *c, const struct plan *plan, int32_t readers, uint32_t *seed)
{
    choose_items(c, plan, readers, seed);
    expect_status(engine_step(engine, c->item, c->count, NULL), MUSTER_OK, "engine_step");
    for (int32_t i = 0; i < c->count; i++)
        reader_compare(c->in_step[i], &reference, c->item[i].count);
}

static void expect_routes(const struct engine *engine, const struct plan *plan)
{
    struct engine_statistics s;
    engine_statistics(engine, &s);
    expect(s.routes == s.tokens * LAYERS * 4, "%llu routes of %llu tokens", (unsigned long long)s.routes,
           (unsigned long long)s.tokens);
    bool all_here = plan->slots == EXPERTS;
    expect((s.remote_routes == 0) == (all_here || s.tokens == 0), "%llu remote routes",
           (unsigned long long)s.remote_routes);
    expect(s.experts_opened == (uint64_t)plan->slots * LAYERS && s.experts_loaded == 0, "%llu experts loaded",
           (unsigned long long)s.experts_loaded);
}

static void read_function(struct cluster_rank *self)
{
    struct plan *plan = self->context;
    struct crowd *c = calloc(1, sizeof(*c));
    struct engine *engine = engine_start(self, plan->slots, BATCH_TOKENS);
    int32_t readers = self->rank < plan->idle ? plan->readers : 0;
    uint32_t seed = plan->seed * 977 + (uint32_t)self->rank + 1;
    bool told = false;
    for (int32_t i = 0; i < readers; i++) {
        c->reader[i].text = (self->rank + i) % TEXTS;
        expect_status(engine_sequence_new(engine, TEXT_TOKENS, &c->reader[i].sequence), MUSTER_OK, "a sequence");
    }
    /* The barrier lets all ranks see the same count, and so run the same number of steps. */
    for (cluster_barrier(self); atomic_load(&plan->ended) < plan->ranks; cluster_barrier(self)) {
        cluster_barrier(self);
        read_step(engine, c, plan, readers, &seed);
        if (!told && crowd_ended(c, readers)) {
            atomic_fetch_add(&plan->ended, 1);
            told = true;
        }
    }
    expect_routes(engine, plan);
    for (int32_t i = 0; i < readers; i++)
        engine_sequence_free(c->reader[i].sequence);
    engine_close(engine);
    free(c);
}

static void run_plan(struct plan plan)
{
    struct cluster_options options = engine_cluster(plan.ranks, plan.slots, BATCH_TOKENS);
    if (!plan.idle)
        plan.idle = plan.ranks;
    if (!cluster_run(&options, read_function, &plan))
        fail_msg("%d ranks, %d slots, %d readers, chunks of %d, seed %u", plan.ranks, plan.slots, plan.readers,
                 plan.chunk, plan.seed);
}

/* The texts differ, and so do their logits: otherwise equal bits would prove little. */
static void test_reference(void **state)
{
    (void)state;
    for (int a = 0; a < TEXTS; a++)
        for (int b = 0; b < a; b++)
            assert_memory_not_equal(reference.logits[a][40], reference.logits[b][40], sizeof(reference.logits[a][40]));
}

static void test_decoding(void **state)
{
    (void)state;
    run_plan((struct plan){.ranks = 1, .slots = EXPERTS, .readers = 1, .chunk = 1});
    run_plan((struct plan){.ranks = 2, .slots = 16, .readers = 3, .chunk = 1});
}

static void test_chunks(void **state)
{
    (void)state;
    static const int32_t chunks[] = {2, 7, 13, 16, 39};
    for (size_t i = 0; i < sizeof(chunks) / sizeof(chunks[0]); i++)
        run_plan((struct plan){.ranks = 1, .slots = EXPERTS, .readers = 1, .chunk = chunks[i]});
}

static void test_batches_and_ranks(void **state)
{
    (void)state;
    for (int32_t ranks = 1; ranks <= MAX_RANKS; ranks++) {
        int32_t share = (EXPERTS + ranks - 1) / ranks;
        for (uint32_t seed = 1; seed <= 3; seed++)
            run_plan((struct plan){.ranks = ranks, .slots = share, .readers = READERS, .seed = seed});
    }
}

/* More slots than are needed: other copies compute, with the same weights. */
static void test_copies(void **state)
{
    (void)state;
    run_plan((struct plan){.ranks = 3, .slots = 20, .readers = 2, .seed = 4});
    run_plan((struct plan){.ranks = 4, .slots = EXPERTS, .readers = 2, .seed = 5});
}

/* Ranks without any work take part: their experts are needed. */
static void test_idle_ranks(void **state)
{
    (void)state;
    run_plan((struct plan){.ranks = 4, .slots = 8, .readers = 2, .idle = 1, .seed = 6});
}

/* The reference is of one file; here the same tensors lie in three. */
static void test_sharded_checkpoint(void **state)
{
    (void)state;
    char dir[] = "/tmp/muster-test-exact-XXXXXX";
    assert_non_null(mkdtemp(dir));
    sharded_copy(MODEL_DIR, dir, 3);
    engine_model_dir = dir;
    run_plan((struct plan){.ranks = 2, .slots = 16, .readers = READERS, .seed = 7});
    engine_model_dir = MODEL_DIR;
    sharded_remove(dir, 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reference),          cmocka_unit_test(test_decoding), cmocka_unit_test(test_chunks),
        cmocka_unit_test(test_batches_and_ranks),  cmocka_unit_test(test_copies),   cmocka_unit_test(test_idle_ranks),
        cmocka_unit_test(test_sharded_checkpoint),
    };
    return cmocka_run_group_tests(tests, make_reference, NULL);
}
