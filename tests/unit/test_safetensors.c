// SPDX-License-Identifier: Apache-2.0
/* The safetensors reader: what it finds in good files, and that each kind of damage is refused with its reason. */
#include <setjmp.h>
#include <stdalign.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>

#include "weights/safetensors.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define ERROR_BYTES 512

/* A file's content in memory. */
struct image {
    alignas(SAFETENSORS_ALIGNMENT) unsigned char content[4096];
    size_t size;
    size_t data_begin;
};

static unsigned char pattern(size_t index)
{
    return (unsigned char)(index * 37 + 11);
}

static void set_length(struct image *image, uint64_t length)
{
    memcpy(image->content, &length, sizeof(length));
}

/* Frames a header without padding it, and lets `data_bytes` of the pattern follow. */
static void frame(struct image *image, const char *header, size_t data_bytes)
{
    size_t length = strlen(header);
    assert_true(sizeof(uint64_t) + length + data_bytes <= sizeof(image->content));
    set_length(image, length);
    memcpy(image->content + sizeof(uint64_t), header, length);
    image->data_begin = sizeof(uint64_t) + length;
    image->size = image->data_begin + data_bytes;
    for (size_t i = 0; i < data_bytes; i++) {
        image->content[image->data_begin + i] = pattern(i);
    }
}

/* The same with the header padded by spaces, as writers do it, so that the data begins at a multiple of 8. */
static void build(struct image *image, const char *header, size_t data_bytes)
{
    char padded[2048];
    int length = snprintf(padded, sizeof(padded), "%s", header);
    assert_in_range(length, 0, sizeof(padded) - 9);
    for (; length % 8 != 0; length++) {
        padded[length] = ' ';
    }
    padded[length] = '\0';
    frame(image, padded, data_bytes);
}

static int parse(const struct image *image, struct safetensors **out, char error[ERROR_BYTES])
{
    error[0] = '\0';
    return safetensors_parse(image->content, image->size, "here.safetensors", out, error, ERROR_BYTES);
}

static struct safetensors *parse_good(const struct image *image)
{
    char error[ERROR_BYTES];
    struct safetensors *file = NULL;
    int result = parse(image, &file, error);
    assert_string_equal(error, "");
    assert_int_equal(result, 0);
    assert_non_null(file);
    return file;
}

/* Whether it is refused with `want` in the message, the label in front, and *out untouched. */
static bool refused(const struct image *image, const char *want)
{
    char error[ERROR_BYTES];
    struct safetensors *const untouched = (struct safetensors *)&error;
    struct safetensors *file = untouched;
    if (parse(image, &file, error) == 0) {
        safetensors_close(file);
        print_error("accepted, but expected: %s\n", want);
        return false;
    }
    if (file != untouched || strstr(error, want) == NULL || strstr(error, "here.safetensors: ") != error) {
        print_error("expected: %s\nbut got:  %s\n", want, error);
        return false;
    }
    return true;
}

/* Names out of order, data in another order than both, a scalar, an empty tensor, and metadata. */
static const char good_header[] = "{\"__metadata__\":{\"format\":\"pt\",\"note\":\"\"},"
                                  "\"w\":{\"dtype\":\"BF16\",\"shape\":[2,3],\"data_offsets\":[16,28]},"
                                  "\"a\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[0,16]},"
                                  "\"none\":{\"dtype\":\"F32\",\"shape\":[5,0],\"data_offsets\":[16,16]},"
                                  "\"scalar\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[28,32]}}";
static const size_t good_data_bytes = 32;

static void check_tensor(const struct image *image, const struct safetensors_tensor *tensor, const char *name,
                         size_t begin, size_t bytes)
{
    assert_non_null(tensor);
    assert_string_equal(tensor->name, name);
    assert_int_equal(tensor->bytes, bytes);
    assert_ptr_equal(tensor->data, image->content + image->data_begin + begin);
    assert_int_equal(((const unsigned char *)tensor->data)[bytes - 1], pattern(begin + bytes - 1));
}

static void test_good_file_gives_each_tensor(void **state)
{
    (void)state;
    struct image image;
    build(&image, good_header, good_data_bytes);
    struct safetensors *file = parse_good(&image);
    assert_int_equal(safetensors_count(file), 4);
    check_tensor(&image, safetensors_find(file, "a"), "a", 0, 16);
    check_tensor(&image, safetensors_find(file, "w"), "w", 16, 12);
    check_tensor(&image, safetensors_find(file, "scalar"), "scalar", 28, 4);

    const struct safetensors_tensor *w = safetensors_find(file, "w");
    assert_int_equal(w->dtype, SAFETENSORS_BF16);
    assert_int_equal(w->ndim, 2);
    assert_int_equal(w->shape[0], 2);
    assert_int_equal(w->shape[1], 3);
    assert_int_equal(safetensors_find(file, "scalar")->ndim, 0);
    const struct safetensors_tensor *none = safetensors_find(file, "none");
    assert_int_equal(none->bytes, 0);
    assert_null(none->data);
    safetensors_close(file);
}

static void test_tensors_are_listed_by_name(void **state)
{
    (void)state;
    static const char *const names[] = {"a", "none", "scalar", "w"};
    struct image image;
    build(&image, good_header, good_data_bytes);
    struct safetensors *file = parse_good(&image);
    for (size_t i = 0; i < COUNT(names); i++) {
        assert_string_equal(safetensors_at(file, i)->name, names[i]);
        assert_ptr_equal(safetensors_find(file, names[i]), safetensors_at(file, i));
    }
    assert_null(safetensors_at(file, COUNT(names)));
    static const char *const absent[] = {"", "A", "b", "z", "a ", "__metadata__"};
    for (size_t i = 0; i < COUNT(absent); i++) {
        assert_null(safetensors_find(file, absent[i]));
    }
    safetensors_close(file);
}

static void test_file_without_tensors(void **state)
{
    (void)state;
    static const char *const headers[] = {"{}", "{\"__metadata__\":{}}"};
    for (size_t i = 0; i < COUNT(headers); i++) {
        struct image image;
        build(&image, headers[i], 0);
        struct safetensors *file = parse_good(&image);
        assert_int_equal(safetensors_count(file), 0);
        assert_null(safetensors_at(file, 0));
        assert_null(safetensors_find(file, "a"));
        safetensors_close(file);
    }
    safetensors_close(NULL);
}

/* The sizes stand here once more, from the format's description, not from the reader's table. */
static void test_every_dtype_has_its_size(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        size_t bytes;
    } known[] = {{"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E4M3", 1}, {"F8_E5M2", 1}, {"F8_E8M0", 1},
                 {"U16", 2},  {"I16", 2}, {"F16", 2}, {"BF16", 2},    {"U32", 4},     {"I32", 4},
                 {"F32", 4},  {"U64", 8}, {"I64", 8}, {"F64", 8}};
    assert_int_equal(COUNT(known), SAFETENSORS_DTYPES);
    for (size_t i = 0; i < COUNT(known); i++) {
        char header[128];
        snprintf(header, sizeof(header), "{\"t\":{\"dtype\":\"%s\",\"shape\":[3],\"data_offsets\":[0,%zu]}}",
                 known[i].name, 3 * known[i].bytes);
        struct image image;
        build(&image, header, 3 * known[i].bytes);
        struct safetensors *file = parse_good(&image);
        const struct safetensors_tensor *tensor = safetensors_find(file, "t");
        assert_string_equal(safetensors_dtype_name(tensor->dtype), known[i].name);
        assert_int_equal(safetensors_dtype_bytes(tensor->dtype), known[i].bytes);
        assert_int_equal(tensor->bytes, 3 * known[i].bytes);
        safetensors_close(file);
    }
}

/* An entry of a header; the shape and the offsets stand as text. */
#define TENSOR(name, dtype, shape, offsets) \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}"

struct bad_header {
    const char *header;
    size_t data_bytes;
    const char *want;
};

static void check_refused(const struct bad_header *cases, size_t count)
{
    bool all = true;
    for (size_t i = 0; i < count; i++) {
        struct image image;
        build(&image, cases[i].header, cases[i].data_bytes);
        all = refused(&image, cases[i].want) && all;
    }
    assert_true(all);
}

static void test_bad_json_is_refused(void **state)
{
    (void)state;
    static const struct bad_header cases[] = {
        {"{", 0, "no valid JSON, at its byte"},
        {"{\"a\":}", 0, "no valid JSON, at its byte"},
        {"{} {}", 0, "no valid JSON"},
        {"{\"\xff\":1}", 0, "no valid JSON"},
        {"{\"a\\u0000b\":1}", 0, "no valid JSON"},
        {"[]", 0, "does not begin with '{'"},
        {" {}", 0, "does not begin with '{'"},
        {"", 0, "does not begin with '{'"},
        {"{" TENSOR("a", "U8", "[1]", "[0,1]") "," TENSOR("a", "U8", "[1]", "[1,2]") "}", 2, "duplicate"},
        {"{\"a\":{\"dtype\":\"U8\",\"dtype\":\"I8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "duplicate"},
        {"{\"__metadata__\":[]}", 0, "__metadata__ must be an object of strings"},
        {"{\"__metadata__\":{\"a\":1}}", 0, "but 'a' is none"},
    };
    check_refused(cases, COUNT(cases));
}

static void test_bad_tensor_entries_are_refused(void **state)
{
    (void)state;
    static const struct bad_header cases[] = {
        {"{\"a\":1}", 0, "tensor 'a' is not described by an object"},
        {"{\"a\":{\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "tensor 'a' has no dtype"},
        {"{\"a\":{\"dtype\":3,\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "tensor 'a' has no dtype"},
        {"{" TENSOR("a", "F31", "[1]", "[0,4]") "}", 4, "tensor 'a' has dtype 'F31', which is not known here"},
        {"{" TENSOR("a", "f32", "[1]", "[0,4]") "}", 4, "tensor 'a' has dtype 'f32'"},
        {"{" TENSOR("a", "U8\\u0000", "[1]", "[0,1]") "}", 1, "no valid JSON"},
        {"{\"a\":{\"dtype\":\"U8\",\"data_offsets\":[0,1]}}", 1, "tensor 'a' has no shape"},
        {"{" TENSOR("a", "U8", "1", "[0,1]") "}", 1, "tensor 'a' has no shape"},
        {"{" TENSOR("a", "U8", "[1,1,1,1,1,1,1,1,1]", "[0,1]") "}", 1, "has 9 dimensions, the limit is 8"},
        {"{" TENSOR("a", "U8", "[1,-1]", "[0,1]") "}", 1, "a dimension 1 that is no whole number"},
        {"{" TENSOR("a", "U8", "[1.0]", "[0,1]") "}", 1, "a dimension 0 that is no whole number"},
        {"{" TENSOR("a", "U8", "[\"1\"]", "[0,1]") "}", 1, "a dimension 0 that is no whole number"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1]}}", 1, "tensor 'a' has no data_offsets"},
        {"{" TENSOR("a", "U8", "[1]", "[0]") "}", 1, "tensor 'a' has no data_offsets"},
        {"{" TENSOR("a", "U8", "[1]", "[0,1,1]") "}", 1, "tensor 'a' has no data_offsets"},
        {"{" TENSOR("a", "U8", "[1]", "{}") "}", 1, "tensor 'a' has no data_offsets"},
        {"{" TENSOR("a", "U8", "[1]", "[-1,0]") "}", 1, "a data_offsets[0] that is no whole number"},
        {"{" TENSOR("a", "U8", "[1]", "[0,1.0]") "}", 1, "a data_offsets[1] that is no whole number"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1],\"x\":0}}", 1, "has keys other than dtype"},
    };
    check_refused(cases, COUNT(cases));
}

static void test_sizes_that_do_not_fit_are_refused(void **state)
{
    (void)state;
    static const struct bad_header cases[] = {
        {"{" TENSOR("a", "F32", "[2]", "[0,4]") "}", 4, "has 4 bytes of data, its dtype and shape ask for 8"},
        {"{" TENSOR("a", "F32", "[2]", "[0,12]") "}", 12, "has 12 bytes of data, its dtype and shape ask for 8"},
        {"{" TENSOR("a", "F32", "[0]", "[0,4]") "}", 4, "has 4 bytes of data, its dtype and shape ask for 0"},
        {"{" TENSOR("a", "F32", "[]", "[0,0]") "}", 0, "has 0 bytes of data, its dtype and shape ask for 4"},
        /* 2^32 * 2^32 and 2^62 * 4 wrap to 0, (2^62 + 1) * 4 to 4: without the check they would fit. */
        {"{" TENSOR("a", "U8", "[4294967296,4294967296]", "[0,0]") "}", 0, "overflows 64 bits"},
        {"{" TENSOR("a", "F32", "[4611686018427387904]", "[0,0]") "}", 0, "overflows 64 bits"},
        {"{" TENSOR("a", "F32", "[4611686018427387905]", "[0,4]") "}", 4, "overflows 64 bits"},
        {"{" TENSOR("a", "U8", "[99999999999999999999]", "[0,4]") "}", 4, "no valid JSON"},
    };
    check_refused(cases, COUNT(cases));
}

static void test_bad_places_are_refused(void **state)
{
    (void)state;
    static const struct bad_header cases[] = {
        {"{" TENSOR("a", "U8", "[4]", "[8,4]") "}", 8, "tensor 'a' begins at byte 8 and ends before that, at 4"},
        {"{" TENSOR("a", "U8", "[9]", "[0,9]") "}", 8, "ends at byte 9 of the data, but only 8 follow the header"},
        {"{" TENSOR("a", "U8", "[0]", "[9,9]") "}", 8, "ends at byte 9 of the data, but only 8 follow the header"},
        {"{" TENSOR("a", "U8", "[1]", "[9223372036854775806,9223372036854775807]") "}", 8, "but only 8 follow"},
        {"{" TENSOR("a", "U8", "[8]", "[0,8]") "," TENSOR("b", "U8", "[8]", "[0,8]") "}", 8, "overlaps '"},
        {"{" TENSOR("a", "U8", "[4]", "[0,4]") "," TENSOR("b", "U8", "[5]", "[3,8]") "}", 8,
         "tensor 'b' begins at byte 3 of the data and overlaps 'a'"},
        {"{" TENSOR("a", "U8", "[8]", "[0,8]") "," TENSOR("b", "U8", "[2]", "[3,5]") "}", 8,
         "tensor 'b' begins at byte 3 of the data and overlaps 'a'"},
        {"{" TENSOR("a", "U8", "[8]", "[0,8]") "," TENSOR("b", "U8", "[0]", "[3,3]") "}", 8,
         "tensor 'b' begins at byte 3 of the data and overlaps 'a'"},
        {"{" TENSOR("a", "U8", "[4]", "[0,4]") "," TENSOR("b", "U8", "[3]", "[5,8]") "}", 8,
         "tensor 'b' begins at byte 5 of the data, after a hole of 1 bytes"},
        {"{" TENSOR("a", "U8", "[7]", "[1,8]") "}", 8, "tensor 'a' begins at byte 1 of the data, after a hole"},
        {"{" TENSOR("a", "U8", "[7]", "[0,7]") "}", 8, "the last 1 bytes belong to no tensor"},
        {"{}", 8, "the last 8 bytes belong to no tensor"},
    };
    check_refused(cases, COUNT(cases));
}

static void test_misaligned_data_is_refused(void **state)
{
    (void)state;
    static const struct bad_header cases[] = {
        {"{" TENSOR("a", "U8", "[2]", "[0,2]") "," TENSOR("b", "F32", "[1]", "[2,6]") "}", 6,
         "no multiple of the 4 of a F32"},
        {"{" TENSOR("a", "U8", "[1]", "[0,1]") "," TENSOR("b", "BF16", "[1]", "[1,3]") "}", 3,
         "no multiple of the 2 of a BF16"},
        {"{" TENSOR("a", "U8", "[4]", "[0,4]") "," TENSOR("b", "I64", "[1]", "[4,12]") "}", 12,
         "no multiple of the 8 of a I64"},
    };
    check_refused(cases, COUNT(cases));
}

static void test_empty_tensor_may_lie_anywhere(void **state)
{
    (void)state;
    struct image image;
    build(&image, "{" TENSOR("a", "U8", "[3]", "[0,3]") "," TENSOR("b", "F64", "[0]", "[3,3]") "}", 3);
    struct safetensors *file = parse_good(&image);
    assert_int_equal(safetensors_find(file, "b")->bytes, 0);
    safetensors_close(file);
}

/* A header whose length is no multiple of 8 moves all data: bytes may lie there, larger elements may not. */
static void test_unpadded_header_needs_small_elements(void **state)
{
    (void)state;
    struct image image;
    frame(&image, "{" TENSOR("a", "U8", "[4]", "[0,4]") "}  ", 4);
    if (image.data_begin % 2 == 0) {
        frame(&image, "{" TENSOR("a", "U8", "[4]", "[0,4]") "} ", 4);
    }
    assert_int_equal(image.data_begin % 2, 1);
    safetensors_close(parse_good(&image));

    frame(&image, "{" TENSOR("a", "F32", "[1]", "[0,4]") "}", 4);
    if (image.data_begin % 4 == 0) {
        frame(&image, "{" TENSOR("a", "F32", "[1]", "[0,4]") "} ", 4);
    }
    assert_true(refused(&image, "no multiple of the 4 of a F32"));
}

static void test_misaligned_content_is_refused(void **state)
{
    (void)state;
    struct image image;
    build(&image, "{}", 0);
    memmove(image.content + 1, image.content, image.size);
    char error[ERROR_BYTES];
    struct safetensors *file = NULL;
    assert_int_equal(safetensors_parse(image.content + 1, image.size, "here", &file, error, sizeof(error)), -1);
    assert_null(file);
    assert_non_null(strstr(error, "must begin at a multiple of 8"));
}

static void test_header_length_is_bounded(void **state)
{
    (void)state;
    struct image image;
    build(&image, good_header, good_data_bytes);
    size_t rest = image.size - sizeof(uint64_t);
    set_length(&image, UINT64_MAX);
    assert_true(refused(&image, "a header of 18446744073709551615 bytes, the limit is 100000000"));
    set_length(&image, SAFETENSORS_MAX_HEADER_BYTES + 1);
    assert_true(refused(&image, "a header of 100000001 bytes, the limit is 100000000"));
    set_length(&image, SAFETENSORS_MAX_HEADER_BYTES);
    assert_true(refused(&image, "truncated: a header of 100000000 bytes, but only"));
    set_length(&image, rest + 1);
    assert_true(refused(&image, "truncated: a header of"));
    set_length(&image, rest);
    assert_true(refused(&image, "no valid JSON")); /* the data counted as header: in bounds, but no JSON */
    set_length(&image, 0);
    assert_true(refused(&image, "does not begin with '{'"));
}

/* Cut to any length, or one byte longer, a good file is refused. Each cut lies in memory of exactly that size, so that
   the address sanitizer sees a read past it. */
static void test_every_truncation_is_refused(void **state)
{
    (void)state;
    struct image image;
    build(&image, good_header, good_data_bytes);
    for (size_t size = 0; size <= image.size + 1; size++) {
        unsigned char *cut = calloc(size + (size == 0), 1);
        assert_non_null(cut);
        memcpy(cut, image.content, size < image.size ? size : image.size);
        char error[ERROR_BYTES] = "";
        struct safetensors *file = NULL;
        int result = safetensors_parse(cut, size, "cut", &file, error, sizeof(error));
        assert_int_equal(result, size == image.size ? 0 : -1);
        if (size < image.size) {
            assert_non_null(strstr(error, "truncated"));
        }
        safetensors_close(file);
        free(cut);
    }
}

static void test_messages_are_printable_and_bounded(void **state)
{
    (void)state;
    struct image image;
    build(&image, "{" TENSOR("\\u001b[2J\\n\\u007f", "F31", "[1]", "[0,4]") "}", 4);
    assert_true(refused(&image, "tensor '?[2J?"
                                "?' has dtype 'F31'"));

    char error[ERROR_BYTES];
    struct safetensors *file = NULL;
    memset(error, 'x', sizeof(error));
    assert_int_equal(safetensors_parse(image.content, image.size, "here", &file, error, 8), -1);
    assert_string_equal(error, "here: t");
    assert_int_equal(error[8], 'x');
    assert_int_equal(safetensors_parse(image.content, image.size, "here", &file, NULL, 0), -1);
    assert_null(file);
}

static void test_long_names_do_not_hide_the_reason(void **state)
{
    (void)state;
    char name[1001];
    memset(name, 'n', sizeof(name) - 1);
    name[sizeof(name) - 1] = '\0';
    char header[1200];
    snprintf(header, sizeof(header), "{\"%s\":{\"dtype\":\"F31\",\"shape\":[],\"data_offsets\":[0,0]}}", name);
    struct image image;
    build(&image, header, 0);
    assert_true(refused(&image, "nnn' has dtype 'F31'"));
}

static void test_require_compares_type_and_shape(void **state)
{
    (void)state;
    struct image image;
    build(&image, good_header, good_data_bytes);
    struct safetensors *file = parse_good(&image);
    char error[ERROR_BYTES] = "";
    const uint64_t shape[] = {2, 3, 1};
    assert_ptr_equal(safetensors_require(file, "w", SAFETENSORS_BF16, 2, shape, error, sizeof(error)),
                     safetensors_find(file, "w"));
    assert_non_null(safetensors_require(file, "scalar", SAFETENSORS_F32, 0, NULL, error, sizeof(error)));
    assert_string_equal(error, "");

    assert_null(safetensors_require(file, "w", SAFETENSORS_F16, 2, shape, error, sizeof(error)));
    assert_string_equal(error, "here.safetensors: tensor 'w' is BF16 [2, 3], the model needs F16 [2, 3]");
    assert_null(safetensors_require(file, "w", SAFETENSORS_BF16, 3, shape, error, sizeof(error)));
    assert_string_equal(error, "here.safetensors: tensor 'w' is BF16 [2, 3], the model needs BF16 [2, 3, 1]");
    assert_null(safetensors_require(file, "w", SAFETENSORS_BF16, 1, shape, error, sizeof(error)));
    const uint64_t first_differs[] = {3, 3};
    const uint64_t last_differs[] = {2, 2};
    assert_null(safetensors_require(file, "w", SAFETENSORS_BF16, 2, first_differs, error, sizeof(error)));
    assert_null(safetensors_require(file, "w", SAFETENSORS_BF16, 2, last_differs, error, sizeof(error)));
    assert_null(safetensors_require(file, "v", SAFETENSORS_BF16, 2, shape, error, sizeof(error)));
    assert_string_equal(error, "here.safetensors: tensor 'v' is missing; the model needs it as BF16 [2, 3]");
    safetensors_close(file);
}

/* Files without a name in the file system: nothing is left behind, whatever happens to the test. */
static int make_file(const void *content, size_t size, char path[64])
{
    int descriptor = memfd_create("test_safetensors", MFD_CLOEXEC);
    assert_true(descriptor >= 0);
    assert_int_equal(write(descriptor, content, size), (ssize_t)size);
    snprintf(path, 64, "/proc/self/fd/%d", descriptor);
    return descriptor;
}

/* The mappings of make_file's files; *read_only tells whether all of them are. */
static int count_mappings(bool *read_only)
{
    FILE *maps = fopen("/proc/self/maps", "r");
    assert_non_null(maps);
    int count = 0;
    char line[512];
    *read_only = true;
    while (fgets(line, sizeof(line), maps) != NULL) {
        if (strstr(line, "memfd:test_safetensors") != NULL) {
            count++;
            *read_only = *read_only && strstr(line, " r--") != NULL;
        }
    }
    fclose(maps);
    return count;
}

/* The lowest free descriptor: it rises when one leaks. */
static int next_descriptor(void)
{
    int descriptor = dup(STDIN_FILENO);
    assert_true(descriptor >= 0);
    close(descriptor);
    return descriptor;
}

static void test_open_maps_and_close_unmaps(void **state)
{
    (void)state;
    struct image image;
    char path[64];
    char error[ERROR_BYTES] = "";
    bool read_only;
    build(&image, good_header, good_data_bytes);
    int descriptor = make_file(image.content, image.size, path);
    int before = next_descriptor();
    struct safetensors *file = NULL;
    assert_int_equal(safetensors_open(path, &file, error, sizeof(error)), 0);
    assert_int_equal(count_mappings(&read_only), 1);
    assert_true(read_only);
    close(descriptor); /* the mapping alone must keep the content */
    const struct safetensors_tensor *w = safetensors_find(file, "w");
    assert_memory_equal(w->data, image.content + image.data_begin + 16, w->bytes);
    safetensors_close(file);
    assert_int_equal(count_mappings(&read_only), 0);
    assert_int_equal(next_descriptor(), before < descriptor ? before : descriptor);
}

static void check_open_refuses(const char *path, const char *want)
{
    char error[ERROR_BYTES] = "";
    bool read_only;
    int before = next_descriptor();
    struct safetensors *file = NULL;
    assert_int_equal(safetensors_open(path, &file, error, sizeof(error)), -1);
    assert_null(file);
    assert_true(strstr(error, path) == error);
    if (strstr(error, want) == NULL) {
        fail_msg("expected: %s\nbut got:  %s", want, error);
    }
    assert_int_equal(count_mappings(&read_only), 0);
    assert_int_equal(next_descriptor(), before);
}

static void test_open_refuses_and_leaves_nothing(void **state)
{
    (void)state;
    struct image image;
    char path[64];
    build(&image, good_header, good_data_bytes);
    const struct {
        size_t size;
        const char *want;
    } cuts[] = {{0, "truncated: 0 bytes"},
                {7, "truncated: 7 bytes"},
                {8, "truncated: a header of"},
                {image.size - 1, "truncated"}};
    for (size_t i = 0; i < COUNT(cuts); i++) {
        int descriptor = make_file(image.content, cuts[i].size, path);
        check_open_refuses(path, cuts[i].want);
        close(descriptor);
    }
    check_open_refuses("/nonexistent/model.safetensors", "cannot be opened: No such file");
    check_open_refuses("/", "not a regular file");
    check_open_refuses("/dev/null", "not a regular file");
}

/* A pipe without a writer would keep a plain open() waiting for ever. */
static void test_open_does_not_wait_for_a_pipe(void **state)
{
    (void)state;
    char folder[] = "/tmp/test_safetensors_XXXXXX";
    assert_non_null(mkdtemp(folder));
    char path[64];
    snprintf(path, sizeof(path), "%s/pipe", folder);
    assert_int_equal(mkfifo(path, 0600), 0);
    char error[ERROR_BYTES] = "";
    struct safetensors *file = NULL;
    alarm(20);
    int result = safetensors_open(path, &file, error, sizeof(error));
    alarm(0);
    unlink(path);
    rmdir(folder);
    assert_int_equal(result, -1);
    assert_non_null(strstr(error, "not a regular file"));
}

static int allocations_left;

static void *scarce_malloc(size_t size)
{
    return allocations_left-- > 0 ? malloc(size) : NULL;
}

/* The JSON parser runs out of memory at its n-th allocation, for every n: refused each time, nothing leaked. */
static void test_out_of_memory_is_refused(void **state)
{
    (void)state;
    struct image image;
    build(&image, good_header, good_data_bytes);
    int result = -1;
    int refusals = 0;
    for (int n = 0; result != 0 && n < 1000; n++) {
        char error[ERROR_BYTES] = "";
        struct safetensors *file = NULL;
        allocations_left = n;
        json_set_alloc_funcs(scarce_malloc, free);
        result = safetensors_parse(image.content, image.size, "here", &file, error, sizeof(error));
        json_set_alloc_funcs(malloc, free);
        assert_true(result == 0 ? file != NULL : file == NULL && error[0] != '\0');
        refusals += result != 0;
        safetensors_close(file);
    }
    assert_int_equal(result, 0);
    assert_true(refusals > 10);
}

static void test_shipped_model_opens(void **state)
{
    (void)state;
    const char *path = MUSTER_SOURCE_DIR "/models/kjv-moe/model.safetensors";
    char error[ERROR_BYTES] = "";
    struct safetensors *file = NULL;
    assert_int_equal(safetensors_open(path, &file, error, sizeof(error)), 0);
    const uint64_t embedding[] = {256, 128};
    const uint64_t expert[] = {128, 64};
    assert_non_null(
        safetensors_require(file, "model.embed_tokens.weight", SAFETENSORS_BF16, 2, embedding, error, sizeof(error)));
    assert_non_null(safetensors_require(file, "model.layers.3.mlp.experts.31.down_proj.weight", SAFETENSORS_BF16, 2,
                                        expert, error, sizeof(error)));
    /* 4 layers of 32 experts with 3 matrices, 5 other matrices and 4 norms; embedding, last norm and output matrix. */
    assert_int_equal(safetensors_count(file), 4 * (32 * 3 + 5 + 4) + 3);
    safetensors_close(file);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_good_file_gives_each_tensor),
        cmocka_unit_test(test_tensors_are_listed_by_name),
        cmocka_unit_test(test_file_without_tensors),
        cmocka_unit_test(test_every_dtype_has_its_size),
        cmocka_unit_test(test_bad_json_is_refused),
        cmocka_unit_test(test_bad_tensor_entries_are_refused),
        cmocka_unit_test(test_sizes_that_do_not_fit_are_refused),
        cmocka_unit_test(test_bad_places_are_refused),
        cmocka_unit_test(test_misaligned_data_is_refused),
        cmocka_unit_test(test_empty_tensor_may_lie_anywhere),
        cmocka_unit_test(test_unpadded_header_needs_small_elements),
        cmocka_unit_test(test_misaligned_content_is_refused),
        cmocka_unit_test(test_header_length_is_bounded),
        cmocka_unit_test(test_every_truncation_is_refused),
        cmocka_unit_test(test_messages_are_printable_and_bounded),
        cmocka_unit_test(test_long_names_do_not_hide_the_reason),
        cmocka_unit_test(test_require_compares_type_and_shape),
        cmocka_unit_test(test_open_maps_and_close_unmaps),
        cmocka_unit_test(test_open_refuses_and_leaves_nothing),
        cmocka_unit_test(test_open_does_not_wait_for_a_pipe),
        cmocka_unit_test(test_out_of_memory_is_refused),
        cmocka_unit_test(test_shipped_model_opens),
    };
    return cmocka_run_group_tests_name("safetensors", tests, NULL, NULL);
}
