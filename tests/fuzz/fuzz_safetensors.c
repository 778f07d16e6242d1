// SPDX-License-Identifier: Apache-2.0
/*
 * libFuzzer target for the safetensors reader. The first byte chooses how the rest becomes a file:
 *   0  as it is, frame included
 *   1  up to the last '}' it is the header, whose length is put in front; what follows is data
 *   2  it decides, number by number, about a header that is nearly right, so that the later checks are reached
 * What is accepted must keep the reader's promises, which are checked here by other means than the reader's own.
 */
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "weights/safetensors.h"

#define REQUIRE(condition) ((condition) ? (void)0 : abort())
#define MAX_TENSORS 6u
#define MAX_DATA_BYTES 4096u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Keeps the reads of tensor data from being optimised away. */
static volatile unsigned fuzz_sink;

struct text {
    char chars[4096];
    size_t used;
};

/* The rest of the input; 0 once it is used up. */
struct choices {
    const uint8_t *data;
    size_t left;
};

static unsigned choose(struct choices *choices, unsigned limit)
{
    if (choices->left == 0) {
        return 0;
    }
    choices->left--;
    return *choices->data++ % limit;
}

__attribute__((format(printf, 2, 3))) static void append(struct text *text, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(text->chars + text->used, sizeof(text->chars) - text->used, format, arguments);
    va_end(arguments);
    REQUIRE(length >= 0 && (size_t)length < sizeof(text->chars) - text->used);
    text->used += (size_t)length;
}

/* Appends what is right or, now and then, something that has no business there. */
__attribute__((format(printf, 3, 4))) static void append_or_damage(struct text *text, struct choices *choices,
                                                                   const char *right, ...)
{
    static const char *const wrong[] = {"-1",
                                        "1.5",
                                        "\"\\u001b\"",
                                        "null",
                                        "[]",
                                        "{}",
                                        "[0]",
                                        "{\"a\":1}",
                                        "9223372036854775807",
                                        "[1,1,1,1,1,1,1,1,1]",
                                        "{\"a\":\"b\"}"};
    unsigned choice = choose(choices, 256);
    if (choice >= 256 - sizeof(wrong) / sizeof(wrong[0])) {
        append(text, "%s", wrong[255 - choice]);
        return;
    }
    char chars[64];
    va_list arguments;
    va_start(arguments, right);
    int length = vsnprintf(chars, sizeof(chars), right, arguments);
    va_end(arguments);
    REQUIRE(length >= 0 && (size_t)length < sizeof(chars));
    append(text, "%s", chars);
}

static void append_key(struct text *text, struct choices *choices, const char *key)
{
    append(text, "\"%s\":", choose(choices, 64) == 63 ? "other" : key);
}

/* Returns the product of the dimensions. */
static size_t append_shape(struct text *text, struct choices *choices)
{
    size_t elements = 1;
    unsigned ndim = choose(choices, 4);
    append_key(text, choices, "shape");
    append(text, "[");
    for (unsigned i = 0; i < ndim; i++) {
        unsigned dimension = choose(choices, 7);
        append(text, "%s", i == 0 ? "" : ",");
        append_or_damage(text, choices, "%u%s", dimension, choose(choices, 32) == 31 ? "000000000000000000" : "");
        elements *= dimension;
    }
    append(text, "],");
    return elements;
}

/* *end is where the tensor before ended; one in 16 begins or ends somewhere else. */
static void append_offsets(struct text *text, struct choices *choices, size_t bytes, size_t *end)
{
    size_t begin = *end + (choose(choices, 16) == 15 ? choose(choices, 9) : 0);
    begin -= choose(choices, 16) == 15 && begin >= 4 ? 4 : 0;
    *end = begin + bytes + (choose(choices, 16) == 15 ? 1 : 0);
    append_key(text, choices, "data_offsets");
    append(text, "[");
    append_or_damage(text, choices, "%zu", begin);
    append(text, ",");
    append_or_damage(text, choices, "%zu", *end);
    append(text, "%s]", choose(choices, 64) == 63 ? ",1" : "");
}

static void append_tensor(struct text *text, struct choices *choices, unsigned index, size_t *end)
{
    static const char *const names[] = {"BOOL", "U8", "F8_E4M3", "BF16", "F32", "F64", "I64", "F31"};
    static const size_t bytes[] = {1, 1, 1, 2, 4, 8, 8, 4};
    unsigned dtype = choose(choices, 8);
    append(text, "\"%c\":{", 'a' + (char)(choose(choices, 16) == 15 ? 0 : index));
    append_key(text, choices, "dtype");
    append_or_damage(text, choices, "\"%s\"", names[dtype]);
    append(text, ",");
    size_t elements = append_shape(text, choices);
    append_offsets(text, choices, elements * bytes[dtype], end);
    append(text, "%s}", choose(choices, 64) == 63 ? ",\"x\":0" : "");
}

/* Returns a file in memory of exactly *size bytes, so that the address sanitizer sees a read past it. */
static uint8_t *make_file(const char *header, size_t header_bytes, const void *data, size_t data_bytes, size_t *size)
{
    uint64_t length = header_bytes;
    *size = sizeof(length) + header_bytes + data_bytes;
    uint8_t *file = malloc(*size);
    REQUIRE(file != NULL);
    memcpy(file, &length, sizeof(length));
    memcpy(file + sizeof(length), header, header_bytes);
    if (data_bytes != 0) {
        memcpy(file + sizeof(length) + header_bytes, data, data_bytes);
    }
    return file;
}

static uint8_t *make_nearly_right(struct choices choices, size_t *size)
{
    static const uint8_t zeros[MAX_DATA_BYTES];
    struct text text = {.used = 0};
    size_t end = 0;
    unsigned count = choose(&choices, MAX_TENSORS + 1);
    append(&text, "{\"__metadata__\":");
    append_or_damage(&text, &choices, "{\"format\":\"pt\"}");
    for (unsigned i = 0; i < count; i++) {
        append(&text, ",");
        append_tensor(&text, &choices, i, &end);
    }
    append(&text, "}");
    size_t pad = choose(&choices, 16) == 15 ? 0 : (8 - text.used % 8) % 8;
    append(&text, "%*s", (int)pad, "");
    end += choose(&choices, 16) == 15 ? 1 : 0;
    return make_file(text.chars, text.used, zeros, end < MAX_DATA_BYTES ? end : MAX_DATA_BYTES, size);
}

static uint8_t *make_framed(const uint8_t *data, size_t size, size_t *file_bytes)
{
    size_t header_bytes = size;
    while (header_bytes > 0 && data[header_bytes - 1] != '}') {
        header_bytes--;
    }
    return make_file((const char *)data, header_bytes, data + header_bytes, size - header_bytes, file_bytes);
}

static uint8_t *make_raw(const uint8_t *data, size_t size)
{
    uint8_t *file = malloc(size + (size == 0)); /* malloc aligns as the reader asks */
    REQUIRE(file != NULL);
    memcpy(file, data, size);
    return file;
}

static size_t product(const struct safetensors_tensor *tensor)
{
    size_t bytes = safetensors_dtype_bytes(tensor->dtype);
    for (unsigned i = 0; i < tensor->ndim; i++) {
        bytes *= (size_t)tensor->shape[i];
    }
    return bytes;
}

/* Every tensor lies inside the data, can be read, is found by its name; together they own each byte once. */
static void check_accepted(const struct safetensors *file, const uint8_t *content, size_t size)
{
    uint64_t header_bytes;
    memcpy(&header_bytes, content, sizeof(header_bytes));
    size_t data_begin = sizeof(header_bytes) + (size_t)header_bytes;
    uint8_t *owners = calloc(size + 1, 1);
    REQUIRE(owners != NULL);
    for (size_t i = 0; i < safetensors_count(file); i++) {
        const struct safetensors_tensor *tensor = safetensors_at(file, i);
        REQUIRE(safetensors_find(file, tensor->name) == tensor);
        REQUIRE(tensor->ndim <= SAFETENSORS_MAX_DIMS && tensor->bytes == product(tensor));
        REQUIRE((tensor->data == NULL) == (tensor->bytes == 0));
        const uint8_t *bytes = tensor->data;
        REQUIRE((uintptr_t)bytes % safetensors_dtype_bytes(tensor->dtype) == 0);
        for (size_t j = 0; j < tensor->bytes; j++) {
            fuzz_sink += bytes[j];
            owners[bytes + j - content]++;
        }
    }
    for (size_t i = 0; i < size; i++) {
        REQUIRE(owners[i] == (i >= data_begin));
    }
    free(owners);
}

static void check_file(const uint8_t *content, size_t size)
{
    char error[256] = "";
    struct safetensors *file = NULL;
    if (safetensors_parse(content, size, "fuzz", &file, error, sizeof(error)) == 0) {
        REQUIRE(file != NULL && error[0] == '\0');
        check_accepted(file, content, size);
    } else {
        REQUIRE(file == NULL && strncmp(error, "fuzz: ", 6) == 0 && memchr(error, '\0', sizeof(error)) != NULL);
    }
    safetensors_close(file);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0) {
        return 0;
    }
    unsigned kind = data[0] % 3;
    size_t file_bytes = size - 1;
    uint8_t *file;
    if (kind == 0) {
        file = make_raw(data + 1, size - 1);
    } else if (kind == 1) {
        file = make_framed(data + 1, size - 1, &file_bytes);
    } else {
        file = make_nearly_right((struct choices){.data = data + 1, .left = size - 1}, &file_bytes);
    }
    check_file(file, file_bytes);
    free(file);
    return 0;
}
