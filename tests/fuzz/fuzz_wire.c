// SPDX-License-Identifier: Apache-2.0
/*
 * libFuzzer target for the wire. The first byte chooses what the rest is taken for: a view, a record, a presence, a
 * fence, a frame, or a frame whose envelope is made right, so that what lies behind the checksum is reached. Whatever
 * is accepted must come out of the encoder as the same bytes: there is one way to say each thing.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "control/wire.h"

#define REQUIRE(condition) ((condition) ? (void)0 : abort())

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void take_view(const uint8_t *data, size_t size)
{
    static struct view view;
    unsigned char again[STORE_MAX_VALUE];
    int ranks = size ? data[0] % MUSTER_MAX_RANKS + 1 : 1;
    if (size == 0 || wire_get_view(data + 1, size - 1, ranks, &view) != 0)
        return;
    REQUIRE(wire_put_view(&view, ranks, again) == size - 1);
    REQUIRE(memcmp(again, data + 1, size - 1) == 0);
}

static void take_record(const uint8_t *data, size_t size)
{
    struct record record;
    unsigned char again[STORE_MAX_VALUE];
    if (wire_get_record(data, size, &record) != 0)
        return;
    REQUIRE(wire_put_record(&record, again) == size);
    REQUIRE(memcmp(again, data, size) == 0);
}

static void take_presence(const uint8_t *data, size_t size)
{
    struct presence presence;
    unsigned char again[STORE_MAX_VALUE];
    if (wire_get_presence(data, size, &presence) != 0)
        return;
    REQUIRE(wire_put_presence(&presence, again) == size);
    REQUIRE(memcmp(again, data, size) == 0);
}

static void take_fenced(const uint8_t *data, size_t size)
{
    uint32_t incarnation;
    unsigned char again[STORE_MAX_VALUE];
    if (wire_get_fenced(data, size, &incarnation) != 0)
        return;
    REQUIRE(wire_put_fenced(incarnation, again) == size);
    REQUIRE(memcmp(again, data, size) == 0);
}

static void take_frame(const uint8_t *data, size_t size)
{
    struct wire_frame frame;
    unsigned char again[WIRE_MAX_FRAME];
    if (wire_get_frame(data, size, &frame))
        return;
    REQUIRE(frame.key_bytes < STORE_MAX_KEY && frame.value_bytes <= STORE_MAX_VALUE);
    REQUIRE(memchr(frame.key, 0, frame.key_bytes) == NULL);
    REQUIRE(wire_put_frame(&frame, again) == size);
    REQUIRE(memcmp(again, data, size) == 0);
}

static void write_number(unsigned char *at, uint64_t value, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        at[i] = (unsigned char)(value >> (8 * i));
}

/* Magic number, version, length, checksum: as wire.c wants them. */
static void take_mended_frame(const uint8_t *data, size_t size)
{
    unsigned char frame[2 * WIRE_MAX_FRAME];
    if (size < WIRE_HEADER || size > sizeof frame)
        return;
    memcpy(frame, data, size);
    memcpy(frame, "MSTR\2", 6);
    write_number(frame + 8, size, 4);
    write_number(frame + 16, XXH3_64bits_withSeed(frame + 24, size - 24, XXH3_64bits(frame, 16)), 8);
    take_frame(frame, size);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static void (*const takers[])(const uint8_t *, size_t) = {take_view,   take_record, take_presence,
                                                              take_fenced, take_frame,  take_mended_frame};
    if (size)
        takers[data[0] % (sizeof takers / sizeof *takers)](data + 1, size - 1);
    return 0;
}
