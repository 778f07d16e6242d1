// SPDX-License-Identifier: Apache-2.0
#include "weights/safetensors.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "weights/map.h"
#include "weights/refuse.h"

/* Tensors are handed out as they lie in the file, and the format is little-endian. */
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "safetensors needs a little-endian machine");

#define LENGTH_BYTES 8u
#define TENSOR_KEYS 3u /* dtype, shape, data_offsets */
#define METADATA "__metadata__"

struct safetensors {
    json_t *header; /* owns the tensors' names */
    struct safetensors_tensor *tensors;
    size_t count;
    char *label;
    void *mapping; /* NULL when the content is borrowed */
    size_t mapping_bytes;
};

/* What is being read, and where a complaint about it goes. */
struct reader {
    struct refusal to;
    const char *content;
    size_t size;
    size_t data_begin; /* offset in content of the first tensor byte */
};

static const struct {
    const char *name;
    size_t bytes;
} dtypes[SAFETENSORS_DTYPES] = {
    [SAFETENSORS_BOOL] = {"BOOL", 1},       [SAFETENSORS_U8] = {"U8", 1},
    [SAFETENSORS_I8] = {"I8", 1},           [SAFETENSORS_F8_E4M3] = {"F8_E4M3", 1},
    [SAFETENSORS_F8_E5M2] = {"F8_E5M2", 1}, [SAFETENSORS_F8_E8M0] = {"F8_E8M0", 1},
    [SAFETENSORS_U16] = {"U16", 2},         [SAFETENSORS_I16] = {"I16", 2},
    [SAFETENSORS_F16] = {"F16", 2},         [SAFETENSORS_BF16] = {"BF16", 2},
    [SAFETENSORS_U32] = {"U32", 4},         [SAFETENSORS_I32] = {"I32", 4},
    [SAFETENSORS_F32] = {"F32", 4},         [SAFETENSORS_U64] = {"U64", 8},
    [SAFETENSORS_I64] = {"I64", 8},         [SAFETENSORS_F64] = {"F64", 8},
};

const char *safetensors_dtype_name(enum safetensors_dtype dtype)
{
    return dtypes[dtype].name;
}

size_t safetensors_dtype_bytes(enum safetensors_dtype dtype)
{
    return dtypes[dtype].bytes;
}

/* Checks the frame around the JSON: the 8 bytes of length, and that as much follows. */
static int read_frame(struct reader *reader)
{
    if (reader->size < LENGTH_BYTES) {
        return refuse(&reader->to, NULL, "truncated: %zu bytes, but the header's length alone takes %u", reader->size,
                      LENGTH_BYTES);
    }
    uint64_t length;
    memcpy(&length, reader->content, sizeof(length));
    if (length > SAFETENSORS_MAX_HEADER_BYTES) {
        return refuse(&reader->to, NULL, "not a safetensors file: a header of %" PRIu64 " bytes, the limit is %u",
                      length, SAFETENSORS_MAX_HEADER_BYTES);
    }
    if (length > reader->size - LENGTH_BYTES) {
        return refuse(&reader->to, NULL, "truncated: a header of %" PRIu64 " bytes, but only %zu follow", length,
                      reader->size - LENGTH_BYTES);
    }
    if (length == 0 || reader->content[LENGTH_BYTES] != '{') {
        return refuse(&reader->to, NULL, "not a safetensors file: the header does not begin with '{'");
    }
    reader->data_begin = LENGTH_BYTES + (size_t)length;
    return 0;
}

/* Returns the header as an object, NULL if it is none. A name that stands there twice is refused by the parser. */
static json_t *read_json(const struct reader *reader)
{
    size_t header_bytes = reader->data_begin - LENGTH_BYTES;
    json_error_t json_error;
    json_t *header = json_loadb(reader->content + LENGTH_BYTES, header_bytes, JSON_REJECT_DUPLICATES, &json_error);
    if (header == NULL) {
        refuse(&reader->to, NULL, "the header is no valid JSON, at its byte %d: %s", json_error.position,
               json_error.text);
    }
    return header;
}

/* Metadata is not used, but what is malformed there makes the rest doubtful. */
static int check_metadata(const struct reader *reader, json_t *metadata)
{
    if (!json_is_object(metadata)) {
        return refuse(&reader->to, NULL, METADATA " must be an object of strings");
    }
    const char *key;
    json_t *value;
    json_object_foreach(metadata, key, value)
    {
        if (!json_is_string(value)) {
            return refuse(&reader->to, NULL, METADATA " must be an object of strings, but '%.100s' is none", key);
        }
    }
    return 0;
}

static int read_dtype(const struct reader *reader, const json_t *info, struct safetensors_tensor *tensor)
{
    const char *name = json_string_value(json_object_get(info, "dtype"));
    if (name == NULL) {
        return refuse(&reader->to, tensor->name, "has no dtype (a string)");
    }
    for (unsigned i = 0; i < SAFETENSORS_DTYPES; i++) {
        if (strcmp(dtypes[i].name, name) == 0) {
            tensor->dtype = (enum safetensors_dtype)i;
            return 0;
        }
    }
    return refuse(&reader->to, tensor->name, "has dtype '%.32s', which is not known here", name);
}

static int read_shape(const struct reader *reader, const json_t *info, struct safetensors_tensor *tensor)
{
    const json_t *shape = json_object_get(info, "shape");
    if (!json_is_array(shape)) {
        return refuse(&reader->to, tensor->name, "has no shape (an array)");
    }
    if (json_array_size(shape) > SAFETENSORS_MAX_DIMS) {
        return refuse(&reader->to, tensor->name, "has %zu dimensions, the limit is %u", json_array_size(shape),
                      SAFETENSORS_MAX_DIMS);
    }
    tensor->ndim = (unsigned)json_array_size(shape);
    for (unsigned i = 0; i < tensor->ndim; i++) {
        const json_t *size = json_array_get(shape, i);
        if (!json_is_integer(size) || json_integer_value(size) < 0) {
            return refuse(&reader->to, tensor->name, "has a dimension %u that is no whole number from 0 up", i);
        }
        tensor->shape[i] = (uint64_t)json_integer_value(size);
    }
    return 0;
}

/* The bytes that type and shape ask for; refused when they do not fit into 64 bits. */
static int count_bytes(const struct reader *reader, const struct safetensors_tensor *tensor, uint64_t *bytes)
{
    *bytes = dtypes[tensor->dtype].bytes;
    for (unsigned i = 0; i < tensor->ndim; i++) {
        if (__builtin_mul_overflow(*bytes, tensor->shape[i], bytes)) {
            return refuse(&reader->to, tensor->name, "has a shape whose size in bytes overflows 64 bits");
        }
    }
    return 0;
}

static int read_offsets(const struct reader *reader, const json_t *info, const char *name, uint64_t offsets[2])
{
    const json_t *array = json_object_get(info, "data_offsets");
    if (json_array_size(array) != 2) { /* 0 for what is no array */
        return refuse(&reader->to, name, "has no data_offsets (an array [begin, end])");
    }
    for (unsigned i = 0; i < 2; i++) {
        const json_t *offset = json_array_get(array, i);
        if (!json_is_integer(offset) || json_integer_value(offset) < 0) {
            return refuse(&reader->to, name, "has a data_offsets[%u] that is no whole number from 0 up", i);
        }
        offsets[i] = (uint64_t)json_integer_value(offset);
    }
    if (offsets[0] > offsets[1]) {
        return refuse(&reader->to, name, "begins at byte %" PRIu64 " and ends before that, at %" PRIu64, offsets[0],
                      offsets[1]);
    }
    if (offsets[1] > reader->size - reader->data_begin) {
        return refuse(&reader->to, name,
                      "ends at byte %" PRIu64 " of the data, but only %zu follow the header: truncated?", offsets[1],
                      reader->size - reader->data_begin);
    }
    return 0;
}

static int read_data(const struct reader *reader, const json_t *info, struct safetensors_tensor *tensor)
{
    uint64_t offsets[2];
    uint64_t expected;
    if (read_offsets(reader, info, tensor->name, offsets) != 0 || count_bytes(reader, tensor, &expected) != 0) {
        return -1;
    }
    if (offsets[1] - offsets[0] != expected) {
        return refuse(&reader->to, tensor->name, "has %" PRIu64 " bytes of data, its dtype and shape ask for %" PRIu64,
                      offsets[1] - offsets[0], expected);
    }
    tensor->bytes = (size_t)expected;
    tensor->data = reader->content + reader->data_begin + offsets[0];
    size_t element = dtypes[tensor->dtype].bytes;
    if (expected != 0 && (uintptr_t)tensor->data % element != 0) {
        return refuse(&reader->to, tensor->name,
                      "begins at byte %" PRIu64 " of the file, no multiple of the %zu of a %s",
                      reader->data_begin + offsets[0], element, dtypes[tensor->dtype].name);
    }
    return 0;
}

static int read_tensor(const struct reader *reader, const char *name, const json_t *info,
                       struct safetensors_tensor *tensor)
{
    tensor->name = name;
    if (!json_is_object(info)) {
        return refuse(&reader->to, name, "is not described by an object");
    }
    if (read_dtype(reader, info, tensor) != 0 || read_shape(reader, info, tensor) != 0 ||
        read_data(reader, info, tensor) != 0) {
        return -1;
    }
    if (json_object_size(info) != TENSOR_KEYS) {
        return refuse(&reader->to, name, "has keys other than dtype, shape and data_offsets");
    }
    return 0;
}

static int read_tensors(const struct reader *reader, struct safetensors *file)
{
    /* One more than needed: calloc of 0 may give NULL. */
    file->tensors = calloc(json_object_size(file->header) + 1, sizeof(*file->tensors));
    if (file->tensors == NULL) {
        return refuse(&reader->to, NULL, "out of memory for %zu tensors", json_object_size(file->header));
    }
    const char *name;
    json_t *info;
    json_object_foreach(file->header, name, info)
    {
        if (strcmp(name, METADATA) == 0) {
            if (check_metadata(reader, info) != 0) {
                return -1;
            }
        } else if (read_tensor(reader, name, info, &file->tensors[file->count++]) != 0) {
            return -1;
        }
    }
    return 0;
}

static int compare_places(const void *left, const void *right)
{
    const struct safetensors_tensor *a = left;
    const struct safetensors_tensor *b = right;
    if (a->data != b->data) {
        return (const char *)a->data < (const char *)b->data ? -1 : 1;
    }
    return (a->bytes > b->bytes) - (a->bytes < b->bytes); /* an empty tensor before the one that begins where it lies */
}

static int compare_names(const void *left, const void *right)
{
    return strcmp(((const struct safetensors_tensor *)left)->name, ((const struct safetensors_tensor *)right)->name);
}

/* Each byte of the data must belong to exactly one tensor: a second owner or none means a damaged or forged file. */
static int check_coverage(const struct reader *reader, struct safetensors *file)
{
    qsort(file->tensors, file->count, sizeof(*file->tensors), compare_places);
    const char *data = reader->content + reader->data_begin;
    const char *covered = data;
    for (size_t i = 0; i < file->count; i++) {
        const struct safetensors_tensor *tensor = &file->tensors[i];
        const char *begin = tensor->data;
        if (begin < covered) {
            return refuse(&reader->to, tensor->name, "begins at byte %zu of the data and overlaps '%.100s'",
                          (size_t)(begin - data), file->tensors[i - 1].name);
        }
        if (begin > covered) {
            return refuse(&reader->to, tensor->name, "begins at byte %zu of the data, after a hole of %zu bytes",
                          (size_t)(begin - data), (size_t)(begin - covered));
        }
        covered = begin + tensor->bytes;
    }
    size_t rest = (size_t)(reader->content + reader->size - covered);
    if (rest != 0) {
        return refuse(&reader->to, NULL, "the last %zu bytes belong to no tensor", rest);
    }
    return 0;
}

static void finish_tensors(struct safetensors *file)
{
    for (size_t i = 0; i < file->count; i++) {
        if (file->tensors[i].bytes == 0) {
            file->tensors[i].data = NULL; /* there is no byte that it could point to */
        }
    }
    qsort(file->tensors, file->count, sizeof(*file->tensors), compare_names);
}

static int parse_into(struct reader *reader, struct safetensors *file)
{
    if ((uintptr_t)reader->content % SAFETENSORS_ALIGNMENT != 0) {
        return refuse(&reader->to, NULL, "the content must begin at a multiple of %u in memory", SAFETENSORS_ALIGNMENT);
    }
    if (read_frame(reader) != 0) {
        return -1;
    }
    file->header = read_json(reader);
    if (file->header == NULL || read_tensors(reader, file) != 0 || check_coverage(reader, file) != 0) {
        return -1;
    }
    finish_tensors(file);
    return 0;
}

int safetensors_parse(const void *content, size_t size, const char *label, struct safetensors **out, char *error,
                      size_t error_bytes)
{
    struct reader reader = {.to = {label, error, error_bytes}, .content = content, .size = size};
    struct safetensors *file = calloc(1, sizeof(*file));
    if (file == NULL || (file->label = strdup(label)) == NULL) {
        free(file);
        return refuse(&reader.to, NULL, "out of memory");
    }
    if (parse_into(&reader, file) != 0) {
        safetensors_close(file);
        return -1;
    }
    *out = file;
    return 0;
}

int safetensors_open(const char *path, struct safetensors **out, char *error, size_t error_bytes)
{
    const struct refusal to = {path, error, error_bytes};
    void *mapping = NULL;
    size_t size = 0;
    if (map_file(&to, &mapping, &size) != 0) {
        return -1;
    }
    struct safetensors *file;
    if (safetensors_parse(mapping, size, path, &file, error, error_bytes) != 0) {
        unmap_file(mapping, size);
        return -1;
    }
    file->mapping = mapping;
    file->mapping_bytes = size;
    *out = file;
    return 0;
}

void safetensors_close(struct safetensors *file)
{
    if (file == NULL) {
        return;
    }
    unmap_file(file->mapping, file->mapping_bytes);
    json_decref(file->header);
    free(file->tensors);
    free(file->label);
    free(file);
}

const char *safetensors_label(const struct safetensors *file)
{
    return file->label;
}

size_t safetensors_count(const struct safetensors *file)
{
    return file->count;
}

const struct safetensors_tensor *safetensors_at(const struct safetensors *file, size_t index)
{
    return index < file->count ? &file->tensors[index] : NULL;
}

const struct safetensors_tensor *safetensors_find(const struct safetensors *file, const char *name)
{
    const struct safetensors_tensor key = {.name = name};
    return bsearch(&key, file->tensors, file->count, sizeof(key), compare_names);
}

/* Writes "BF16 [2, 3]". */
static void describe(char *text, size_t bytes, enum safetensors_dtype dtype, unsigned ndim, const uint64_t *shape)
{
    size_t used = (size_t)snprintf(text, bytes, "%s [", dtypes[dtype].name);
    for (unsigned i = 0; i < ndim && used < bytes; i++) {
        used += (size_t)snprintf(text + used, bytes - used, "%s%" PRIu64, i == 0 ? "" : ", ", shape[i]);
    }
    if (used < bytes) {
        snprintf(text + used, bytes - used, "]");
    }
}

static bool is_of(const struct safetensors_tensor *tensor, enum safetensors_dtype dtype, unsigned ndim,
                  const uint64_t *shape)
{
    bool same = tensor->dtype == dtype && tensor->ndim == ndim;
    for (unsigned i = 0; same && i < ndim; i++) {
        same = tensor->shape[i] == shape[i];
    }
    return same;
}

const struct safetensors_tensor *safetensors_require(const struct safetensors *file, const char *name,
                                                     enum safetensors_dtype dtype, unsigned ndim, const uint64_t *shape,
                                                     char *error, size_t error_bytes)
{
    const struct refusal to = {file->label, error, error_bytes};
    const struct safetensors_tensor *tensor = safetensors_find(file, name);
    char wanted[128];
    describe(wanted, sizeof(wanted), dtype, ndim, shape);
    if (tensor == NULL) {
        refuse(&to, name, "is missing; the model needs it as %s", wanted);
        return NULL;
    }
    if (!is_of(tensor, dtype, ndim, shape)) {
        char found[128];
        describe(found, sizeof(found), tensor->dtype, tensor->ndim, tensor->shape);
        refuse(&to, name, "is %s, the model needs %s", found, wanted);
        return NULL;
    }
    return tensor;
}
