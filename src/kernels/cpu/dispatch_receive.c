// SPDX-License-Identifier: Apache-2.0
/* Second half of dispatch: wait for every active rank, then lay out what came. */
#include "kernels/cpu/exchange.h"
#include "kernels/cpu/memory.h"
#include "kernels/cpu/wait.h"

struct receiving {
    struct cpu_exchange *x;
    const struct kernel_step *step;
    const struct dispatch_receive_args *args;
    unsigned char *base; /* of this rank's own region */
};

/* ------------------------------------------------------------------------------------------ what every layout needs */

/*
 * X8, X9: whether an active rank's dispatch is the other half of this one: sent in the same step, for the same ranks,
 * with a possible number of rows. Otherwise the step is void: a caller that left an operation out may be one pair ahead
 * or behind, and its flag says no more than that it has sent something.
 */
static bool accept_line(const struct receiving *r, const struct exchange_line *line, int rank, uint32_t *rows)
{
    muster_mask mask = {{0, 0}};
    uint64_t number;
    remote_read(rows, &line->rows, sizeof(*rows));
    remote_read(mask.word, line->mask, sizeof(mask.word));
    remote_read(&number, &line->step, sizeof(number));
    if (number != r->step->number) {
        failure_record(r->step->control,
                       failure_pack(MUSTER_REASON_REFUSED, MUSTER_PHASE_DISPATCH, rank, r->step->epoch));
        return false;
    }
    if (*rows <= (uint32_t)r->x->shape.tokens && mask_equal(mask, r->step->mask))
        return true;
    exchange_refuse(r->step, MUSTER_PHASE_DISPATCH, rank, *rows);
    return false;
}

/* A rank outside the mask reads as zero rows, whatever it may have stored before it was left out (X7). */
static bool accept_lines(const struct receiving *r)
{
    struct exchange_line *line = exchange_lines(r->step, r->step->rank, r->x->shape.dispatch_line);
    int32_t before = 0;
    for (int rank = 0; rank < r->step->ranks; rank++) {
        uint32_t rows = 0;
        if (mask_has(r->step->mask, rank) && !accept_line(r, &line[rank], rank, &rows))
            return false;
        r->x->received.rows[rank] = (int32_t)rows;
        r->x->received.first[rank] = before;
        before += (int32_t)rows;
    }
    return true;
}

static void take_loads(const struct receiving *r)
{
    size_t slots = (size_t)r->x->shape.ranks * (size_t)r->x->shape.slots;
    for (int rank = 0; rank < r->step->ranks; rank++) {
        int32_t *to = r->args->loads + (size_t)rank * slots;
        size_t from = r->x->shape.loads + (size_t)rank * slots * sizeof(int32_t);
        if (mask_has(r->step->mask, rank))
            remote_read(to, r->base + from, slots * sizeof(int32_t));
        else
            memset(to, 0, slots * sizeof(int32_t));
    }
}

static void source_write(int32_t *source, size_t row, int32_t rank, int32_t token)
{
    source[2 * row] = rank;
    source[2 * row + 1] = token;
}

static void ids_fill(int32_t *ids, size_t count, int32_t id)
{
    for (size_t i = 0; i < count; i++)
        ids[i] = id;
}

static bool ids_below(const int32_t *ids, size_t count, int32_t least, int32_t limit)
{
    bool valid = true;
    for (size_t i = 0; i < count; i++)
        valid &= ids[i] >= least && ids[i] < limit;
    return valid;
}

/* ---------------------------------------------------------------------------------------------- rank-major and flat */

/* Row j of this rank to itself, if it stayed where it was: in the caller's input. */
static const unsigned char *own_row(const struct receiving *r, int a, int32_t j)
{
    const struct row_input *input = &r->args->own->input[a];
    int32_t token = r->x->plan.token[exchange_row(&r->x->shape, r->step->rank, j)];
    return input->data + (size_t)token * input->stride;
}

static void take_own_rows(const struct receiving *r, size_t rows)
{
    size_t first = exchange_first_row(r->x, r->step->rank);
    for (int a = 0; a < r->x->shape.arrays; a++) {
        size_t bytes = r->x->shape.array[a].row_bytes;
        for (size_t j = 0; j < rows; j++)
            memcpy(r->args->output[a] + (first + j) * bytes, own_row(r, a, (int32_t)j), bytes);
    }
}

/* Rows that are wanted elsewhere than in the region. */
static void take_rows(const struct receiving *r, int rank, size_t rows)
{
    size_t from = exchange_row(&r->x->shape, rank, 0), to = exchange_first_row(r->x, rank);
    for (int a = 0; a < r->x->shape.arrays; a++) {
        const struct exchange_array *array = &r->x->shape.array[a];
        size_t bytes = array->row_bytes;
        if (r->args->output[a])
            remote_read(r->args->output[a] + to * bytes, r->base + array->offset + from * bytes, rows * bytes);
    }
}

static bool take_sources(const struct receiving *r, int rank, size_t rows)
{
    size_t first = exchange_first_row(r->x, rank);
    const unsigned char *from = r->base + r->x->shape.row_token + exchange_row(&r->x->shape, rank, 0) * sizeof(int32_t);
    for (size_t j = 0; j < rows; j++) {
        int32_t token;
        remote_read(&token, from + j * sizeof(token), sizeof(token));
        if (token < 0 || token >= r->x->shape.tokens)
            return false;
        source_write(r->args->source, first + j, rank, token);
    }
    return true;
}

/* Checked where the caller will use them; on failure outputs are unspecified. */
static bool take_routes(const struct receiving *r, int rank, size_t rows)
{
    size_t topk = (size_t)r->x->shape.topk;
    size_t from = exchange_row(&r->x->shape, rank, 0) * topk, to = exchange_first_row(r->x, rank) * topk;
    int32_t *slots = r->args->slots + to;
    remote_read(slots, r->base + r->x->shape.row_slot + from * sizeof(int32_t), rows * topk * sizeof(int32_t));
    remote_read(r->args->weights + to, r->base + r->x->shape.row_weight + from * sizeof(float),
                rows * topk * sizeof(float));
    return ids_below(slots, rows * topk, -1, r->x->shape.slots);
}

/* Rows past the count: behind each source's (rank-major), or behind all (flat). */
static void pad_routes(const struct receiving *r, int rank)
{
    const struct exchange_shape *shape = &r->x->shape;
    size_t topk = (size_t)shape->topk, used = exchange_first_row(r->x, rank) + (size_t)r->x->received.rows[rank];
    size_t end = exchange_row(shape, rank + 1, 0);
    if (!shape->flat || rank == shape->ranks - 1)
        ids_fill(r->args->slots + used * topk, (end - used) * topk, r->args->invalid_id);
}

static void count_rows(const struct receiving *r, int rank)
{
    const struct received *in = &r->x->received;
    r->args->counts[rank] = in->rows[rank];
    if (r->args->ranges)
        r->args->ranges[rank] = (int64_t)in->first[rank] << 32 | in->rows[rank];
}

static bool receive_by_rank(const struct receiving *r)
{
    uint64_t ended_ns = 0;
    for (int rank = 0; rank < r->step->ranks; rank++) {
        if (!wait_may_finish(r->step, MUSTER_PHASE_DISPATCH, &ended_ns))
            return false;
        size_t rows = (size_t)r->x->received.rows[rank];
        count_rows(r, rank);
        if (rank == r->step->rank && r->args->own)
            take_own_rows(r, rows);
        else
            take_rows(r, rank, rows);
        if (!take_routes(r, rank, rows) || (r->args->source && !take_sources(r, rank, rows))) {
            exchange_refuse(r->step, MUSTER_PHASE_DISPATCH, rank, 0);
            return false;
        }
        if (r->args->pad_ids)
            pad_routes(r, rank);
    }
    return true;
}

/* ----------------------------------------------------------------------------------------------------- expert-major */

/* X9: copies a source's plan, then checks the copy. */
static bool accept_plan(const struct receiving *r, int rank)
{
    struct received *in = &r->x->received;
    const struct exchange_shape *shape = &r->x->shape;
    size_t rows = (size_t)in->rows[rank], topk = (size_t)shape->topk;
    size_t from = exchange_row(shape, rank, 0), to = (size_t)in->first[rank];
    remote_read(in->token + to, r->base + shape->row_token + from * sizeof(int32_t), rows * sizeof(int32_t));
    remote_read(in->slot + to * topk, r->base + shape->row_slot + from * topk * sizeof(int32_t),
                rows * topk * sizeof(int32_t));
    remote_read(in->weight + to * topk, r->base + shape->row_weight + from * topk * sizeof(float),
                rows * topk * sizeof(float));
    return ids_below(in->token + to, rows, 0, shape->tokens) &&
           ids_below(in->slot + to * topk, rows * topk, -1, shape->slots);
}

/* How many rows of a source each slot gets; more than it sent would mean a slot named twice in one row. */
static bool count_slots(const struct receiving *r, int rank)
{
    struct received *in = &r->x->received;
    size_t topk = (size_t)r->x->shape.topk, ranks = (size_t)r->x->shape.ranks;
    const int32_t *slot = in->slot + (size_t)in->first[rank] * topk;
    for (int32_t s = 0; s < r->x->shape.slots; s++)
        in->count[(size_t)s * ranks + (size_t)rank] = 0;
    for (size_t i = 0; i < (size_t)in->rows[rank] * topk; i++)
        if (slot[i] >= 0)
            in->count[(size_t)slot[i] * ranks + (size_t)rank]++;
    for (int32_t s = 0; s < r->x->shape.slots; s++)
        if (in->count[(size_t)s * ranks + (size_t)rank] > in->rows[rank])
            return false;
    return true;
}

static bool accept_plans(const struct receiving *r)
{
    for (int rank = 0; rank < r->step->ranks; rank++) {
        if (accept_plan(r, rank) && count_slots(r, rank))
            continue;
        exchange_refuse(r->step, MUSTER_PHASE_DISPATCH, rank, 0);
        return false;
    }
    return true;
}

/* Rows lie in (source, token) order, packed from row 0 of each slot. */
static void lay_out(const struct receiving *r)
{
    struct received *in = &r->x->received;
    size_t ranks = (size_t)r->x->shape.ranks;
    for (int32_t s = 0; s < r->x->shape.slots; s++) {
        int32_t next = 0;
        for (size_t i = (size_t)s * ranks; i < ((size_t)s + 1) * ranks; i++) {
            in->begin[i] = next;
            next += in->count[i];
            if (r->args->ranges)
                r->args->ranges[i] = (int64_t)in->begin[i] << 32 | in->count[i];
        }
        r->args->counts[s] = next;
        in->cursor[s] = 0;
    }
}

/* The rows of the output that row j of a source goes to; returns how many. */
static int32_t fan_rows(const struct receiving *r, int rank, int32_t j, size_t rows[MUSTER_EP_MAX_TOPK])
{
    struct received *in = &r->x->received;
    int32_t topk = r->x->shape.topk, count = 0;
    const int32_t *slot = in->slot + (size_t)(in->first[rank] + j) * (size_t)topk;
    for (int32_t k = 0; k < topk; k++)
        if (slot[k] >= 0)
            rows[count++] = exchange_row(&r->x->shape, slot[k] * r->x->shape.ranks, in->cursor[slot[k]]++);
    return count;
}

static void fan_out_to(const struct receiving *r, int rank, int32_t j, int a, size_t row, bool own)
{
    const struct exchange_array *array = &r->x->shape.array[a];
    size_t bytes = array->row_bytes;
    unsigned char *to = r->args->output[a] + row * bytes;
    if (own)
        memcpy(to, own_row(r, a, j), bytes);
    else
        remote_read(to, r->base + array->offset + exchange_row(&r->x->shape, rank, j) * bytes, bytes);
}

static void fan_out_row(const struct receiving *r, int rank, int32_t j)
{
    size_t rows[MUSTER_EP_MAX_TOPK];
    int32_t count = fan_rows(r, rank, j, rows);
    bool own = rank == r->step->rank && r->args->own;
    for (int a = 0; a < r->x->shape.arrays; a++)
        for (int32_t i = 0; i < count && r->args->output[a]; i++)
            fan_out_to(r, rank, j, a, rows[i], own);
    int32_t token = r->x->received.token[r->x->received.first[rank] + j];
    for (int32_t i = 0; i < count && r->args->source; i++)
        source_write(r->args->source, rows[i], rank, token);
}

static void pad_sources(const struct receiving *r)
{
    size_t rows = (size_t)r->x->shape.ranks * (size_t)r->x->shape.tokens;
    for (int32_t s = 0; s < r->x->shape.slots; s++) {
        size_t used = (size_t)r->args->counts[s];
        ids_fill(r->args->source + 2 * ((size_t)s * rows + used), 2 * (rows - used), r->args->invalid_id);
    }
}

static bool receive_expert_major(const struct receiving *r)
{
    uint64_t ended_ns = 0;
    if (!accept_plans(r))
        return false;
    lay_out(r);
    for (int rank = 0; rank < r->step->ranks; rank++) {
        if (!wait_may_finish(r->step, MUSTER_PHASE_DISPATCH, &ended_ns))
            return false;
        for (int32_t j = 0; j < r->x->received.rows[rank]; j++)
            fan_out_row(r, rank, j);
    }
    if (r->args->pad_ids && r->args->source)
        pad_sources(r);
    return true;
}

void dispatch_receive(void *exchange, const struct kernel_step *step, const struct dispatch_receive_args *args)
{
    struct cpu_exchange *x = exchange;
    struct receiving r = {x, step, args, step->peers[step->rank]};
    const struct exchange_line *line = exchange_lines(step, step->rank, x->shape.dispatch_line);
    if (!wait_lines(step, line, args->stamp, step->mask, MUSTER_PHASE_DISPATCH))
        return;
    fault_here(FAULT_DISPATCH_WAITED);
    if (!accept_lines(&r))
        return;
    if (args->loads)
        take_loads(&r);
    if (x->shape.expert_major ? receive_expert_major(&r) : receive_by_rank(&r))
        fault_here(FAULT_DISPATCH_DONE);
}
