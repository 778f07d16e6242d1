// SPDX-License-Identifier: Apache-2.0
/* Second half of combine: wait for every active rank, then add up the rows of this rank's own tokens. */
#include "kernels/cpu/exchange.h"
#include "kernels/cpu/memory.h"
#include "kernels/cpu/wait.h"

/* Where row i of what is added up for a token lies: at home if exact, otherwise at the rank that made it. */
static const unsigned char *part_at(const struct cpu_exchange *x, const struct kernel_step *step, int32_t token,
                                    size_t part)
{
    const struct exchange_shape *shape = &x->shape;
    size_t row;
    if (shape->exact) {
        row = (size_t)token * (size_t)shape->topk + (size_t)x->plan.from[part];
        return exchange_at(step, step->rank, shape->home) + row * shape->return_bytes;
    }
    size_t first = shape->flat ? (size_t)x->plan.first[x->plan.from[part]] : exchange_row(shape, step->rank, 0);
    row = first + (size_t)x->plan.row[part];
    return exchange_at(step, x->plan.from[part], shape->results) + row * shape->return_bytes;
}

/* The same, to be read; `own`: this rank's results for itself, which stayed where its caller has them. */
static const void *part_view(const struct cpu_exchange *x, const struct kernel_step *step,
                             const struct combine_send_args *own, int32_t token, int32_t i)
{
    size_t bytes = x->shape.return_bytes, part = (size_t)token * (size_t)x->shape.topk + (size_t)i;
    if (own && x->plan.from[part] == step->rank)
        return exchange_result(x, own, step->rank, x->plan.row[part]);
    return remote_view(part_at(x, step, token, part), x->scratch + (size_t)i * bytes, bytes);
}

static void add_token(const struct cpu_exchange *x, const struct kernel_step *step,
                      const struct combine_receive_args *args, int32_t token)
{
    struct rows_sum sum = {.count = x->plan.parts[token]};
    const float *scale = x->plan.scale + (size_t)token * (size_t)x->shape.topk;
    unsigned char *out = args->out + (size_t)token * x->shape.result_bytes;
    for (int32_t i = 0; i < sum.count; i++) {
        sum.row[i] = part_view(x, step, args->own, token, i);
        sum.weight[i] = scale[i];
        sum.scales[i] = (const float *)(const void *)((const unsigned char *)sum.row[i] + x->shape.return_scales);
    }
    if (x->shape.quantise_return)
        x->rows->add_quantised(&sum, x->shape.type, (size_t)x->shape.hidden, out);
    else
        x->rows->add(&sum, x->shape.type, (size_t)x->shape.hidden, out);
}

/* X9: flat: where each rank has the results for this one: as many as it was sent rows, and within its array. */
static bool accept_places(const struct cpu_exchange *x, const struct kernel_step *step)
{
    const struct exchange_line *line = exchange_lines(step, step->rank, x->shape.combine_line);
    uint32_t rows = (uint32_t)x->shape.ranks * (uint32_t)x->shape.tokens;
    for (int peer = mask_next(step->mask, 0); peer >= 0; peer = mask_next(step->mask, peer + 1)) {
        uint32_t first;
        remote_read(&first, &line[peer].first, sizeof(first));
        if (first > rows - (uint32_t)x->plan.rows[peer]) {
            exchange_refuse(step, MUSTER_PHASE_COMBINE, peer, first);
            return false;
        }
        x->plan.first[peer] = (int32_t)first;
    }
    return true;
}

/*
 * X16: whether a peer has begun its next pair with a mask that leaves this rank out. Its own dispatch line says so: the
 * mask was stored before the flag, and from then on it only shrinks.
 */
static bool left_out_by(const struct cpu_exchange *x, const struct kernel_step *step, int peer, uint64_t stamp)
{
    const struct exchange_line *line = &exchange_lines(step, peer, x->shape.dispatch_line)[peer];
    if (flag_read(&line->flag) <= stamp)
        return false;
    muster_mask mask = {{0, 0}};
    remote_read(mask.word, line->mask, sizeof(mask.word));
    return !mask_has(mask, step->rank);
}

/*
 * X16: a peer that leaves this rank out does not wait for it, and may have laid down new results while the old ones were
 * read here. It raises its own dispatch flag before it stores them, with a fence between; the results were loaded before
 * the flag is, with a fence between: if any of them was new, the flag is too.
 */
static bool results_stayed(const struct cpu_exchange *x, const struct kernel_step *step, uint64_t stamp)
{
    if (!x->shape.masked || x->shape.exact)
        return true;
    load_fence();
    for (int peer = mask_next(step->mask, 0); peer >= 0; peer = mask_next(step->mask, peer + 1)) {
        if (!left_out_by(x, step, peer, stamp))
            continue;
        failure_record(step->control, failure_pack(MUSTER_REASON_LEFT_OUT, MUSTER_PHASE_COMBINE, peer, step->epoch));
        return false;
    }
    return true;
}

/*
 * What is read here stays until this rank raises its next dispatch flag (see the argument at combine_send()), unless it
 * has been left out of a narrower mask.
 */
void combine_receive(void *exchange, const struct kernel_step *step, const struct combine_receive_args *args)
{
    struct cpu_exchange *x = exchange;
    const struct exchange_line *line = exchange_lines(step, step->rank, x->shape.combine_line);
    if (!wait_lines(step, line, args->stamp, step->mask, MUSTER_PHASE_COMBINE))
        return;
    fault_here(FAULT_COMBINE_WAITED);
    if (x->shape.flat && !accept_places(x, step))
        return;
    uint64_t ended_ns = 0;
    for (int32_t t = 0; t < x->plan.tokens; t++) {
        if (t % x->chunk == 0 && !wait_may_finish(step, MUSTER_PHASE_COMBINE, &ended_ns))
            return;
        add_token(x, step, args, t);
    }
    if (results_stayed(x, step, args->stamp))
        fault_here(FAULT_COMBINE_DONE);
}
