// SPDX-License-Identifier: Apache-2.0
/*
 * What the callers do: step after step, each of a few dispatches and combines whose tokens, routes and counts are drawn
 * from (seed, epoch, step, pair) on every rank alike. So every rank knows what everybody sends, and every byte that
 * comes is checked. All numbers are small integers: the sums are exact, whatever their order.
 */
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/memory.h"

#include "sim_memory/sim.h"

enum { MAX_PAIRS = 3, TOKENS = 3, TOPK = 3, SLOTS = 2, HIDDEN = 8, MAX_ROWS = SIM_MAX_RANKS * TOKENS };

/* One pair, as everybody knows it. */
struct pair {
    uint32_t epoch;
    uint64_t step;
    int index;
    int exchange;
    bool halves;
    bool padded;
    muster_mask mask;
    int tokens[SIM_MAX_RANKS];
    int32_t slot[SIM_MAX_RANKS][TOKENS][TOPK];
    float weight[SIM_MAX_RANKS][TOKENS][TOPK];
};

/* One rank's buffers for it. */
struct buffers {
    float hidden[TOKENS][HIDDEN];
    float rows[SLOTS * MAX_ROWS][HIDDEN];
    int32_t counts[SIM_MAX_RANKS + SLOTS];
    int32_t source[SLOTS * MAX_ROWS][2];
    int32_t slots[MAX_ROWS][TOPK];
    float weights[MAX_ROWS][TOPK];
    float out[TOKENS][HIDDEN];
    int32_t dropped;
};

/* ---------------------------------------------------------------------------------------------------------- drawing */

static muster_ep_layout draw_layout(struct random *dice)
{
    if (random_chance(dice, 250))
        return MUSTER_EP_FLAT;
    return random_chance(dice, 400) ? MUSTER_EP_RANK_MAJOR : MUSTER_EP_EXPERT_MAJOR;
}

void program_configure(struct random *dice)
{
    for (int e = 0; e < SIM_EXCHANGES; e++) {
        muster_ep_config *c = &sim.config[e];
        *c = (muster_ep_config)MUSTER_EP_CONFIG_INIT;
        c->hidden = HIDDEN;
        c->dtype = MUSTER_FP32;
        c->max_tokens = TOKENS;
        c->slots_per_rank = SLOTS;
        c->topk = TOPK;
        c->layout = draw_layout(dice);
        bool exact = c->layout == MUSTER_EP_EXPERT_MAJOR && random_chance(dice, 600);
        c->combine = exact ? MUSTER_EP_EXACT : MUSTER_EP_REDUCED;
        c->masked = random_chance(dice, 300);
    }
}

uint64_t program_memory_bytes(void)
{
    uint64_t sum = 0;
    for (int e = 0; e < SIM_EXCHANGES; e++) {
        uint64_t bytes = 0;
        if (muster_ep_memory_bytes(&sim.config[e], sim.ranks, &bytes) != MUSTER_OK)
            sim_fail("muster_ep_memory_bytes: %s", muster_last_error());
        sum += bytes;
    }
    return sum;
}

/* Dice that fall alike on every rank. */
static struct random shared_dice(uint32_t epoch, uint64_t step, uint64_t purpose)
{
    struct random dice = random_stream(sim.seed, epoch * UINT64_C(1000003) + step);
    return random_stream(random_next(&dice), purpose);
}

static muster_mask draw_without_one(struct random *dice, muster_mask mask)
{
    int out = mask_next(mask, (int)random_below(dice, (uint64_t)sim.ranks));
    return mask_count(mask) < 2 ? mask : mask_without(mask, out >= 0 ? out : mask_next(mask, 0));
}

/* With a masked exchange some epochs leave one rank of the view out, and some another one from a later pair on. */
static muster_mask draw_mask(const struct kernel_step *step, int index, int exchange)
{
    uint64_t pairs = (step->number - sim.first_sequence / 2) * MAX_PAIRS + (uint64_t)index;
    struct random dice = shared_dice(step->epoch, 0, 1000 + (uint64_t)exchange);
    muster_mask mask = step->mask;
    if (!sim.config[exchange].masked)
        return mask;
    if (random_chance(&dice, 500))
        mask = draw_without_one(&dice, mask);
    bool narrows = random_chance(&dice, 500);
    uint64_t narrows_at = 1 + random_below(&dice, 3 * MAX_PAIRS);
    if (narrows && pairs >= narrows_at)
        mask = draw_without_one(&dice, mask);
    return mask;
}

static int32_t draw_slot(struct random *dice, const struct pair *pair, int rank, unsigned kind)
{
    int ranks = sim.ranks, to = (int)random_below(dice, (uint64_t)ranks);
    bool may_be_dropped = sim.config[pair->exchange].masked;
    if (kind == 0)
        to = rank; /* no remote row at all */
    while (!mask_has(pair->mask, to) && !may_be_dropped)
        to = (to + 1) % ranks;
    return to * SLOTS + (int32_t)random_below(dice, SLOTS);
}

static void draw_routes(struct random *dice, struct pair *pair, int rank, unsigned kind)
{
    for (int t = 0; t < TOKENS; t++)
        for (int k = 0; k < TOPK; k++) {
            int32_t slot = random_chance(dice, 750) ? draw_slot(dice, pair, rank, kind) : -1;
            for (int i = 0; i < k; i++)
                slot = pair->slot[rank][t][i] == slot ? -1 : slot;
            pair->slot[rank][t][k] = slot;
            pair->weight[rank][t][k] = (float)(1 + random_below(dice, 3));
        }
}

static void draw_pair(struct pair *pair, const struct kernel_step *step, int index)
{
    struct random dice = shared_dice(step->epoch, step->number, (uint64_t)index + 1);
    pair->epoch = step->epoch;
    pair->step = step->number;
    pair->index = index;
    pair->exchange = (int)random_below(&dice, SIM_EXCHANGES);
    pair->halves = random_chance(&dice, 500);
    pair->padded = random_chance(&dice, 300);
    pair->mask = draw_mask(step, index, pair->exchange);
    unsigned kind = (unsigned)random_below(&dice, 5); /* 0: local rows only; 1: most ranks have no tokens */
    for (int r = 0; r < sim.ranks; r++) {
        bool none = kind == 1 && random_chance(&dice, 700);
        pair->tokens[r] = none ? 0 : (int)random_below(&dice, TOKENS + 1);
        draw_routes(&dice, pair, r, kind);
    }
}

/* What element h of a token is: never the same for two pairs that follow each other. */
static float value_of(const struct pair *pair, int rank, int token, int h)
{
    uint64_t x = pair->epoch * UINT64_C(0x9e3779b97f4a7c15) ^ (pair->step * 8 + (uint64_t)pair->index) * 0xd1342543u;
    x ^= (uint64_t)(rank * 64 + token * 16 + h + 1) * UINT64_C(0xbf58476d1ce4e5b9);
    return (float)((x ^ x >> 31) * UINT64_C(0x94d049bb133111eb) >> 54); /* 0..1023 */
}

/* What the expert in a slot multiplies by. */
static float expert_of(int32_t slot)
{
    return (float)(2 + slot % 5);
}

static bool routed(const struct pair *pair, int32_t slot)
{
    return slot >= 0 && mask_has(pair->mask, slot / SLOTS);
}

/* --------------------------------------------------------------------------------------------------------- checking */

static bool row_is(const float *row, const struct pair *pair, int rank, int token)
{
    for (int h = 0; h < HIDDEN; h++)
        if (row[h] != value_of(pair, rank, token, h))
            return false;
    return true;
}

static void check_row(const struct pair *pair, const struct buffers *b, size_t row, int rank, int token)
{
    if (b->source[row][0] != rank || b->source[row][1] != token)
        sim_fail("dispatch: row %zu says it is token %d of rank %d, not %d of %d", row, b->source[row][1],
                 b->source[row][0], token, rank);
    else if (!row_is(b->rows[row], pair, rank, token))
        sim_fail("dispatch: row %zu is not token %d of rank %d in epoch %u step %llu pair %d", row, token, rank,
                 pair->epoch, (unsigned long long)pair->step, pair->index);
}

static void check_slot(const struct pair *pair, const struct buffers *b, int me, int32_t slot)
{
    int32_t rows = 0;
    for (int r = mask_next(pair->mask, 0); r >= 0; r = mask_next(pair->mask, r + 1))
        for (int t = 0; t < pair->tokens[r]; t++)
            for (int k = 0; k < TOPK; k++)
                if (pair->slot[r][t][k] == me * SLOTS + slot)
                    check_row(pair, b, (size_t)slot * (size_t)(sim.ranks * TOKENS) + (size_t)rows++, r, t);
    if (b->counts[slot] != rows)
        sim_fail("dispatch: slot %d has %d rows, not %d", slot, b->counts[slot], rows);
}

static bool goes_to(const struct pair *pair, int rank, int token, int me)
{
    for (int k = 0; k < TOPK; k++)
        if (pair->slot[rank][token][k] >= 0 && pair->slot[rank][token][k] / SLOTS == me)
            return true;
    return false;
}

static void check_routes(const struct pair *pair, const struct buffers *b, size_t row, int rank, int token, int me)
{
    for (int k = 0; k < TOPK; k++) {
        int32_t slot = pair->slot[rank][token][k];
        bool here = slot >= 0 && slot / SLOTS == me;
        if (b->slots[row][k] != (here ? slot % SLOTS : -1) ||
            b->weights[row][k] != (here ? pair->weight[rank][token][k] : 0))
            sim_fail("dispatch: route %d of row %zu is wrong", k, row);
    }
}

/* The rows of one source, which begin at `first`; returns how many there should be. */
static int32_t check_source(const struct pair *pair, const struct buffers *b, int me, int rank, size_t first)
{
    int32_t rows = 0;
    for (int t = 0; mask_has(pair->mask, rank) && t < pair->tokens[rank]; t++) {
        if (!goes_to(pair, rank, t, me))
            continue;
        size_t row = first + (size_t)rows++;
        check_row(pair, b, row, rank, t);
        check_routes(pair, b, row, rank, t, me);
    }
    if (b->counts[rank] != rows)
        sim_fail("dispatch: rank %d sent %d rows, not %d", rank, b->counts[rank], rows);
    return rows;
}

/* Rows by source: each from a place of its own, or, flat, right behind those of the sources before. */
static void check_sources(const struct pair *pair, const struct buffers *b, int me)
{
    bool flat = sim.config[pair->exchange].layout == MUSTER_EP_FLAT;
    size_t next = 0;
    for (int rank = 0; rank < sim.ranks; rank++)
        next += (size_t)check_source(pair, b, me, rank, flat ? next : (size_t)(rank * TOKENS));
}

static void check_dispatched(const struct pair *pair, const struct buffers *b, int me)
{
    if (sim.config[pair->exchange].layout == MUSTER_EP_EXPERT_MAJOR)
        for (int32_t slot = 0; slot < SLOTS; slot++)
            check_slot(pair, b, me, slot);
    else
        check_sources(pair, b, me);
}

static void check_combined(const struct pair *pair, const struct buffers *b, int me)
{
    for (int t = 0; t < pair->tokens[me]; t++)
        for (int h = 0; h < HIDDEN; h++) {
            float sum = 0;
            for (int k = 0; k < TOPK; k++)
                if (routed(pair, pair->slot[me][t][k]))
                    sum += pair->weight[me][t][k] * expert_of(pair->slot[me][t][k]) * value_of(pair, me, t, h);
            if (b->out[t][h] != sum)
                sim_fail("combine: element %d of token %d is %g, not %g, in epoch %u step %llu pair %d", h, t,
                         (double)b->out[t][h], (double)sum, pair->epoch, (unsigned long long)pair->step, pair->index);
        }
}

static void check_dropped(const struct pair *pair, const struct buffers *b, int me)
{
    int32_t dropped = 0;
    for (int t = 0; t < pair->tokens[me]; t++)
        for (int k = 0; k < TOPK; k++)
            dropped += pair->slot[me][t][k] >= 0 && !routed(pair, pair->slot[me][t][k]);
    if (b->dropped != dropped)
        sim_fail("dispatch: %d routes were dropped, not %d", b->dropped, dropped);
}

/* ---------------------------------------------------------------------------------------------------------- experts */

static void run_experts(const struct pair *pair, struct buffers *b, int me)
{
    size_t rows = (size_t)(sim.ranks * TOKENS);
    for (int32_t slot = 0; slot < SLOTS; slot++)
        for (size_t i = 0; i < (size_t)b->counts[slot] && i < rows; i++)
            for (int h = 0; h < HIDDEN; h++)
                b->rows[(size_t)slot * rows + i][h] *= expert_of(me * SLOTS + slot);
    (void)pair;
}

static float weigh(const struct buffers *b, size_t row, int me)
{
    float sum = 0;
    for (int k = 0; k < TOPK; k++)
        if (b->slots[row][k] >= 0)
            sum += b->weights[row][k] * expert_of(me * SLOTS + b->slots[row][k]);
    return sum;
}

/* Rank-major and flat: the caller weights and sums its experts' results itself. */
static void weigh_rows(struct buffers *b, int me, bool flat)
{
    size_t next = 0;
    for (int rank = 0; rank < sim.ranks; rank++) {
        next = flat ? next : (size_t)(rank * TOKENS);
        for (int j = 0; j < b->counts[rank] && j < TOKENS; j++, next++) {
            float sum = weigh(b, next, me);
            for (int h = 0; h < HIDDEN; h++)
                b->rows[next][h] *= sum;
        }
    }
}

/* Reads what came, or writes what goes back, where the exchange has it; rows that hold nothing as well. */
static void use_in_place(muster_ep *ep, struct buffers *b, bool write)
{
    muster_tensor tensor;
    muster_status status = write ? muster_ep_results(ep, &tensor) : muster_ep_received(ep, &tensor);
    if (status != MUSTER_OK)
        sim_fail("rows in place: %s", muster_last_error());
    for (int rank = 0; rank < sim.ranks; rank++) {
        size_t row = (size_t)(rank * TOKENS), bytes = TOKENS * sizeof(b->rows[0]);
        float *there = (float *)tensor.data + row * HIDDEN;
        if (write)
            remote_copy(there, b->rows[row], bytes);
        else
            remote_read(b->rows[row], there, bytes);
    }
}

/* ------------------------------------------------------------------------------------------------------------ calls */

/* A tensor over one of the buffers. */
struct box {
    muster_tensor tensor;
    int64_t shape[3];
};

static const muster_tensor *box_of(struct box *v, void *data, muster_dtype dtype, int ndim, int64_t a, int64_t b,
                                   int64_t c)
{
    *v = (struct box){{data, {MUSTER_DEVICE_CPU, 0}, ndim, dtype, NULL, NULL, 0}, {a, b, c}};
    v->tensor.shape = v->shape;
    return &v->tensor;
}

struct calls {
    muster_ep_dispatch_args dispatch;
    muster_ep_combine_args combine;
    struct box hidden, topk_slots, topk_weights, rows, counts, source, slots, weights, results, out;
    bool in_place;
};

/* A tensor with a row per received row. */
static const muster_tensor *rows_of(struct box *v, muster_ep_layout layout, void *data, muster_dtype dtype,
                                    int64_t elements)
{
    int64_t rows = sim.ranks * TOKENS;
    if (layout == MUSTER_EP_FLAT)
        return box_of(v, data, dtype, 2, rows, elements, 0);
    if (layout == MUSTER_EP_EXPERT_MAJOR)
        return box_of(v, data, dtype, 3, SLOTS, rows, elements);
    return box_of(v, data, dtype, 3, sim.ranks, TOKENS, elements);
}

static void calls_outputs(struct calls *c, const struct pair *pair, struct buffers *b)
{
    muster_ep_layout layout = sim.config[pair->exchange].layout;
    int64_t groups = layout == MUSTER_EP_EXPERT_MAJOR ? SLOTS : sim.ranks;
    c->dispatch.out_counts = box_of(&c->counts, b->counts, MUSTER_INT32, 1, groups, 0, 0);
    c->dispatch.out_source = rows_of(&c->source, layout, b->source, MUSTER_INT32, 2);
    if (!c->in_place)
        c->dispatch.out_hidden = rows_of(&c->rows, layout, b->rows, MUSTER_FP32, HIDDEN);
    if (!c->in_place)
        c->combine.results = rows_of(&c->results, layout, b->rows, MUSTER_FP32, HIDDEN);
    if (layout == MUSTER_EP_EXPERT_MAJOR)
        return;
    c->dispatch.out_slots = rows_of(&c->slots, layout, b->slots, MUSTER_INT32, TOPK);
    c->dispatch.out_weights = rows_of(&c->weights, layout, b->weights, MUSTER_FP32, TOPK);
}

static void calls_make(struct calls *c, struct pair *pair, struct buffers *b, int me)
{
    int64_t tokens = pair->tokens[me];
    *c = (struct calls){.dispatch = MUSTER_EP_DISPATCH_INIT, .combine = MUSTER_EP_COMBINE_INIT};
    c->in_place = sim.config[pair->exchange].layout != MUSTER_EP_EXPERT_MAJOR && random_chance(&sim.running->dice, 500);
    c->dispatch.pad_ids = pair->padded;
    c->dispatch.dropped_routes = &b->dropped;
    c->dispatch.hidden = box_of(&c->hidden, b->hidden, MUSTER_FP32, 2, tokens, HIDDEN, 0);
    c->dispatch.topk_slots = box_of(&c->topk_slots, pair->slot[me], MUSTER_INT32, 2, tokens, TOPK, 0);
    c->dispatch.topk_weights = box_of(&c->topk_weights, pair->weight[me], MUSTER_FP32, 2, tokens, TOPK, 0);
    c->combine.out = box_of(&c->out, b->out, MUSTER_FP32, 2, tokens, HIDDEN, 0);
    calls_outputs(c, pair, b);
    for (int t = 0; t < tokens; t++)
        for (int h = 0; h < HIDDEN; h++)
            b->hidden[t][h] = value_of(pair, me, t, h);
}

static void idle(struct sim_rank *self, uint64_t most_us)
{
    sim_pause(random_below(&self->dice, most_us * SIM_US));
}

/*
 * Promise 1. One wait lasts at most a step's deadline and, from when the peer was seen to have begun, an operation's;
 * on top come the last sleep and the rank's own stores. Time for which the rank itself was stopped does not count.
 */
static void check_duration(const struct sim_rank *self, uint64_t started_ns, uint64_t stopped_before, const char *call)
{
    const struct kernel_control *control = &self->group.control;
    uint64_t most = atomic_load(&control->step_timeout_ns) + atomic_load(&control->operation_timeout_ns) + 400 * SIM_US;
    uint64_t lasted = sim.now_ns - started_ns - (self->time_stopped - stopped_before);
    if (lasted > most)
        sim_fail("%s lasted %llu us", call, (unsigned long long)lasted / 1000);
}

static muster_status run_dispatch(struct sim_rank *self, muster_ep *ep, struct calls *c, bool halves)
{
    uint64_t started_ns = sim.now_ns, stopped = self->time_stopped;
    muster_status status;
    if (halves) {
        status = muster_ep_dispatch_send(ep, &c->dispatch, NULL);
        if (status == MUSTER_OK) {
            check_duration(self, started_ns, stopped, "dispatch_send");
            idle(self, 20);
            started_ns = sim.now_ns, stopped = self->time_stopped;
            status = muster_ep_dispatch_receive(ep, &c->dispatch, NULL);
        }
    } else {
        status = muster_ep_dispatch(ep, &c->dispatch, NULL);
    }
    check_duration(self, started_ns, stopped, "dispatch");
    return status;
}

static muster_status run_combine(struct sim_rank *self, muster_ep *ep, struct calls *c, bool halves)
{
    uint64_t started_ns = sim.now_ns, stopped = self->time_stopped;
    muster_status status;
    if (halves) {
        status = muster_ep_combine_send(ep, &c->combine, NULL);
        if (status == MUSTER_OK) {
            idle(self, random_chance(&self->dice, 100) ? 200 : 20);
            status = muster_ep_combine_receive(ep, &c->combine, NULL);
        }
    } else {
        status = muster_ep_combine(ep, &c->combine, NULL);
    }
    check_duration(self, started_ns, stopped, "combine");
    return status;
}

/* ------------------------------------------------------------------------------------------------------------ steps */

static bool misbehaves(struct sim_rank *self)
{
    return sim.now_ns < sim.faults_end_ns && random_chance(&self->dice, sim.refusals);
}

/* An id that no rank has: the dispatch must be refused, and nothing sent. */
static muster_status send_nonsense(muster_ep *ep, struct calls *c, struct pair *pair, int me)
{
    pair->slot[me][pair->tokens[me] - 1][TOPK - 1] = sim.ranks * SLOTS;
    muster_status status = muster_ep_dispatch(ep, &c->dispatch, NULL);
    if (status == MUSTER_OK)
        sim_fail("dispatch took a slot id out of range");
    return status == MUSTER_OK ? MUSTER_ERR_ARGUMENT : status;
}

static muster_status narrow(struct sim_rank *self, const struct pair *pair)
{
    muster_ep *ep = self->ep[pair->exchange];
    struct sim_mask *set = &self->mask[pair->exchange];
    bool is_set = set->epoch == pair->epoch && mask_equal(set->mask, pair->mask);
    if (!sim.config[pair->exchange].masked || is_set)
        return MUSTER_OK;
    *set = (struct sim_mask){pair->epoch, pair->mask};
    muster_status status = muster_ep_set_mask(ep, pair->mask, NULL);
    if (status != MUSTER_OK)
        sim_fail("muster_ep_set_mask: %s", muster_last_error());
    return status;
}

static muster_status run_pair(struct sim_rank *self, struct pair *pair, struct buffers *b)
{
    muster_ep *ep = self->ep[pair->exchange];
    int me = self->rank;
    struct calls calls;
    if (!mask_has(pair->mask, me))
        return MUSTER_OK; /* the others know */
    muster_status status = narrow(self, pair);
    calls_make(&calls, pair, b, me);
    if (status == MUSTER_OK && pair->tokens[me] > 0 && misbehaves(self))
        return send_nonsense(ep, &calls, pair, me);
    if (status == MUSTER_OK)
        status = run_dispatch(self, ep, &calls, pair->halves);
    if (status != MUSTER_OK)
        return status;
    if (calls.in_place)
        use_in_place(ep, b, false);
    check_dispatched(pair, b, me);
    check_dropped(pair, b, me);
    if (sim.config[pair->exchange].layout == MUSTER_EP_EXPERT_MAJOR)
        run_experts(pair, b, me);
    else
        weigh_rows(b, me, sim.config[pair->exchange].layout == MUSTER_EP_FLAT);
    if (calls.in_place)
        use_in_place(ep, b, true);
    idle(self, 10);
    /* A caller that hears of the epoch's end may leave the combine out. */
    if (atomic_load(&self->group.control.live_epoch) != pair->epoch && random_chance(&self->dice, 500))
        return MUSTER_ERR_VOID;
    return run_combine(self, ep, &calls, pair->halves);
}

/* The pairs of one step; `done` counts those whose combine came home. */
static void run_pairs(struct sim_rank *self, struct pair pairs[MAX_PAIRS], struct buffers *b, int count, int *done)
{
    for (*done = 0; *done < count; ++*done) {
        draw_pair(&pairs[*done], &self->group.step.kernel, *done);
        memset(&b[*done], 0x5a, sizeof(*b));
        b[*done].dropped = 0;
        if (misbehaves(self) || run_pair(self, &pairs[*done], &b[*done]) != MUSTER_OK)
            return;
        idle(self, 5);
    }
}

/* Counts the steps of an epoch, from its first, that were good here with every operation done. */
static void note_whole(struct sim_rank *self, uint32_t epoch, uint64_t number)
{
    if (self->whole_epoch != epoch)
        self->whole = 0;
    self->whole_epoch = epoch;
    self->whole += number - sim.first_sequence / 2 == self->whole;
}

/* X3: nobody is said to have refused an operation that it has done. */
static void check_refusal(const muster_verdict *verdict, uint64_t number)
{
    if (verdict->reason != MUSTER_REASON_REFUSED)
        return;
    const struct sim_rank *peer = &sim.rank[verdict->peer];
    if (peer->whole_epoch == verdict->epoch && number - sim.first_sequence / 2 < peer->whole)
        sim_fail("rank %d is said to have refused in step %llu of epoch %u, but has done all of it", verdict->peer,
                 (unsigned long long)number, verdict->epoch);
}

/* In a calm world nobody is late, so nothing is called off for that (X17). A shrinking mask may leave a reader out (X16). */
static void check_calm(const muster_verdict *verdict)
{
    if (sim.calm && verdict->reason == MUSTER_REASON_TIMEOUT)
        sim_fail("a step timed out on rank %d though nobody was late", verdict->peer);
}

/* A step that a rank had ended when it left, and whose peers it waited for, is good for them, too. */
static void check_owed(const struct sim_rank *self, const muster_verdict *verdict, uint64_t number)
{
    const struct kernel_step *owed = &self->owed;
    if (sim.calm && verdict->status != MUSTER_OK && owed->epoch == verdict->epoch && number <= owed->number)
        sim_fail("step %llu of epoch %u is void, though a rank that had ended it waited before it left",
                 (unsigned long long)number, verdict->epoch);
}

/*
 * M33: whoever leaves has waited until its peers have ended what it has ended; here, in a calm world, in vain for nobody. As
 * muster_group_leave() does it.
 */
static bool leaves(struct sim_rank *self, const muster_verdict *verdict)
{
    muster_group *g = &self->group;
    if (!self->leave_ns || sim.now_ns < self->leave_ns || verdict->status != MUSTER_OK)
        return false;
    uint64_t end_ns = sim.now_ns + atomic_load(&g->control.operation_timeout_ns);
    while (sim.now_ns < end_ns && atomic_load(&g->begun) == g->step.ended.epoch && !step_peers_have_ended(g))
        sim_pause(1 + random_below(&self->dice, SIM_US));
    if (atomic_load(&g->begun) != g->step.ended.epoch)
        return false; /* not now: something else has ended the epoch */
    for (int r = 0; r < sim.ranks && sim.now_ns < end_ns; r++)
        if (mask_has(g->step.ended.mask, r))
            sim.rank[r].owed = g->step.ended;
    control_leave(self);
    return true;
}

static void count_step(struct sim_rank *self, const muster_verdict *verdict)
{
    bool good = verdict->status == MUSTER_OK;
    sim.good_steps += good;
    sim.void_steps += !good;
    if (self->good_epoch != verdict->epoch)
        self->good = 0;
    self->good_epoch = verdict->epoch;
    self->good += good && sim.now_ns > sim.faults_end_ns;
}

static void run_step(struct sim_rank *self)
{
    struct pair pairs[MAX_PAIRS];
    struct buffers buffers[MAX_PAIRS];
    muster_verdict verdict;
    int count = 0, done = 0;
    if (muster_step_begin(&self->group, NULL) != MUSTER_OK) {
        sim_fail("muster_step_begin: %s", muster_last_error());
        return;
    }
    const struct kernel_step *step = group_step(&self->group);
    if (step->epoch) {
        struct random dice = shared_dice(step->epoch, step->number, 0);
        count = 1 + (int)random_below(&dice, MAX_PAIRS);
        run_pairs(self, pairs, buffers, count, &done);
    }
    if (muster_step_end(&self->group, NULL) != MUSTER_OK || muster_step_verdict(&self->group, &verdict) != MUSTER_OK)
        sim_fail("the step does not end: %s", muster_last_error());
    if (verdict.status == MUSTER_OK)
        for (int i = 0; i < done; i++)
            if (mask_has(pairs[i].mask, self->rank))
                check_combined(&pairs[i], &buffers[i], self->rank);
    if (verdict.status == MUSTER_OK && done == count)
        note_whole(self, verdict.epoch, step->number);
    if (done == count && count > 0 && verdict.reason == MUSTER_REASON_EPOCH)
        sim_fail("a step is void of which every operation has succeeded"); /* X12 */
    if (self->complete_step == verdict.step && verdict.reason == MUSTER_REASON_EPOCH && verdict.phase == self->complete)
        sim_fail("a wait was called off by an epoch that came after the last flag"); /* X1 */
    check_refusal(&verdict, step->number);
    check_calm(&verdict);
    check_owed(self, &verdict, step->number);
    sim_say("step %llu of epoch %u: %s, %d of %d pairs", (unsigned long long)step->number, verdict.epoch,
            muster_status_name(verdict.status), done, count);
    count_step(self, &verdict);
    if (leaves(self, &verdict))
        for (;;)
            sim_pause(SIM_US);
}

void program_run(struct sim_rank *self)
{
    for (int e = 0; e < SIM_EXCHANGES; e++)
        if (muster_ep_create(&self->group, &sim.config[e], &self->ep[e]) != MUSTER_OK)
            sim_fail("muster_ep_create: %s", muster_last_error());
    for (;;) {
        while (atomic_load(&self->group.begun) == 0)
            sim_pause(1 + random_below(&self->dice, 5 * SIM_US));
        idle(self, random_chance(&self->dice, 50) ? 500 : 10);
        run_step(self);
    }
}
