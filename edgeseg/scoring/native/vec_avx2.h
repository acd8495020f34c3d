/* Vectors of AVX2 with FMA and F16C: 8 floats, 32 bytes. See vec_scalar.h for the meaning. */
#ifndef EDGESEG_VEC_H
#define EDGESEG_VEC_H

#include <immintrin.h>
#include <stdint.h>

#define VF_LANES 8
#define GEMM_MAX_GROUP 6

typedef __m256 vf;
typedef __m256i vi;
typedef __m256 vm;

static inline vf vf_load(const float *p) { return _mm256_loadu_ps(p); }
static inline void vf_store(float *p, vf a) { _mm256_storeu_ps(p, a); }
static inline vf vf_set1(float a) { return _mm256_set1_ps(a); }
static inline vf vf_add(vf a, vf b) { return _mm256_add_ps(a, b); }
static inline vf vf_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
static inline vf vf_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
static inline vf vf_div(vf a, vf b) { return _mm256_div_ps(a, b); }
static inline vf vf_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
static inline vf vf_max(vf a, vf b) { return _mm256_max_ps(a, b); }
static inline vf vf_min(vf a, vf b) { return _mm256_min_ps(a, b); }
static inline vf vf_abs(vf a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
static inline vm vf_gt(vf a, vf b) { return _mm256_cmp_ps(a, b, _CMP_GT_OQ); }
static inline vm vf_nan(vf a) { return _mm256_cmp_ps(a, a, _CMP_UNORD_Q); }
static inline vf vf_select(vm m, vf a, vf b) { return _mm256_blendv_ps(b, a, m); }
static inline vf vf_add_where(vf a, vf b, vm m) { return _mm256_add_ps(a, _mm256_and_ps(b, m)); }

static inline vi vi_set1(int32_t a) { return _mm256_set1_epi32(a); }
static inline vi vi_add(vi a, vi b) { return _mm256_add_epi32(a, b); }
static inline vi vi_sub(vi a, vi b) { return _mm256_sub_epi32(a, b); }
static inline vi vi_shl23(vi a) { return _mm256_slli_epi32(a, 23); }
static inline vi vi_sar23(vi a) { return _mm256_srai_epi32(a, 23); }
static inline vm vi_ne(vi a, vi b) {
    return _mm256_castsi256_ps(
        _mm256_xor_si256(_mm256_cmpeq_epi32(a, b), _mm256_set1_epi32(-1)));
}
static inline vi vi_select(vm m, vi a, vi b) {
    return _mm256_blendv_epi8(b, a, _mm256_castps_si256(m));
}
static inline vi vf_bits(vf a) { return _mm256_castps_si256(a); }
static inline vf vi_as_float(vi a) { return _mm256_castsi256_ps(a); }
static inline vf vi_to_float(vi a) { return _mm256_cvtepi32_ps(a); }

static inline void vf_store_half(uint16_t *p, vf a) {
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}
static inline void vi_store_u8(uint8_t *p, vi a) {
    __m128i w = _mm_packus_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    _mm_storel_epi64((__m128i *)p, _mm_packus_epi16(w, w));
}

static inline void vf_transpose(const float *src, size_t src_stride, float *dst,
                                size_t dst_stride) {
    __m256 r[8], t[8];
    EDGESEG_UNROLL
    for (int i = 0; i < 4; i++) {
        __m256 a = vf_load(src + (size_t)(2 * i) * src_stride);
        __m256 b = vf_load(src + (size_t)(2 * i + 1) * src_stride);
        t[2 * i] = _mm256_unpacklo_ps(a, b);
        t[2 * i + 1] = _mm256_unpackhi_ps(a, b);
    }
    EDGESEG_UNROLL
    for (int i = 0; i < 2; i++) {
        for (int k = 0; k < 2; k++) {
            __m256d a = _mm256_castps_pd(t[4 * i + k]);
            __m256d b = _mm256_castps_pd(t[4 * i + k + 2]);
            r[4 * i + 2 * k] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, b));
            r[4 * i + 2 * k + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, b));
        }
    }
    EDGESEG_UNROLL
    for (int k = 0; k < 4; k++) {
        vf_store(dst + (size_t)k * dst_stride, _mm256_permute2f128_ps(r[k], r[4 + k], 0x20));
        vf_store(dst + (size_t)(k + 4) * dst_stride,
                 _mm256_permute2f128_ps(r[k], r[4 + k], 0x31));
    }
}

#define VB_LANES 2

typedef __m256i vb;

static inline vb vb_load(const uint8_t *p) { return _mm256_loadu_si256((const __m256i *)p); }
static inline void vb_store(uint8_t *p, vb a) { _mm256_storeu_si256((__m256i *)p, a); }
static inline vb vb_load_rows(const uint8_t *const *rows, size_t at) {
    __m256i v = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(rows[0] + at)));
    return _mm256_inserti128_si256(v, _mm_loadu_si128((const __m128i *)(rows[1] + at)), 1);
}
static inline void vb_store_rows(uint8_t *const *rows, size_t at, vb v) {
    _mm_storeu_si128((__m128i *)(rows[0] + at), _mm256_castsi256_si128(v));
    _mm_storeu_si128((__m128i *)(rows[1] + at), _mm256_extracti128_si256(v, 1));
}
static inline vb vb_mask(const uint8_t *mask) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)mask));
}
static inline vb vb_shuffle(vb a, vb mask) { return _mm256_shuffle_epi8(a, mask); }
static inline vb vb_zero(void) { return _mm256_setzero_si256(); }
static inline vb vb_set32(int32_t a) { return _mm256_set1_epi32(a); }
static inline vb vb_madd(vb a, vb b) { return _mm256_madd_epi16(a, b); }
static inline vb vb_add32(vb a, vb b) { return _mm256_add_epi32(a, b); }
static inline vb vb_shl15(vb a) { return _mm256_slli_epi32(a, 15); }
static inline vb vb_shr22(vb a) { return _mm256_srli_epi32(a, 22); }
static inline vb vb_pack32(vb a, vb b) { return _mm256_packs_epi32(a, b); }
static inline vb vb_pack16(vb a, vb b) { return _mm256_packus_epi16(a, b); }
static inline vb vb_unpack_lo(vb a, vb b) { return _mm256_unpacklo_epi8(a, b); }
static inline vb vb_unpack_hi(vb a, vb b) { return _mm256_unpackhi_epi8(a, b); }

#endif
