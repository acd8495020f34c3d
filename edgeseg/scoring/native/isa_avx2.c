/* The kernels for AVX2 with FMA and F16C (most x86 machines since 2013). */
#include "internal.h"

#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
#include "vec_avx2.h"

#include "head_kernel.h"
#include "resize_kernel.h"

const struct isa_kernels kernels_avx2 = {
    .isa = EDGESEG_ISA_AVX2,
    .name = "avx2",
    .group_max = GEMM_MAX_GROUP,
    .head_unit = head_unit,
    .resize_rows = resize_rows,
};

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#else
/* An empty translation unit is not allowed. */
extern const int edgeseg_no_avx2;
#endif
