// SPDX-License-Identifier: Apache-2.0
#include <math.h>

#include "engine.h"

int32_t engine_greedy(const float *logits, int32_t vocabulary)
{
    int32_t best = 0;
    for (int32_t i = 1; i < vocabulary; i++)
        if (logits[i] > logits[best])
            best = i;
    return best;
}

double engine_surprise_bits(const float *logits, int32_t vocabulary, int32_t token)
{
    double largest = (double)logits[engine_greedy(logits, vocabulary)], sum = 0;
    for (int32_t i = 0; i < vocabulary; i++)
        sum += exp((double)logits[i] - largest);
    // cppcheck-suppress invalidFunctionArg ; one term of the sum is exp(0) = 1
    return log2(sum) + (largest - (double)logits[token]) * 1.4426950408889634; /* 1 / ln 2 */
}
