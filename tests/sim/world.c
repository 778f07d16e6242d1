// SPDX-License-Identifier: Apache-2.0
/* Time, the heap of events, and the run of one seed. */
#include "world.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void *world_grow(void *array, int *space, size_t size)
{
    *space = *space ? *space * 2 : 256;
    array = realloc(array, (size_t)*space * size);
    if (!array) {
        fputs("muster_sim: out of memory\n", stderr);
        exit(2);
    }
    return array;
}

static bool world_before(const struct sim_event *a, const struct sim_event *b)
{
    return a->at_ns != b->at_ns ? a->at_ns < b->at_ns : a->sequence < b->sequence;
}

static void world_insert(struct world *w, struct sim_event event)
{
    int i = w->heap_count++;
    for (int parent; i > 0 && world_before(&event, &w->heap[parent = (i - 1) / 2]); i = parent)
        w->heap[i] = w->heap[parent];
    w->heap[i] = event;
}

void world_post(struct world *w, uint64_t at_ns, struct sim_event event)
{
    event.at_ns = at_ns;
    event.sequence = w->sequence++;
    if (w->heap_count == w->heap_space)
        w->heap = world_grow(w->heap, &w->heap_space, sizeof *w->heap);
    world_insert(w, event);
}

/* Timers are due by the clock, which goes on; everything else comes later by what was lost. */
void world_freeze(struct world *w, uint64_t length_ns)
{
    int count = w->heap_count;
    w->heap_count = 0;
    for (int i = 0; i < count; i++) {
        struct sim_event event = w->heap[i];
        uint64_t thawed_ns = w->now_ns + length_ns;
        bool timer = event.type == EVENT_TICK;
        event.at_ns += !timer ? length_ns : event.at_ns < thawed_ns ? thawed_ns - event.at_ns : 0;
        world_insert(w, event);
    }
    w->plan.heal_ns += length_ns;
}

static struct sim_event world_take(struct world *w)
{
    struct sim_event first = w->heap[0];
    struct sim_event last = w->heap[--w->heap_count];
    int i = 0;
    for (int child; (child = 2 * i + 1) < w->heap_count; i = child) {
        if (child + 1 < w->heap_count && world_before(&w->heap[child + 1], &w->heap[child]))
            child++;
        if (world_before(&last, &w->heap[child]))
            break;
        w->heap[i] = w->heap[child];
    }
    w->heap[i] = last;
    return first;
}

int world_keep_view(struct world *w, const struct view *view)
{
    if (w->views == w->view_space)
        w->view = world_grow(w->view, &w->view_space, sizeof *w->view);
    w->view[w->views] = *view;
    return w->views++;
}

int world_keep_record(struct world *w, const struct record *record)
{
    if (w->records == w->record_space)
        w->record = world_grow(w->record, &w->record_space, sizeof *w->record);
    w->record[w->records] = *record;
    return w->records++;
}

struct process *world_find(struct world *w, int rank, uint32_t incarnation)
{
    for (int i = 0; i < w->processes; i++)
        if (w->process[i].rank == rank && w->process[i].incarnation == incarnation)
            return &w->process[i];
    return NULL;
}

void world_create(struct world *w)
{
    memset(w, 0, sizeof *w);
}

void world_destroy(struct world *w)
{
    for (int i = 0; i < SIM_MAX_PROCESSES; i++)
        free(w->process[i].backlog);
    free(w->heap);
    free(w->view);
    free(w->record);
}

/* Forgets the run before, keeps the memory. */
static void world_reset(struct world *w, uint64_t seed)
{
    w->seed = seed;
    w->now_ns = SIM_MS;
    w->net = random_stream(seed, 1);
    w->work = random_stream(seed, 2);
    w->os = random_stream(seed, 3);
    w->healed = w->restarted = w->over = false;
    w->restarted_ns = w->healed_ns = w->bound_ns = w->continued_ns = w->thawed_ns = 0;
    w->heap_count = w->views = w->records = w->processes = 0;
    w->sequence = w->revision = w->view_revision = 0;
    w->view_value = -1;
    w->events = 0;
    w->failure = NULL;
    w->failed_process = -1;
    for (int r = 0; r < SIM_MAX_RANKS; r++) {
        w->record_value[r] = -1;
        w->presence[r] = w->fenced[r] = w->expelled[r] = 0;
    }
    memset(w->trap_count, 0, sizeof w->trap_count);
    memset(w->epoch, 0, (size_t)w->epochs * sizeof *w->epoch);
    w->epochs = 0;
}

/* What happens where: at the store, to a process from outside, or in it. */
void world_handle(struct world *w, const struct sim_event *event)
{
    struct process *p = event->process >= 0 ? &w->process[event->process] : NULL;
    if (event->type == EVENT_FAULT)
        fault_apply(w, event->value);
    else if (event->type == EVENT_COME)
        fault_come(w, event->rank);
    else if (event->type == EVENT_HEAL)
        fault_heal(w);
    else if (event->type <= EVENT_REAPED)
        store_handle(w, event);
    else if (p->alive && event->type == EVENT_KILL)
        process_exit(w, p);
    else if (p->alive && event->type == EVENT_PAUSE)
        fault_pause(w, p, w->plan.fault[event->value].length_ns);
    else if (p->alive && event->type == EVENT_CONTINUE)
        process_continue(w, p);
    else if (p->alive)
        process_handle(w, p, event);
}

/* The safety phase lasts until everything has been healed; then the group has a stated time to come together. */
static void world_loop(struct world *w)
{
    while (!w->failure && !w->over && w->heap_count > 0) {
        struct sim_event event = world_take(w);
        w->now_ns = event.at_ns;
        w->events++;
        check_clock(w);
        if (!w->failure)
            world_handle(w, &event);
        if (!w->failure && w->healed && check_converged(w))
            w->over = true;
    }
    if (!w->failure && !w->over)
        check_fail(w, NULL, "liveness: nothing is left to happen, and the group has not come together");
}

/* How it ended; a run in which nobody is left proves less. */
static void world_count(const struct world *w)
{
    int running = 0;
    for (int i = 0; i < w->processes; i++)
        running += process_runs(&w->process[i]);
    tally.schedules++;
    tally.events += w->events;
    tally.restarted += w->restarted;
    if (w->failure || w->restarted)
        return;
    tally.nobody += running == 0;
    tally.alone += running == 1;
    tally.together += running > 1;
    if (w->now_ns - w->healed_ns > tally.slowest_ns) {
        tally.slowest_ns = w->now_ns - w->healed_ns;
        tally.slowest_seed = w->seed;
    }
}

void world_run(struct world *w, uint64_t seed, int ranks)
{
    world_reset(w, seed);
    plan_draw(&w->plan, seed, ranks);
    for (int r = 0; r < w->plan.ranks; r++)
        process_spawn(w, r);
    for (int i = 0; i < w->plan.faults; i++)
        if (w->plan.fault[i].at_ns != SIM_NEVER)
            world_post(w, w->plan.fault[i].at_ns, (struct sim_event){.type = EVENT_FAULT, .process = -1, .value = i});
    world_post(w, w->plan.heal_ns, (struct sim_event){.type = EVENT_HEAL, .process = -1});
    world_loop(w);
    world_count(w);
}
