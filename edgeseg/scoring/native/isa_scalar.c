/* The kernels for any machine, in portable C. */
#include "internal.h"

#include "vec_scalar.h"

#include "head_kernel.h"
#include "resize_kernel.h"

const struct isa_kernels kernels_scalar = {
    .isa = EDGESEG_ISA_SCALAR,
    .name = "scalar",
    .group_max = GEMM_MAX_GROUP,
    .head_unit = head_unit,
    .resize_rows = resize_rows,
};

