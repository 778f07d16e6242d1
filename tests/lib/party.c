// SPDX-License-Identifier: Apache-2.0
#include "lib/party.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lib/backend.h"

enum { ROW_PADDING = 8 }; /* elements between the rows of a strided array */

static void *party_allocate(size_t bytes)
{
    void *memory = malloc(bytes ? bytes : 1); /* exactly: a sanitizer sees the first byte beyond */
    if (!memory) {
        fprintf(stderr, "party: out of memory: %zu bytes\n", bytes);
        abort();
    }
    return memset(memory, ORACLE_CANARY, bytes);
}

static size_t array_element_bytes(const struct party_array *a)
{
    return (size_t)a->tensor.dtype.bits / 8;
}

static int64_t array_elements(const struct party_array *a)
{
    int64_t elements = 1;
    for (int d = 0; d < a->tensor.ndim; d++)
        elements *= a->shape[d];
    return elements;
}

/* Shapes end with the first negative extent. `padding`: elements left out after each row; -1: no strides at all. */
static void array_make(struct party_array *a, muster_dtype dtype, int64_t d0, int64_t d1, int64_t d2, int padding)
{
    int64_t shape[3] = {d0, d1, d2};
    int ndim = d1 < 0 ? 1 : d2 < 0 ? 2 : 3;
    a->tensor = (muster_tensor){.device = {MUSTER_DEVICE_CPU, 0}, .ndim = ndim, .dtype = dtype, .shape = a->shape};
    int64_t stride = 1;
    for (int d = ndim - 1; d >= 0; d--) {
        a->shape[d] = shape[d];
        a->strides[d] = stride;
        stride *= shape[d];
        if (d == ndim - 1 && ndim > 1)
            stride += padding > 0 ? padding : 0;
    }
    if (padding >= 0) {
        a->tensor.strides = a->strides;
        a->tensor.byte_offset = array_element_bytes(a);
    }
    a->whole_bytes = (size_t)stride * array_element_bytes(a) + a->tensor.byte_offset;
    a->whole = party_allocate(a->whole_bytes);
    a->tensor.data = a->whole_bytes ? a->whole : NULL; /* an empty array may have no address */
    if (!test_backend)
        return;
    a->on_device = test_backend->allocate(a->whole_bytes);
    a->tensor.data = a->whole_bytes ? a->on_device : NULL;
    a->tensor.device = test_backend->device();
}

static void array_upload(const struct party_array *a)
{
    if (a->on_device)
        test_backend->copy(a->on_device, a->whole, a->whole_bytes);
}

static void array_download(const struct party_array *a)
{
    if (a->on_device)
        test_backend->copy(a->whole, a->on_device, a->whole_bytes);
}

static unsigned char *array_data(const struct party_array *a)
{
    return a->whole + a->tensor.byte_offset;
}

/* Copies compact rows in. Rows run over the leading dimensions; the last one is always compact. */
static void array_fill(struct party_array *a, const void *compact)
{
    if (!a->whole || array_elements(a) == 0)
        return;
    int last = a->tensor.ndim - 1;
    size_t row_bytes = (size_t)a->shape[last] * array_element_bytes(a);
    size_t pitch = last > 0 ? (size_t)a->strides[last - 1] * array_element_bytes(a) : row_bytes;
    size_t rows = (size_t)(array_elements(a) / a->shape[last]);
    for (size_t row = 0; row < rows; row++)
        memcpy(array_data(a) + row * pitch, (const char *)compact + row * row_bytes, row_bytes);
}

static void array_free(struct party_array *a)
{
    if (a->on_device)
        test_backend->release(a->on_device);
    free(a->whole);
    a->whole = a->on_device = NULL;
}

static void slots_fill(struct party *p)
{
    const struct world *w = p->world;
    size_t count = (size_t)(w->in[p->rank].tokens * w->c.topk);
    if (w->c.ids64) {
        array_fill(&p->slots, w->slots[p->rank]);
        return;
    }
    int32_t *narrow = party_allocate(count * sizeof(*narrow));
    for (size_t i = 0; i < count; i++)
        narrow[i] = (int32_t)w->slots[p->rank][i];
    array_fill(&p->slots, narrow);
    free(narrow);
}

void party_route(struct party *p, int token, int k, int64_t slot)
{
    const muster_tensor *t = &p->slots.tensor;
    int64_t pitch = t->strides ? t->strides[0] : t->shape[1];
    unsigned char *entry = array_data(&p->slots) + (size_t)(token * pitch + k) * array_element_bytes(&p->slots);
    int32_t narrow = (int32_t)slot;
    if (p->world->c.ids64)
        memcpy(entry, &slot, sizeof(slot));
    else
        memcpy(entry, &narrow, sizeof(narrow));
    array_upload(&p->slots);
}

static void party_inputs(struct party *p)
{
    const struct world *w = p->world;
    const struct exchange_case *c = &w->c;
    int64_t n = w->in[p->rank].tokens;
    int padding = c->strided ? ROW_PADDING : -1;
    array_make(&p->hidden, case_dtype(c->type), n, c->hidden, -1, padding);
    array_fill(&p->hidden, w->hidden[p->rank]);
    array_make(&p->slots, c->ids64 ? MUSTER_INT64 : MUSTER_INT32, n, c->topk, -1, padding);
    slots_fill(p);
    p->dispatch.hidden = &p->hidden.tensor;
    p->dispatch.topk_slots = &p->slots.tensor;
    if (!c->no_weights) {
        array_make(&p->weights, MUSTER_FP32, n, c->topk, -1, padding);
        array_fill(&p->weights, w->weights[p->rank]);
        p->dispatch.topk_weights = &p->weights.tensor;
    }
    for (int i = 0; i < c->payloads; i++) {
        array_make(&p->payload[i], c->payload[i].dtype, n, c->payload[i].elements, -1, padding);
        array_fill(&p->payload[i], w->payload[p->rank][i]);
        p->dispatch.payload[i] = &p->payload[i].tensor;
    }
}

/*
 * An array of rows as the layout has them: [slots, ranks * max_tokens, elements], [ranks, max_tokens, elements] or, flat,
 * [ranks * max_tokens, elements].
 */
static const muster_tensor *rows_make(struct party_array *a, const struct world *w, muster_dtype dtype,
                                      int64_t elements, int padding)
{
    int64_t rows = (int64_t)w->ranks * w->c.max_tokens;
    if (w->c.layout == MUSTER_EP_FLAT)
        array_make(a, dtype, rows, elements, -1, padding);
    else if (w->c.layout == MUSTER_EP_EXPERT_MAJOR)
        array_make(a, dtype, w->c.slots, rows, elements, padding);
    else
        array_make(a, dtype, w->ranks, w->c.max_tokens, elements, padding);
    return &a->tensor;
}

static const muster_tensor *output(struct party_array *a, muster_dtype dtype, int64_t d0, int64_t d1, int64_t d2,
                                   int strided)
{
    array_make(a, dtype, d0, d1, d2, strided ? 0 : -1);
    return &a->tensor;
}

static const muster_tensor *rows_output(struct party_array *a, const struct world *w, muster_dtype dtype,
                                        int64_t elements)
{
    return rows_make(a, w, dtype, elements, w->c.strided ? 0 : -1);
}

static muster_dtype party_hidden_dtype(const struct world *w)
{
    if (w->c.quantise != MUSTER_EP_QUANTISE_NONE)
        return MUSTER_FP8;
    return case_dtype(w->c.type);
}

static void party_outputs(struct party *p)
{
    const struct world *w = p->world;
    const struct exchange_case *c = &w->c;
    int64_t groups = c->layout == MUSTER_EP_EXPERT_MAJOR ? c->slots : w->ranks;
    muster_ep_dispatch_args *d = &p->dispatch;
    if (!c->in_place)
        d->out_hidden = rows_output(&p->out_hidden, w, party_hidden_dtype(w), c->hidden);
    if (c->quantise != MUSTER_EP_QUANTISE_NONE)
        d->out_scales = rows_output(&p->out_scales, w, MUSTER_FP32, (c->hidden + ORACLE_GROUP - 1) / ORACLE_GROUP);
    for (int i = 0; i < c->payloads; i++)
        d->out_payload[i] = rows_output(&p->out_payload[i], w, c->payload[i].dtype, c->payload[i].elements);
    d->out_counts = output(&p->out_counts, MUSTER_INT32, groups, -1, -1, c->strided);
    d->out_source = rows_output(&p->out_source, w, MUSTER_INT32, 2);
    if (c->load_stats)
        d->out_loads = output(&p->out_loads, MUSTER_INT32, w->ranks, (int64_t)w->ranks * c->slots, -1, c->strided);
    if (c->masked)
        d->dropped_routes = &p->dropped;
    d->pad_ids = c->pad;
    d->invalid_id = w->shape.invalid;
}

static void party_layout_outputs(struct party *p)
{
    const struct world *w = p->world;
    const struct exchange_case *c = &w->c;
    if (c->layout == MUSTER_EP_EXPERT_MAJOR) {
        p->dispatch.out_ranges = output(&p->out_ranges, MUSTER_INT64, c->slots, w->ranks, -1, c->strided);
        return;
    }
    if (c->layout == MUSTER_EP_FLAT)
        p->dispatch.out_ranges = output(&p->out_ranges, MUSTER_INT64, w->ranks, -1, -1, c->strided);
    p->dispatch.out_slots = rows_output(&p->out_slots, w, MUSTER_INT32, c->topk);
    p->dispatch.out_weights = rows_output(&p->out_weights, w, MUSTER_FP32, c->topk);
}

static void party_combine_arrays(struct party *p)
{
    const struct world *w = p->world;
    muster_dtype dtype = case_dtype(w->c.type);
    if (!w->c.in_place)
        p->combine.results = rows_make(&p->results, w, dtype, w->c.hidden, w->c.strided ? ROW_PADDING : -1);
    p->combine.out = output(&p->out, dtype, w->in[p->rank].tokens, w->c.hidden, -1, w->c.strided);
}

typedef void array_function(struct party_array *a);

static void party_each(struct party *p, array_function *function)
{
    struct party_array *arrays[] = {&p->hidden,      &p->slots,      &p->weights,   &p->out_hidden, &p->out_scales,
                                    &p->out_counts,  &p->out_source, &p->out_loads, &p->out_ranges, &p->out_slots,
                                    &p->out_weights, &p->results,    &p->out};
    for (size_t i = 0; i < sizeof(arrays) / sizeof(arrays[0]); i++)
        function(arrays[i]);
    for (int i = 0; i < MUSTER_EP_MAX_PAYLOADS; i++) {
        function(&p->payload[i]);
        function(&p->out_payload[i]);
    }
}

static void upload(struct party_array *a)
{
    array_upload(a);
}

static void download(struct party_array *a)
{
    array_download(a);
}

/* On a device: what the library has written, as it is when the stream has done all that was enqueued. */
static void party_fetch(struct party *p)
{
    if (!test_backend)
        return;
    party_each(p, download);
    if (p->dropped_on_device)
        test_backend->copy(&p->dropped, p->dropped_on_device, sizeof(p->dropped));
}

static void party_dropped_on_device(struct party *p)
{
    if (!test_backend || !p->dispatch.dropped_routes)
        return;
    p->dropped_on_device = test_backend->allocate(sizeof(p->dropped));
    test_backend->copy(p->dropped_on_device, &p->dropped, sizeof(p->dropped));
    p->dispatch.dropped_routes = p->dropped_on_device;
}

struct party *party_open(const struct world *world, int rank)
{
    struct party *p = party_allocate(sizeof(*p));
    memset(p, 0, sizeof(*p));
    p->world = world;
    p->rank = rank;
    p->dropped = -1;
    p->dispatch = (muster_ep_dispatch_args)MUSTER_EP_DISPATCH_INIT;
    p->combine = (muster_ep_combine_args)MUSTER_EP_COMBINE_INIT;
    party_inputs(p);
    party_outputs(p);
    party_layout_outputs(p);
    party_combine_arrays(p);
    party_each(p, upload);
    party_dropped_on_device(p);
    return p;
}

void party_close(struct party *p)
{
    if (!p)
        return;
    backend_wait(); /* kernels that still use the arrays */
    party_each(p, array_free);
    if (p->dropped_on_device)
        test_backend->release(p->dropped_on_device);
    free(p);
}

static bool array_untouched(struct party *p, const struct party_array *a, const char *name)
{
    for (size_t i = 0; a->whole && i < a->whole_bytes; i++)
        if (a->whole[i] != ORACLE_CANARY) {
            snprintf(p->why, sizeof(p->why), "rank %d: %s was touched at byte %zu", p->rank, name, i);
            return false;
        }
    return true;
}

bool party_untouched(struct party *p)
{
    party_fetch(p);
    bool untouched =
        array_untouched(p, &p->out_hidden, "out_hidden") && array_untouched(p, &p->out_scales, "out_scales") &&
        array_untouched(p, &p->out_counts, "out_counts") && array_untouched(p, &p->out_source, "out_source") &&
        array_untouched(p, &p->out_loads, "out_loads") && array_untouched(p, &p->out_ranges, "out_ranges") &&
        array_untouched(p, &p->out_slots, "out_slots") && array_untouched(p, &p->out_weights, "out_weights") &&
        array_untouched(p, &p->out, "out");
    for (int i = 0; i < MUSTER_EP_MAX_PAYLOADS; i++)
        untouched = untouched && array_untouched(p, &p->out_payload[i], "out_payload");
    if (untouched && p->dropped != -1)
        snprintf(p->why, sizeof(p->why), "rank %d: dropped_routes was touched", p->rank);
    return untouched && p->dropped == -1;
}

static void differ_say(struct party *p, const char *name, size_t index, const void *got, const void *want, size_t bytes)
{
    uint64_t left = 0, right = 0;
    memcpy(&left, got, bytes);
    memcpy(&right, want, bytes);
    snprintf(p->why, sizeof(p->why), "%s: rank %d of %d: %s[%zu] is 0x%" PRIx64 ", should be 0x%" PRIx64,
             p->world->c.name, p->rank, p->world->ranks, name, index, left, right);
}

static bool bytes_same(struct party *p, const char *name, const void *got, const void *want, size_t count,
                       size_t element_bytes)
{
    const unsigned char *left = got, *right = want;
    for (size_t i = 0; i < count && memcmp(left, right, count * element_bytes) != 0; i++)
        if (memcmp(left + i * element_bytes, right + i * element_bytes, element_bytes) != 0) {
            differ_say(p, name, i, left + i * element_bytes, right + i * element_bytes, element_bytes);
            return false;
        }
    return true;
}

static bool array_same(struct party *p, const char *name, const struct party_array *got, const void *want)
{
    if (!got->whole)
        return true;
    return bytes_same(p, name, array_data(got), want, (size_t)array_elements(got), array_element_bytes(got));
}

static bool numbers_same(struct party *p, const char *name, enum oracle_type type, const void *got, const void *want,
                         size_t count)
{
    ptrdiff_t at = oracle_differ(type, got, want, count);
    if (at < 0)
        return true;
    size_t bytes = oracle_type_bytes(type), offset = (size_t)at * bytes;
    differ_say(p, name, (size_t)at, (const char *)got + offset, (const char *)want + offset, bytes);
    return false;
}

/* In place, only the rows that were received are promised; a copy also promises that the others are untouched. */
static bool hidden_right(struct party *p)
{
    const struct world *w = p->world;
    const struct oracle_received *want = &w->received[p->rank];
    enum oracle_type type = w->shape.quantise ? ORACLE_FP8 : w->shape.type;
    size_t row = (size_t)w->c.hidden, bytes = oracle_type_bytes(type);
    if (!w->c.in_place && w->shape.quantise)
        return numbers_same(p, "out_hidden", type, array_data(&p->out_hidden), want->hidden, (size_t)want->rows * row);
    if (!w->c.in_place)
        return array_same(p, "out_hidden", &p->out_hidden, want->hidden);
    size_t next = 0;
    for (int s = 0; s < w->ranks; s++) {
        size_t first = w->c.layout == MUSTER_EP_FLAT ? next : (size_t)(s * w->c.max_tokens) * row;
        size_t count = (size_t)want->counts[s] * row;
        next += count;
        const unsigned char *got = array_data(&p->out_hidden) + first * bytes;
        if (w->shape.quantise ? !numbers_same(p, "received", type, got, want->hidden + first * bytes, count)
                              : !bytes_same(p, "received", got, want->hidden + first * bytes, count, bytes))
            return false;
    }
    return true;
}

static bool payloads_right(struct party *p)
{
    const struct oracle_received *want = &p->world->received[p->rank];
    for (int i = 0; i < p->world->c.payloads; i++)
        if (!array_same(p, "out_payload", &p->out_payload[i], want->payload[i]))
            return false;
    return true;
}

static bool dropped_right(struct party *p)
{
    int want = p->world->c.masked ? p->world->dropped[p->rank] : -1;
    if (p->dropped != want)
        snprintf(p->why, sizeof(p->why), "%s: rank %d: dropped_routes is %d, should be %d", p->world->c.name, p->rank,
                 (int)p->dropped, want);
    return p->dropped == want;
}

bool party_dispatched(struct party *p)
{
    const struct oracle_received *want = &p->world->received[p->rank];
    return array_same(p, "out_counts", &p->out_counts, want->counts) &&
           array_same(p, "out_source", &p->out_source, want->source) &&
           array_same(p, "out_ranges", &p->out_ranges, want->ranges) &&
           array_same(p, "out_slots", &p->out_slots, want->slots) &&
           array_same(p, "out_weights", &p->out_weights, want->weights) &&
           array_same(p, "out_loads", &p->out_loads, p->world->loads) &&
           array_same(p, "out_scales", &p->out_scales, want->scales) && hidden_right(p) && payloads_right(p) &&
           dropped_right(p);
}

static struct oracle_received party_received(struct party *p)
{
    struct oracle_received received = {.hidden = array_data(&p->out_hidden),
                                       .counts = (int32_t *)(void *)array_data(&p->out_counts)};
    if (p->out_scales.whole)
        received.scales = (float *)(void *)array_data(&p->out_scales);
    if (p->out_slots.whole) {
        received.slots = (int32_t *)(void *)array_data(&p->out_slots);
        received.weights = (float *)(void *)array_data(&p->out_weights);
    }
    return received;
}

void party_experts(struct party *p)
{
    party_fetch(p);
    struct oracle_received received = party_received(p);
    size_t bytes = world_results_bytes(p->world);
    unsigned char *results = party_allocate(bytes);
    world_experts(p->world, p->rank, &received, results);
    array_fill(&p->results, results);
    array_upload(&p->results);
    free(results);
}

bool party_combined(struct party *p)
{
    const struct world *w = p->world;
    size_t count = (size_t)(w->in[p->rank].tokens * w->c.hidden);
    return numbers_same(p, "out", w->shape.type, array_data(&p->out), w->combined[p->rank], count);
}

/* Copies what lies in the exchange's memory, so that it can be compared when the step's verdict is known. */
static muster_status party_take_in_place(struct party *p, muster_ep *ep)
{
    muster_tensor t;
    muster_status status = muster_ep_received(ep, &t);
    if (status != MUSTER_OK)
        return status;
    rows_make(&p->out_hidden, p->world, party_hidden_dtype(p->world), p->world->c.hidden, -1);
    int32_t ndim = p->out_hidden.tensor.ndim;
    if (t.ndim != ndim || memcmp(t.shape, p->out_hidden.shape, (size_t)ndim * sizeof(int64_t)) != 0 ||
        memcmp(&t.dtype, &p->out_hidden.tensor.dtype, sizeof(t.dtype)) != 0) {
        snprintf(p->why, sizeof(p->why), "rank %d: muster_ep_received() has the wrong shape or type", p->rank);
        return MUSTER_ERR_UNSUPPORTED;
    }
    backend_copy(test_backend ? p->out_hidden.on_device : p->out_hidden.whole, (char *)t.data + t.byte_offset,
                 p->out_hidden.whole_bytes);
    return MUSTER_OK;
}

static muster_status party_give_in_place(struct party *p, muster_ep *ep)
{
    muster_tensor t;
    muster_status status = muster_ep_results(ep, &t);
    if (status != MUSTER_OK)
        return status;
    party_fetch(p);
    struct oracle_received received = party_received(p);
    unsigned char *there = (unsigned char *)t.data + t.byte_offset;
    size_t bytes = world_results_bytes(p->world);
    unsigned char *results = test_backend ? party_allocate(bytes) : there;
    world_experts(p->world, p->rank, &received, results);
    if (test_backend) {
        test_backend->copy(there, results, bytes);
        free(results);
    }
    return MUSTER_OK;
}

muster_status party_compute(struct party *p, muster_ep *ep)
{
    if (!p->world->c.in_place) {
        party_experts(p);
        return MUSTER_OK;
    }
    muster_status status = party_take_in_place(p, ep);
    return status == MUSTER_OK ? party_give_in_place(p, ep) : status;
}

/* The inputs were borrowed for the call only; a device reads them when the stream comes to it. */
static void forget_inputs(struct party *p)
{
    if (test_backend)
        return;
    memset(p->hidden.whole, 0xee, p->hidden.whole_bytes);
    memset(p->slots.whole, 0xee, p->slots.whole_bytes);
}

static muster_status dispatch_in_halves(struct party *p, muster_ep *ep)
{
    muster_status status = muster_ep_dispatch_send(ep, &p->dispatch, backend_stream());
    if (status != MUSTER_OK)
        return status;
    forget_inputs(p);
    return muster_ep_dispatch_receive(ep, &p->dispatch, backend_stream());
}

muster_status party_dispatch(struct party *p, muster_ep *ep)
{
    muster_status status =
        p->world->c.halves ? dispatch_in_halves(p, ep) : muster_ep_dispatch(ep, &p->dispatch, backend_stream());
    backend_wait();
    return status;
}

static muster_status combine_in_halves(struct party *p, muster_ep *ep)
{
    muster_status status = muster_ep_combine_send(ep, &p->combine, backend_stream());
    if (status != MUSTER_OK)
        return status;
    if (p->results.whole && !test_backend)
        memset(p->results.whole, 0xee, p->results.whole_bytes);
    return muster_ep_combine_receive(ep, &p->combine, backend_stream());
}

muster_status party_combine(struct party *p, muster_ep *ep)
{
    muster_status status =
        p->world->c.halves ? combine_in_halves(p, ep) : muster_ep_combine(ep, &p->combine, backend_stream());
    backend_wait();
    return status;
}

muster_status party_exchange(struct party *p, muster_ep *ep)
{
    muster_status status = party_dispatch(p, ep);
    if (status == MUSTER_OK)
        status = party_compute(p, ep);
    return status == MUSTER_OK ? party_combine(p, ep) : status;
}

bool party_right(struct party *p)
{
    party_fetch(p);
    return party_dispatched(p) && party_combined(p);
}
