/* The kernels for AVX-512 with the F, BW, DQ and VL parts (servers since 2017). */
#include "internal.h"

#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")
#endif
#include "vec_avx512.h"

#include "head_kernel.h"
#include "resize_kernel.h"

const struct isa_kernels kernels_avx512 = {
    .isa = EDGESEG_ISA_AVX512,
    .name = "avx512",
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
extern const int edgeseg_no_avx512;
#endif
