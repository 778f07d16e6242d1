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
        return exchange_at(step, step->rank, shape->home) + row * shape->result_bytes;
    }
    row = exchange_row(shape, step->rank, x->plan.row[part]);
    return exchange_at(step, x->plan.from[part], shape->results) + row * shape->result_bytes;
}

static void add_token(const struct cpu_exchange *x, const struct kernel_step *step, int32_t token, unsigned char *out)
{
    struct rows_sum sum = {.count = x->plan.parts[token]};
    size_t bytes = x->shape.result_bytes, first = (size_t)token * (size_t)x->shape.topk;
    for (int32_t i = 0; i < sum.count; i++) {
        size_t part = first + (size_t)i;
        sum.row[i] = remote_view(part_at(x, step, token, part), x->scratch + (size_t)i * bytes, bytes);
        sum.weight[i] = x->plan.scale[part];
    }
    x->rows->add(&sum, x->shape.fp32, (size_t)x->shape.hidden, out);
}

/* What is read here stays until this rank raises its next dispatch flag: see the argument at combine_send(). */
void combine_receive(void *exchange, const struct kernel_step *step, const struct combine_receive_args *args)
{
    struct cpu_exchange *x = exchange;
    const struct exchange_line *line = exchange_lines(step, step->rank, x->shape.combine_line);
    if (!wait_lines(step, line, args->stamp, step->mask, MUSTER_PHASE_COMBINE))
        return;
    fault_here(FAULT_COMBINE_WAITED);
    for (int32_t t = 0; t < x->plan.tokens; t++) {
        if (t % x->chunk == 0 && !wait_epoch_lives(step, MUSTER_PHASE_COMBINE))
            return;
        add_token(x, step, t, args->out + (size_t)t * x->shape.result_bytes);
    }
    fault_here(FAULT_COMBINE_DONE);
}
