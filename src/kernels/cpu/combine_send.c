// SPDX-License-Identifier: Apache-2.0
/*
 * First half of combine. Reduced: this rank weights and adds its experts' rows for each token it was sent and leaves
 * the sums in its own region, where the tokens' home ranks read them. Exact: every expert's row is pushed home.
 */
#include "kernels/cpu/exchange.h"
#include "kernels/cpu/memory.h"
#include "kernels/cpu/wait.h"

struct returning {
    struct cpu_exchange *x;
    const struct kernel_step *step;
    const struct combine_send_args *args;
    bool first_row_sent; /* of another rank's rows */
};

/* After the first row that belongs to another rank. */
static void row_sent(struct returning *r, int rank)
{
    if (r->first_row_sent || rank == r->step->rank)
        return;
    r->first_row_sent = true;
    fault_here(FAULT_COMBINE_ROW);
}

static unsigned char *result_row(const struct returning *r, int rank, int32_t j)
{
    const struct exchange_shape *shape = &r->x->shape;
    size_t row = exchange_first_row(r->x, rank) + (size_t)j;
    return exchange_at(r->step, r->step->rank, shape->results) + row * shape->return_bytes;
}

/* One row on its way home while it is quantised: made where it goes, or in scratch. */
struct quantised_row {
    unsigned char *to, *codes;
    float *scales;
    bool power_of_two;
};

static struct quantised_row quantised_open(const struct returning *r, unsigned char *to)
{
    const struct exchange_shape *shape = &r->x->shape;
    unsigned char *row = remote_open(to, r->x->scratch);
    bool power_of_two = shape->quantise_return == MUSTER_EP_QUANTISE_FP8_POW2;
    return (struct quantised_row){to, row, (float *)(void *)(row + shape->return_scales), power_of_two};
}

static void quantise_row(const struct returning *r, unsigned char *to, const void *from)
{
    const struct exchange_shape *shape = &r->x->shape;
    struct quantised_row row = quantised_open(r, to);
    r->x->rows->quantise(from, shape->type, (size_t)shape->hidden, row.power_of_two, row.codes, row.scales);
    remote_close(to, row.codes, shape->return_bytes);
}

/* ---------------------------------------------------------------------------------------------- rank-major and flat */

/* The caller's rows [begin, end) for a rank. */
static void store_results(const struct returning *r, int rank, int32_t begin, int32_t end)
{
    const struct row_input *results = &r->args->results;
    const unsigned char *block = exchange_result(r->x, r->args, rank, 0);
    struct row_input from = {block + (size_t)begin * results->stride, results->stride};
    if (!r->x->shape.quantise_return) {
        exchange_copy_rows(result_row(r, rank, begin), &from, r->x->shape.result_bytes, end - begin);
        return;
    }
    for (int32_t j = begin; j < end; j++)
        quantise_row(r, result_row(r, rank, j), block + (size_t)j * results->stride);
}

/* The first row goes apart from the others: it may be the first of all that belongs to another rank. */
static void copy_results(struct returning *r, int rank)
{
    const struct row_input *results = &r->args->results;
    int32_t rows = r->x->received.rows[rank];
    if (!results->data || rows == 0 || (rank == r->step->rank && r->args->keeps_own))
        return;
    store_results(r, rank, 0, 1);
    row_sent(r, rank);
    store_results(r, rank, 1, rows);
}

/* ----------------------------------------------------------------------------------------------------- expert-major */

/* Walks a source's rows in the order in which dispatch laid them out. */
static void cursor_set(const struct cpu_exchange *x, int rank)
{
    size_t ranks = (size_t)x->shape.ranks;
    for (int32_t s = 0; s < x->shape.slots; s++)
        x->received.cursor[s] = x->received.begin[(size_t)s * ranks + (size_t)rank];
}

static const void *expert_row(const struct returning *r, int32_t slot)
{
    size_t row = (size_t)r->x->received.cursor[slot]++;
    return r->args->results.data + (size_t)slot * r->args->block_stride + row * r->args->results.stride;
}

static void add_round(const struct returning *r, unsigned char *to, const struct rows_sum *sum)
{
    const struct exchange_shape *shape = &r->x->shape;
    void *row = remote_open(to, r->x->scratch);
    r->x->rows->add(sum, shape->type, (size_t)shape->hidden, row);
    remote_close(to, row, shape->result_bytes);
}

/* X15: rounded once, from fp32 to codes. */
static void add_quantise(const struct returning *r, unsigned char *to, const struct rows_sum *sum)
{
    const struct exchange_shape *shape = &r->x->shape;
    struct quantised_row row = quantised_open(r, to);
    r->x->rows->add_quantise(sum, shape->type, (size_t)shape->hidden, row.power_of_two, row.codes, row.scales);
    remote_close(to, row.codes, shape->return_bytes);
}

static void reduce_row(const struct returning *r, int rank, int32_t j)
{
    const struct exchange_shape *shape = &r->x->shape;
    size_t route = (size_t)(r->x->received.first[rank] + j) * (size_t)shape->topk;
    struct rows_sum sum = {.count = 0};
    for (size_t k = route; k < route + (size_t)shape->topk; k++) {
        int32_t slot = r->x->received.slot[k];
        if (slot < 0)
            continue;
        sum.weight[sum.count] = r->x->received.weight[k];
        sum.row[sum.count++] = expert_row(r, slot);
    }
    if (shape->quantise_return)
        add_quantise(r, result_row(r, rank, j), &sum);
    else
        add_round(r, result_row(r, rank, j), &sum);
}

static void push_row(const struct returning *r, int rank, int32_t j)
{
    const struct exchange_shape *shape = &r->x->shape;
    size_t topk = (size_t)shape->topk, row = (size_t)(r->x->received.first[rank] + j);
    size_t token = (size_t)r->x->received.token[row];
    const int32_t *slot = r->x->received.slot + row * topk;
    unsigned char *home = exchange_at(r->step, rank, shape->home) + token * topk * shape->return_bytes;
    for (size_t k = 0; k < topk; k++) {
        unsigned char *to = home + k * shape->return_bytes;
        if (slot[k] >= 0 && shape->quantise_return)
            quantise_row(r, to, expert_row(r, slot[k]));
        else if (slot[k] >= 0)
            remote_copy(to, expert_row(r, slot[k]), shape->result_bytes);
    }
}

static void return_rows(struct returning *r, int rank)
{
    cursor_set(r->x, rank);
    for (int32_t j = 0; j < r->x->received.rows[rank]; j++) {
        if (r->x->shape.exact)
            push_row(r, rank, j);
        else
            reduce_row(r, rank, j);
        row_sent(r, rank);
    }
}

/* False if the epoch ended meanwhile. */
static bool return_all_rows(struct returning *r, const struct exchange_order *order)
{
    for (int i = 0; i < order->count; i++) {
        if (i > 0 && !wait_epoch_lives(r->step, MUSTER_PHASE_COMBINE))
            return false;
        if (r->x->shape.expert_major)
            return_rows(r, order->rank[i]);
        else
            copy_results(r, order->rank[i]);
    }
    if (!r->first_row_sent)
        fault_here(FAULT_COMBINE_ROW);
    return true;
}

/*
 * Flat results lie end to end here as well, so that a caller can write them in place; where a home's begin it cannot know
 * by itself. What is overwritten here a home has read in the combine before, with the results.
 */
static void tell_places(const struct returning *r, const struct exchange_order *order)
{
    for (int i = 0; i < order->count; i++) {
        uint32_t first = (uint32_t)r->x->received.first[order->rank[i]];
        struct exchange_line *line = exchange_lines(r->step, order->rank[i], r->x->shape.combine_line);
        remote_copy(&line[r->step->rank].first, &first, sizeof(first));
    }
}

/*
 * Credit (X4, X5). Reduced: the sums stored here overwrite those of the pair before in this rank's own region, which
 * their home ranks load in that pair's combine. Exact: the rows pushed here overwrite those that their home ranks load
 * there. Either way a home rank is done with them before it raises the flag of the dispatch that came after, and this
 * rank has read that flag from every active rank, itself included, before dispatch's receive half returned: it waits
 * for all of them, rows or none. (A caller that writes its results in place does so after that return, too.)
 */
void combine_send(void *exchange, const struct kernel_step *step, const struct combine_send_args *args)
{
    struct cpu_exchange *x = exchange;
    struct returning r = {x, step, args, false};
    struct exchange_order order;
    fault_here(FAULT_COMBINE_ENTRY);
    exchange_order(step, &order);
    if (!return_all_rows(&r, &order))
        return;
    if (x->shape.flat)
        tell_places(&r, &order);
    fault_here(FAULT_COMBINE_BEFORE_FLAG);
    exchange_raise(step, &order, x->shape.combine_line, args->stamp, FAULT_COMBINE_BETWEEN_FLAGS);
    fault_here(FAULT_COMBINE_SENT);
}
