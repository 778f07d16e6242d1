// SPDX-License-Identifier: Apache-2.0
/*
 * A step: one forward pass over the items' tokens. Until its verdict is good nothing that the caller can see has
 * changed: keys and values are written behind the sequences' ends, and the ends move afterwards.
 */
#include <string.h>

#include "core/error.h"
#include "linear.h"
#include "state.h"

/* ---- Checking what the caller gives ---- */

static muster_status check_item(const struct engine *e, const struct engine_item *item, int32_t index)
{
    if (!item->sequence || item->sequence->engine != e)
        return error_set(MUSTER_ERR_ARGUMENT, "items[%d].sequence: must be a sequence of this engine", index);
    if (item->sequence->in_step)
        return error_set(MUSTER_ERR_ARGUMENT, "items[%d].sequence: is in the step a second time", index);
    if (item->count < 1 || !item->tokens)
        return error_set(MUSTER_ERR_ARGUMENT, "items[%d]: count = %d, must be at least 1, and tokens not NULL", index,
                         item->count);
    if (item->count > engine_sequence_room(item->sequence))
        return error_set(MUSTER_ERR_ARGUMENT, "items[%d]: count = %d, the sequence has room for %d more positions",
                         index, item->count, engine_sequence_room(item->sequence));
    if (item->want < ENGINE_LOGITS_NONE || item->want > ENGINE_LOGITS_ALL)
        return error_set(MUSTER_ERR_ARGUMENT, "items[%d].want = %d, must be %d to %d", index, (int)item->want,
                         ENGINE_LOGITS_NONE, ENGINE_LOGITS_ALL);
    if (item->want != ENGINE_LOGITS_NONE && !item->logits)
        return error_set(MUSTER_ERR_ARGUMENT, "items[%d].logits: must not be NULL", index);
    return MUSTER_OK;
}

static muster_status check_tokens(const struct engine *e, const struct engine_item *item, int32_t index)
{
    int32_t vocabulary = e->weights.model.vocab_size;
    for (int32_t i = 0; i < item->count; i++)
        if (item->tokens[i] < 0 || item->tokens[i] >= vocabulary)
            return error_set(MUSTER_ERR_ARGUMENT, "items[%d].tokens[%d] = %d, must be 0 to %d", index, i,
                             item->tokens[i], vocabulary - 1);
    return MUSTER_OK;
}

static void mark_items(const struct engine_item *items, int32_t count, bool in_step)
{
    for (int32_t i = 0; i < count; i++)
        items[i].sequence->in_step = in_step;
}

static muster_status check_items(const struct engine *e, const struct engine_item *items, int32_t count)
{
    muster_status status = MUSTER_OK;
    int64_t tokens = 0;
    int32_t checked = 0;
    if (count < 0 || (count > 0 && !items))
        return error_set(MUSTER_ERR_ARGUMENT, "count = %d, must be at least 0, and items not NULL", count);
    for (; checked < count; checked++) {
        status = check_item(e, &items[checked], checked);
        if (status == MUSTER_OK)
            status = check_tokens(e, &items[checked], checked);
        if (status != MUSTER_OK)
            break;
        items[checked].sequence->in_step = true;
        tokens += items[checked].count;
    }
    mark_items(items, checked, false);
    if (status == MUSTER_OK && tokens > e->max_tokens)
        status = error_set(MUSTER_ERR_ARGUMENT, "items: %lld tokens, must be at most %d (max_tokens)",
                           (long long)tokens, e->max_tokens);
    return status;
}

/* ---- The pass ---- */

static void gather_rows(struct engine *e, const struct engine_item *items, int32_t count)
{
    struct batch *b = &e->batch;
    b->count = 0;
    for (int32_t i = 0; i < count; i++)
        for (int32_t t = 0; t < items[i].count; t++)
            b->row[b->count++] = (struct row){items[i].sequence, items[i].sequence->length + t, items[i].tokens[t]};
}

static void embed_rows(struct engine *e)
{
    int32_t hidden = e->weights.model.hidden_size;
    struct batch *b = &e->batch;
    for (int32_t i = 0; i < b->count; i++)
        memcpy(batch_row(b->hidden, i, hidden), batch_row(e->weights.embedding, b->row[i].token, hidden),
               (size_t)hidden * sizeof(float));
}

/* The residual stream takes up what a layer adds. */
static void add_rows(struct engine *e)
{
    struct batch *b = &e->batch;
    size_t floats = (size_t)b->count * (size_t)e->weights.model.hidden_size;
    for (size_t i = 0; i < floats; i++)
        b->hidden[i] += b->added[i];
}

static muster_status run_layers(struct engine *e)
{
    embed_rows(e);
    attention_rotations(e);
    e->step_routes = e->step_remote_routes = 0;
    for (int32_t layer = 0; layer < e->weights.model.num_hidden_layers; layer++) {
        attention_layer(e, layer);
        add_rows(e);
        muster_status status = experts_layer(e, layer);
        if (status != MUSTER_OK)
            return status;
        add_rows(e);
    }
    return MUSTER_OK;
}

/* Runs the step and reads its verdict. An operation that failed makes the result bad, whatever the verdict says. */
static muster_status run_step(struct engine *e, muster_verdict *verdict)
{
    muster_status status = muster_step_begin(e->group, NULL);
    if (status != MUSTER_OK)
        return status;
    muster_status pass = run_layers(e);
    status = muster_step_end(e->group, NULL);
    if (status == MUSTER_OK)
        status = muster_step_verdict(e->group, verdict);
    if (status != MUSTER_OK)
        return status;
    return verdict->status != MUSTER_OK ? verdict->status : pass;
}

/* ---- After the verdict ---- */

static void write_logits(struct engine *e, int32_t row, float *logits)
{
    const struct weights *w = &e->weights;
    const struct model_config *m = &w->model;
    float *x = batch_row(e->batch.normed, row, m->hidden_size);
    linear_rms_norm(w->norm, batch_row(e->batch.hidden, row, m->hidden_size), m->hidden_size, m->rms_norm_eps, x);
    linear_apply(w->head, m->vocab_size, m->hidden_size, x, logits);
}

static void finish_item(struct engine *e, const struct engine_item *item, int32_t first_row)
{
    item->sequence->length += item->count;
    if (item->want == ENGINE_LOGITS_LAST)
        write_logits(e, first_row + item->count - 1, item->logits);
    for (int32_t i = 0; i < item->count && item->want == ENGINE_LOGITS_ALL; i++)
        write_logits(e, first_row + i, batch_row(item->logits, i, e->weights.model.vocab_size));
}

static void finish_items(struct engine *e, const struct engine_item *items, int32_t count)
{
    int32_t row = 0;
    for (int32_t i = 0; i < count; i++) {
        finish_item(e, &items[i], row);
        row += items[i].count;
    }
    e->statistics.steps++;
    e->statistics.tokens += (uint64_t)row;
    e->statistics.routes += e->step_routes;
    e->statistics.remote_routes += e->step_remote_routes;
}

muster_status engine_step(struct engine *e, const struct engine_item *items, int32_t count, muster_verdict *verdict)
{
    muster_verdict read = {.status = MUSTER_OK};
    muster_status status = check_items(e, items, count);
    if (status != MUSTER_OK)
        return status;
    gather_rows(e, items, count);
    status = run_step(e, &read);
    if (verdict && read.step)
        *verdict = read;
    if (status == MUSTER_OK)
        finish_items(e, items, count);
    else
        e->statistics.void_steps += read.step != 0;
    return status;
}
