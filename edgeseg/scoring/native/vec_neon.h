/* Vectors of Advanced SIMD on aarch64: 4 floats, 16 bytes. See vec_scalar.h for the meaning. */
#ifndef EDGESEG_VEC_H
#define EDGESEG_VEC_H

#include <arm_neon.h>
#include <stdint.h>

#define VF_LANES 4
#define GEMM_MAX_GROUP 10

typedef float32x4_t vf;
typedef int32x4_t vi;
typedef uint32x4_t vm;

static inline vf vf_load(const float *p) { return vld1q_f32(p); }
static inline void vf_store(float *p, vf a) { vst1q_f32(p, a); }
static inline vf vf_set1(float a) { return vdupq_n_f32(a); }
static inline vf vf_add(vf a, vf b) { return vaddq_f32(a, b); }
static inline vf vf_sub(vf a, vf b) { return vsubq_f32(a, b); }
static inline vf vf_mul(vf a, vf b) { return vmulq_f32(a, b); }
static inline vf vf_div(vf a, vf b) { return vdivq_f32(a, b); }
static inline vf vf_fma(vf a, vf b, vf c) { return vfmaq_f32(c, a, b); }
/* Not vmaxq: where a is NaN the result must be b. */
static inline vf vf_max(vf a, vf b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
static inline vf vf_min(vf a, vf b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
static inline vf vf_abs(vf a) { return vabsq_f32(a); }
static inline vm vf_gt(vf a, vf b) { return vcgtq_f32(a, b); }
static inline vm vf_nan(vf a) { return vmvnq_u32(vceqq_f32(a, a)); }
static inline vf vf_select(vm m, vf a, vf b) { return vbslq_f32(m, a, b); }
static inline vf vf_add_where(vf a, vf b, vm m) {
    return vaddq_f32(a, vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(b), m)));
}

static inline vi vi_set1(int32_t a) { return vdupq_n_s32(a); }
static inline vi vi_add(vi a, vi b) { return vaddq_s32(a, b); }
static inline vi vi_sub(vi a, vi b) { return vsubq_s32(a, b); }
static inline vi vi_shl23(vi a) { return vshlq_n_s32(a, 23); }
static inline vi vi_sar23(vi a) { return vshrq_n_s32(a, 23); }
static inline vm vi_ne(vi a, vi b) { return vmvnq_u32(vceqq_s32(a, b)); }
static inline vi vi_select(vm m, vi a, vi b) { return vbslq_s32(m, a, b); }
static inline vi vf_bits(vf a) { return vreinterpretq_s32_f32(a); }
static inline vf vi_as_float(vi a) { return vreinterpretq_f32_s32(a); }
static inline vf vi_to_float(vi a) { return vcvtq_f32_s32(a); }

static inline void vf_store_half(uint16_t *p, vf a) {
    vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(a)));
}
static inline void vi_store_u8(uint8_t *p, vi a) {
    uint16x4_t w = vmovn_u32(vreinterpretq_u32_s32(a));
    vst1_lane_u32((uint32_t *)(void *)p, vreinterpret_u32_u8(vmovn_u16(vcombine_u16(w, w))), 0);
}

static inline void vf_transpose(const float *src, size_t src_stride, float *dst,
                                size_t dst_stride) {
    vf a = vf_load(src), b = vf_load(src + src_stride);
    vf c = vf_load(src + 2 * src_stride), d = vf_load(src + 3 * src_stride);
    float64x2_t ab0 = vreinterpretq_f64_f32(vzip1q_f32(a, b));
    float64x2_t ab1 = vreinterpretq_f64_f32(vzip2q_f32(a, b));
    float64x2_t cd0 = vreinterpretq_f64_f32(vzip1q_f32(c, d));
    float64x2_t cd1 = vreinterpretq_f64_f32(vzip2q_f32(c, d));
    vf_store(dst, vreinterpretq_f32_f64(vzip1q_f64(ab0, cd0)));
    vf_store(dst + dst_stride, vreinterpretq_f32_f64(vzip2q_f64(ab0, cd0)));
    vf_store(dst + 2 * dst_stride, vreinterpretq_f32_f64(vzip1q_f64(ab1, cd1)));
    vf_store(dst + 3 * dst_stride, vreinterpretq_f32_f64(vzip2q_f64(ab1, cd1)));
}

#define VB_LANES 1

typedef uint8x16_t vb;

static inline vb vb_load(const uint8_t *p) { return vld1q_u8(p); }
static inline void vb_store(uint8_t *p, vb a) { vst1q_u8(p, a); }
static inline vb vb_load_rows(const uint8_t *const *rows, size_t at) {
    return vld1q_u8(rows[0] + at);
}
static inline void vb_store_rows(uint8_t *const *rows, size_t at, vb v) {
    vst1q_u8(rows[0] + at, v);
}
static inline vb vb_mask(const uint8_t *mask) { return vld1q_u8(mask); }
static inline vb vb_shuffle(vb a, vb mask) { return vqtbl1q_u8(a, mask); }
static inline vb vb_zero(void) { return vdupq_n_u8(0); }
static inline vb vb_set32(int32_t a) { return vreinterpretq_u8_s32(vdupq_n_s32(a)); }
static inline vb vb_madd(vb a, vb b) {
    int16x8_t x = vreinterpretq_s16_u8(a), y = vreinterpretq_s16_u8(b);
    int32x4_t lo = vmull_s16(vget_low_s16(x), vget_low_s16(y));
    return vreinterpretq_u8_s32(vpaddq_s32(lo, vmull_high_s16(x, y)));
}
static inline vb vb_add32(vb a, vb b) {
    return vreinterpretq_u8_u32(vaddq_u32(vreinterpretq_u32_u8(a), vreinterpretq_u32_u8(b)));
}
static inline vb vb_shl15(vb a) {
    return vreinterpretq_u8_u32(vshlq_n_u32(vreinterpretq_u32_u8(a), 15));
}
static inline vb vb_shr22(vb a) {
    return vreinterpretq_u8_u32(vshrq_n_u32(vreinterpretq_u32_u8(a), 22));
}
static inline vb vb_pack32(vb a, vb b) {
    int16x4_t lo = vqmovn_s32(vreinterpretq_s32_u8(a));
    return vreinterpretq_u8_s16(vqmovn_high_s32(lo, vreinterpretq_s32_u8(b)));
}
static inline vb vb_pack16(vb a, vb b) {
    return vqmovun_high_s16(vqmovun_s16(vreinterpretq_s16_u8(a)), vreinterpretq_s16_u8(b));
}
static inline vb vb_unpack_lo(vb a, vb b) { return vzip1q_u8(a, b); }
static inline vb vb_unpack_hi(vb a, vb b) { return vzip2q_u8(a, b); }

#endif
