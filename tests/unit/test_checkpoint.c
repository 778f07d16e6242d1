// SPDX-License-Identifier: Apache-2.0
/* A checkpoint's folder: one file or an index and its shards; which of them counts; what does not fit together. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "weights/checkpoint.h"

#define INDEX "model.safetensors.index.json"
#define A "model-00001-of-00002.safetensors"
#define B "model-00002-of-00002.safetensors"
#define GOOD_MAP "{\"weight_map\": {\"p\": \"" A "\", \"r\": \"" A "\", \"q\": \"" B "\"}}"

enum { ERROR_BYTES = 768, PATH_BYTES = 128 };

struct folder {
    char path[64];
};

static void path_of(const struct folder *f, const char *name, char path[PATH_BYTES])
{
    snprintf(path, PATH_BYTES, "%s/%s", f->path, name);
}

static void write_file(const struct folder *f, const char *name, const void *bytes, size_t size)
{
    char path[PATH_BYTES];
    path_of(f, name, path);
    FILE *out = fopen(path, "wb");
    assert_non_null(out);
    assert_int_equal(fwrite(bytes, 1, size, out), size);
    assert_int_equal(fclose(out), 0);
}

/* A file of tensors with one-letter names, each an F32 [1] that holds `first`, `first` + 1, ... */
static void write_tensors(const struct folder *f, const char *name, const char *letters, float first)
{
    char content[2048] = "", *header = content + 8;
    size_t used = 0, count = strlen(letters);
    for (size_t i = 0; i < count; i++)
        used += (size_t)sprintf(header + used, "%s\"%c\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[%zu,%zu]}",
                                i ? "," : "{", letters[i], 4 * i, 4 * i + 4);
    used += (size_t)sprintf(header + used, count ? "}" : "{}");
    uint64_t length = (used + 7) / 8 * 8;
    memset(header + used, ' ', length - used);
    memcpy(content, &length, sizeof(length));
    for (size_t i = 0; i < count; i++, first++)
        memcpy(header + length + 4 * i, &first, 4);
    write_file(f, name, content, 8 + length + 4 * count);
}

static void write_index(const struct folder *f, const char *text)
{
    write_file(f, INDEX, text, strlen(text));
}

/* Two shards that fit their index. */
static void make_good(struct folder *f)
{
    strcpy(f->path, "/tmp/muster-test-checkpoint-XXXXXX");
    assert_non_null(mkdtemp(f->path));
    write_index(f, GOOD_MAP);
    write_tensors(f, A, "pr", 1);
    write_tensors(f, B, "q", 10);
}

static void remove_one(const struct folder *f, const char *name)
{
    char path[PATH_BYTES];
    path_of(f, name, path);
    if (unlink(path) != 0)
        rmdir(path);
}

static void remove_folder(const struct folder *f)
{
    remove_one(f, A);
    remove_one(f, B);
    remove_one(f, INDEX);
    remove_one(f, "model.safetensors");
    remove_one(f, "elsewhere");
    assert_int_equal(rmdir(f->path), 0);
}

static int count_mappings(const struct folder *f)
{
    FILE *maps = fopen("/proc/self/maps", "r");
    assert_non_null(maps);
    int count = 0;
    char line[512];
    while (fgets(line, sizeof(line), maps))
        count += strstr(line, f->path) != NULL;
    fclose(maps);
    return count;
}

static int next_descriptor(void)
{
    int descriptor = dup(STDIN_FILENO);
    close(descriptor);
    return descriptor;
}

static float value_of(const struct checkpoint *c, const char *name)
{
    const struct safetensors_tensor *t = checkpoint_find(c, name);
    float value;
    assert_non_null(t);
    memcpy(&value, t->data, sizeof(value));
    return value;
}

static struct checkpoint *open_good(const struct folder *f)
{
    struct checkpoint *c = NULL;
    char error[ERROR_BYTES] = "";
    if (checkpoint_open(f->path, &c, error, sizeof(error)) != 0)
        fail_msg("%s", error);
    return c;
}

static void expect_require_fails(const struct checkpoint *c, const char *name, uint64_t size, const char *file,
                                 const char *says)
{
    char error[ERROR_BYTES] = "";
    assert_null(checkpoint_require(c, name, SAFETENSORS_F32, 1, &size, error, sizeof(error)));
    if (!strstr(error, file) || !strstr(error, says))
        fail_msg("wanted %s and %s, got %s", file, says, error);
}

static void test_shards_are_one(void **state)
{
    (void)state;
    struct folder f;
    uint64_t one = 1;
    char error[ERROR_BYTES] = "";
    make_good(&f);
    struct checkpoint *c = open_good(&f);
    assert_int_equal(checkpoint_count(c), 3);
    assert_non_null(strstr(checkpoint_label(c), INDEX));
    assert_true(value_of(c, "p") == 1 && value_of(c, "r") == 2 && value_of(c, "q") == 10);
    assert_null(checkpoint_find(c, "s"));
    assert_int_equal(count_mappings(&f), 2);
    assert_non_null(checkpoint_require(c, "q", SAFETENSORS_F32, 1, &one, error, sizeof(error)));
    expect_require_fails(c, "q", 2, B, "tensor 'q' is F32 [1], the model needs F32 [2]");
    expect_require_fails(c, "s", 1, INDEX, "tensor 's' is missing");
    checkpoint_close(c);
    assert_int_equal(count_mappings(&f), 0);
    remove_folder(&f);
}

/* As in the caches of model hubs, whose folders hold links to the files. */
static void test_shards_may_be_links(void **state)
{
    (void)state;
    struct folder f;
    char from[PATH_BYTES], to[PATH_BYTES];
    make_good(&f);
    path_of(&f, A, from);
    path_of(&f, "elsewhere", to);
    assert_int_equal(rename(from, to), 0);
    assert_int_equal(symlink("elsewhere", from), 0);
    struct checkpoint *c = open_good(&f);
    assert_true(value_of(c, "p") == 1);
    checkpoint_close(c);
    remove_folder(&f);
}

static void test_a_single_file_wins(void **state)
{
    (void)state;
    struct folder f;
    make_good(&f);
    write_tensors(&f, "model.safetensors", "pqr", 100);
    struct checkpoint *c = open_good(&f);
    assert_true(value_of(c, "p") == 100 && value_of(c, "q") == 101);
    assert_non_null(strstr(checkpoint_label(c), "/model.safetensors"));
    assert_null(strstr(checkpoint_label(c), INDEX));
    expect_require_fails(c, "q", 2, "/model.safetensors: ", "tensor 'q' is F32 [1]");
    checkpoint_close(c);
    write_index(&f, "no JSON"); /* is not even looked at */
    checkpoint_close(open_good(&f));
    remove_folder(&f);
}

static void refused(const struct folder *f, const char *file, const char *says)
{
    int marker;
    struct checkpoint *c = (struct checkpoint *)&marker;
    char error[ERROR_BYTES] = "";
    int before = next_descriptor();
    int result = checkpoint_open(f->path, &c, error, sizeof(error));
    if (result != -1 || strncmp(error, f->path, strlen(f->path)) != 0 || !strstr(error, file) || !strstr(error, says))
        fail_msg("wanted \"%s\" and \"%s\", got: %s", file, says, error);
    assert_ptr_equal(c, &marker);
    assert_int_equal(count_mappings(f), 0);
    assert_int_equal(next_descriptor(), before);
    assert_int_equal(checkpoint_open(f->path, &c, NULL, 0), -1);
}

static void test_indexes_that_do_not_fit(void **state)
{
    (void)state;
    struct folder f;
    make_good(&f);
    write_index(&f, "{\"weight_map\": {\"p\": \"" A "\", \"r\": \"" A "\", \"q\": \"" B "\", \"s\": \"" B "\"}}");
    refused(&f, B, "tensor 's' is missing: " INDEX " has it here");
    write_index(&f, "{\"weight_map\": {\"p\": \"" A "\", \"q\": \"" B "\"}}");
    refused(&f, A, "tensor 'r' is not in the weight_map of " INDEX);
    write_index(&f, "{\"weight_map\": {\"p\": \"" A "\", \"r\": \"" B "\", \"q\": \"" B "\"}}");
    refused(&f, A, "tensor 'r' lies here, but " INDEX " has it in '" B "'");
    write_index(&f, "{\"weight_map\": {\"p\": \"" A "\", \"r\": \"" A "\", \"q\": \"../" B "\"}}");
    refused(&f, INDEX, "tensor 'q' is mapped to '../" B "'");
    write_index(&f, "nonsense");
    refused(&f, INDEX, "not JSON");
    write_index(&f, "");
    refused(&f, INDEX, "not JSON");
    remove_one(&f, INDEX);
    refused(&f, "", "there is neither model.safetensors nor " INDEX " in this folder");
    char path[PATH_BYTES];
    path_of(&f, INDEX, path);
    assert_int_equal(mkdir(path, 0700), 0);
    refused(&f, INDEX, "not a regular file");
    remove_folder(&f);
}

static void test_shards_that_do_not_fit(void **state)
{
    (void)state;
    struct folder f;
    char path[PATH_BYTES];
    make_good(&f);
    write_tensors(&f, B, "qr", 10);
    refused(&f, B, "tensor 'r' lies here, but " INDEX " has it in '" A "': it must lie in one shard");
    write_tensors(&f, B, "", 10);
    refused(&f, B, "tensor 'q' is missing: " INDEX " has it here");
    write_file(&f, B, "\x10\0\0\0\0\0\0\0{", 9);
    refused(&f, B, "truncated: a header of 16 bytes, but only 1 follow (" INDEX " has tensor 'q' in it)");
    write_file(&f, B, "\xff\xff\xff\xff\xff\xff\xff\x7f{}", 10);
    refused(&f, B, "a header of 9223372036854775807 bytes, the limit is 100000000 (" INDEX " has tensor 'q' in it)");
    remove_one(&f, B);
    refused(&f, B, "cannot be opened: No such file or directory (" INDEX " has tensor 'q' in it)");
    path_of(&f, B, path);
    assert_int_equal(mkfifo(path, 0600), 0);
    refused(&f, B, "not a regular file (" INDEX " has tensor 'q' in it)");
    remove_folder(&f);
}

static void test_long_paths(void **state)
{
    (void)state;
    static char folder[5000];
    struct checkpoint *c = NULL;
    char error[6000] = "";
    memset(folder, 'd', sizeof(folder) - 1);
    assert_int_equal(checkpoint_open(folder, &c, error, sizeof(error)), -1);
    assert_non_null(strstr(error, "the path is too long with " INDEX ": at most 4095 bytes"));
    assert_null(c);
    checkpoint_close(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shards_are_one),         cmocka_unit_test(test_shards_may_be_links),
        cmocka_unit_test(test_a_single_file_wins),     cmocka_unit_test(test_indexes_that_do_not_fit),
        cmocka_unit_test(test_shards_that_do_not_fit), cmocka_unit_test(test_long_paths),
    };
    return cmocka_run_group_tests_name("checkpoint", tests, NULL, NULL);
}
