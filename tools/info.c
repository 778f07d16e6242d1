// SPDX-License-Identifier: Apache-2.0
/* `muster info`: what this build is and can do, and every setting with its value and where that came from. */
#include <argp.h>
#include <jansson.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/config.h"
#include "core/number.h"
#include "kernels/runtime.h"
#include "muster/status.h"
#include "tool.h"

#ifndef MUSTER_BUILD_TYPE
#define MUSTER_BUILD_TYPE "unknown"
#endif
#ifndef MUSTER_SANITIZERS
#define MUSTER_SANITIZERS ""
#endif
#ifdef __clang__
#define COMPILER "Clang " __clang_version__
#else
#define COMPILER "gcc " __VERSION__
#endif

struct build_fact {
    const char *name, *value;
};

/* What the tool was built from and how; the library is linked into it. */
static const struct build_fact build_facts[] = {
    {"compiler", COMPILER},
    {"build_type", MUSTER_BUILD_TYPE},
    {"sanitizers", MUSTER_SANITIZERS},
};

/* Whether the CUDA backend can be loaded, and what it finds. */
struct cuda_backend {
    bool loaded;
    int32_t devices;
    char what[400]; /* in words */
};

static void find_cuda(struct cuda_backend *cuda)
{
    const struct runtime *runtime;
    struct runtime_device device;
    *cuda = (struct cuda_backend){.loaded = runtime_load(&runtime) == MUSTER_OK};
    if (!cuda->loaded) {
        snprintf(cuda->what, sizeof cuda->what, "%s", muster_last_error());
        return;
    }
    cuda->devices = runtime->count();
    if (cuda->devices == 0)
        snprintf(cuda->what, sizeof cuda->what, "there is no GPU here, or no driver");
    else if (runtime->use(0) == MUSTER_OK && runtime->describe(&device) == MUSTER_OK)
        snprintf(cuda->what, sizeof cuda->what, "%d of them; the first: %s, %d multiprocessors, %.0f GB", cuda->devices,
                 device.name, device.multiprocessors, (double)device.memory_bytes / 1e9);
    else
        snprintf(cuda->what, sizeof cuda->what, "%s", muster_last_error());
}

/* The cores that this process may use, which decide how long a wait spins. */
static int count_cores(void)
{
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 0;
}

/* ---- settings ---- */

struct setting_value {
    const struct config_setting *setting;
    char text[64]; /* of numbers, as the library takes them */
    const char *value;
    const char *source;
};

static bool is_number(const struct config_setting *setting)
{
    return setting->minimum || setting->maximum;
}

/* A number that the library refuses is shown as what it takes instead; reading it has told on stderr why. */
static void read_setting(enum config_key key, struct setting_value *v)
{
    v->setting = config_setting(key);
    v->value = config_text(key, &v->source);
    if (!is_number(v->setting) || !config_given(key))
        return;
    snprintf(v->text, sizeof v->text, "%llu", (unsigned long long)config_number(key));
    uint64_t number;
    if (number_parse(v->value, v->setting->minimum, v->setting->maximum, &number))
        v->value = v->text;
    else {
        v->value = v->setting->initial;
        v->source = "default (refused)";
    }
}

/* ---- text ---- */

static void print_fact(const char *name, const char *value)
{
    printf("  %-18s%s\n", name, *value ? value : "none");
}

static void print_build(void)
{
    char cores[16];
    snprintf(cores, sizeof cores, "%d", count_cores());
    printf("muster %s\n", muster_version());
    for (size_t i = 0; i < sizeof build_facts / sizeof *build_facts; i++)
        print_fact(build_facts[i].name, build_facts[i].value);
    struct cuda_backend cuda;
    find_cuda(&cuda);
    printf("  backend cpu       yes: host shared memory\n");
    printf("  backend cuda      %s: %s\n", cuda.loaded ? "yes" : "no", cuda.what);
    print_fact("cores", cores);
    print_fact("fault_tolerance", "on");
}

static void print_setting(enum config_key key)
{
    struct setting_value v;
    char value[96];
    read_setting(key, &v);
    snprintf(value, sizeof value, "%s%s%s", *v.value ? v.value : "-", *v.setting->unit ? " " : "", v.setting->unit);
    printf("  %-29s%-16s%-18s %s\n", v.setting->name, value, v.source, v.setting->help);
}

static void print_text(void)
{
    print_build();
    printf("\nsettings (environment variables)\n  %-29s%-16s%-18s %s\n", "name", "value", "from", "meaning");
    for (int key = 0; key < CONFIG_KEYS; key++)
        print_setting((enum config_key)key);
}

/* ---- JSON ---- */

static void set_text(json_t *object, const char *name, const char *text)
{
    json_object_set_new(object, name, json_string(text));
}

static json_t *setting_as_json(enum config_key key)
{
    struct setting_value v;
    json_t *object = json_object();
    read_setting(key, &v);
    set_text(object, "name", v.setting->name);
    set_text(object, "value", v.value);
    set_text(object, "source", v.source);
    set_text(object, "default", v.setting->initial);
    set_text(object, "unit", v.setting->unit);
    if (is_number(v.setting)) {
        json_object_set_new(object, "minimum", json_integer((json_int_t)v.setting->minimum));
        json_object_set_new(object, "maximum", json_integer((json_int_t)v.setting->maximum));
    }
    set_text(object, "help", v.setting->help);
    return object;
}

static void print_json(void)
{
    struct cuda_backend cuda;
    json_t *object = json_object(), *built = json_object(), *settings = json_array();
    set_text(object, "version", muster_version());
    for (size_t i = 0; i < sizeof build_facts / sizeof *build_facts; i++)
        set_text(object, build_facts[i].name, build_facts[i].value);
    find_cuda(&cuda);
    json_object_set_new(built, "cpu", json_true());
    json_object_set_new(built, "cuda", json_boolean(cuda.loaded));
    for (int key = 0; key < CONFIG_KEYS; key++)
        json_array_append_new(settings, setting_as_json((enum config_key)key));
    json_object_set_new(object, "backends", built);
    json_object_set_new(object, "gpus", json_integer(cuda.devices));
    json_object_set_new(object, "cores", json_integer(count_cores()));
    json_object_set_new(object, "fault_tolerance", json_true());
    json_object_set_new(object, "settings", settings);
    json_dumpf(object, stdout, 0);
    putchar('\n');
    json_decref(object);
}

/* ---- the command ---- */

static const struct argp_option option_table[] = {
    {"json", 'j', NULL, 0, "Print one JSON object, and nothing else", 0},
    {0},
};

static error_t parse_option(int key, char *text, struct argp_state *state)
{
    (void)text;
    bool *json = state->input;
    if (key != 'j')
        return ARGP_ERR_UNKNOWN;
    *json = true;
    return 0;
}

int tool_info(int argc, char **argv)
{
    static const struct argp parser = {
        .options = option_table,
        .parser = parse_option,
        .doc = "Says what this build is and can do, and lists every setting: its value, its unit, and whether that "
               "comes from the environment or is the default. A MUSTER_ variable that is no setting is warned "
               "about.\vExample:\n  MUSTER_OPERATION_TIMEOUT_US=200000 muster info",
    };
    bool json = false;
    argp_parse(&parser, argc, argv, 0, NULL, &json);
    config_check();
    if (json)
        print_json();
    else
        print_text();
    return 0;
}
