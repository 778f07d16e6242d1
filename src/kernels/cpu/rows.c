// SPDX-License-Identifier: Apache-2.0
/*
 * The arithmetic is compiled for any processor and again for wider vectors. Which build is used cannot change a result:
 * every sum is over rows, one element at a time, and no build may contract a product and a sum (X15).
 */
#include "kernels/cpu/rows.h"

#ifdef __x86_64__

#include <cpuid.h>

/* Not every compiler's __builtin_cpu_supports() knows it. AVX2 says that the system keeps the registers. */
static bool has_f16c(void)
{
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
}

static bool has_avx512(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl");
}

int rows_builds(const struct rows_arithmetic *builds[ROWS_MAX_BUILDS])
{
    int count = 0;
    builds[count++] = &rows_plain;
    if (__builtin_cpu_supports("avx2") && has_f16c())
        builds[count++] = &rows_avx2;
    if (has_avx512())
        builds[count++] = &rows_avx512;
    return count;
}

#else

int rows_builds(const struct rows_arithmetic *builds[ROWS_MAX_BUILDS])
{
    builds[0] = &rows_plain;
    return 1;
}

#endif
