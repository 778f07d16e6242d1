// SPDX-License-Identifier: Apache-2.0
/*
 * Dice of the simulator: splitmix64. Each purpose has a stream of its own, so that one more draw for the network does
 * not shift the fault plan of the same seed.
 */
#ifndef SIM_RANDOM_H
#define SIM_RANDOM_H

#include <stdbool.h>
#include <stdint.h>

struct random {
    uint64_t state;
};

static inline uint64_t random_next(struct random *random)
{
    uint64_t z = random->state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

static inline struct random random_stream(uint64_t seed, uint64_t stream)
{
    struct random random = {seed};
    random.state = random_next(&random) ^ (stream + 1) * UINT64_C(0xd1342543de82ef95);
    return random;
}

/* 0..limit-1; limit below 2^32 */
static inline uint64_t random_below(struct random *random, uint64_t limit)
{
    return ((random_next(random) >> 32) * limit) >> 32;
}

/* low..high, both included */
static inline uint64_t random_between(struct random *random, uint64_t low, uint64_t high)
{
    return low + random_below(random, high - low + 1);
}

static inline bool random_chance(struct random *random, unsigned permille)
{
    return random_below(random, 1000) < permille;
}

#endif
