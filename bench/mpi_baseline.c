// SPDX-License-Identifier: Apache-2.0
/*
 * The baseline of `muster perf ep`: dispatch and combine as one does them with MPI, and as well as that goes. Started by
 * that tool, which tells it what to do through its board; clock, alignment, tokens and checks are the tool's own.
 *
 * dispatch  count the rows for each rank; MPI_Alltoall of the counts; permute the rows, each with its slots and weights
 *           beside it, so that one exchange carries both; MPI_Alltoallv.
 * combine   MPI_Alltoallv of the results; add up each token's rows in rank order, in fp32, rounded once.
 *
 * What was done to make it fast: all buffers are there before the clock starts and are never moved; a row is one element
 * of a contiguous type; rows for the own rank are copied once, straight to where they are received, and are not part of
 * any exchange; adding up uses the vector code of the library.
 */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/rows.h"
#include "perf_rank.h"

enum { ALIGNMENT = 64 };

/* Rows for, or from, each rank: how many, and which is the first. */
struct spread {
    int *count, *first;
};

struct baseline {
    struct perf_board *board;
    const struct perf_shape *shape;
    const struct rows_arithmetic *rows;
    int32_t rank, tokens;
    size_t row_bytes, unit_bytes; /* a unit: a row, its slots, its weights */
    MPI_Datatype row_type, unit_type;

    /* The caller's, for the most tokens. */
    unsigned char *hidden, *out;
    int32_t *topk_experts;
    float *topk_weights;

    struct spread sent, received;
    int *exchanged_sent, *exchanged_received; /* counts as MPI_Alltoallv gets them: none for the own rank */
    unsigned char *send, *receive; /* units */
    unsigned char *results,
        *returned; /* rows: those that were received, and what comes back for those that were sent */
    int32_t *row; /* [tokens][ranks] which of its rank's rows a token is, or -1 */
};

/* ---- opening ---- */

static void *allocate(struct baseline *b, size_t bytes)
{
    bytes = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    void *memory = aligned_alloc(ALIGNMENT, bytes);
    if (memory)
        memset(memory, 0, bytes); /* no page is touched for the first time while the clock runs */
    else
        perf_board_fail(b->board, "rank %d: no memory for %zu bytes", b->rank, bytes);
    return memory;
}

static bool make_spread(struct baseline *b, struct spread *spread)
{
    spread->count = allocate(b, (size_t)b->shape->ranks * sizeof(int));
    spread->first = allocate(b, (size_t)b->shape->ranks * sizeof(int));
    return spread->count && spread->first;
}

static bool make_buffers(struct baseline *b, size_t tokens)
{
    size_t ranks = (size_t)b->shape->ranks, rows = ranks * tokens, topk = (size_t)b->shape->topk;
    b->hidden = allocate(b, tokens * b->row_bytes);
    b->out = allocate(b, tokens * b->row_bytes);
    b->topk_experts = allocate(b, tokens * topk * sizeof(int32_t));
    b->topk_weights = allocate(b, tokens * topk * sizeof(float));
    b->send = allocate(b, rows * b->unit_bytes);
    b->receive = allocate(b, rows * b->unit_bytes);
    b->results = allocate(b, rows * b->row_bytes);
    b->returned = allocate(b, rows * b->row_bytes);
    b->row = allocate(b, rows * sizeof(int32_t));
    b->exchanged_sent = allocate(b, ranks * sizeof(int));
    b->exchanged_received = allocate(b, ranks * sizeof(int));
    return make_spread(b, &b->sent) && make_spread(b, &b->received) && b->hidden && b->out && b->topk_experts &&
           b->topk_weights && b->send && b->receive && b->results && b->returned && b->row && b->exchanged_sent &&
           b->exchanged_received;
}

static void fill_inputs(struct baseline *b, int32_t tokens)
{
    size_t topk = (size_t)b->shape->topk;
    for (int32_t t = 0; t < tokens; t++) {
        struct perf_routes routes;
        perf_load_routes(b->shape, b->rank, t, &routes);
        memcpy(b->topk_experts + (size_t)t * topk, routes.expert, topk * sizeof(int32_t));
        memcpy(b->topk_weights + (size_t)t * topk, routes.weight, topk * sizeof(float));
        perf_load_row(b->shape, b->rank, t, b->hidden + (size_t)t * b->row_bytes);
    }
}

static void make_types(struct baseline *b)
{
    MPI_Type_contiguous((int)b->row_bytes, MPI_BYTE, &b->row_type);
    MPI_Type_contiguous((int)b->unit_bytes, MPI_BYTE, &b->unit_type);
    MPI_Type_commit(&b->row_type);
    MPI_Type_commit(&b->unit_type);
}

/* What rank 0 says about all. Memory is that of the exchange alone, as for the library: not what is the caller's. */
static void describe(struct baseline *b)
{
    struct perf_mailbox *mailbox = &b->board->mailbox[PERF_MPI];
    char version[MPI_MAX_LIBRARY_VERSION_STRING];
    int length;
    MPI_Get_library_version(version, &length);
    snprintf(mailbox->name, sizeof mailbox->name, "%.*s", (int)strcspn(version, ","), version);
    for (int32_t i = 0; i < b->shape->token_counts; i++)
        mailbox->exchange_bytes[i] =
            2 * (uint64_t)b->shape->ranks * (uint64_t)b->shape->tokens[i] * (b->unit_bytes + b->row_bytes);
}

static bool baseline_open(void *state, struct perf_board *board, int32_t rank)
{
    struct baseline *b = state;
    const struct rows_arithmetic *builds[ROWS_MAX_BUILDS] = {NULL};
    int32_t most = 0;
    int ranks;
    b->board = board;
    b->shape = &board->shape;
    b->rank = rank;
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    b->rows = builds[rows_builds(builds) - 1];
    b->row_bytes = perf_load_row_bytes(b->shape);
    b->unit_bytes = b->row_bytes + (size_t)b->shape->topk * (sizeof(int32_t) + sizeof(float));
    for (int32_t i = 0; i < b->shape->token_counts; i++)
        most = b->shape->tokens[i] > most ? b->shape->tokens[i] : most;
    make_types(b);
    if (ranks != b->shape->ranks) {
        perf_board_fail(board, "%d MPI ranks, and a board for %d", ranks, b->shape->ranks);
        return false;
    }
    if (!make_buffers(b, (size_t)most))
        return false;
    fill_inputs(b, most);
    if (rank == 0)
        describe(b);
    return true;
}

static void baseline_close(void *state)
{
    struct baseline *b = state;
    void *all[] = {b->hidden,
                   b->out,
                   b->topk_experts,
                   b->topk_weights,
                   b->send,
                   b->receive,
                   b->results,
                   b->returned,
                   b->row,
                   b->sent.count,
                   b->sent.first,
                   b->received.count,
                   b->received.first,
                   b->exchanged_sent,
                   b->exchanged_received};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
    MPI_Type_free(&b->row_type);
    MPI_Type_free(&b->unit_type);
}

static bool baseline_prepare(void *state, const struct perf_order *order)
{
    struct baseline *b = state;
    b->tokens = b->shape->tokens[order->count];
    return true;
}

/* ---- dispatch ---- */

/* Which row of which ranks every token is. */
static void count_rows(struct baseline *b)
{
    const struct perf_shape *s = b->shape;
    memset(b->sent.count, 0, (size_t)s->ranks * sizeof(int));
    memset(b->row, 0xff, (size_t)b->tokens * (size_t)s->ranks * sizeof(int32_t));
    for (int32_t t = 0; t < b->tokens; t++) {
        const int32_t *expert = b->topk_experts + (size_t)t * (size_t)s->topk;
        int32_t *row = b->row + (size_t)t * (size_t)s->ranks;
        for (int32_t k = 0; k < s->topk; k++) {
            int32_t rank = expert[k] / s->slots;
            if (row[rank] < 0)
                row[rank] = b->sent.count[rank]++;
        }
    }
}

static void set_firsts(const struct baseline *b, struct spread *spread, int *exchanged)
{
    int first = 0;
    for (int32_t rank = 0; rank < b->shape->ranks; rank++) {
        spread->first[rank] = first;
        first += spread->count[rank];
        exchanged[rank] = rank == b->rank ? 0 : spread->count[rank];
    }
}

static unsigned char *unit_for(const struct baseline *b, int32_t rank, int32_t row)
{
    if (rank == b->rank)
        return b->receive + (size_t)(b->received.first[rank] + row) * b->unit_bytes;
    return b->send + (size_t)(b->sent.first[rank] + row) * b->unit_bytes;
}

/* Local slots of the routes to this rank, -1 elsewhere, and their weights. */
static void write_routes(const struct baseline *b, int32_t token, int32_t rank, unsigned char *to)
{
    size_t topk = (size_t)b->shape->topk;
    const int32_t *expert = b->topk_experts + (size_t)token * topk;
    const float *weight = b->topk_weights + (size_t)token * topk;
    int32_t *slots = (int32_t *)(void *)to, begin = rank * b->shape->slots;
    float *weights = (float *)(void *)(to + topk * sizeof(int32_t));
    for (size_t k = 0; k < topk; k++) {
        bool here = expert[k] >= begin && expert[k] < begin + b->shape->slots;
        slots[k] = here ? expert[k] - begin : -1;
        weights[k] = here ? weight[k] : 0.0f;
    }
}

static void permute(struct baseline *b)
{
    for (int32_t t = 0; t < b->tokens; t++) {
        const int32_t *row = b->row + (size_t)t * (size_t)b->shape->ranks;
        for (int32_t rank = 0; rank < b->shape->ranks; rank++) {
            if (row[rank] < 0)
                continue;
            unsigned char *unit = unit_for(b, rank, row[rank]);
            memcpy(unit, b->hidden + (size_t)t * b->row_bytes, b->row_bytes);
            write_routes(b, t, rank, unit + b->row_bytes);
        }
    }
}

static bool baseline_dispatch(void *state)
{
    struct baseline *b = state;
    count_rows(b);
    MPI_Alltoall(b->sent.count, 1, MPI_INT, b->received.count, 1, MPI_INT, MPI_COMM_WORLD);
    set_firsts(b, &b->sent, b->exchanged_sent);
    set_firsts(b, &b->received, b->exchanged_received);
    permute(b);
    MPI_Alltoallv(b->send, b->exchanged_sent, b->sent.first, b->unit_type, b->receive, b->exchanged_received,
                  b->received.first, b->unit_type, MPI_COMM_WORLD);
    return true;
}

/* ---- combine ---- */

static enum exchange_type row_type(const struct perf_shape *shape)
{
    static const enum exchange_type types[] = {
        [PERF_BF16] = EXCHANGE_BF16, [PERF_FP16] = EXCHANGE_FP16, [PERF_FP32] = EXCHANGE_FP32};
    return types[shape->type];
}

static void add_up(struct baseline *b, int32_t token)
{
    const int32_t *row = b->row + (size_t)token * (size_t)b->shape->ranks;
    struct rows_sum sum = {.count = 0};
    for (int32_t rank = 0; rank < b->shape->ranks; rank++) {
        if (row[rank] < 0)
            continue;
        const unsigned char *from = rank == b->rank ? b->results + (size_t)b->received.first[rank] * b->row_bytes
                                                    : b->returned + (size_t)b->sent.first[rank] * b->row_bytes;
        sum.weight[sum.count] = 1.0f; /* the ranks have weighted */
        sum.row[sum.count++] = from + (size_t)row[rank] * b->row_bytes;
    }
    b->rows->add(&sum, row_type(b->shape), (size_t)b->shape->hidden, b->out + (size_t)token * b->row_bytes);
}

static bool baseline_combine(void *state)
{
    struct baseline *b = state;
    MPI_Alltoallv(b->results, b->exchanged_received, b->received.first, b->row_type, b->returned, b->exchanged_sent,
                  b->sent.first, b->row_type, MPI_COMM_WORLD);
    for (int32_t t = 0; t < b->tokens; t++)
        add_up(b, t);
    return true;
}

/* ---- what the checks look at ---- */

static void baseline_received(void *state, struct perf_received *received)
{
    const struct baseline *b = state;
    *received = (struct perf_received){
        .blocks = b->shape->ranks,
        .first = b->received.first,
        .count = b->received.count,
        .rows = b->receive,
        .row_stride = b->unit_bytes,
        .slots = b->receive + b->row_bytes,
        .weights = b->receive + b->row_bytes + (size_t)b->shape->topk * sizeof(int32_t),
        .route_stride = b->unit_bytes,
        .results = b->results,
    };
}

static void *baseline_output(void *state)
{
    const struct baseline *b = state;
    return b->out;
}

/* ---- the process ---- */

static const struct perf_side side = {
    .id = PERF_MPI,
    .open = baseline_open,
    .close = baseline_close,
    .prepare = baseline_prepare,
    .dispatch = baseline_dispatch,
    .combine = baseline_combine,
    .received = baseline_received,
    .output = baseline_output,
};

int main(int argc, char **argv)
{
    static struct baseline baseline;
    int rank, status = EXIT_FAILURE;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    if (argc == 2)
        status = perf_rank_run(argv[1], rank, &side, &baseline);
    else if (rank == 0)
        fprintf(stderr, "usage: %s BOARD; started by `muster perf ep`\n", argv[0]);
    if (status != EXIT_SUCCESS)
        MPI_Abort(MPI_COMM_WORLD, status);
    MPI_Finalize();
    return status;
}
