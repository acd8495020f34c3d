/* Vectors of AVX-512 (F, BW, DQ, VL): 16 floats, 64 bytes. See vec_scalar.h for the meaning. */
#ifndef EDGESEG_VEC_H
#define EDGESEG_VEC_H

#include <immintrin.h>
#include <stdint.h>

#define VF_LANES 16
#define GEMM_MAX_GROUP 10

typedef __m512 vf;
typedef __m512i vi;
typedef __mmask16 vm;

static inline vf vf_load(const float *p) { return _mm512_loadu_ps(p); }
static inline void vf_store(float *p, vf a) { _mm512_storeu_ps(p, a); }
static inline vf vf_set1(float a) { return _mm512_set1_ps(a); }
static inline vf vf_add(vf a, vf b) { return _mm512_add_ps(a, b); }
static inline vf vf_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
static inline vf vf_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
static inline vf vf_div(vf a, vf b) { return _mm512_div_ps(a, b); }
static inline vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
static inline vf vf_max(vf a, vf b) { return _mm512_max_ps(a, b); }
static inline vf vf_min(vf a, vf b) { return _mm512_min_ps(a, b); }
static inline vf vf_abs(vf a) { return _mm512_abs_ps(a); }
static inline vm vf_gt(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
static inline vm vf_nan(vf a) { return _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q); }
static inline vf vf_select(vm m, vf a, vf b) { return _mm512_mask_blend_ps(m, b, a); }
static inline vf vf_add_where(vf a, vf b, vm m) { return _mm512_mask_add_ps(a, m, a, b); }

static inline vi vi_set1(int32_t a) { return _mm512_set1_epi32(a); }
static inline vi vi_add(vi a, vi b) { return _mm512_add_epi32(a, b); }
static inline vi vi_sub(vi a, vi b) { return _mm512_sub_epi32(a, b); }
static inline vi vi_shl23(vi a) { return _mm512_slli_epi32(a, 23); }
static inline vi vi_sar23(vi a) { return _mm512_srai_epi32(a, 23); }
static inline vm vi_ne(vi a, vi b) { return _mm512_cmpneq_epi32_mask(a, b); }
static inline vi vi_select(vm m, vi a, vi b) { return _mm512_mask_blend_epi32(m, b, a); }
static inline vi vf_bits(vf a) { return _mm512_castps_si512(a); }
static inline vf vi_as_float(vi a) { return _mm512_castsi512_ps(a); }
static inline vf vi_to_float(vi a) { return _mm512_cvtepi32_ps(a); }

static inline void vf_store_half(uint16_t *p, vf a) {
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}
static inline void vi_store_u8(uint8_t *p, vi a) {
    _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(a));
}

/* 16x16: four rounds of exchanging neighbours, pairs, quarters and halves. */
static inline void vf_transpose(const float *src, size_t src_stride, float *dst,
                                size_t dst_stride) {
    __m512 r[16], t[16];
    EDGESEG_UNROLL
    for (int i = 0; i < 16; i++) {
        r[i] = _mm512_loadu_ps(src + (size_t)i * src_stride);
    }
    EDGESEG_UNROLL
    for (int i = 0; i < 8; i++) {
        t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
    EDGESEG_UNROLL
    for (int i = 0; i < 4; i++) {
        for (int k = 0; k < 2; k++) {
            __m512d a = _mm512_castps_pd(t[4 * i + k]);
            __m512d b = _mm512_castps_pd(t[4 * i + k + 2]);
            r[4 * i + 2 * k] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
            r[4 * i + 2 * k + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
        }
    }
    /* r[4 i + k] now holds columns k, k + 4, k + 8, k + 12 of rows 4 i .. 4 i + 3. */
    EDGESEG_UNROLL
    for (int k = 0; k < 4; k++) {
        t[k] = _mm512_shuffle_f32x4(r[k], r[4 + k], 0x88);
        t[4 + k] = _mm512_shuffle_f32x4(r[k], r[4 + k], 0xdd);
        t[8 + k] = _mm512_shuffle_f32x4(r[8 + k], r[12 + k], 0x88);
        t[12 + k] = _mm512_shuffle_f32x4(r[8 + k], r[12 + k], 0xdd);
    }
    EDGESEG_UNROLL
    for (int k = 0; k < 4; k++) {
        vf_store(dst + (size_t)k * dst_stride, _mm512_shuffle_f32x4(t[k], t[8 + k], 0x88));
        vf_store(dst + (size_t)(k + 4) * dst_stride,
                 _mm512_shuffle_f32x4(t[4 + k], t[12 + k], 0x88));
        vf_store(dst + (size_t)(k + 8) * dst_stride, _mm512_shuffle_f32x4(t[k], t[8 + k], 0xdd));
        vf_store(dst + (size_t)(k + 12) * dst_stride,
                 _mm512_shuffle_f32x4(t[4 + k], t[12 + k], 0xdd));
    }
}

#define VB_LANES 4

typedef __m512i vb;

static inline vb vb_load(const uint8_t *p) { return _mm512_loadu_si512((const void *)p); }
static inline void vb_store(uint8_t *p, vb a) { _mm512_storeu_si512((void *)p, a); }
static inline vb vb_load_rows(const uint8_t *const *rows, size_t at) {
    __m512i v = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)(rows[0] + at)));
    v = _mm512_inserti32x4(v, _mm_loadu_si128((const __m128i *)(rows[1] + at)), 1);
    v = _mm512_inserti32x4(v, _mm_loadu_si128((const __m128i *)(rows[2] + at)), 2);
    return _mm512_inserti32x4(v, _mm_loadu_si128((const __m128i *)(rows[3] + at)), 3);
}
static inline void vb_store_rows(uint8_t *const *rows, size_t at, vb v) {
    _mm_storeu_si128((__m128i *)(rows[0] + at), _mm512_castsi512_si128(v));
    _mm_storeu_si128((__m128i *)(rows[1] + at), _mm512_extracti32x4_epi32(v, 1));
    _mm_storeu_si128((__m128i *)(rows[2] + at), _mm512_extracti32x4_epi32(v, 2));
    _mm_storeu_si128((__m128i *)(rows[3] + at), _mm512_extracti32x4_epi32(v, 3));
}
static inline vb vb_mask(const uint8_t *mask) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)mask));
}
static inline vb vb_shuffle(vb a, vb mask) { return _mm512_shuffle_epi8(a, mask); }
static inline vb vb_zero(void) { return _mm512_setzero_si512(); }
static inline vb vb_set32(int32_t a) { return _mm512_set1_epi32(a); }
static inline vb vb_madd(vb a, vb b) { return _mm512_madd_epi16(a, b); }
static inline vb vb_add32(vb a, vb b) { return _mm512_add_epi32(a, b); }
static inline vb vb_shl15(vb a) { return _mm512_slli_epi32(a, 15); }
static inline vb vb_shr22(vb a) { return _mm512_srli_epi32(a, 22); }
static inline vb vb_pack32(vb a, vb b) { return _mm512_packs_epi32(a, b); }
static inline vb vb_pack16(vb a, vb b) { return _mm512_packus_epi16(a, b); }
static inline vb vb_unpack_lo(vb a, vb b) { return _mm512_unpacklo_epi8(a, b); }
static inline vb vb_unpack_hi(vb a, vb b) { return _mm512_unpackhi_epi8(a, b); }

#endif
