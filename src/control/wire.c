// SPDX-License-Identifier: Apache-2.0
#include "control/wire.h"

#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "core/mask.h"
#include "core/stamp.h"

enum { WIRE_VERSION = 2, VALUE_VERSION = 2, CHECKSUM_OFFSET = 16, CHECKSUM_BYTES = 8 };

#define WIRE_MAGIC UINT32_C(0x5254534d) /* "MSTR" */

/* Writers and readers go byte by byte, so neither alignment nor the machine's byte order matters. */
struct writer {
    unsigned char *bytes;
    size_t used;
};

static void put_number(struct writer *w, uint64_t value, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        w->bytes[w->used++] = (unsigned char)(value >> (8 * i));
}

static void put_u8(struct writer *w, uint32_t value)
{
    put_number(w, value, 1);
}

static void put_u16(struct writer *w, uint32_t value)
{
    put_number(w, value, 2);
}

static void put_u32(struct writer *w, uint32_t value)
{
    put_number(w, value, 4);
}

static void put_i32(struct writer *w, int32_t value)
{
    put_u32(w, (uint32_t)value);
}

static void put_u64(struct writer *w, uint64_t value)
{
    put_number(w, value, 8);
}

static void put_bytes(struct writer *w, const void *bytes, size_t size)
{
    if (size)
        memcpy(w->bytes + w->used, bytes, size);
    w->used += size;
}

static void put_mask(struct writer *w, muster_mask mask)
{
    put_u64(w, mask.word[0]);
    put_u64(w, mask.word[1]);
}

/* A read past the end gives 0 and sets `cut`, which is looked at once, at the end. */
struct reader {
    const unsigned char *bytes;
    size_t size;
    size_t used;
    bool cut;
};

static uint64_t get_number(struct reader *r, size_t bytes)
{
    if (r->cut || r->size - r->used < bytes) {
        r->cut = true;
        return 0;
    }
    uint64_t value = 0;
    for (size_t i = 0; i < bytes; i++)
        value |= (uint64_t)r->bytes[r->used++] << (8 * i);
    return value;
}

static uint8_t get_u8(struct reader *r)
{
    return (uint8_t)get_number(r, 1);
}

static uint16_t get_u16(struct reader *r)
{
    return (uint16_t)get_number(r, 2);
}

static uint32_t get_u32(struct reader *r)
{
    return (uint32_t)get_number(r, 4);
}

static int32_t get_i32(struct reader *r)
{
    return (int32_t)get_u32(r);
}

static uint64_t get_u64(struct reader *r)
{
    return get_number(r, 8);
}

static muster_mask get_mask(struct reader *r)
{
    uint64_t low = get_u64(r);
    return (muster_mask){{low, get_u64(r)}};
}

static bool reader_finished(const struct reader *r)
{
    return !r->cut && r->used == r->size;
}

/* ---- views ---- */

size_t wire_put_view(const struct view *view, int ranks, unsigned char out[STORE_MAX_VALUE])
{
    struct writer w = {.bytes = out};
    put_u8(&w, VALUE_VERSION);
    put_u8(&w, (uint32_t)view->phase);
    put_u16(&w, (uint32_t)ranks);
    put_u32(&w, view->epoch);
    put_i32(&w, view->proposer);
    put_mask(&w, view->mask);
    put_mask(&w, view->expelled);
    for (int r = 0; r < ranks; r++) {
        put_u32(&w, view->incarnation[r]);
        put_u32(&w, view->expelled_incarnation[r]);
    }
    return w.used;
}

/* Every rank of a set must have an incarnation, or nobody could tell which process is meant. */
static bool view_names_incarnations(muster_mask mask, const uint32_t incarnation[MUSTER_MAX_RANKS])
{
    for (int r = mask_next(mask, 0); r >= 0; r = mask_next(mask, r + 1))
        if (!incarnation[r])
            return false;
    return true;
}

static bool view_is_sound(const struct view *view, int ranks)
{
    muster_mask all = mask_first(ranks);
    return (view->phase == VIEW_PREPARE || view->phase == VIEW_COMMITTED) && view->epoch >= 1 &&
           view->epoch <= STAMP_MAX_EPOCH && view->proposer >= 0 && view->proposer < ranks && !mask_empty(view->mask) &&
           mask_subset(view->mask, all) && mask_subset(view->expelled, all) &&
           view_names_incarnations(view->mask, view->incarnation) &&
           view_names_incarnations(view->expelled, view->expelled_incarnation);
}

int wire_get_view(const unsigned char *bytes, size_t size, int ranks, struct view *view)
{
    struct reader r = {.bytes = bytes, .size = size};
    struct view read = {.epoch = 0};
    uint8_t version = get_u8(&r);
    read.phase = (enum view_phase)get_u8(&r);
    if (version != VALUE_VERSION || get_u16(&r) != ranks)
        return -1;
    read.epoch = get_u32(&r);
    read.proposer = get_i32(&r);
    read.mask = get_mask(&r);
    read.expelled = get_mask(&r);
    for (int i = 0; i < ranks; i++) {
        read.incarnation[i] = get_u32(&r);
        read.expelled_incarnation[i] = get_u32(&r);
    }
    if (!reader_finished(&r) || !view_is_sound(&read, ranks))
        return -1;
    *view = read;
    return 0;
}

/* ---- records ---- */

size_t wire_put_record(const struct record *record, unsigned char out[STORE_MAX_VALUE])
{
    struct writer w = {.bytes = out};
    put_u8(&w, VALUE_VERSION);
    put_u8(&w, (uint32_t)record->state);
    put_u32(&w, record->incarnation);
    put_u32(&w, record->acknowledged);
    put_u32(&w, record->ready);
    put_u64(&w, record->progress);
    put_u32(&w, record->failed);
    put_u32(&w, record->overdue_epoch);
    put_mask(&w, record->overdue);
    put_u32(&w, record->waiting_epoch);
    put_mask(&w, record->waiting);
    return w.used;
}

static bool record_is_sound(const struct record *record)
{
    return record->state <= RECORD_LEFT && record->incarnation >= 1 && record->acknowledged <= STAMP_MAX_EPOCH &&
           record->ready <= STAMP_MAX_EPOCH && record->failed <= STAMP_MAX_EPOCH &&
           record->overdue_epoch <= STAMP_MAX_EPOCH && record->waiting_epoch <= STAMP_MAX_EPOCH;
}

int wire_get_record(const unsigned char *bytes, size_t size, struct record *record)
{
    struct reader r = {.bytes = bytes, .size = size};
    struct record read = {.incarnation = 0};
    uint8_t version = get_u8(&r);
    read.state = (enum record_state)get_u8(&r);
    read.incarnation = get_u32(&r);
    read.acknowledged = get_u32(&r);
    read.ready = get_u32(&r);
    read.progress = get_u64(&r);
    read.failed = get_u32(&r);
    read.overdue_epoch = get_u32(&r);
    read.overdue = get_mask(&r);
    read.waiting_epoch = get_u32(&r);
    read.waiting = get_mask(&r);
    if (version != VALUE_VERSION || !reader_finished(&r) || !record_is_sound(&read))
        return -1;
    *record = read;
    return 0;
}

/* ---- presence and fences ---- */

size_t wire_put_presence(const struct presence *presence, unsigned char out[STORE_MAX_VALUE])
{
    struct writer w = {.bytes = out};
    put_u8(&w, VALUE_VERSION);
    put_u32(&w, presence->incarnation);
    put_i32(&w, presence->pid);
    return w.used;
}

int wire_get_presence(const unsigned char *bytes, size_t size, struct presence *presence)
{
    struct reader r = {.bytes = bytes, .size = size};
    uint8_t version = get_u8(&r);
    uint32_t incarnation = get_u32(&r);
    int32_t pid = get_i32(&r);
    if (version != VALUE_VERSION || !reader_finished(&r) || !incarnation || pid < 1)
        return -1;
    *presence = (struct presence){.incarnation = incarnation, .pid = pid};
    return 0;
}

size_t wire_put_fenced(uint32_t incarnation, unsigned char out[STORE_MAX_VALUE])
{
    struct writer w = {.bytes = out};
    put_u8(&w, VALUE_VERSION);
    put_u32(&w, incarnation);
    return w.used;
}

int wire_get_fenced(const unsigned char *bytes, size_t size, uint32_t *incarnation)
{
    struct reader r = {.bytes = bytes, .size = size};
    uint8_t version = get_u8(&r);
    uint32_t read = get_u32(&r);
    if (version != VALUE_VERSION || !reader_finished(&r))
        return -1;
    *incarnation = read;
    return 0;
}

/* ---- frames ---- */

const char *wire_type_name(enum wire_type type)
{
    static const char *const names[WIRE_TYPES] = {
        [WIRE_HELLO] = "hello", [WIRE_GET] = "get",       [WIRE_PUT] = "put",         [WIRE_SWAP] = "swap",
        [WIRE_AGAIN] = "again", [WIRE_LEAVE] = "leave",   [WIRE_FENCE] = "fence",     [WIRE_SHARE] = "share",
        [WIRE_ASK] = "ask",     [WIRE_PING] = "ping",     [WIRE_WELCOME] = "welcome", [WIRE_REFUSED] = "refused",
        [WIRE_STATE] = "state", [WIRE_CHANGE] = "change", [WIRE_REPLY] = "reply",     [WIRE_MEMORY] = "memory",
        [WIRE_PONG] = "pong",   [WIRE_REMOVE] = "remove",
    };
    return type >= WIRE_HELLO && type < WIRE_TYPES ? names[type] : "?";
}

/* Of everything but the checksum itself: what stands before it seeds the hash of what stands after it. */
static uint64_t frame_checksum(const unsigned char *bytes, size_t size)
{
    size_t after = CHECKSUM_OFFSET + CHECKSUM_BYTES;
    uint64_t seed = XXH3_64bits(bytes, CHECKSUM_OFFSET);
    return XXH3_64bits_withSeed(bytes + after, size - after, seed);
}

static void put_header(struct writer *w, const struct wire_frame *frame, uint64_t checksum)
{
    put_u32(w, WIRE_MAGIC);
    put_u16(w, WIRE_VERSION);
    put_u16(w, (uint32_t)frame->type);
    put_u32(w, (uint32_t)(WIRE_HEADER + frame->key_bytes + frame->value_bytes));
    put_i32(w, (int32_t)frame->status);
    put_u64(w, checksum);
    put_u64(w, frame->store_id);
    put_u64(w, frame->request);
    put_u64(w, frame->revision);
    put_i32(w, frame->rank);
    put_u32(w, frame->incarnation);
    put_i32(w, frame->peer);
    put_u32(w, frame->peer_incarnation);
    put_u64(w, frame->key_revision);
    put_u64(w, frame->number);
    put_u32(w, (uint32_t)frame->key_bytes);
    put_u32(w, (uint32_t)frame->value_bytes);
}

size_t wire_put_frame(const struct wire_frame *frame, unsigned char out[WIRE_MAX_FRAME])
{
    struct writer w = {.bytes = out};
    put_header(&w, frame, 0);
    put_bytes(&w, frame->key, frame->key_bytes);
    put_bytes(&w, frame->value, frame->value_bytes);
    size_t size = w.used;
    w.used = CHECKSUM_OFFSET;
    put_u64(&w, frame_checksum(out, size));
    return size;
}

/* Keys reach log lines and string functions: nothing but these characters passes. */
static bool key_is_plain(const char *key, size_t bytes)
{
    static const char plain[] = "abcdefghijklmnopqrstuvwxyz0123456789/_.-";
    for (size_t i = 0; i < bytes; i++)
        if (!memchr(plain, key[i], sizeof plain - 1))
            return false;
    return true;
}

static bool rank_in_range(int32_t rank)
{
    return rank >= -1 && rank < MUSTER_MAX_RANKS;
}

/* What stands before the checksum, and the checksum: whether the rest can be believed at all. */
static const char *get_envelope(struct reader *r, struct wire_frame *frame)
{
    if (r->size < WIRE_HEADER)
        return "it is shorter than a header";
    if (r->size > WIRE_MAX_FRAME)
        return "it is longer than any frame";
    if (get_u32(r) != WIRE_MAGIC)
        return "it does not begin with the magic number";
    if (get_u16(r) != WIRE_VERSION)
        return "it is of another version";
    frame->type = (enum wire_type)get_u16(r);
    if (get_u32(r) != r->size)
        return "its length is not the one it states";
    frame->status = (muster_status)get_i32(r);
    if (get_u64(r) != frame_checksum(r->bytes, r->size))
        return "its checksum is wrong";
    return NULL;
}

static void get_fields(struct reader *r, struct wire_frame *frame)
{
    frame->store_id = get_u64(r);
    frame->request = get_u64(r);
    frame->revision = get_u64(r);
    frame->rank = get_i32(r);
    frame->incarnation = get_u32(r);
    frame->peer = get_i32(r);
    frame->peer_incarnation = get_u32(r);
    frame->key_revision = get_u64(r);
    frame->number = get_u64(r);
    frame->key_bytes = get_u32(r);
    frame->value_bytes = get_u32(r);
}

static const char *check_fields(const struct wire_frame *frame, size_t size)
{
    if (frame->type < WIRE_HELLO || frame->type >= WIRE_TYPES)
        return "its type is unknown";
    if (frame->status > MUSTER_OK || frame->status < -99)
        return "its status is none";
    if (!rank_in_range(frame->rank) || !rank_in_range(frame->peer))
        return "its rank is out of range";
    if (frame->key_bytes >= STORE_MAX_KEY || frame->value_bytes > STORE_MAX_VALUE)
        return "its key or value is too long";
    if (WIRE_HEADER + frame->key_bytes + frame->value_bytes != size)
        return "its key and value do not fill it";
    return NULL;
}

const char *wire_get_frame(const unsigned char *bytes, size_t size, struct wire_frame *frame)
{
    struct reader r = {.bytes = bytes, .size = size};
    struct wire_frame read = {.type = WIRE_HELLO};
    const char *reason = get_envelope(&r, &read);
    if (reason)
        return reason;
    get_fields(&r, &read);
    reason = check_fields(&read, size);
    if (reason)
        return reason;
    read.key = (const char *)bytes + WIRE_HEADER;
    read.value = bytes + WIRE_HEADER + read.key_bytes;
    if (!key_is_plain(read.key, read.key_bytes))
        return "its key has characters that no key has";
    *frame = read;
    return NULL;
}
