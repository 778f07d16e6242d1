// SPDX-License-Identifier: Apache-2.0
/*
 * The store: requests of one process arrive in order, each takes effect at one moment, and every client hears of every
 * change in the order in which they took effect. Replies to a swap travel apart from the changes, and get lost or
 * doubled.
 */
#include "world.h"

static uint64_t store_delay(struct world *w)
{
    const struct plan *plan = &w->plan;
    uint64_t most_ns = w->healed ? 800 * SIM_US : plan->delay_ns;
    if (!w->healed && random_chance(&w->net, plan->spike_permille)) {
        tally.faults[SIM_DELAY]++;
        most_ns *= 10;
    }
    return random_between(&w->net, 20 * SIM_US, most_ns);
}

void store_request(struct world *w, struct process *p, struct sim_event event)
{
    uint64_t at_ns = w->now_ns + store_delay(w);
    if (at_ns < p->request_ns)
        at_ns = p->request_ns;
    p->request_ns = at_ns;
    event.process = p->id;
    world_post(w, at_ns, event);
}

/* ---- To the clients ---- */

static void store_send(struct world *w, struct process *p, struct sim_event event)
{
    uint64_t at_ns = w->now_ns + store_delay(w);
    if (at_ns < p->stream_ns)
        at_ns = p->stream_ns;
    p->stream_ns = at_ns;
    event.process = p->id;
    world_post(w, at_ns, event);
}

static void store_broadcast(struct world *w, struct sim_event event)
{
    w->revision++;
    for (int i = 0; i < w->processes; i++)
        if (w->process[i].connected && w->process[i].alive)
            store_send(w, &w->process[i], event);
}

static struct sim_event store_view_event(const struct world *w)
{
    return (struct sim_event){.type = EVENT_VIEW, .value = w->view_value, .revision = w->view_revision};
}

static void store_send_all(struct world *w, struct process *p)
{
    for (int r = 0; r < w->plan.ranks; r++) {
        if (w->fenced[r])
            store_send(w, p, (struct sim_event){.type = EVENT_FENCED, .rank = r, .incarnation = w->fenced[r]});
        if (w->presence[r])
            store_send(
                w, p, (struct sim_event){.type = EVENT_PRESENCE, .rank = r, .incarnation = w->presence[r], .ok = true});
        if (w->record_value[r] >= 0)
            store_send(w, p, (struct sim_event){.type = EVENT_RECORD, .rank = r, .value = w->record_value[r]});
    }
    if (w->view_value >= 0)
        store_send(w, p, store_view_event(w));
}

static bool store_loses(struct world *w)
{
    bool lost = !w->healed && random_chance(&w->net, w->plan.lost_permille);
    tally.faults[SIM_LOST_REPLY] += lost;
    return lost;
}

/* A reply is lost, comes, or comes twice; the second one late. */
static void store_reply(struct world *w, struct process *p, struct sim_event event)
{
    event.process = p->id;
    if (store_loses(w))
        return;
    world_post(w, w->now_ns + store_delay(w), event);
    if (w->healed || !random_chance(&w->net, w->plan.double_permille))
        return;
    tally.faults[SIM_DOUBLE_REPLY]++;
    world_post(w, w->now_ns + store_delay(w) + random_between(&w->net, 0, 50 * SIM_MS), event);
}

/* ---- Requests ---- */

static void store_hello(struct world *w, struct process *p)
{
    p->connected = true;
    w->presence[p->rank] = p->incarnation;
    store_send(w, p, (struct sim_event){.type = EVENT_WELCOME});
    store_send_all(w, p);
    store_broadcast(
        w, (struct sim_event){.type = EVENT_PRESENCE, .rank = p->rank, .incarnation = p->incarnation, .ok = true});
}

static void store_put(struct world *w, struct process *p, int value)
{
    w->record_value[p->rank] = value;
    check_put(w, p, &w->record[value]);
    store_broadcast(w, (struct sim_event){.type = EVENT_RECORD, .rank = p->rank, .value = value});
}

static void store_swap(struct world *w, struct process *p, const struct sim_event *event)
{
    struct sim_event reply = {.type = EVENT_SWAPPED, .value = -1};
    if (random_chance(&w->net, 300) && store_loses(w))
        return; /* the swap itself is lost: its sender cannot tell that from a lost reply */
    if (event->revision == w->view_revision) {
        check_view(w, &w->view[event->value]);
        w->view_value = event->value;
        w->view_revision = w->revision + 1;
        store_broadcast(w, store_view_event(w));
        reply.ok = true;
    }
    /* A store may answer a swap that lost without the view: then the client reads. */
    if (reply.ok || random_chance(&w->net, 700)) {
        reply.value = w->view_value;
        reply.revision = w->view_revision;
    }
    store_reply(w, p, reply);
}

/* Kills every process of the rank up to this incarnation; FENCED follows when it is reaped. */
static void store_fence(struct world *w, int rank, uint32_t incarnation)
{
    for (int i = 0; i < w->processes; i++) {
        const struct process *p = &w->process[i];
        if (p->rank != rank || p->incarnation > incarnation || !p->alive || p->unkillable)
            continue;
        world_post(w, w->now_ns + random_between(&w->os, 100 * SIM_US, w->plan.kill_ns),
                   (struct sim_event){.type = EVENT_KILL, .process = p->id});
    }
}

/* ---- What the store sees of processes ---- */

static void store_presence_ends(struct world *w, struct process *p)
{
    p->connected = false;
    if (w->presence[p->rank] != p->incarnation)
        return;
    w->presence[p->rank] = 0;
    store_broadcast(w, (struct sim_event){.type = EVENT_PRESENCE, .rank = p->rank, .incarnation = p->incarnation});
}

/* The highest incarnation with none alive at or below it. */
static void store_update_fence(struct world *w, int rank)
{
    uint32_t lowest_alive = UINT32_MAX, highest_gone = 0;
    for (int i = 0; i < w->processes; i++) {
        const struct process *p = &w->process[i];
        bool gone = p->reaped || p->left;
        if (p->rank == rank && !gone && p->incarnation < lowest_alive)
            lowest_alive = p->incarnation;
        if (p->rank == rank && gone && p->incarnation > highest_gone)
            highest_gone = p->incarnation;
    }
    uint32_t fenced = highest_gone < lowest_alive ? highest_gone : lowest_alive - 1;
    if (fenced <= w->fenced[rank])
        return;
    w->fenced[rank] = fenced;
    store_broadcast(w, (struct sim_event){.type = EVENT_FENCED, .rank = rank, .incarnation = fenced});
}

/* A closed connection alone makes a suspect: it is killed, and fenced when it has exited. */
static void store_closed(struct world *w, struct process *p)
{
    store_presence_ends(w, p);
    store_fence(w, p->rank, p->incarnation);
}

static void store_leave(struct world *w, struct process *p)
{
    p->left = true;
    p->gone_ns = w->now_ns;
    store_update_fence(w, p->rank);
    store_presence_ends(w, p);
}

void store_exited(struct world *w, const struct process *p)
{
    struct sim_event event = {.type = EVENT_CLOSED, .process = p->id};
    uint64_t closed_ns = w->now_ns + random_between(&w->os, 50 * SIM_US, 2 * SIM_MS);
    world_post(w, closed_ns, event);
    event.type = EVENT_REAPED;
    world_post(w, closed_ns + random_below(&w->os, w->plan.kill_ns), event);
}

/* The launcher, or the store in it, is gone and comes back: it knows nobody any more, and can fence nobody. */
void store_restart(struct world *w, bool forgets_only)
{
    int first = (int)random_below(&w->os, (uint64_t)w->plan.ranks);
    w->restarted = true;
    w->restarted_ns = w->now_ns;
    for (int i = 0; i < w->plan.ranks; i++) {
        int r = (first + i) % w->plan.ranks;
        struct process *p = world_find(w, r, w->presence[r]);
        if (!p)
            continue;
        if (forgets_only) {
            store_broadcast(w, (struct sim_event){.type = EVENT_PRESENCE, .rank = r, .incarnation = p->incarnation});
            continue;
        }
        world_post(w, w->now_ns + random_between(&w->os, 1, SIM_LEASE),
                   (struct sim_event){.type = EVENT_LOST, .process = p->id});
    }
    for (int i = 0; i < w->processes; i++)
        w->process[i].connected = false;
}

static void store_read(struct world *w, struct process *p)
{
    if (!store_loses(w))
        store_send_all(w, p);
}

static void store_serve(struct world *w, struct process *p, const struct sim_event *event)
{
    switch (event->type) {
    case EVENT_PUT: store_put(w, p, event->value); break;
    case EVENT_SWAP: store_swap(w, p, event); break;
    case EVENT_READ: store_read(w, p); break;
    case EVENT_FENCE: store_fence(w, event->rank, event->incarnation); break;
    case EVENT_LEAVE: store_leave(w, p); break;
    default: break;
    }
}

void store_handle(struct world *w, const struct sim_event *event)
{
    struct process *p = &w->process[event->process];
    if (w->restarted)
        return;
    trace_event(w, p, "store", event->type, (uint64_t)(int64_t)event->value);
    if (event->type == EVENT_HELLO && p->alive)
        store_hello(w, p);
    else if (event->type == EVENT_CLOSED)
        store_closed(w, p);
    else if (event->type == EVENT_REAPED) {
        p->reaped = true;
        p->gone_ns = p->left ? p->gone_ns : w->now_ns;
        store_presence_ends(w, p);
        store_update_fence(w, p->rank);
    } else if (p->connected)
        store_serve(w, p, event);
}
