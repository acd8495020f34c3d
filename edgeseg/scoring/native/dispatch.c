/* Choice of the instruction set at run time. */
#include "internal.h"

#include <stdlib.h>
#include <string.h>

/* __builtin_cpu_supports also asks the operating system (XGETBV) whether it saves the wide
 * registers. */
static bool machine_has(int isa) {
    switch (isa) {
    case EDGESEG_ISA_SCALAR:
        return true;
#if defined(__x86_64__)
    case EDGESEG_ISA_AVX2:
        __builtin_cpu_init();
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
               __builtin_cpu_supports("f16c");
    case EDGESEG_ISA_AVX512:
        __builtin_cpu_init();
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
               machine_has(EDGESEG_ISA_AVX2);
#elif defined(__aarch64__)
    case EDGESEG_ISA_NEON:
        return true;
#endif
    default:
        return false;
    }
}

static const struct isa_kernels *kernels_of(int isa) {
    switch (isa) {
    case EDGESEG_ISA_SCALAR:
        return &kernels_scalar;
#if defined(__x86_64__)
    case EDGESEG_ISA_AVX2:
        return &kernels_avx2;
    case EDGESEG_ISA_AVX512:
        return &kernels_avx512;
#elif defined(__aarch64__)
    case EDGESEG_ISA_NEON:
        return &kernels_neon;
#endif
    default:
        return NULL;
    }
}

const struct isa_kernels *choose_kernels(int isa) {
    if (isa != EDGESEG_ISA_AUTO) {
        return machine_has(isa) ? kernels_of(isa) : NULL;
    }
    int highest = EDGESEG_ISA_AVX512;
    const char *forced = getenv("EDGESEG_ISA");
    if (forced != NULL) {
        for (int i = EDGESEG_ISA_SCALAR; i <= EDGESEG_ISA_AVX512; i++) {
            const struct isa_kernels *kernels = kernels_of(i);
            if (kernels != NULL && strcmp(forced, kernels->name) == 0) {
                highest = i;
            }
        }
    }
    for (int i = highest; i > EDGESEG_ISA_SCALAR; i--) {
        if (machine_has(i)) {
            return kernels_of(i);
        }
    }
    return &kernels_scalar;
}

int edgeseg_kernels_abi_version(void) { return EDGESEG_KERNELS_ABI; }

const char *edgeseg_kernels_isa(void) { return choose_kernels(EDGESEG_ISA_AUTO)->name; }

const char *edgeseg_status_text(int status) {
    switch (status) {
    case EDGESEG_OK:
        return "ok";
    case EDGESEG_BAD_ARGUMENT:
        return "an argument is out of range, or the machine lacks the instruction set";
    case EDGESEG_NO_MEMORY:
        return "out of memory";
    case EDGESEG_NO_THREAD:
        return "a worker thread could not be started";
    default:
        return "unknown status";
    }
}
