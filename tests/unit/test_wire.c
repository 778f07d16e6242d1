// SPDX-License-Identifier: Apache-2.0
/* The wire: what goes in comes out, and nothing that is cut, stretched, damaged or senseless comes out at all. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "control/wire.h"
#include "core/mask.h"
#include "core/stamp.h"

/* ---- views ---- */

static struct view some_view(int ranks)
{
    struct view view = {.epoch = 7, .phase = VIEW_PREPARE, .proposer = ranks - 1, .mask = mask_first(ranks)};
    for (int r = 0; r < ranks; r++)
        view.incarnation[r] = (uint32_t)r * 1000003u + 1;
    view.expelled = mask_with(view.expelled, ranks / 2);
    view.expelled_incarnation[ranks / 2] = 1;
    return view;
}

static void assert_view_refused(struct view view, int ranks)
{
    unsigned char bytes[STORE_MAX_VALUE];
    struct view got = {.epoch = 99};
    assert_int_equal(wire_get_view(bytes, wire_put_view(&view, ranks, bytes), ranks, &got), -1);
    assert_int_equal(got.epoch, 99); /* untouched */
}

static void test_view_round_trip(void **state)
{
    (void)state;
    unsigned char bytes[STORE_MAX_VALUE];
    for (int ranks = 1; ranks <= MUSTER_MAX_RANKS; ranks++) {
        struct view view = some_view(ranks), got = {.epoch = 0};
        size_t size = wire_put_view(&view, ranks, bytes);
        assert_true(size <= STORE_MAX_VALUE);
        assert_int_equal(wire_get_view(bytes, size, ranks, &got), 0);
        assert_memory_equal(&got, &view, sizeof got);
    }
}

static void test_view_cut_or_stretched(void **state)
{
    (void)state;
    unsigned char bytes[STORE_MAX_VALUE] = {0};
    struct view view = some_view(5), got;
    size_t size = wire_put_view(&view, 5, bytes);
    for (size_t cut = 0; cut < size; cut++)
        assert_int_equal(wire_get_view(bytes, cut, 5, &got), -1);
    assert_int_equal(wire_get_view(bytes, size + 1, 5, &got), -1);
    assert_int_equal(wire_get_view(bytes, size, 4, &got), -1);
    assert_int_equal(wire_get_view(bytes, size, 6, &got), -1);
    bytes[0]++; /* version */
    assert_int_equal(wire_get_view(bytes, size, 5, &got), -1);
}

static void test_view_senseless(void **state)
{
    (void)state;
    struct view view = some_view(4);
    view.epoch = 0;
    assert_view_refused(view, 4);
    view.epoch = STAMP_MAX_EPOCH + 1;
    assert_view_refused(view, 4);
    view = some_view(4);
    view.phase = VIEW_NONE;
    assert_view_refused(view, 4);
    view.phase = (enum view_phase)3;
    assert_view_refused(view, 4);
    view = some_view(4);
    view.proposer = -1;
    assert_view_refused(view, 4);
    view.proposer = 4;
    assert_view_refused(view, 4);
    view = some_view(4);
    view.mask = (muster_mask){{0, 0}};
    assert_view_refused(view, 4);
    view.mask = mask_first(5);
    assert_view_refused(view, 4);
    view.mask = (muster_mask){{1, 1}};
    assert_view_refused(view, 4);
    view = some_view(4);
    view.expelled = mask_with(view.expelled, 127);
    assert_view_refused(view, 4);
    view = some_view(4);
    view.incarnation[3] = 0;
    assert_view_refused(view, 4);
    view = some_view(4);
    view.expelled_incarnation[2] = 0;
    assert_view_refused(view, 4);
}

/* ---- records ---- */

static struct record some_record(void)
{
    return (struct record){.incarnation = 3,
                           .state = RECORD_ACTIVE,
                           .acknowledged = 4,
                           .ready = 5,
                           .progress = UINT64_MAX - 1,
                           .failed = 6,
                           .overdue_epoch = 7,
                           .overdue = {{0x123456789abcdef0, 0x0fedcba987654321}},
                           .waiting_epoch = 8,
                           .waiting = {{UINT64_MAX, 1}}};
}

static void assert_record_refused(struct record record)
{
    unsigned char bytes[STORE_MAX_VALUE];
    struct record got = {.incarnation = 99};
    assert_int_equal(wire_get_record(bytes, wire_put_record(&record, bytes), &got), -1);
    assert_int_equal(got.incarnation, 99);
}

static void test_record_round_trip(void **state)
{
    (void)state;
    unsigned char bytes[STORE_MAX_VALUE] = {0};
    struct record record = some_record(), got;
    memset(&got, 0, sizeof got);
    size_t size = wire_put_record(&record, bytes);
    assert_int_equal(wire_get_record(bytes, size, &got), 0);
    assert_int_equal(got.incarnation, 3);
    assert_int_equal(got.state, RECORD_ACTIVE);
    assert_int_equal(got.acknowledged, 4);
    assert_int_equal(got.ready, 5);
    assert_int_equal(got.failed, 6);
    assert_int_equal(got.overdue_epoch, 7);
    assert_true(got.progress == record.progress);
    assert_true(mask_equal(got.overdue, record.overdue));
    assert_int_equal(got.waiting_epoch, 8);
    assert_true(mask_equal(got.waiting, record.waiting));
    for (size_t cut = 0; cut < size; cut++)
        assert_int_equal(wire_get_record(bytes, cut, &got), -1);
    assert_int_equal(wire_get_record(bytes, size + 1, &got), -1);
    bytes[0] = 0;
    assert_int_equal(wire_get_record(bytes, size, &got), -1);
}

static void test_record_senseless(void **state)
{
    (void)state;
    uint32_t too_high = STAMP_MAX_EPOCH + 1;
    struct record record = some_record();
    record.incarnation = 0;
    assert_record_refused(record);
    record = some_record();
    record.state = (enum record_state)(RECORD_LEFT + 1);
    assert_record_refused(record);
    record = some_record();
    record.acknowledged = too_high;
    assert_record_refused(record);
    record = some_record();
    record.ready = too_high;
    assert_record_refused(record);
    record = some_record();
    record.failed = too_high;
    assert_record_refused(record);
    record = some_record();
    record.overdue_epoch = too_high;
    assert_record_refused(record);
    record = some_record();
    record.waiting_epoch = too_high;
    assert_record_refused(record);
}

static void test_presence_and_fenced(void **state)
{
    (void)state;
    unsigned char bytes[STORE_MAX_VALUE] = {0};
    struct presence presence = {.incarnation = 9, .pid = 4711}, got = {.pid = 0};
    size_t size = wire_put_presence(&presence, bytes);
    assert_int_equal(wire_get_presence(bytes, size, &got), 0);
    assert_int_equal(got.incarnation, 9);
    assert_int_equal(got.pid, 4711);
    assert_int_equal(wire_get_presence(bytes, size - 1, &got), -1);
    assert_int_equal(wire_get_presence(bytes, size + 1, &got), -1);
    assert_int_equal(wire_get_presence(bytes, 0, &got), -1);
    presence.incarnation = 0;
    assert_int_equal(wire_get_presence(bytes, wire_put_presence(&presence, bytes), &got), -1);

    uint32_t incarnation = 0;
    size = wire_put_fenced(0x01020304, bytes);
    assert_int_equal(wire_get_fenced(bytes, size, &incarnation), 0);
    assert_int_equal(incarnation, 0x01020304);
    assert_int_equal(wire_get_fenced(bytes, size - 1, &incarnation), -1);
    assert_int_equal(wire_get_fenced(bytes, size + 1, &incarnation), -1);
    bytes[0] = 9;
    assert_int_equal(wire_get_fenced(bytes, size, &incarnation), -1);
}

/* ---- frames ---- */

static struct wire_frame some_frame(void)
{
    return (struct wire_frame){.type = WIRE_REPLY,
                               .status = MUSTER_ERR_AGAIN,
                               .store_id = 0x1122334455667788,
                               .request = UINT64_MAX,
                               .revision = 12,
                               .rank = 127,
                               .incarnation = UINT32_MAX,
                               .peer = -1,
                               .peer_incarnation = 5,
                               .key_revision = 11,
                               .number = 42,
                               .key = "config/ep0/127",
                               .key_bytes = 14,
                               .value = (const unsigned char *)"value",
                               .value_bytes = 5};
}

static void test_frame_round_trip(void **state)
{
    (void)state;
    unsigned char bytes[WIRE_MAX_FRAME];
    struct wire_frame frame = some_frame(), got;
    size_t size = wire_put_frame(&frame, bytes);
    assert_int_equal(size, WIRE_HEADER + 14 + 5);
    assert_null(wire_get_frame(bytes, size, &got));
    assert_int_equal(got.type, WIRE_REPLY);
    assert_int_equal(got.status, MUSTER_ERR_AGAIN);
    assert_int_equal(got.store_id, frame.store_id);
    assert_int_equal(got.request, frame.request);
    assert_int_equal(got.revision, 12);
    assert_int_equal(got.rank, 127);
    assert_int_equal(got.incarnation, UINT32_MAX);
    assert_int_equal(got.peer, -1);
    assert_int_equal(got.peer_incarnation, 5);
    assert_int_equal(got.key_revision, 11);
    assert_int_equal(got.number, 42);
    assert_int_equal(got.key_bytes, 14);
    assert_memory_equal(got.key, frame.key, 14);
    assert_int_equal(got.value_bytes, 5);
    assert_memory_equal(got.value, "value", 5);
}

static void test_largest_and_smallest_frame(void **state)
{
    (void)state;
    unsigned char bytes[WIRE_MAX_FRAME];
    static unsigned char value[STORE_MAX_VALUE];
    char key[STORE_MAX_KEY];
    memset(key, 'k', sizeof key);
    struct wire_frame frame = some_frame(), got;
    frame.key = key;
    frame.key_bytes = STORE_MAX_KEY - 1;
    frame.value = value;
    frame.value_bytes = STORE_MAX_VALUE;
    size_t size = wire_put_frame(&frame, bytes);
    assert_true(size <= WIRE_MAX_FRAME);
    assert_null(wire_get_frame(bytes, size, &got));
    frame.key_bytes = frame.value_bytes = 0;
    size = wire_put_frame(&frame, bytes);
    assert_int_equal(size, WIRE_HEADER);
    assert_null(wire_get_frame(bytes, size, &got));
}

static void test_frame_cut_or_stretched(void **state)
{
    (void)state;
    unsigned char bytes[2 * WIRE_MAX_FRAME] = {0};
    struct wire_frame frame = some_frame(), got;
    size_t size = wire_put_frame(&frame, bytes);
    for (size_t cut = 0; cut < size; cut++)
        assert_non_null(wire_get_frame(bytes, cut, &got));
    for (size_t longer = size + 1; longer < sizeof bytes; longer += 97)
        assert_non_null(wire_get_frame(bytes, longer, &got));
}

/* Whatever single bit is damaged, the frame is refused, and nothing is handed out. */
static void test_every_flipped_bit(void **state)
{
    (void)state;
    unsigned char bytes[WIRE_MAX_FRAME];
    struct wire_frame frame = some_frame(), got = {.number = 99};
    size_t size = wire_put_frame(&frame, bytes);
    for (size_t bit = 0; bit < size * 8; bit++) {
        bytes[bit / 8] ^= (unsigned char)(1 << bit % 8);
        if (!wire_get_frame(bytes, size, &got))
            fail_msg("a frame with bit %zu flipped passed", bit);
        bytes[bit / 8] ^= (unsigned char)(1 << bit % 8);
    }
    assert_int_equal(got.number, 99);
    assert_null(wire_get_frame(bytes, size, &got));
}

/* Where the fields lie is part of the format: a second writing of it, with the right checksum for any content. */
static const char *get_with(size_t offset, size_t bytes, uint64_t value)
{
    static unsigned char frame_bytes[WIRE_MAX_FRAME];
    struct wire_frame frame = some_frame(), got;
    size_t size = wire_put_frame(&frame, frame_bytes);
    for (size_t i = 0; i < bytes; i++)
        frame_bytes[offset + i] = (unsigned char)(value >> (8 * i));
    uint64_t checksum = XXH3_64bits_withSeed(frame_bytes + 24, size - 24, XXH3_64bits(frame_bytes, 16));
    for (size_t i = 0; i < 8; i++)
        frame_bytes[16 + i] = (unsigned char)(checksum >> (8 * i));
    return wire_get_frame(frame_bytes, size, &got);
}

static void assert_reason(const char *reason, const char *text)
{
    if (!reason)
        fail_msg("passed, but %s was wanted", text);
    if (!strstr(reason, text))
        fail_msg("\"%s\" does not speak of \"%s\"", reason, text);
}

static void test_frame_senseless(void **state)
{
    (void)state;
    assert_null(get_with(72, 8, 7)); /* the helper itself makes valid frames */
    assert_reason(get_with(0, 4, 0x12345678), "magic");
    assert_reason(get_with(4, 2, 1), "version");
    assert_reason(get_with(6, 2, 0), "type");
    assert_reason(get_with(6, 2, WIRE_TYPES), "type");
    assert_reason(get_with(8, 4, WIRE_HEADER), "length");
    assert_reason(get_with(8, 4, UINT32_MAX), "length");
    assert_reason(get_with(12, 4, 1), "status");
    assert_reason(get_with(12, 4, (uint32_t)-1000), "status");
    assert_reason(get_with(56, 4, 128), "rank");
    assert_reason(get_with(56, 4, (uint32_t)-2), "rank");
    assert_reason(get_with(48, 4, 128), "rank");
    assert_reason(get_with(80, 4, 15), "fill");
    assert_reason(get_with(80, 4, STORE_MAX_KEY), "too long");
    assert_reason(get_with(80, 4, UINT32_MAX), "too long");
    assert_reason(get_with(84, 4, 4), "fill");
    assert_reason(get_with(84, 4, STORE_MAX_VALUE + 1), "too long");
    assert_reason(get_with(84, 4, UINT32_MAX), "too long");
    assert_reason(get_with(88, 1, 0), "characters");
    assert_reason(get_with(88, 1, '\n'), "characters");
    assert_reason(get_with(88, 1, 0xff), "characters");
    assert_reason(get_with(90, 1, 'A'), "characters");
}

static void test_type_names(void **state)
{
    (void)state;
    for (enum wire_type type = WIRE_HELLO; type < WIRE_TYPES; type++)
        assert_string_not_equal(wire_type_name(type), "?");
    assert_string_equal(wire_type_name((enum wire_type)0), "?");
    assert_string_equal(wire_type_name(WIRE_TYPES), "?");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_view_round_trip),        cmocka_unit_test(test_view_cut_or_stretched),
        cmocka_unit_test(test_view_senseless),         cmocka_unit_test(test_record_round_trip),
        cmocka_unit_test(test_record_senseless),       cmocka_unit_test(test_presence_and_fenced),
        cmocka_unit_test(test_frame_round_trip),       cmocka_unit_test(test_largest_and_smallest_frame),
        cmocka_unit_test(test_frame_cut_or_stretched), cmocka_unit_test(test_every_flipped_bit),
        cmocka_unit_test(test_frame_senseless),        cmocka_unit_test(test_type_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
