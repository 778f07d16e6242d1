// SPDX-License-Identifier: Apache-2.0
#include "lib/sharded.h"

#include <jansson.h>
#include <limits.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct file {
    char *bytes;
    size_t size;
};

struct source {
    struct file file;
    json_t *header;
    const char *data; /* behind the header */
};

__attribute__((format(printf, 2, 3))) static void require(bool holds, const char *format, ...)
{
    va_list arguments;
    if (holds)
        return;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(1);
}

static struct file read_file(const char *path)
{
    FILE *in = fopen(path, "rb");
    require(in && fseek(in, 0, SEEK_END) == 0, "%s cannot be read", path);
    struct file file = {.size = (size_t)ftell(in)};
    rewind(in);
    file.bytes = malloc(file.size + 1);
    require(file.bytes && fread(file.bytes, 1, file.size, in) == file.size, "%s cannot be read", path);
    fclose(in);
    return file;
}

static void write_file(FILE *out, const void *bytes, size_t size)
{
    require(fwrite(bytes, 1, size, out) == size, "a copy cannot be written");
}

static void copy_file(const char *from, const char *to)
{
    struct file file = read_file(from);
    FILE *out = fopen(to, "wb");
    require(out != NULL, "%s cannot be written", to);
    write_file(out, file.bytes, file.size);
    require(fclose(out) == 0, "%s cannot be written", to);
    free(file.bytes);
}

const char *sharded_path(const char *folder, int shard, int shards)
{
    static _Thread_local char path[PATH_MAX];
    if (shard == 0)
        snprintf(path, sizeof(path), "%s/model.safetensors.index.json", folder);
    else
        snprintf(path, sizeof(path), "%s/model-%05d-of-%05d.safetensors", folder, shard, shards);
    return path;
}

static const char *config_path(const char *folder)
{
    static _Thread_local char path[PATH_MAX];
    snprintf(path, sizeof(path), "%s/config.json", folder);
    return path;
}

static struct source source_open(const char *model_dir)
{
    char path[PATH_MAX];
    uint64_t length;
    snprintf(path, sizeof(path), "%s/model.safetensors", model_dir);
    struct source s = {.file = read_file(path)};
    memcpy(&length, s.file.bytes, sizeof(length));
    s.header = json_loadb(s.file.bytes + 8, length, 0, NULL);
    s.data = s.file.bytes + 8 + length;
    require(s.header != NULL, "%s has no header", path);
    json_object_del(s.header, "__metadata__");
    return s;
}

static size_t offset_of(const json_t *info, size_t which)
{
    return (size_t)json_integer_value(json_array_get(json_object_get(info, "data_offsets"), which));
}

/* The header of one shard: every `shards`-th tensor, moved together. */
static json_t *shard_header(const struct source *s, int shard, int shards)
{
    json_t *header = json_object(), *info;
    const char *name;
    size_t at = 0;
    int turn = 0;
    json_object_foreach(s->header, name, info)
    {
        if (turn++ % shards != shard - 1)
            continue;
        size_t bytes = offset_of(info, 1) - offset_of(info, 0);
        json_t *moved = json_deep_copy(info);
        json_object_set_new(moved, "data_offsets", json_pack("[I, I]", (json_int_t)at, (json_int_t)(at + bytes)));
        json_object_set_new(header, name, moved);
        at += bytes;
    }
    return header;
}

static void write_shard(const struct source *s, const char *path, const json_t *header)
{
    FILE *out = fopen(path, "wb");
    char *text = json_dumps(header, JSON_COMPACT);
    uint64_t length = (strlen(text) + 7) / 8 * 8;
    const char *name;
    json_t *info;
    require(out != NULL, "%s cannot be written", path);
    write_file(out, &length, sizeof(length));
    require(fprintf(out, "%-*s", (int)length, text) == (int)length, "%s cannot be written", path);
    json_object_foreach((json_t *)header, name, info)
    {
        const json_t *from = json_object_get(s->header, name);
        write_file(out, s->data + offset_of(from, 0), offset_of(from, 1) - offset_of(from, 0));
    }
    require(fclose(out) == 0, "%s cannot be written", path);
    free(text);
}

static void add_to_map(json_t *map, const json_t *header, const char *path)
{
    const char *name;
    json_t *info;
    json_object_foreach((json_t *)header, name, info)
    {
        json_object_set_new(map, name, json_string(strrchr(path, '/') + 1));
    }
}

void sharded_copy(const char *model_dir, const char *folder, int shards)
{
    char config[PATH_MAX];
    struct source s = source_open(model_dir);
    json_t *map = json_object();
    for (int shard = 1; shard <= shards; shard++) {
        json_t *header = shard_header(&s, shard, shards);
        const char *path = sharded_path(folder, shard, shards);
        write_shard(&s, path, header);
        add_to_map(map, header, path);
        json_decref(header);
    }
    json_int_t total = (json_int_t)(s.file.bytes + s.file.size - s.data);
    json_t *index = json_pack("{s: {s: I}, s: o}", "metadata", "total_size", total, "weight_map", map);
    require(json_dump_file(index, sharded_path(folder, 0, shards), JSON_INDENT(2)) == 0, "no index can be written");
    snprintf(config, sizeof(config), "%s", config_path(model_dir));
    copy_file(config, config_path(folder));
    json_decref(index);
    json_decref(s.header);
    free(s.file.bytes);
}

void sharded_remove(const char *folder, int shards)
{
    for (int shard = 0; shard <= shards; shard++)
        unlink(sharded_path(folder, shard, shards));
    unlink(config_path(folder));
    rmdir(folder);
}
