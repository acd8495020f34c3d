/* The vectors that the kernels are written over, here one float wide in portable C.
 *
 *   vf, vi, vm   VF_LANES floats, int32, truth values
 *   vb           VB_LANES groups of 16 bytes; 0 where the resize has no vector form
 *
 * vf_max(a, b) and vf_min(a, b) give b where either is NaN, vf_gt is false there;
 * vf_add_where adds b in the lanes of m only; vf_transpose is VF_LANES x VF_LANES;
 * GEMM_MAX_GROUP outputs times two vectors are accumulated in registers.
 */
#ifndef EDGESEG_VEC_H
#define EDGESEG_VEC_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#define VF_LANES 1
#define GEMM_MAX_GROUP 4

typedef float vf;
typedef int32_t vi;
typedef int vm;

static inline vf vf_load(const float *p) { return *p; }
static inline void vf_store(float *p, vf a) { *p = a; }
static inline vf vf_set1(float a) { return a; }
static inline vf vf_add(vf a, vf b) { return a + b; }
static inline vf vf_sub(vf a, vf b) { return a - b; }
static inline vf vf_mul(vf a, vf b) { return a * b; }
static inline vf vf_div(vf a, vf b) { return a / b; }
static inline vf vf_fma(vf a, vf b, vf c) { return a * b + c; }
static inline vf vf_max(vf a, vf b) { return a > b ? a : b; }
static inline vf vf_min(vf a, vf b) { return a < b ? a : b; }
static inline vf vf_abs(vf a) { return fabsf(a); }
static inline vm vf_gt(vf a, vf b) { return a > b; }
static inline vm vf_nan(vf a) { return a != a; }
static inline vf vf_select(vm m, vf a, vf b) { return m ? a : b; }
static inline vf vf_add_where(vf a, vf b, vm m) { return m ? a + b : a; }

static inline vi vi_set1(int32_t a) { return a; }
static inline vi vi_add(vi a, vi b) { return (vi)((uint32_t)a + (uint32_t)b); }
static inline vi vi_sub(vi a, vi b) { return (vi)((uint32_t)a - (uint32_t)b); }
static inline vi vi_shl23(vi a) { return (vi)((uint32_t)a << 23); }
static inline vi vi_sar23(vi a) {
    return a < 0 ? -1 - ((-1 - a) >> 23) : a >> 23;
}
static inline vm vi_ne(vi a, vi b) { return a != b; }
static inline vi vi_select(vm m, vi a, vi b) { return m ? a : b; }
static inline vi vf_bits(vf a) {
    vi b;
    memcpy(&b, &a, sizeof b);
    return b;
}
static inline vf vi_as_float(vi a) {
    vf b;
    memcpy(&b, &a, sizeof b);
    return b;
}
static inline vf vi_to_float(vi a) { return (vf)a; }

/* Round to nearest, ties to even, as the conversion instructions do. */
static inline void vf_store_half(uint16_t *p, vf a) {
    uint32_t u = (uint32_t)vf_bits(a);
    uint32_t sign = (u >> 16) & 0x8000u;
    u &= 0x7fffffffu;
    uint32_t h;
    if (u > 0x7f800000u) {
        h = 0x7e00u;
    } else if (u >= 0x477ff000u) {
        h = 0x7c00u;
    } else if (u >= 0x38800000u) {
        uint32_t odd = (u >> 13) & 1u;
        h = (u - 0x38000000u + 0xfffu + odd) >> 13;
    } else if (u >= 0x33000000u) {
        uint32_t shift = 126u - (u >> 23);
        uint32_t mantissa = (u & 0x7fffffu) | 0x800000u;
        uint32_t rest = mantissa & ((1u << shift) - 1u);
        uint32_t middle = 1u << (shift - 1u);
        h = mantissa >> shift;
        h += (rest > middle || (rest == middle && (h & 1u))) ? 1u : 0u;
    } else {
        h = 0;
    }
    *p = (uint16_t)(sign | h);
}
static inline void vi_store_u8(uint8_t *p, vi a) { *p = (uint8_t)a; }

static inline void vf_transpose(const float *src, size_t src_stride, float *dst,
                                size_t dst_stride) {
    (void)src_stride;
    (void)dst_stride;
    *dst = *src;
}

#define VB_LANES 0

#endif
