// SPDX-License-Identifier: Apache-2.0
/*
 * The kernels that the tools have of the runtime: rows are moved and added up as kernels/runtime.h says. Values are small
 * whole numbers, so that every sum is exact in every type and can be compared bit for bit.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/runtime.h"
#include "lib/pace.h"

enum { ROWS = 37, SPARE = 5, MOST_PARTS = 32 };

static const size_t widths[] = {16, 256, 272, 14336, 40000};
static const int width_count = sizeof widths / sizeof *widths;

static const struct runtime *run;
static void *stream;

static void must(muster_status status, const char *what)
{
    if (status != MUSTER_OK)
        fail_msg("%s: %s", what, muster_last_error());
}

/* A copy on the device. */
static void *give(const void *from, size_t bytes)
{
    void *memory = NULL;
    must(run->allocate(&memory, bytes), "allocate");
    must(run->copy(memory, from, bytes, stream), "copy");
    return memory;
}

/* Brings it back, and releases it. */
static void take(void *to, void *memory, size_t bytes)
{
    must(run->stream_wait(stream, PACE_PATIENCE_MS), "stream_wait");
    must(run->copy(to, memory, bytes, stream), "copy");
    run->release(memory);
}

/* ---- moves ---- */

static unsigned char byte_of(int32_t row, size_t i)
{
    return (unsigned char)((size_t)row * 31 + i * 7 + 1);
}

/* Row i of ROWS comes from a row of its own or of another's, and goes to one that nobody else goes to. */
static void move(size_t bytes)
{
    int32_t to[ROWS], from[ROWS];
    size_t total = (ROWS + SPARE) * bytes;
    unsigned char *in = malloc(total), *out = calloc(1, total);
    assert_non_null(in);
    assert_non_null(out);
    for (int32_t r = 0; r < ROWS + SPARE; r++)
        for (size_t i = 0; i < bytes; i++)
            in[(size_t)r * bytes + i] = byte_of(r, i);
    for (int32_t r = 0; r < ROWS; r++) {
        to[r] = (r * 5 + 3) % ROWS; /* 37 is prime: each once */
        from[r] = (r * r) % (ROWS + SPARE);
    }
    struct runtime_move m = {.to = give(out, total), .from = give(in, total), .rows = ROWS, .row_bytes = bytes};
    m.to_row = give(to, sizeof to);
    m.from_row = give(from, sizeof from);
    must(run->move_rows(&m, stream), "move_rows");
    take(out, m.to, total);
    for (int32_t r = 0; r < ROWS; r++)
        for (size_t i = 0; i < bytes; i++)
            assert_int_equal(out[(size_t)to[r] * bytes + i], byte_of(from[r], i));
    for (size_t i = ROWS * bytes; i < total; i++)
        assert_int_equal(out[i], 0);
    take(to, (void *)(uintptr_t)m.to_row, sizeof to);
    take(from, (void *)(uintptr_t)m.from_row, sizeof from);
    take(in, (void *)(uintptr_t)m.from, total);
    free(in);
    free(out);
}

static void test_rows_are_moved(void **state)
{
    (void)state;
    for (int w = 0; w < width_count; w++)
        move(widths[w]);
    must(run->move_rows(&(struct runtime_move){.rows = 0, .row_bytes = 16}, stream), "no rows");
}

/* ---- sums ---- */

/* Exact for whole numbers up to 256. */
static void put(enum exchange_type type, void *row, size_t i, int value)
{
    float number = (float)value;
    uint32_t bits;
    memcpy(&bits, &number, sizeof bits);
    uint16_t half = (uint16_t)((bits >> 16 & 0x8000) | (((bits >> 13) - (112u << 10)) & 0x7fff));
    switch (type) {
    case EXCHANGE_BF16: ((uint16_t *)row)[i] = (uint16_t)(bits >> 16); break;
    case EXCHANGE_FP16: ((uint16_t *)row)[i] = value ? half : 0; break;
    default: ((float *)row)[i] = number;
    }
}

static int value_of(int32_t row, size_t i)
{
    return (int)(((size_t)row * 13 + i * 5) % 3) - 1;
}

/* Rows have from none to all of the parts. */
static int32_t parts_of(int32_t row, int32_t parts)
{
    return row % (parts + 1);
}

static void sum(enum exchange_type type, size_t bytes, int32_t parts)
{
    static int32_t from[ROWS * MOST_PARTS];
    static float weight[ROWS * MOST_PARTS];
    size_t values = bytes / (type == EXCHANGE_FP32 ? 4 : 2), total = ROWS * bytes;
    unsigned char *in = malloc(total), *out = malloc(total), *want = malloc(total);
    assert_true(in && out && want);
    memset(out, 0xff, total);
    for (int32_t r = 0; r < ROWS; r++) {
        for (size_t i = 0; i < values; i++)
            put(type, in + (size_t)r * bytes, i, value_of(r, i));
        for (int32_t k = 0; k < parts; k++) {
            from[r * parts + k] = k < parts_of(r, parts) ? (r * 7 + k * 3) % ROWS : -1;
            weight[r * parts + k] = 1.0f + (float)(k % 2);
        }
    }
    for (int32_t r = 0; r < ROWS; r++)
        for (size_t i = 0; i < values; i++) {
            int whole = 0;
            for (int32_t k = 0; k < parts_of(r, parts); k++)
                whole += (1 + k % 2) * value_of(from[r * parts + k], i);
            put(type, want + (size_t)r * bytes, i, whole);
        }
    struct runtime_sum s = {.to = give(out, total), .from = give(in, total), .rows = ROWS, .parts = parts};
    s.from_row = give(from, sizeof from);
    s.weight = give(weight, sizeof weight);
    s.type = type;
    s.row_bytes = bytes;
    must(run->sum_rows(&s, stream), "sum_rows");
    take(out, s.to, total);
    assert_memory_equal(out, want, total);
    take(in, (void *)(uintptr_t)s.from, total);
    take(from, (void *)(uintptr_t)s.from_row, sizeof from);
    take(weight, (void *)(uintptr_t)s.weight, sizeof weight);
    free(in);
    free(out);
    free(want);
}

static void test_rows_are_added_up(void **state)
{
    static const int32_t parts[] = {1, 3, 8, MOST_PARTS};
    (void)state;
    for (int type = EXCHANGE_BF16; type <= EXCHANGE_FP32; type++)
        for (int w = 0; w < width_count; w++)
            for (int p = 0; p < 4; p++)
                sum((enum exchange_type)type, widths[w], parts[p]);
}

/* ---- copies ---- */

static void test_copies_keep_the_order_of_the_stream(void **state)
{
    unsigned char in[1000], out[1000] = {0}, handle[RUNTIME_HANDLE_BYTES];
    (void)state;
    memset(in, 7, sizeof in);
    void *from = give(in, sizeof in), *to = give(out, sizeof out);
    must(run->enqueue_copy(to, from, sizeof in, stream), "enqueue_copy");
    must(run->clear(from, sizeof in, stream), "clear");
    take(out, to, sizeof out);
    assert_memory_equal(out, in, sizeof in);
    must(run->export_memory(from, handle), "export_memory"); /* other processes map it in test_perf_gpu.sh */
    take(out, from, sizeof out);
    assert_int_equal(out[999], 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rows_are_moved),
        cmocka_unit_test(test_rows_are_added_up),
        cmocka_unit_test(test_copies_keep_the_order_of_the_stream),
    };
    if (runtime_load(&run) != MUSTER_OK || run->count() == 0) {
        printf("[  SKIPPED ] there is no CUDA device\n");
        return 77;
    }
    if (run->use(0) != MUSTER_OK || run->stream_create(&stream) != MUSTER_OK) {
        fprintf(stderr, "%s\n", muster_last_error());
        return 1;
    }
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    run->stream_destroy(stream);
    return failed;
}
