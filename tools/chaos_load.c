// SPDX-License-Identifier: Apache-2.0
#include "chaos_load.h"

#include <stdlib.h>
#include <string.h>

#include "core/mask.h"

enum { UNITS = 64 /* that weights are made of */, LANES = 4 /* values in a word */ };

uint64_t chaos_random(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

bool chaos_load_open(struct chaos_load *load, const struct chaos_shape *shape)
{
    *load = (struct chaos_load){.shape = shape};
    load->routes = calloc((size_t)shape->ranks * (size_t)shape->tokens, sizeof *load->routes);
    return load->routes;
}

void chaos_load_close(struct chaos_load *load)
{
    free(load->routes);
}

static uint64_t token_state(const struct chaos_load *load, int32_t rank, int32_t token, uint64_t what)
{
    uint64_t state = load->key ^ what << 56 ^ (uint64_t)rank << 32 ^ (uint64_t)token;
    return chaos_random(&state);
}

/* ---- routes ---- */

/* The i-th slot of those that members have. */
static int32_t active_slot(const struct chaos_load *load, int32_t i)
{
    int rank = mask_next(load->mask, 0);
    for (int32_t skip = i / load->shape->slots; skip > 0; skip--)
        rank = mask_next(load->mask, rank + 1);
    return rank * load->shape->slots + i % load->shape->slots;
}

static bool is_chosen(const struct chaos_routes *routes, int32_t count, int32_t slot)
{
    for (int32_t k = 0; k < count; k++)
        if (routes->slot[k] == slot)
            return true;
    return false;
}

static void choose_slots(const struct chaos_load *load, uint64_t *state, int32_t used, struct chaos_routes *routes)
{
    uint64_t slots = (uint64_t)mask_count(load->mask) * (uint64_t)load->shape->slots;
    for (int32_t k = 0; k < used; k++) {
        int32_t slot;
        do
            slot = active_slot(load, (int32_t)(chaos_random(state) % slots));
        while (is_chosen(routes, k, slot));
        routes->slot[k] = slot;
    }
}

/* Equal shares; then each pair of neighbours moves some of it from one to the other. */
static void choose_weights(uint64_t *state, int32_t used, struct chaos_routes *routes)
{
    int32_t units[MUSTER_EP_MAX_TOPK], share = UNITS / used;
    for (int32_t k = 0; k < used; k++)
        units[k] = share + (k == 0 ? UNITS % used : 0);
    for (int32_t k = 0; k + 1 < used; k += 2) {
        int32_t moved = (int32_t)(chaos_random(state) % (uint64_t)share);
        units[k] += moved;
        units[k + 1] -= moved;
    }
    for (int32_t k = 0; k < used; k++)
        routes->weight[k] = (float)units[k] / UNITS;
}

/* After many deaths there may be fewer experts left than a token has routes. */
static void make_routes(const struct chaos_load *load, int32_t rank, int32_t token, struct chaos_routes *routes)
{
    int32_t slots = mask_count(load->mask) * load->shape->slots;
    int32_t used = load->shape->topk < slots ? load->shape->topk : slots;
    uint64_t state = token_state(load, rank, token, 1);
    choose_slots(load, &state, used, routes);
    choose_weights(&state, used, routes);
    for (int32_t k = used; k < load->shape->topk; k++) {
        routes->slot[k] = -1;
        routes->weight[k] = 0;
    }
}

static struct chaos_routes *routes_of(const struct chaos_load *load, int32_t rank, int32_t token)
{
    return load->routes + (size_t)rank * (size_t)load->shape->tokens + token;
}

const struct chaos_routes *chaos_load_routes(const struct chaos_load *load, int32_t rank, int32_t token)
{
    return routes_of(load, rank, token);
}

void chaos_load_set(struct chaos_load *load, const struct chaos_when *when)
{
    uint64_t state = load->shape->seed;
    load->key = chaos_random(&state) ^ when->epoch;
    load->key = chaos_random(&load->key) ^ when->step;
    load->key = chaos_random(&load->key) ^ (uint64_t)when->pair;
    load->key = chaos_random(&load->key);
    load->mask = when->mask;
    for (int r = mask_next(load->mask, 0); r >= 0; r = mask_next(load->mask, r + 1))
        for (int32_t token = 0; token < load->shape->tokens; token++)
            make_routes(load, r, token, routes_of(load, r, token));
}

/* ---- rows ---- */

/* Sign and fraction are random, the exponent is that of 1. A multiplication mixes enough: no value need be secret. */
void chaos_load_row(const struct chaos_load *load, int32_t rank, int32_t token, uint16_t *row)
{
    uint64_t state = token_state(load, rank, token, 2) | 1;
    for (int32_t i = 0; i < load->shape->hidden; i += LANES) {
        uint64_t mixed = (state += UINT64_C(0x9e3779b97f4a7c15)) * UINT64_C(0xbf58476d1ce4e5b9);
        uint64_t word = ((mixed ^ mixed >> 32) & UINT64_C(0x807f807f807f807f)) | UINT64_C(0x3f803f803f803f80);
        int32_t left = load->shape->hidden - i;
        memcpy(row + i, &word, (size_t)(left < LANES ? left : LANES) * sizeof *row);
    }
}

static bool goes_to(const struct chaos_load *load, int32_t rank, int32_t token, int32_t begin, int32_t end)
{
    const struct chaos_routes *routes = chaos_load_routes(load, rank, token);
    for (int32_t k = 0; k < load->shape->topk; k++)
        if (routes->slot[k] >= begin && routes->slot[k] < end)
            return true;
    return false;
}

int32_t chaos_load_block(const struct chaos_load *load, bool by_rank, int32_t rank, int32_t block,
                         struct chaos_origin *rows)
{
    int32_t slots = load->shape->slots, count = 0;
    int32_t begin = rank * slots + (by_rank ? 0 : block), end = begin + (by_rank ? slots : 1);
    for (int r = mask_next(load->mask, 0); r >= 0; r = mask_next(load->mask, r + 1))
        for (int32_t token = 0; token < load->shape->tokens; token++)
            if ((!by_rank || r == block) && goes_to(load, r, token, begin, end))
                rows[count++] = (struct chaos_origin){r, token};
    return count;
}

/* ---- what comes home ---- */

static int32_t ranks_visited(const struct chaos_load *load, int32_t rank, int32_t token)
{
    int32_t visited = 0, slots = load->shape->slots;
    for (int r = mask_next(load->mask, 0); r >= 0; r = mask_next(load->mask, r + 1))
        visited += goes_to(load, rank, token, r * slots, (r + 1) * slots);
    return visited;
}

/* To nearest, ties to even; the value is finite. */
static uint16_t times(uint16_t half, int32_t factor)
{
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    value *= (float)factor;
    memcpy(&bits, &value, sizeof bits);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

void chaos_load_home(const struct chaos_load *load, bool by_rank, int32_t rank, int32_t token, uint16_t *row)
{
    int32_t visited = by_rank ? ranks_visited(load, rank, token) : 1;
    chaos_load_row(load, rank, token, row);
    for (int32_t i = 0; visited > 1 && i < load->shape->hidden; i++)
        row[i] = times(row[i], visited);
}
