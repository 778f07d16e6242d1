// SPDX-License-Identifier: Apache-2.0
/*
 * Agents and the agreement among them, reduced to what they promise; and the parts of a group that the shipped steps
 * and exchanges call.
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/error.h"
#include "core/trace.h"
#include "sim_memory/sim.h"

enum { TICK_US = 8, PATIENCE_US = 4000 };

static struct sim_rank *rank_of(const muster_group *g)
{
    return &sim.rank[g->config.rank];
}

static bool runs(int rank)
{
    return sim.rank[rank].life == SIM_RUNS;
}

/* --------------------------------------------------------------------------------------------------------- creation */

static void group_init(struct sim_rank *rank, uint64_t bytes)
{
    muster_group *g = &rank->group;
    memset(g, 0, sizeof(*g));
    g->config.rank = rank->rank;
    g->config.ranks = sim.ranks;
    g->config.memory_bytes = bytes;
    g->pid = getpid();
    pthread_mutex_init(&g->lock, NULL);
    g->region.base = rank->region;
    g->step.kernel.control = &g->control;
    g->step.kernel.rank = rank->rank;
    g->step.kernel.ranks = sim.ranks;
    g->step.kernel.peers = g->step.peers;
    atomic_store(&g->control.operation_timeout_ns, sim.operation_timeout_ns);
    atomic_store(&g->control.step_timeout_ns, sim.step_timeout_ns);
    g->control.spin = 3;
}

static void install(struct sim_rank *rank)
{
    muster_group *g = &rank->group;
    for (int r = 0; r < sim.ranks; r++)
        g->mapping[r].base = mask_has(sim.mask, r) ? sim.rank[r].region : NULL;
    g->begun_mask = sim.mask;
    g->view =
        (muster_view){.epoch = sim.committed, .ranks = sim.ranks, .active = mask_count(sim.mask), .mask = sim.mask};
    rank->installed = sim.committed;
}

void control_init(void)
{
    sim.mask = mask_first(sim.ranks);
    for (int r = 0; r < sim.ranks; r++) {
        struct sim_rank *rank = &sim.rank[r];
        group_init(rank, program_memory_bytes());
        atomic_store(&rank->group.control.live_epoch, sim.committed);
        rank->raised = rank->acknowledged = rank->ready = sim.committed;
        install(rank);
        atomic_store(&rank->group.begun, sim.committed);
        rank->tick_ns = random_below(&sim.agents, TICK_US * SIM_US);
    }
}

/* ----------------------------------------------------------------------------------------------------------- agents */

/* What the rank does from here on nobody will see; what it has stored still arrives, until it is fenced. */
void control_kill(struct sim_rank *rank)
{
    if (rank->life != SIM_RUNS)
        return;
    sim_say("rank %d dies", rank->rank);
    rank->life = SIM_DEAD;
    rank->stopped_ns = 0;
    sim.deaths++;
}

/* Nothing of it executes and its peers are unmapped: but for what it has stored before, it is as good as fenced. */
void control_leave(struct sim_rank *rank)
{
    sim_say("rank %d leaves", rank->rank);
    rank->life = SIM_GONE;
}

static void agent_take_mail(struct sim_rank *rank)
{
    struct group_mail mail = rank->group.mail;
    rank->group.mail = (struct group_mail){0};
    if (mail.failed_epoch == sim.committed || mail.overdue_epoch == sim.committed)
        sim.end_wanted = true;
    if (mail.overdue_epoch != sim.committed)
        return;
    for (int r = mask_next(mail.overdue, 0); r >= 0; r = mask_next(mail.overdue, r + 1))
        if (sim.rank[r].stopped_ns) /* a rank that only was slow says what it waits for, and is spared */
            control_kill(&sim.rank[r]);
}

static bool flags_have_come(const struct watchdog_operation *o)
{
    for (int r = mask_next(o->mask, 0); r >= 0; r = mask_next(o->mask, r + 1))
        if (atomic_load(o->child->flag(o->child, o->phase, r)) < o->stamp)
            return false;
    return true;
}

static void agent_raise(struct sim_rank *rank)
{
    const struct kernel_control *control = &rank->group.control;
    bool waits = atomic_load(&control->waiting_for[0]) != 0;
    if (waits && flags_have_come(&rank->watched)) {
        rank->complete = rank->watched.phase;
        rank->complete_step = rank->group.step.total;
    }
    atomic_store(&rank->group.begun, 0);
    atomic_store(&rank->group.control.live_epoch, sim.preparing);
    rank->raised = sim.preparing;
}

static bool all_are_ready(void)
{
    for (int r = mask_next(sim.mask, 0); r >= 0; r = mask_next(sim.mask, r + 1))
        if (sim.rank[r].ready != sim.committed)
            return false;
    return true;
}

static bool agent_may_be_ready(const struct sim_rank *rank)
{
    const muster_group *g = &rank->group;
    return atomic_load(&g->control.live_epoch) == sim.committed && !atomic_load(&g->step_open) &&
           !atomic_load(&g->unread_void);
}

static void agent_follow_commit(struct sim_rank *rank)
{
    if (rank->installed != sim.committed)
        install(rank);
    else if (rank->ready != sim.committed && agent_may_be_ready(rank))
        rank->ready = sim.committed;
    else if (atomic_load(&rank->group.begun) == 0 && rank->ready == sim.committed && all_are_ready() &&
             atomic_load(&rank->group.control.live_epoch) == sim.committed && !sim.end_wanted)
        atomic_store(&rank->group.begun, sim.committed);
}

static void agent_tick(struct sim_rank *rank)
{
    rank->tick_ns = sim.now_ns + 1 + random_below(&sim.agents, TICK_US * SIM_US);
    if (rank->stopped_ns || !mask_has(sim.mask, rank->rank))
        return;
    agent_take_mail(rank);
    if (sim.now_ns < sim.faults_end_ns && random_chance(&sim.faults, sim.aborts))
        sim.end_wanted = true;
    if (sim.preparing && mask_has(sim.prepared_mask, rank->rank) && rank->raised != sim.preparing)
        agent_raise(rank);
    else if (rank->acknowledged != rank->raised && !atomic_load(&rank->group.executing))
        rank->acknowledged = rank->raised;
    else if (!sim.preparing)
        agent_follow_commit(rank);
}

/* -------------------------------------------------------------------------------------------------------- agreement */

static muster_mask living(muster_mask mask)
{
    for (int r = mask_next(mask, 0); r >= 0; r = mask_next(mask, r + 1))
        if (!runs(r))
            mask = mask_without(mask, r);
    return mask;
}

static void prepare(void)
{
    muster_mask from = sim.preparing ? sim.prepared_mask : sim.mask;
    sim.preparing = (sim.preparing ? sim.preparing : sim.committed) + 1;
    sim.prepared_mask = living(from);
    sim.prepared_ns = sim.now_ns;
    sim_say("epoch %u is prepared for mask %llx", sim.preparing, (unsigned long long)sim.prepared_mask.word[0]);
}

/* A rank is fenced when it has exited: then all it ever stored has arrived. */
static void fence_the_dead(void)
{
    for (int r = 0; r < sim.ranks; r++)
        if ((sim.rank[r].life == SIM_DEAD || sim.rank[r].life == SIM_GONE) && !sim_stores_pending(r))
            sim.rank[r].life = SIM_FENCED;
}

static bool may_commit(void)
{
    for (int r = 0; r < sim.ranks; r++) {
        const struct sim_rank *rank = &sim.rank[r];
        if (mask_has(sim.prepared_mask, r) ? rank->acknowledged != sim.preparing : rank->life != SIM_FENCED)
            return false;
    }
    return true;
}

static void commit(void)
{
    sim.committed = sim.preparing;
    sim.mask = sim.prepared_mask;
    sim.preparing = 0;
    sim.end_wanted = false;
    sim.views++;
    sim_hash(sim.committed);
    sim_say("epoch %u is committed", sim.committed);
}

/* A member that does not acknowledge in time is a suspect. Only a stopped one can be that late. */
static void lose_patience(void)
{
    for (int r = mask_next(sim.prepared_mask, 0); r >= 0; r = mask_next(sim.prepared_mask, r + 1))
        if (sim.rank[r].acknowledged != sim.preparing && sim.rank[r].stopped_ns)
            control_kill(&sim.rank[r]);
}

static void coordinate(void)
{
    sim.coordinator_ns = sim.now_ns + 1 + random_below(&sim.agents, 2 * TICK_US * SIM_US);
    fence_the_dead();
    muster_mask members = sim.preparing ? sim.prepared_mask : sim.mask;
    bool lost = !mask_equal(living(members), members);
    if (lost || (sim.end_wanted && !sim.preparing))
        prepare();
    else if (sim.preparing && may_commit())
        commit();
    else if (sim.preparing && sim.now_ns - sim.prepared_ns > PATIENCE_US * SIM_US)
        lose_patience();
}

uint64_t control_next_ns(void)
{
    uint64_t next = sim.coordinator_ns;
    for (int r = 0; r < sim.ranks; r++)
        if (runs(r) && sim.rank[r].tick_ns < next)
            next = sim.rank[r].tick_ns;
    return next;
}

void control_run(void)
{
    if (sim.coordinator_ns <= sim.now_ns)
        coordinate();
    for (int r = 0; r < sim.ranks; r++)
        if (runs(r) && sim.rank[r].tick_ns <= sim.now_ns)
            agent_tick(&sim.rank[r]);
}

/* ------------------------------------------------------------------------- the group, as steps and exchanges see it */

void agent_wake(muster_group *g)
{
    rank_of(g)->tick_ns = sim.now_ns + random_below(&sim.agents, SIM_US);
}

void group_epoch_failed(muster_group *g, uint32_t epoch)
{
    uint32_t expected = epoch;
    if (epoch)
        atomic_compare_exchange_strong(&g->begun, &expected, 0);
}

bool group_is_forked(const muster_group *g)
{
    (void)g;
    return false;
}

muster_status group_check(muster_group *g)
{
    (void)g;
    return MUSTER_OK;
}

int32_t group_ranks(const muster_group *g)
{
    return g->config.ranks;
}

int32_t muster_group_rank(const muster_group *g)
{
    return g->config.rank;
}

muster_status muster_group_view(const muster_group *g, muster_view *view)
{
    *view = g->view;
    return MUSTER_OK;
}

uint64_t group_first_sequence(const muster_group *g)
{
    (void)g;
    return sim.first_sequence;
}

unsigned char *group_memory_base(const muster_group *g)
{
    return g->region.base;
}

muster_status group_memory_take(muster_group *g, uint64_t bytes, uint64_t *offset)
{
    *offset = sizeof(struct region_header) + g->region_used;
    g->region_used += bytes;
    return g->region_used <= g->config.memory_bytes
               ? MUSTER_OK
               : error_set(MUSTER_ERR_MEMORY, "%llu bytes are too many", (unsigned long long)bytes);
}

muster_status group_object_create(muster_group *g, const char *kind, const char *fields, uint64_t bytes,
                                  struct group_object *object)
{
    (void)kind;
    (void)fields;
    object->number = g->objects++;
    return group_memory_take(g, bytes, &object->offset);
}

void group_object_destroy(muster_group *g, const struct group_object *object)
{
    (void)g;
    (void)object;
}

void group_count_step(muster_group *g, bool good)
{
    (void)g;
    (void)good;
}

void group_add_child(muster_group *g, struct group_child *child)
{
    child->next = g->children;
    g->children = child;
}

void group_remove_child(muster_group *g, struct group_child *child)
{
    for (struct group_child **link = &g->children; *link; link = &(*link)->next)
        if (*link == child) {
            *link = child->next;
            return;
        }
}

void group_watch(muster_group *g, const struct group_child *child, muster_phase phase, uint64_t stamp, muster_mask mask)
{
    rank_of(g)->watched = (struct watchdog_operation){.child = child, .phase = phase, .stamp = stamp, .mask = mask};
    for (int r = mask_next(mask, 0); r >= 0; r = mask_next(mask, r + 1))
        sim_hash(stamp ^ (uint64_t)(child->flag(child, phase, r) != NULL));
}

void trace_add(enum trace_kind kind, uint64_t start_ns, uint64_t duration_ns, uint64_t argument)
{
    (void)kind;
    (void)start_ns;
    (void)duration_ns;
    (void)argument;
}
