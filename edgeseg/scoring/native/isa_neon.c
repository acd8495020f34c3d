/* The kernels for Advanced SIMD on aarch64. */
#include "internal.h"

#if defined(__aarch64__)
#include "vec_neon.h"

#include "head_kernel.h"
#include "resize_kernel.h"

const struct isa_kernels kernels_neon = {
    .isa = EDGESEG_ISA_NEON,
    .name = "neon",
    .group_max = GEMM_MAX_GROUP,
    .head_unit = head_unit,
    .resize_rows = resize_rows,
};
#else
extern const int edgeseg_no_neon;
#endif
