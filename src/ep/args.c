// SPDX-License-Identifier: Apache-2.0
#include "ep/args.h"

#include <stdio.h>

#include "core/error.h"
#include "core/size.h"
#include "ep/shape.h"

enum { MAX_DIMS = 3, MAX_SPANS = 32, SHAPE_TEXT_BYTES = 80 };

/* What a tensor must look like. */
struct rule {
    const char *name;
    muster_dtype dtype;
    int32_t ndim;
    int64_t shape[MAX_DIMS];
    bool output;
};

/* A row per received row: [S, R*T, elements], [R, T, elements] or, flat, [R*T, elements]. */
static struct rule rows_rule(const struct exchange_shape *shape, const char *name, muster_dtype dtype, int64_t elements,
                             bool output)
{
    int64_t rows = (int64_t)shape->ranks * shape->tokens;
    if (shape->flat)
        return (struct rule){name, dtype, 2, {rows, elements}, output};
    if (shape->expert_major)
        return (struct rule){name, dtype, 3, {shape->slots, rows, elements}, output};
    return (struct rule){name, dtype, 3, {shape->ranks, shape->tokens, elements}, output};
}

/* Where a tensor's bytes are: `stride` in bytes for all dimensions but the last. */
struct place {
    unsigned char *data;
    size_t stride[MAX_DIMS];
};

static const char own_memory[] = "the exchange's own memory";

/* Bytes that a tensor covers, for the overlap check. */
struct span {
    const char *name;
    uintptr_t begin, end;
    bool output;
};

struct checker {
    const struct args_exchange *x;
    const char *call;
    int spans;
    struct span span[MAX_SPANS];
};

void args_name_payloads(struct args_exchange *x)
{
    for (int i = 0; i < MUSTER_EP_MAX_PAYLOADS; i++) {
        const char *name = i < x->config->payload_count ? x->config->payload[i].name : NULL;
        const char *open = name ? " (" : "", *close = name ? ")" : "";
        snprintf(x->payload_name[i], ARGS_NAME_BYTES, "payload[%d]%s%.*s%s", i, open, SHAPE_NAME_BYTES,
                 name ? name : "", close);
        snprintf(x->out_payload_name[i], ARGS_NAME_BYTES, "out_%.*s", ARGS_NAME_BYTES - 5, x->payload_name[i]);
    }
}

/* ------------------------------------------------------------------------------------------------------- one tensor */

static void shape_text(const int64_t *shape, int32_t ndim, char out[SHAPE_TEXT_BYTES])
{
    int used = snprintf(out, SHAPE_TEXT_BYTES, "[");
    for (int32_t i = 0; i < ndim && i < MAX_DIMS; i++)
        used += snprintf(out + used, (size_t)(SHAPE_TEXT_BYTES - used), "%s%lld", i ? ", " : "", (long long)shape[i]);
    snprintf(out + used, (size_t)(SHAPE_TEXT_BYTES - used), ndim > MAX_DIMS ? ", ...]" : "]");
}

static muster_status check_shape(const struct checker *c, const struct rule *rule, const muster_tensor *t)
{
    bool same = t->ndim == rule->ndim && t->shape;
    for (int32_t i = 0; same && i < rule->ndim; i++)
        same = t->shape[i] == rule->shape[i];
    if (same)
        return MUSTER_OK;
    char have[SHAPE_TEXT_BYTES], want[SHAPE_TEXT_BYTES];
    shape_text(t->shape, t->shape && t->ndim > 0 ? t->ndim : 0, have);
    shape_text(rule->shape, rule->ndim, want);
    return error_set(MUSTER_ERR_ARGUMENT, "%s: %s has shape %s, must be %s", c->call, rule->name, have, want);
}

static muster_status check_type(const struct checker *c, const struct rule *rule, const muster_tensor *t)
{
    muster_dtype want = rule->dtype, have = t->dtype;
    muster_device device = c->x->device;
    bool elsewhere = device.type != MUSTER_DEVICE_CPU && t->device.index != device.index;
    if (t->device.type != device.type || elsewhere)
        return error_set(MUSTER_ERR_ARGUMENT,
                         "%s: %s is on device {type %d, index %d}, must be on {%d, %d} (1: CPU, 2: CUDA; never managed "
                         "memory)",
                         c->call, rule->name, t->device.type, t->device.index, device.type, device.index);
    if (want.code != have.code || want.bits != have.bits || want.lanes != have.lanes)
        return error_set(MUSTER_ERR_ARGUMENT, "%s: %s has dtype {code %d, %d bits, %d lanes}, must be {%d, %d, %d}",
                         c->call, rule->name, have.code, have.bits, have.lanes, want.code, want.bits, want.lanes);
    return MUSTER_OK;
}

static int64_t at_least_one(int64_t n)
{
    return n > 1 ? n : 1;
}

/*
 * Strides of dimensions that are walked along: the last must be 1; those before may leave gaps in inputs. `reach`
 * becomes the elements from the first to the last, plus one.
 */
static muster_status check_strides(const struct checker *c, const struct rule *rule, const muster_tensor *t,
                                   struct place *place, int64_t *reach)
{
    int64_t compact = 1;
    size_t bytes = rule->dtype.bits / 8u;
    *reach = 1;
    for (int32_t i = rule->ndim - 1; i >= 0; i--) {
        int64_t stride = t->strides && t->shape[i] > 1 ? t->strides[i] : compact;
        bool gaps = !rule->output && i < rule->ndim - 1;
        int64_t step;
        if (gaps ? stride < compact : stride != compact)
            return error_set(MUSTER_ERR_ARGUMENT, "%s: %s has stride %lld in dimension %d, must be %s%lld", c->call,
                             rule->name, (long long)stride, i, gaps ? "at least " : "", (long long)compact);
        if (__builtin_mul_overflow(at_least_one(t->shape[i]), stride, &compact) || compact > INT64_MAX / 64)
            return error_set(MUSTER_ERR_ARGUMENT, "%s: %s has stride %lld in dimension %d, beyond any memory", c->call,
                             rule->name, (long long)stride, i);
        step = (at_least_one(t->shape[i]) - 1) * stride;
        *reach += step;
        place->stride[i] = (size_t)stride * bytes;
    }
    return MUSTER_OK;
}

static bool is_empty(const struct rule *rule)
{
    for (int32_t i = 0; i < rule->ndim; i++)
        if (rule->shape[i] == 0)
            return true;
    return false;
}

/* Not cleared as a whole: the spans are many, and written before they are read. */
static void check_begin(struct checker *c, const struct args_exchange *x, const char *call)
{
    c->x = x;
    c->call = call;
    c->spans = 0;
}

static void add_span(struct checker *c, const char *name, const unsigned char *data, uint64_t bytes, bool output)
{
    uintptr_t begin = (uintptr_t)data;
    c->span[c->spans++] = (struct span){name, begin, size_add(begin, bytes), output};
}

static muster_status check_data(struct checker *c, const struct rule *rule, const muster_tensor *t, int64_t reach,
                                struct place *place)
{
    size_t bytes = rule->dtype.bits / 8u;
    place->data = NULL;
    if (is_empty(rule))
        return MUSTER_OK;
    if (!t->data)
        return error_set(MUSTER_ERR_ARGUMENT, "%s: %s has data NULL", c->call, rule->name);
    if (size_add(size_add((uintptr_t)t->data, t->byte_offset), (uint64_t)reach * bytes) == UINT64_MAX)
        return error_set(MUSTER_ERR_ARGUMENT, "%s: %s has byte_offset %llu, beyond any memory", c->call, rule->name,
                         (unsigned long long)t->byte_offset);
    place->data = (unsigned char *)t->data + t->byte_offset;
    if ((uintptr_t)place->data & (bytes - 1)) /* a power of two; the processor divides slowly */
        return error_set(MUSTER_ERR_ARGUMENT, "%s: %s lies at address %p, must be a multiple of %zu", c->call,
                         rule->name, (void *)place->data, bytes);
    add_span(c, rule->name, place->data, (uint64_t)reach * bytes, rule->output);
    return MUSTER_OK;
}

static muster_status check_tensor(struct checker *c, const struct rule *rule, const muster_tensor *t,
                                  struct place *place)
{
    int64_t reach;
    if (!t)
        return error_set(MUSTER_ERR_ARGUMENT, "%s: %s must not be NULL", c->call, rule->name);
    muster_status status = check_shape(c, rule, t);
    if (status == MUSTER_OK)
        status = check_type(c, rule, t);
    if (status == MUSTER_OK)
        status = check_strides(c, rule, t, place, &reach);
    if (status == MUSTER_OK)
        status = check_data(c, rule, t, reach, place);
    return status;
}

/* A tensor that this exchange has no use for; giving one is a misunderstanding that should not go unnoticed. */
static muster_status check_absent(const struct checker *c, const char *name, const muster_tensor *t, const char *why)
{
    if (!t)
        return MUSTER_OK;
    return error_set(MUSTER_ERR_ARGUMENT, "%s: %s must be NULL: %s", c->call, name, why);
}

static muster_status check_overlaps(const struct checker *c)
{
    for (int i = 0; i < c->spans; i++)
        for (int j = i + 1; j < c->spans; j++) {
            const struct span *a = &c->span[i], *b = &c->span[j];
            if ((a->output || b->output) && a->begin < b->end && b->begin < a->end)
                return error_set(MUSTER_ERR_ARGUMENT, "%s: %s overlaps %s; outputs may overlap nothing", c->call,
                                 b->output ? b->name : a->name, b->output ? a->name : b->name);
        }
    return MUSTER_OK;
}

static void add_gathered(struct checker *c)
{
    const struct exchange_shape *shape = c->x->shape;
    if (c->x->gathered)
        add_span(c, own_memory, c->x->gathered, shape_rows(shape) * shape->array[0].row_bytes, true);
}

static void add_own_memory(struct checker *c)
{
    const struct exchange_shape *shape = c->x->shape;
    add_span(c, own_memory, c->x->region + shape->begin, shape->end - shape->begin, true);
    add_gathered(c);
}

/* -------------------------------------------------------------------------------------------------- dispatch inputs */

/* The token count is hidden's first dimension; the other inputs are held against it. */
static muster_status check_tokens(const struct checker *c, const muster_tensor *hidden, int64_t *tokens)
{
    if (!hidden)
        return error_set(MUSTER_ERR_ARGUMENT, "%s: hidden must not be NULL", c->call);
    if (hidden->ndim != 2 || !hidden->shape)
        return error_set(MUSTER_ERR_ARGUMENT, "%s: hidden has %d dimensions, must have 2: [tokens, %d]", c->call,
                         hidden->ndim, c->x->shape->hidden);
    *tokens = hidden->shape[0];
    if (*tokens < 0 || *tokens > c->x->shape->tokens)
        return error_set(MUSTER_ERR_ARGUMENT, "%s: hidden has %lld tokens, must have 0 to %d (max_tokens)", c->call,
                         (long long)*tokens, c->x->shape->tokens);
    return MUSTER_OK;
}

static muster_status take_input(struct checker *c, const char *name, muster_dtype dtype, int64_t tokens,
                                int64_t elements, const muster_tensor *t, struct row_input *input)
{
    struct rule rule = {name, dtype, 2, {tokens, elements}, false};
    struct place place;
    muster_status status = check_tensor(c, &rule, t, &place);
    if (status == MUSTER_OK)
        *input = (struct row_input){place.data, place.stride[0]};
    return status;
}

static muster_status take_routes(struct checker *c, const muster_ep_dispatch_args *args,
                                 struct dispatch_send_args *send)
{
    int64_t topk = c->x->shape->topk;
    const muster_tensor *slots = args->topk_slots;
    send->wide = slots && slots->dtype.code == MUSTER_TYPE_INT && slots->dtype.bits == 64;
    muster_status status = take_input(c, "topk_slots", send->wide ? MUSTER_INT64 : MUSTER_INT32, send->tokens, topk,
                                      slots, &send->topk_slots);
    send->topk_weights.data = NULL;
    if (status != MUSTER_OK || !args->topk_weights)
        return status;
    return take_input(c, "topk_weights", MUSTER_FP32, send->tokens, topk, args->topk_weights, &send->topk_weights);
}

static muster_status take_payloads(struct checker *c, const muster_ep_dispatch_args *args,
                                   struct dispatch_send_args *send)
{
    muster_status status = MUSTER_OK;
    const muster_ep_config *config = c->x->config;
    for (int i = 0; i < MUSTER_EP_MAX_PAYLOADS && status == MUSTER_OK; i++) {
        if (i >= config->payload_count)
            status = check_absent(c, c->x->payload_name[i], args->payload[i], "it is beyond config.payload_count");
        else
            status =
                take_input(c, c->x->payload_name[i], config->payload[i].dtype, send->tokens,
                           config->payload[i].elements, args->payload[i], &send->input[shape_payload(c->x->shape, i)]);
    }
    return status;
}

static muster_status take_inputs(struct checker *c, const muster_ep_dispatch_args *args,
                                 struct dispatch_send_args *send)
{
    int64_t tokens = 0;
    muster_status status = check_tokens(c, args->hidden, &tokens);
    if (status != MUSTER_OK)
        return status;
    send->tokens = (int32_t)tokens;
    send->dropped_routes = args->dropped_routes;
    send->keeps_own = false;
    status = take_input(c, "hidden", c->x->config->dtype, tokens, c->x->shape->hidden, args->hidden, &send->input[0]);
    if (status == MUSTER_OK)
        status = take_routes(c, args, send);
    if (status == MUSTER_OK)
        status = take_payloads(c, args, send);
    return status;
}

/* ------------------------------------------------------------------------------------------------- dispatch outputs */

static muster_status take_output(struct checker *c, const struct rule *rule, const muster_tensor *t, void **data)
{
    struct place place;
    muster_status status = check_tensor(c, rule, t, &place);
    *data = status == MUSTER_OK ? place.data : NULL;
    return status;
}

/* An output with a row per received row. NULL is allowed. */
static muster_status take_rows(struct checker *c, const char *name, muster_dtype dtype, int64_t elements,
                               const muster_tensor *t, void **data)
{
    struct rule rule = rows_rule(c->x->shape, name, dtype, elements, true);
    *data = NULL;
    return t ? take_output(c, &rule, t, data) : MUSTER_OK;
}

static muster_status check_present(const struct checker *c, const char *name, const muster_tensor *t)
{
    return t ? MUSTER_OK : error_set(MUSTER_ERR_ARGUMENT, "%s: %s must not be NULL", c->call, name);
}

static muster_status take_array(struct checker *c, const char *name, muster_dtype dtype, int64_t elements,
                                const muster_tensor *t, unsigned char **output)
{
    void *data;
    muster_status status = take_rows(c, name, dtype, elements, t, &data);
    *output = data;
    return status;
}

static muster_status take_hidden_outputs(struct checker *c, const muster_ep_dispatch_args *args,
                                         struct dispatch_receive_args *receive)
{
    const struct exchange_shape *shape = c->x->shape;
    int64_t groups = (shape->hidden + MUSTER_EP_FP8_GROUP - 1) / MUSTER_EP_FP8_GROUP;
    muster_status status = shape->expert_major ? check_present(c, "out_hidden", args->out_hidden) : MUSTER_OK;
    if (status == MUSTER_OK)
        status = take_array(c, "out_hidden", shape->quantise ? MUSTER_FP8 : c->x->config->dtype, shape->hidden,
                            args->out_hidden, &receive->output[0]);
    if (status != MUSTER_OK)
        return status;
    if (!args->out_hidden)
        receive->output[0] = c->x->gathered;
    if (!shape->quantise)
        return check_absent(c, "out_scales", args->out_scales, "the exchange does not quantise");
    status = check_present(c, "out_scales", args->out_scales);
    if (status != MUSTER_OK)
        return status;
    return take_array(c, "out_scales", MUSTER_FP32, groups, args->out_scales, &receive->output[1]);
}

static muster_status take_payload_outputs(struct checker *c, const muster_ep_dispatch_args *args,
                                          struct dispatch_receive_args *receive)
{
    const muster_ep_config *config = c->x->config;
    muster_status status = MUSTER_OK;
    for (int i = 0; i < MUSTER_EP_MAX_PAYLOADS && status == MUSTER_OK; i++) {
        if (i >= config->payload_count)
            status =
                check_absent(c, c->x->out_payload_name[i], args->out_payload[i], "it is beyond config.payload_count");
        else
            status = take_array(c, c->x->out_payload_name[i], config->payload[i].dtype, config->payload[i].elements,
                                args->out_payload[i], &receive->output[shape_payload(c->x->shape, i)]);
    }
    return status;
}

static muster_status take_counts(struct checker *c, const muster_ep_dispatch_args *args,
                                 struct dispatch_receive_args *receive)
{
    const struct exchange_shape *shape = c->x->shape;
    struct rule rule = {"out_counts", MUSTER_INT32, 1, {shape->expert_major ? shape->slots : shape->ranks}, true};
    void *counts, *source = NULL;
    muster_status status = take_output(c, &rule, args->out_counts, &counts);
    if (status == MUSTER_OK)
        status = take_rows(c, "out_source", MUSTER_INT32, 2, args->out_source, &source);
    receive->counts = counts;
    receive->source = source;
    return status;
}

static muster_status take_loads(struct checker *c, const muster_ep_dispatch_args *args,
                                struct dispatch_receive_args *receive)
{
    const struct exchange_shape *shape = c->x->shape;
    struct rule rule = {"out_loads", MUSTER_INT32, 2, {shape->ranks, (int64_t)shape->ranks * shape->slots}, true};
    void *loads = NULL;
    muster_status status = MUSTER_OK;
    if (!shape->load_stats)
        status = check_absent(c, "out_loads", args->out_loads, "the exchange was created without load_stats");
    else if (args->out_loads)
        status = take_output(c, &rule, args->out_loads, &loads);
    receive->loads = loads;
    return status;
}

/* [S, R], or [R] if flat: where each source's rows are. NULL is allowed. */
static muster_status take_ranges(struct checker *c, const muster_ep_dispatch_args *args,
                                 struct dispatch_receive_args *receive)
{
    const struct exchange_shape *shape = c->x->shape;
    struct rule rule = {"out_ranges", MUSTER_INT64, 2, {shape->slots, shape->ranks}, true};
    struct rule flat_rule = {"out_ranges", MUSTER_INT64, 1, {shape->ranks}, true};
    void *ranges = NULL;
    muster_status status = MUSTER_OK;
    if (args->out_ranges)
        status = take_output(c, shape->flat ? &flat_rule : &rule, args->out_ranges, &ranges);
    receive->ranges = ranges;
    return status;
}

static muster_status take_expert_major(struct checker *c, const muster_ep_dispatch_args *args,
                                       struct dispatch_receive_args *receive)
{
    static const char why[] = "it belongs to the rank-major and flat layouts";
    muster_status status = check_absent(c, "out_slots", args->out_slots, why);
    if (status == MUSTER_OK)
        status = check_absent(c, "out_weights", args->out_weights, why);
    receive->slots = NULL;
    receive->weights = NULL;
    return status == MUSTER_OK ? take_ranges(c, args, receive) : status;
}

/* Rank-major and flat: the slots and weights of each row. */
static muster_status take_row_routes(struct checker *c, const muster_ep_dispatch_args *args,
                                     struct dispatch_receive_args *receive)
{
    const struct exchange_shape *shape = c->x->shape;
    struct rule slots_rule = rows_rule(shape, "out_slots", MUSTER_INT32, shape->topk, true);
    struct rule weights_rule = rows_rule(shape, "out_weights", MUSTER_FP32, shape->topk, true);
    void *slots = NULL, *weights = NULL;
    muster_status status = take_output(c, &slots_rule, args->out_slots, &slots);
    if (status == MUSTER_OK)
        status = take_output(c, &weights_rule, args->out_weights, &weights);
    receive->slots = slots;
    receive->weights = weights;
    return status;
}

static muster_status take_rank_major(struct checker *c, const muster_ep_dispatch_args *args,
                                     struct dispatch_receive_args *receive)
{
    static const char why[] = "it belongs to the expert-major and flat layouts";
    muster_status status = check_absent(c, "out_ranges", args->out_ranges, why);
    receive->ranges = NULL;
    return status == MUSTER_OK ? take_row_routes(c, args, receive) : status;
}

static muster_status take_flat(struct checker *c, const muster_ep_dispatch_args *args,
                               struct dispatch_receive_args *receive)
{
    muster_status status = take_row_routes(c, args, receive);
    return status == MUSTER_OK ? take_ranges(c, args, receive) : status;
}

static muster_status take_layout_outputs(struct checker *c, const muster_ep_dispatch_args *args,
                                         struct dispatch_receive_args *receive)
{
    if (c->x->shape->flat)
        return take_flat(c, args, receive);
    return c->x->shape->expert_major ? take_expert_major(c, args, receive) : take_rank_major(c, args, receive);
}

static muster_status take_outputs(struct checker *c, const muster_ep_dispatch_args *args,
                                  struct dispatch_receive_args *receive)
{
    muster_status status = take_hidden_outputs(c, args, receive);
    if (status == MUSTER_OK)
        status = take_payload_outputs(c, args, receive);
    if (status == MUSTER_OK)
        status = take_counts(c, args, receive);
    if (status == MUSTER_OK)
        status = take_loads(c, args, receive);
    if (status == MUSTER_OK)
        status = take_layout_outputs(c, args, receive);
    if (status == MUSTER_OK && (args->pad_ids < 0 || args->pad_ids > 1))
        status = error_set(MUSTER_ERR_ARGUMENT, "%s: pad_ids = %d, must be 0 or 1", c->call, args->pad_ids);
    receive->own = NULL;
    receive->pad_ids = args->pad_ids;
    receive->invalid_id = args->invalid_id;
    return status;
}

muster_status args_dispatch(const struct args_exchange *x, const char *call, const muster_ep_dispatch_args *args,
                            struct dispatch_send_args *send, struct dispatch_receive_args *receive)
{
    struct checker c;
    check_begin(&c, x, call);
    if (!args)
        return error_set(MUSTER_ERR_ARGUMENT, "%s: args must not be NULL", call);
    if (args->size != sizeof(*args))
        return error_set(MUSTER_ERR_ARGUMENT, "%s: args.size = %zu, must be %zu; start from MUSTER_EP_DISPATCH_INIT",
                         call, args->size, sizeof(*args));
    add_own_memory(&c);
    muster_status status = send ? take_inputs(&c, args, send) : MUSTER_OK;
    if (status == MUSTER_OK && receive)
        status = take_outputs(&c, args, receive);
    return status == MUSTER_OK ? check_overlaps(&c) : status;
}

/* ---------------------------------------------------------------------------------------------------------- combine */

static muster_status refuse_in_place(const struct checker *c)
{
    return error_set(
        MUSTER_ERR_ARGUMENT,
        "%s: results must not be NULL: with quantise_return rows do not go home as they are, and cannot be "
        "given in place",
        c->call);
}

static muster_status take_results(struct checker *c, const muster_ep_combine_args *args, struct combine_send_args *send)
{
    const struct exchange_shape *shape = c->x->shape;
    struct rule rule = rows_rule(shape, "results", c->x->config->dtype, shape->hidden, false);
    struct place place;
    *send = (struct combine_send_args){.stamp = 0};
    if (!args->results && !shape->expert_major)
        return shape->quantise_return ? refuse_in_place(c) : MUSTER_OK;
    muster_status status = check_tensor(c, &rule, args->results, &place);
    if (status != MUSTER_OK)
        return status;
    send->results = (struct row_input){place.data, place.stride[rule.ndim - 2]};
    send->block_stride = shape->flat ? 0 : place.stride[0];
    return MUSTER_OK;
}

/* The tensor of muster_ep_results() itself may be handed in: its rows need no copy. */
static bool in_place(const struct args_exchange *x, const struct combine_send_args *send)
{
    const struct exchange_shape *shape = x->shape;
    size_t block_stride = shape->flat ? 0 : (size_t)shape->tokens * shape->result_bytes;
    return !shape->expert_major && !shape->quantise_return && send->results.data == x->region + shape->results &&
           send->results.stride == shape->result_bytes && send->block_stride == block_stride;
}

/*
 * Results may be read from what dispatch brought, which combine leaves alone, but not from where combine writes; `out`
 * may overlap neither. Flat rows of a source need not lie in memory of its own: another one, which has its results, may
 * already lay down its next rows there.
 */
static void add_combine_memory(struct checker *c)
{
    const struct exchange_shape *shape = c->x->shape;
    uint64_t written = shape->exact ? shape->home : shape->flat ? shape->begin : shape->results;
    add_span(c, own_memory, c->x->region + shape->begin, written - shape->begin, false);
    add_span(c, own_memory, c->x->region + written, shape->end - written, true);
    add_gathered(c);
}

static muster_status take_combine_inputs(struct checker *c, const muster_ep_combine_args *args,
                                         struct combine_send_args *send)
{
    muster_status status = take_results(c, args, send);
    if (status != MUSTER_OK || !in_place(c->x, send))
        return status;
    send->results.data = NULL;
    c->spans = 0; /* nothing is copied, so nothing can be copied onto itself */
    return MUSTER_OK;
}

muster_status args_combine(const struct args_exchange *x, const char *call, const muster_ep_combine_args *args,
                           int32_t tokens, struct combine_send_args *send, struct combine_receive_args *receive)
{
    struct checker c;
    check_begin(&c, x, call);
    struct rule out = {"out", x->config->dtype, 2, {tokens, x->shape->hidden}, true};
    if (!args)
        return error_set(MUSTER_ERR_ARGUMENT, "%s: args must not be NULL", call);
    if (args->size != sizeof(*args))
        return error_set(MUSTER_ERR_ARGUMENT, "%s: args.size = %zu, must be %zu; start from MUSTER_EP_COMBINE_INIT",
                         call, args->size, sizeof(*args));
    void *data = NULL;
    muster_status status = send ? take_combine_inputs(&c, args, send) : MUSTER_OK;
    if (status == MUSTER_OK && receive)
        status = take_output(&c, &out, args->out, &data);
    if (receive)
        *receive = (struct combine_receive_args){.out = data};
    add_combine_memory(&c);
    return status == MUSTER_OK ? check_overlaps(&c) : status;
}
