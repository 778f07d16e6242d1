// SPDX-License-Identifier: Apache-2.0
/* First half of dispatch: push each token once to every rank that holds one of its experts. */
#include "kernels/cpu/exchange.h"
#include "kernels/cpu/memory.h"
#include "kernels/cpu/wait.h"

/* The way through the rows: chunks of tokens, and within a chunk rank by rank. */
struct sending {
    struct cpu_exchange *x;
    const struct kernel_step *step;
    struct exchange_order order;
    struct row_input input[EXCHANGE_MAX_ARRAYS];
    int32_t from[EXCHANGE_MAX_ARRAYS]; /* token that row 0 of the input is */
    int32_t cursor[MUSTER_MAX_RANKS]; /* rows already sent to each rank */
    bool first_row_sent; /* to another rank */
    bool keeps_own;
};

static void sending_begin(struct sending *s, struct cpu_exchange *x, const struct kernel_step *step,
                          const struct dispatch_send_args *args)
{
    s->x = x;
    s->step = step;
    s->first_row_sent = false;
    s->keeps_own = args->keeps_own;
    exchange_order(step, &s->order);
    for (int r = 0; r < step->ranks; r++)
        s->cursor[r] = 0;
    for (int a = 0; a < x->shape.arrays; a++) {
        s->input[a] = args->input[a];
        s->from[a] = 0;
    }
}

/* Quantised rows are made once per token, whatever the number of ranks they go to. */
static void sending_quantise(struct sending *s, const struct row_input *hidden, int32_t begin, int32_t end)
{
    const struct exchange_shape *shape = &s->x->shape;
    size_t row_bytes = shape->array[0].row_bytes, scale_bytes = shape->array[1].row_bytes;
    for (int32_t t = begin; t < end; t++) {
        float *scales = (float *)(void *)(s->x->scales + (size_t)(t - begin) * scale_bytes);
        s->x->rows->quantise(hidden->data + (size_t)t * hidden->stride, shape->type, (size_t)shape->hidden,
                             shape->quantise == MUSTER_EP_QUANTISE_FP8_POW2,
                             s->x->codes + (size_t)(t - begin) * row_bytes, scales);
    }
    s->input[0] = (struct row_input){s->x->codes, row_bytes};
    s->input[1] = (struct row_input){s->x->scales, scale_bytes};
    s->from[0] = s->from[1] = begin;
}

/* Sends rows [j, j + count) of a rank, whose tokens follow one another. */
static void send_run(const struct sending *s, int a, int rank, int32_t j, int32_t count)
{
    const struct exchange_array *array = &s->x->shape.array[a];
    int32_t token = s->x->plan.token[exchange_row(&s->x->shape, rank, j)] - s->from[a];
    struct row_input from = {s->input[a].data + (size_t)token * s->input[a].stride, s->input[a].stride};
    size_t to = exchange_row(&s->x->shape, s->step->rank, j) * array->row_bytes;
    exchange_copy_rows(exchange_at(s->step, rank, array->offset) + to, &from, array->row_bytes, count);
}

static void send_rows(const struct sending *s, int rank, int32_t begin, int32_t end)
{
    const int32_t *token = s->x->plan.token + exchange_row(&s->x->shape, rank, 0);
    for (int32_t j = begin, next; j < end; j = next) {
        for (next = j + 1; next < end && token[next] == token[next - 1] + 1;)
            next++;
        for (int a = 0; a < s->x->shape.arrays; a++)
            send_run(s, a, rank, j, next - j);
    }
}

/* Sends a rank its rows of the tokens before `end`. */
static void send_chunk_to(struct sending *s, int rank, int32_t end)
{
    const int32_t *token = s->x->plan.token + exchange_row(&s->x->shape, rank, 0);
    int32_t begin = s->cursor[rank], next = begin;
    while (next < s->x->plan.rows[rank] && token[next] < end)
        next++;
    s->cursor[rank] = next;
    if (begin < next && rank != s->step->rank && !s->first_row_sent) {
        s->first_row_sent = true;
        send_rows(s, rank, begin, begin + 1);
        begin++;
        fault_here(FAULT_DISPATCH_ROW);
    }
    if (rank != s->step->rank || !s->keeps_own)
        send_rows(s, rank, begin, next);
}

/* False if the epoch ended meanwhile: then there is nothing to be gained from the rest. */
static bool send_all_rows(struct sending *s, const struct dispatch_send_args *args)
{
    int32_t tokens = args->tokens, chunk = s->x->chunk;
    for (int32_t begin = 0; begin < tokens; begin += chunk) {
        int32_t end = tokens - begin < chunk ? tokens : begin + chunk;
        if (begin > 0 && !wait_epoch_lives(s->step, MUSTER_PHASE_DISPATCH))
            return false;
        if (s->x->shape.quantise)
            sending_quantise(s, &args->input[0], begin, end);
        for (int i = 0; i < s->order.count; i++)
            send_chunk_to(s, s->order.rank[i], end);
    }
    if (!s->first_row_sent)
        fault_here(FAULT_DISPATCH_ROW);
    return true;
}

/* What the rows are for: their tokens, slots and weights, how many they are, and whom this rank counts in. */
static void send_plan_to(const struct sending *s, int rank)
{
    const struct exchange_shape *shape = &s->x->shape;
    const struct send_plan *plan = &s->x->plan;
    size_t here = exchange_row(shape, rank, 0), there = exchange_row(shape, s->step->rank, 0);
    size_t rows = (size_t)plan->rows[rank], topk = (size_t)shape->topk;
    unsigned char *base = s->step->peers[rank];
    remote_copy(base + shape->row_token + there * sizeof(int32_t), plan->token + here, rows * sizeof(int32_t));
    remote_copy(base + shape->row_slot + there * topk * sizeof(int32_t), plan->slot + here * topk,
                rows * topk * sizeof(int32_t));
    remote_copy(base + shape->row_weight + there * topk * sizeof(float), plan->weight + here * topk,
                rows * topk * sizeof(float));
    if (shape->load_stats) {
        size_t bytes = (size_t)shape->ranks * (size_t)shape->slots * sizeof(int32_t);
        remote_copy(base + shape->loads + (size_t)s->step->rank * bytes, plan->loads, bytes);
    }
    struct exchange_line *line = &exchange_lines(s->step, rank, shape->dispatch_line)[s->step->rank];
    uint32_t count = (uint32_t)plan->rows[rank];
    remote_copy(line->mask, s->step->mask.word, sizeof(line->mask));
    remote_copy(&line->step, &s->step->number, sizeof(line->step));
    remote_copy(&line->rows, &count, sizeof(count));
}

/*
 * Credit (X4, X5). The rows, plans and loads stored here overwrite those of the pair before, on every active rank. Each
 * of them has let go of those: this rank has left the combine of that pair only after it read the combine flag of every
 * active rank, and a rank raises that flag after its last load from what dispatch brought it (its caller may use rows
 * in place until the combine's send half begins, which comes first on the same thread). flag_raise() is a release and
 * flag_read() an acquire, so those loads happen before the stores here. The first pair of an epoch needs no credit: no
 * kernel of an older epoch runs anywhere when an epoch begins, and ranks left out of it are fenced.
 * The flag itself needs no credit: it only grows, and is compared with >=.
 */
void dispatch_send(void *exchange, const struct kernel_step *step, const struct dispatch_send_args *args)
{
    struct cpu_exchange *x = exchange;
    struct sending s;
    uint64_t bad;
    fault_here(FAULT_DISPATCH_ENTRY);
    if (!route_plan(x, step, args, &bad)) {
        exchange_refuse(step, MUSTER_PHASE_DISPATCH, -1, bad);
        return;
    }
    sending_begin(&s, x, step, args);
    if (!send_all_rows(&s, args))
        return;
    for (int i = 0; i < s.order.count; i++)
        send_plan_to(&s, s.order.rank[i]);
    fault_here(FAULT_DISPATCH_BEFORE_FLAG);
    exchange_raise(step, &s.order, x->shape.dispatch_line, args->stamp, FAULT_DISPATCH_BETWEEN_FLAGS);
    store_fence(); /* X16: this rank's own flag goes before the results that it will lay in its region */
    fault_here(FAULT_DISPATCH_SENT);
}
