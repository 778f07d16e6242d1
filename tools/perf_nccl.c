// SPDX-License-Identifier: Apache-2.0
/*
 * A rank that does dispatch and combine with NCCL, and as well as that goes: every row is copied once on its way to be
 * sent, those for the own rank straight to their places; one group of sends and receives carries the rest; all lies on one
 * stream, so that it can be a graph. Who sends which rows is known beforehand on the host (perf_plan.h), which favours
 * this side: it needs no exchange of counts, no wait for the host in between, and nothing travels beside the rows.
 */
#include "perf_nccl.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/clock.h"
#include "core/config.h"
#include "muster/muster.h"
#include "nccl.h"
#include "perf_device.h"
#include "perf_plan.h"
#include "perf_rank.h"

#define MEETING_NS UINT64_C(60000000000)

/* The lists of a plan, on the device. */
struct lists {
    int32_t *out_to, *out_from, *in_to, *in_from, *home;
    float *weight;
};

struct baseline {
    struct perf_board *board;
    const struct perf_shape *shape;
    int32_t rank;
    size_t row_bytes;
    struct perf_device device;
    struct nccl nccl;
    nccl_comm comm;
    bool failed;

    /* For one token count; tokens of plan is 0: for none. */
    int32_t count;
    struct perf_plan plan;
    struct lists lists;
    unsigned char *hidden, *output; /* [tokens] rows */
    unsigned char *out, *back; /* [plan.rows] rows of both directions */
    unsigned char *received_here, *results_here,
        *output_here; /* copies on the host, of which only what is used is touched */
};

__attribute__((format(printf, 2, 3))) static bool fail(struct baseline *b, const char *format, ...)
{
    char what[200];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(what, sizeof what, format, arguments);
    va_end(arguments);
    b->failed = true;
    perf_board_fail(b->board, "rank %d: %s", b->rank, what);
    return false;
}

static bool succeeded(struct baseline *b, int error, const char *what)
{
    return error == NCCL_SUCCESS || fail(b, "%s: %s", what, b->nccl.get_error_string(error));
}

static bool enqueued(struct baseline *b, muster_status status)
{
    return status == MUSTER_OK || fail(b, "%s", muster_last_error());
}

/* ---- opening ---- */

static void describe(struct baseline *b)
{
    struct perf_mailbox *mailbox = &b->board->mailbox[PERF_NCCL];
    int version = 0;
    b->nccl.get_version(&version);
    int unit = version < 10000 ? 1000 : 10000; /* of the first number; it grew with version 2.9 */
    snprintf(mailbox->name, sizeof mailbox->name, "NCCL %d.%d.%d", version / unit, version % unit / 100, version % 100);
}

/* Rank 0 makes what tells this communicator from all others; the rest wait until it is on the board. */
static bool meet(struct baseline *b, nccl_id *id)
{
    struct perf_meeting *meeting = &b->board->meeting;
    _Static_assert((int)PERF_MEETING_BYTES == (int)NCCL_ID_BYTES, "the board passes on NCCL's identifiers");
    if (b->rank == 0) {
        if (!succeeded(b, b->nccl.get_unique_id(id), "ncclGetUniqueId"))
            return false;
        memcpy(meeting->id, id, sizeof meeting->id);
        atomic_store(&meeting->known, true);
        return true;
    }
    uint64_t end_ns = clock_ns() + MEETING_NS;
    while (!atomic_load(&meeting->known)) {
        if (atomic_load(&b->board->failed) || clock_ns() > end_ns)
            return fail(b, "rank 0 did not begin within 60 s");
        usleep(1000);
    }
    memcpy(id, meeting->id, sizeof *id);
    return true;
}

static bool baseline_open(void *state, struct perf_board *board, int32_t rank)
{
    struct baseline *b = state;
    char reason[160];
    nccl_id id;
    b->board = board;
    b->shape = &board->shape;
    b->rank = rank;
    b->row_bytes = perf_load_row_bytes(b->shape);
    if (!nccl_load(&b->nccl, reason, sizeof reason))
        return fail(b, "%s", reason);
    if (!perf_device_open(&b->device, rank, b->shape->flush))
        return fail(b, "a device: %s", muster_last_error());
    if (!meet(b, &id))
        return false;
    if (!succeeded(b, b->nccl.comm_init_rank(&b->comm, b->shape->ranks, id, rank), "ncclCommInitRank"))
        return false;
    if (rank == 0)
        describe(b);
    return true;
}

/* ---- memory for one token count ---- */

static void drop_count(struct baseline *b)
{
    void *device[] = {b->lists.out_to, b->lists.out_from, b->lists.in_to, b->lists.in_from, b->lists.home,
                      b->lists.weight, b->hidden,         b->output,      b->out,           b->back};
    void *host[] = {b->received_here, b->results_here, b->output_here};
    for (size_t i = 0; i < sizeof device / sizeof *device; i++)
        perf_device_release(&b->device, device[i]);
    for (size_t i = 0; i < sizeof host / sizeof *host; i++)
        free(host[i]);
    perf_plan_free(&b->plan);
    b->lists = (struct lists){.home = NULL};
    b->hidden = b->output = b->out = b->back = NULL;
    b->received_here = b->results_here = b->output_here = NULL;
}

/* A copy on the device of what lies here. */
static void *given(struct baseline *b, const void *from, size_t bytes)
{
    void *memory = perf_device_allocate(&b->device, bytes);
    if (memory && bytes && !perf_device_copy(&b->device, memory, from, bytes)) {
        perf_device_release(&b->device, memory);
        return NULL;
    }
    return memory;
}

static bool make_lists(struct baseline *b)
{
    const struct perf_plan *p = &b->plan;
    size_t out_bytes = (size_t)p->out.count * sizeof(int32_t), in_bytes = (size_t)p->in.count * sizeof(int32_t);
    size_t parts = (size_t)p->tokens * (size_t)p->parts;
    struct lists *l = &b->lists;
    l->out_to = given(b, p->out.to, out_bytes);
    l->out_from = given(b, p->out.from, out_bytes);
    l->in_to = given(b, p->in.to, in_bytes);
    l->in_from = given(b, p->in.from, in_bytes);
    l->home = given(b, p->home, parts * sizeof *p->home);
    l->weight = given(b, p->weight, parts * sizeof *p->weight);
    return l->out_to && l->out_from && l->in_to && l->in_from && l->home && l->weight;
}

static bool make_rows(struct baseline *b)
{
    const struct perf_plan *p = &b->plan;
    size_t tokens = (size_t)p->tokens * b->row_bytes, places = (size_t)(p->rows - p->crossing) * b->row_bytes;
    b->output_here = calloc(1, tokens);
    b->received_here = calloc(1, places);
    b->results_here = calloc(1, places);
    if (!b->output_here || !b->received_here || !b->results_here)
        return false;
    for (int32_t t = 0; t < p->tokens; t++)
        perf_load_row(b->shape, b->rank, t, b->output_here + (size_t)t * b->row_bytes);
    b->hidden = given(b, b->output_here, tokens);
    b->output = perf_device_allocate(&b->device, tokens);
    b->out = perf_device_allocate(&b->device, (size_t)p->rows * b->row_bytes);
    b->back = perf_device_allocate(&b->device, (size_t)p->rows * b->row_bytes);
    return b->hidden && b->output && b->out && b->back;
}

static bool baseline_prepare(void *state, const struct perf_order *order)
{
    struct baseline *b = state;
    int32_t tokens = b->shape->tokens[order->count];
    if (b->plan.tokens && b->count == order->count)
        return true;
    drop_count(b);
    b->count = order->count;
    if (!perf_plan_make(b->shape, b->rank, tokens, &b->plan) || !make_lists(b) || !make_rows(b))
        return fail(b, "no memory for the arrays of %d tokens", tokens);
    if (b->rank == 0)
        b->board->mailbox[PERF_NCCL].exchange_bytes[order->count] = 2 * (uint64_t)b->plan.crossing * b->row_bytes;
    return true;
}

static void baseline_close(void *state)
{
    struct baseline *b = state;
    drop_count(b);
    if (b->comm && b->failed)
        b->nccl.comm_abort(b->comm); /* waits for nobody */
    else if (b->comm)
        b->nccl.comm_destroy(b->comm);
    perf_device_close(&b->device);
}

/* ---- exchanging ---- */

static bool move_rows(struct baseline *b, struct runtime_move *move)
{
    move->row_bytes = b->row_bytes;
    return enqueued(b, b->device.runtime->move_rows(move, b->device.stream));
}

static bool trade(struct baseline *b, unsigned char *rows, int32_t peer, const struct perf_span *out,
                  const struct perf_span *in)
{
    size_t sent = (size_t)out->count * b->row_bytes, received = (size_t)in->count * b->row_bytes;
    unsigned char *from = rows + (size_t)out->first * b->row_bytes, *to = rows + (size_t)in->first * b->row_bytes;
    if (sent && !succeeded(b, b->nccl.send(from, sent, NCCL_BYTE, peer, b->comm, b->device.stream), "ncclSend"))
        return false;
    return !received ||
           succeeded(b, b->nccl.recv(to, received, NCCL_BYTE, peer, b->comm, b->device.stream), "ncclRecv");
}

/* Home: what dispatch has received goes back to where it came from. A group that was begun is ended in any case. */
static bool exchange(struct baseline *b, unsigned char *rows, bool home)
{
    if (!succeeded(b, b->nccl.group_start(), "ncclGroupStart"))
        return false;
    bool good = true;
    for (int32_t peer = 0; peer < b->shape->ranks && good; peer++) {
        const struct perf_traffic *t = &b->plan.traffic[peer];
        good = trade(b, rows, peer, home ? &t->received : &t->sent, home ? &t->sent : &t->received);
    }
    return succeeded(b, b->nccl.group_end(), "ncclGroupEnd") && good;
}

static bool baseline_dispatch(void *state)
{
    struct baseline *b = state;
    struct runtime_move permute = {.to = b->out,
                                   .from = b->hidden,
                                   .to_row = b->lists.out_to,
                                   .from_row = b->lists.out_from,
                                   .rows = b->plan.out.count};
    struct runtime_move place = {
        .to = b->out, .from = b->out, .to_row = b->lists.in_to, .from_row = b->lists.in_from, .rows = b->plan.in.count};
    return move_rows(b, &permute) && exchange(b, b->out, false) && move_rows(b, &place);
}

static bool enqueue_combine(void *state)
{
    static const enum exchange_type types[] = {
        [PERF_BF16] = EXCHANGE_BF16, [PERF_FP16] = EXCHANGE_FP16, [PERF_FP32] = EXCHANGE_FP32};
    struct baseline *b = state;
    struct runtime_move permute = {.to = b->back,
                                   .from = b->back,
                                   .to_row = b->lists.in_from,
                                   .from_row = b->lists.in_to,
                                   .rows = b->plan.in.count};
    struct runtime_sum sum = {.to = b->output,
                              .from = b->back,
                              .from_row = b->lists.home,
                              .weight = b->lists.weight,
                              .rows = b->plan.tokens,
                              .parts = b->plan.parts,
                              .type = types[b->shape->type],
                              .row_bytes = b->row_bytes};
    return move_rows(b, &permute) && exchange(b, b->back, true) &&
           enqueued(b, b->device.runtime->sum_rows(&sum, b->device.stream));
}

static bool settle(void *state, int32_t pairs)
{
    struct baseline *b = state;
    int error = NCCL_SUCCESS;
    (void)pairs;
    return succeeded(b, b->nccl.comm_get_async_error(b->comm, &error), "ncclCommGetAsyncError") &&
           succeeded(b, error, "NCCL");
}

static bool baseline_combine(void *state)
{
    struct baseline *b = state;
    if (!enqueue_combine(b))
        return false;
    return (perf_device_wait(&b->device) || fail(b, "%s", muster_last_error())) && settle(b, 1);
}

static bool baseline_iterate(void *state, int32_t iterations, struct perf_sample *sample)
{
    struct baseline *b = state;
    const struct perf_pair pair = {b, baseline_dispatch, enqueue_combine, settle};
    return perf_device_iterate(&b->device, &pair, iterations, sample) ||
           fail(b, "a graph of pairs: %s", muster_last_error());
}

/* ---- what the checks look at ---- */

/* Of the places, only those that are used. */
static bool copy_places(struct baseline *b, unsigned char *to, const unsigned char *from)
{
    const struct perf_plan *p = &b->plan;
    for (int32_t block = 0; block < p->blocks; block++) {
        size_t at = (size_t)p->first[block] * b->row_bytes, bytes = (size_t)p->count[block] * b->row_bytes;
        if (bytes && !perf_device_copy(&b->device, to + at, from + at, bytes))
            return fail(b, "%s", muster_last_error());
    }
    return true;
}

static bool baseline_fetch_received(void *state)
{
    struct baseline *b = state;
    return copy_places(b, b->received_here, b->out);
}

static bool baseline_give_results(void *state)
{
    struct baseline *b = state;
    return copy_places(b, b->back, b->results_here);
}

static bool copy_output(struct baseline *b, void *to, const void *from)
{
    return perf_device_copy(&b->device, to, from, (size_t)b->plan.tokens * b->row_bytes) ||
           fail(b, "%s", muster_last_error());
}

static bool baseline_fetch_output(void *state)
{
    struct baseline *b = state;
    return copy_output(b, b->output_here, b->output);
}

static bool baseline_give_output(void *state)
{
    struct baseline *b = state;
    return copy_output(b, b->output, b->output_here);
}

static void baseline_received(void *state, struct perf_received *received)
{
    const struct baseline *b = state;
    const struct perf_plan *p = &b->plan;
    bool by_slot = b->shape->layout == MUSTER_EP_EXPERT_MAJOR;
    *received = (struct perf_received){
        .blocks = p->blocks,
        .block_rows = (size_t)p->block_rows,
        .first = p->first,
        .count = p->count,
        .rows = b->received_here,
        .row_stride = b->row_bytes,
        .slots = by_slot ? NULL : (const unsigned char *)p->slots,
        .weights = by_slot ? NULL : (const unsigned char *)p->weights,
        .route_stride = (size_t)b->shape->topk * sizeof(int32_t),
        .results = b->results_here,
    };
}

static void *baseline_output(void *state)
{
    const struct baseline *b = state;
    return b->output_here;
}

/* ---- the process ---- */

static const struct perf_side side = {
    .id = PERF_NCCL,
    .open = baseline_open,
    .close = baseline_close,
    .prepare = baseline_prepare,
    .dispatch = baseline_dispatch,
    .combine = baseline_combine,
    .iterate = baseline_iterate,
    .fetch_received = baseline_fetch_received,
    .fetch_output = baseline_fetch_output,
    .give_results = baseline_give_results,
    .give_output = baseline_give_output,
    .received = baseline_received,
    .output = baseline_output,
};

bool perf_nccl_is_there(char *reason, size_t bytes)
{
    struct nccl nccl;
    return nccl_load(&nccl, reason, bytes);
}

/* Multicast over NVLink stays off, unless somebody has decided about it. What NCCL says is no part of the table. */
int perf_nccl_rank(const char *board_path)
{
    struct baseline *b = calloc(1, sizeof *b);
    if (!b || setenv("NCCL_NVLS_ENABLE", "0", 0) != 0 || dup2(STDERR_FILENO, STDOUT_FILENO) < 0) {
        perror("muster perf");
        free(b);
        return EXIT_FAILURE;
    }
    int status = perf_rank_run(board_path, (int32_t)config_number(CONFIG_RANK), &side, b);
    free(b);
    return status;
}
