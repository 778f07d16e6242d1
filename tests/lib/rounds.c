// SPDX-License-Identifier: Apache-2.0
#include "lib/rounds.h"

#include <stdlib.h>

#include "core/mask.h"
#include "lib/backend.h"

struct rounds {
    const struct exchange_case *cases;
    int count;
    int rounds;
    bool delay;
    struct world **worlds; /* [count][rounds] */
};

uint64_t rounds_memory_bytes(const struct exchange_case *cases, int count, int ranks)
{
    uint64_t sum = 0;
    for (int i = 0; i < count; i++) {
        muster_ep_config config = case_config(&cases[i]);
        uint64_t bytes = 0;
        expect_status(muster_ep_memory_bytes(&config, ranks, &bytes), MUSTER_OK, cases[i].name);
        sum += bytes;
    }
    return sum;
}

muster_ep *rounds_create(struct cluster_rank *self, const struct exchange_case *c)
{
    muster_ep *ep = NULL;
    muster_ep_config config = case_config(c);
    cluster_at(c->name);
    expect_status(muster_ep_create(self->group, &config, &ep), MUSTER_OK, "muster_ep_create");
    return ep;
}

void rounds_wait_sent(const struct exchange_case *c)
{
    if (!test_backend || c->layout != MUSTER_EP_FLAT)
        backend_wait();
}

static void expect_good(struct cluster_rank *self, struct party *p, muster_status status)
{
    expectation(status)(status == MUSTER_OK, "%s: exchange gave %s: %s %s", p->world->c.name,
                        muster_status_name(status), muster_last_error(), p->why);
    muster_verdict verdict = cluster_verdict(self);
    expectation(verdict.status)(verdict.status == MUSTER_OK, "%s: verdict %s, reason %d", p->world->c.name,
                                muster_status_name(verdict.status), (int)verdict.reason);
    for (int r = 0; r < p->world->ranks; r++) {
        expect_in_time(p->world->c.masked || !p->world->in[r].active || mask_has(verdict.mask, r),
                       "rank %d was expelled", r);
        expect(p->world->c.masked || mask_has(verdict.mask, r) == p->world->in[r].active,
               "verdict's mask is wrong at rank %d", r);
    }
    expect(party_right(p), "%s", p->why);
    party_close(p);
}

void rounds_exchange(struct cluster_rank *self, muster_ep *ep, const struct world *world)
{
    struct party *p = party_open(world, self->rank);
    muster_status status = party_exchange(p, ep);
    expect_good(self, p, status);
}

static void exchange_in_step(struct cluster_rank *self, muster_ep *ep, const struct world *world)
{
    struct party *p = party_open(world, self->rank);
    expect_status(muster_step_begin(self->group, backend_stream()), MUSTER_OK, "muster_step_begin");
    muster_status status = party_exchange(p, ep);
    expect_status(muster_step_end(self->group, backend_stream()), MUSTER_OK, "muster_step_end");
    backend_wait();
    expect_good(self, p, status);
}

static void rounds_rank(struct cluster_rank *self)
{
    const struct rounds *r = self->context;
    for (int i = 0; i < r->count; i++) {
        muster_ep *ep = rounds_create(self, &r->cases[i]);
        for (int round = 0; round < r->rounds; round++) {
            const struct world *world = r->worlds[i * r->rounds + round];
            if (r->delay && round % world->ranks == self->rank)
                cluster_sleep_ms(5);
            if (round % 2 == 0)
                rounds_exchange(self, ep, world);
            else
                exchange_in_step(self, ep, world);
        }
        muster_ep_destroy(ep);
    }
}

bool rounds_run(int ranks, const struct exchange_case *cases, int count, int rounds, bool delay)
{
    if (!backend_has_ranks(ranks))
        return true;
    struct rounds r = {.cases = cases, .count = count, .rounds = rounds, .delay = delay};
    struct cluster_options options = {.ranks = ranks, .memory_bytes = rounds_memory_bytes(cases, count, ranks)};
    r.worlds = calloc((size_t)(count * rounds), sizeof(struct world *));
    expect(r.worlds, "out of memory");
    for (int i = 0; i < count * rounds; i++)
        r.worlds[i] = world_make(&cases[i / rounds], ranks, mask_first(ranks), (uint64_t)(1000 * ranks + i));
    bool good = cluster_run(&options, rounds_rank, &r);
    for (int i = 0; i < count * rounds; i++)
        world_free(r.worlds[i]);
    free(r.worlds);
    return good;
}
