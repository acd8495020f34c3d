/* The head's kernel over the vectors of one ISA; included by isa_*.c after a vec_*.h.
 *
 * Every kind of head writes output pixels in phases: all those at column j * factor + p of one
 * row come from the features around column j by the same arithmetic. So a vector holds
 * neighbouring feature columns at one phase, and only the finished class and score are brought
 * into the order of the frame, not the logits. A pixel's value does not depend on its lane, so
 * neither on the width of the frame nor on the number of threads.
 */
#include "internal.h"

#include <math.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define STEP (2 * VF_LANES)

/* --- features of a block ---------------------------------------------------------------- */

/* Columns first .. last - 1 of one row, channel c at packed + c * PACKED, column j at
 * HALO + j - origin. */
static void pack_columns(const edgeseg_head *head, int row, int origin, int first, int last,
                         float *packed) {
    const size_t channels = (size_t)head->channels_in;
    const size_t width = (size_t)head->width, height = (size_t)head->height;
    const size_t n = (size_t)(last - first);
    float *to = packed + HALO + (first - origin);
    if (head->layout == EDGESEG_LAYOUT_NCHW) {
        const float *from = head->features + (size_t)row * width + (size_t)first;
        for (size_t c = 0; c < channels; c++) {
            size_t j = 0;
            for (; j + VF_LANES <= n; j += VF_LANES) {
                vf_store(to + j, vf_load(from + j));
            }
            for (; j < n; j++) {
                to[j] = from[j];
            }
            from += width * height;
            to += PACKED;
        }
        return;
    }
    const float *from = head->features + ((size_t)row * width + (size_t)first) * channels;
    size_t j = 0;
    for (; j + VF_LANES <= n; j += VF_LANES) {
        size_t c = 0;
        for (; c + VF_LANES <= channels; c += VF_LANES) {
            vf_transpose(from + j * channels + c, channels, to + c * PACKED + j, PACKED);
        }
        for (; c < channels; c++) {
            for (size_t k = j; k < j + VF_LANES; k++) {
                to[c * PACKED + k] = from[k * channels + c];
            }
        }
    }
    for (; j < n; j++) {
        for (size_t c = 0; c < channels; c++) {
            to[c * PACKED + j] = from[j * channels + c];
        }
    }
}

/* A deconvolution reads zeros beyond the last column and row. */
static void pack_for_deconvolution(const edgeseg_head *head, int row, int origin, int n,
                                   float *packed) {
    const int right = head->kind == EDGESEG_HEAD_DECONV3X3 ? 1 : 0;
    if (row >= head->height) {
        memset(packed, 0, (size_t)head->channels_in * PACKED * sizeof(float));
        return;
    }
    int last = origin + n + right;
    last = last < head->width ? last : head->width;
    pack_columns(head, row, origin, origin, last, packed);
    const int have = last - origin;
    if (have < BLOCK + right) {
        for (int c = 0; c < head->channels_in; c++) {
            float *at = packed + (size_t)c * PACKED + HALO;
            memset(at + have, 0, (size_t)(BLOCK + right - have) * sizeof(float));
        }
    }
}

/* Bilinear repeats the first and last column. The definition clamps the position to 0 and so
 * multiplies the second column by 0, which makes NaN of its infinities: kept here. */
static void pack_for_bilinear(const edgeseg_head *head, int row, int origin, int n,
                              float *packed) {
    const int width = head->width;
    const int first = origin > 0 ? origin - 1 : 0;
    const int last = origin + n < width ? origin + n + 1 : width;
    pack_columns(head, row, origin, first, last, packed);
    for (int c = 0; c < head->channels_in; c++) {
        float *at = packed + (size_t)c * PACKED + HALO - origin;
        if (origin == 0) {
            at[-1] = at[0] + 0.0f * at[width > 1 ? 1 : 0];
        }
        if (last == width) {
            at[width] = at[width - 1];
        }
    }
}

/* --- logits of one phase ----------------------------------------------------------------- */

#define REPEAT_1(M) M(0)
#define REPEAT_2(M) REPEAT_1(M) M(1)
#define REPEAT_3(M) REPEAT_2(M) M(2)
#define REPEAT_4(M) REPEAT_3(M) M(3)
#define REPEAT_5(M) REPEAT_4(M) M(4)
#define REPEAT_6(M) REPEAT_5(M) M(5)
#define REPEAT_7(M) REPEAT_6(M) M(6)
#define REPEAT_8(M) REPEAT_7(M) M(7)
#define REPEAT_9(M) REPEAT_8(M) M(8)
#define REPEAT_10(M) REPEAT_9(M) M(9)

#define ACCUMULATOR(G) vf a##G = vf_set1(bias[G]), b##G = a##G;
#define MULTIPLY(G)                  \
    {                                \
        vf wg = vf_set1(w[G]);       \
        a##G = vf_fma(x0, wg, a##G); \
        b##G = vf_fma(x1, wg, b##G); \
    }
#define KEEP(G)                                      \
    vf_store(tile + (G) * BLOCK + j, a##G);          \
    vf_store(tile + (G) * BLOCK + j + VF_LANES, b##G);

/* tile[o][j] = bias[o] + sum over taps and channels of weight * feature, for one group of
 * outputs, held in registers. */
#define DEFINE_PRODUCT(GROUP)                                                                   \
    static void product_##GROUP(const struct phase *phase, int channels, const float *weight,   \
                                const float *bias, const float *packed, int n, float *tile) {   \
        for (int j = 0; j < n; j += STEP) {                                                     \
            const float *w = weight;                                                            \
            REPEAT_##GROUP(ACCUMULATOR) for (int t = 0; t < phase->taps; t++) {                 \
                const float *x = packed + HALO + j + phase->tap[t].column +                     \
                                 (size_t)phase->tap[t].row * (size_t)channels * PACKED;         \
                for (int c = 0; c < channels; c++) {                                            \
                    const vf x0 = vf_load(x), x1 = vf_load(x + VF_LANES);                       \
                    REPEAT_##GROUP(MULTIPLY) w += GROUP;                                        \
                    x += PACKED;                                                                \
                }                                                                               \
            }                                                                                   \
            REPEAT_##GROUP(KEEP)                                                                \
        }                                                                                       \
    }

typedef void (*product)(const struct phase *phase, int channels, const float *weight,
                        const float *bias, const float *packed, int n, float *tile);

DEFINE_PRODUCT(1)
DEFINE_PRODUCT(2)
DEFINE_PRODUCT(3)
DEFINE_PRODUCT(4)
#if GEMM_MAX_GROUP > 4
DEFINE_PRODUCT(5)
DEFINE_PRODUCT(6)
#endif
#if GEMM_MAX_GROUP > 6
DEFINE_PRODUCT(7)
DEFINE_PRODUCT(8)
DEFINE_PRODUCT(9)
DEFINE_PRODUCT(10)
#endif

static const product products[GEMM_MAX_GROUP] = {
    product_1, product_2, product_3, product_4,
#if GEMM_MAX_GROUP > 4
    product_5, product_6,
#endif
#if GEMM_MAX_GROUP > 6
    product_7, product_8, product_9, product_10,
#endif
};

static void deconvolve(const edgeseg_head *head, const struct phase *phase, const float *packed,
                       int n, float *tile) {
    const product run = products[head->group - 1];
    const size_t size =
        (size_t)phase->taps * (size_t)head->channels_in * (size_t)head->group;
    for (int g = 0; g < head->groups; g++) {
        run(phase, head->channels_in, phase->weight + (size_t)g * size,
            head->bias + g * head->group, packed, n, tile + (size_t)g * (size_t)head->group * BLOCK);
    }
}

/* first * (1 - t) + second * t, in this form because the definition has it (NaN and Inf). */
static void interpolate_rows(int channels, const float *first, const float *second, float t,
                             float *out) {
    const vf w0 = vf_set1(1.0f - t), w1 = vf_set1(t);
    const size_t margin = VF_LANES; /* holds the neighbours */
    for (int c = 0; c < channels; c++) {
        for (size_t j = HALO - margin; j < HALO + BLOCK + margin; j += VF_LANES) {
            vf_store(out + j, vf_fma(vf_load(second + j), w1, vf_mul(vf_load(first + j), w0)));
        }
        first += PACKED;
        second += PACKED;
        out += PACKED;
    }
}

static void interpolate_columns(int channels, const float *row, int offset, float t, int n,
                                float *tile) {
    const vf w0 = vf_set1(1.0f - t), w1 = vf_set1(t);
    const float *x = row + HALO + offset;
    for (int c = 0; c < channels; c++) {
        for (int j = 0; j < n; j += VF_LANES) {
            vf_store(tile + j, vf_fma(vf_load(x + j + 1), w1, vf_mul(vf_load(x + j), w0)));
        }
        x += PACKED;
        tile += BLOCK;
    }
}

static void copy_columns(int channels, const float *packed, int n, float *tile) {
    for (int c = 0; c < channels; c++) {
        for (int j = 0; j < n; j += VF_LANES) {
            vf_store(tile + j, vf_load(packed + HALO + j));
        }
        packed += PACKED;
        tile += BLOCK;
    }
}

/* -|d| * |f_c - p_c| in place. */
static void distances(const edgeseg_head *head, int n, float *tile) {
    const vf scale = vf_set1(head->negative_scale);
    for (int c = 0; c < head->constants.num_outputs; c++) {
        const vf prototype = vf_set1(head->prototypes[c]);
        for (int j = 0; j < n; j += VF_LANES) {
            vf_store(tile + j, vf_mul(scale, vf_abs(vf_sub(vf_load(tile + j), prototype))));
        }
        tile += BLOCK;
    }
}

/* --- class and score of a vector of pixels ------------------------------------------------ */

/* exp(d / T) for d <= 0: 2^(n + r) with |r| <= 1/2, the polynomial is minimax for 2^r. Relative
 * error below 2e-7. Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits. */
INLINE vf exponential(vf d, const struct score_constants *k) {
    const vf magic = vf_set1(12582912.0f), scale = vf_set1(k->scale);
    /* The second operand is what comes out for NaN: it has to stay one, hence this order. */
    d = vf_max(vf_set1(k->lowest), d);
    const vf t = vf_fma(d, scale, magic);
    const vf r = vf_fma(d, scale, vf_sub(magic, t));
    vf p = vf_set1(0.001326472731307149f);
    p = vf_fma(p, r, vf_set1(0.009671512991189957f));
    p = vf_fma(p, r, vf_set1(0.05550733581185341f));
    p = vf_fma(p, r, vf_set1(0.24022242426872253f));
    p = vf_fma(p, r, vf_set1(0.6931470036506653f));
    p = vf_fma(p, r, vf_set1(1.0f));
    return vi_as_float(vi_add(vf_bits(p), vi_shl23(vf_bits(t))));
}

/* log(1 + x) for 0 <= x < 2^20; log(u) of u = 1 + x rounded, and what the rounding lost.
 * u = 2^e m with m in [sqrt(1/2), sqrt(2)); the polynomial is minimax on m - 1. */
INLINE vf logarithm_1p(vf x) {
    const vf one = vf_set1(1.0f);
    const vf u = vf_add(one, x);
    const vf lost = vf_div(vf_sub(x, vf_sub(u, one)), u);
    const vi half_root = vi_set1(0x3f3504f3);
    const vi e = vi_sar23(vi_sub(vf_bits(u), half_root));
    const vf f = vf_sub(vi_as_float(vi_sub(vf_bits(u), vi_shl23(e))), one);
    vf p = vf_set1(-0.07634497433900833f);
    p = vf_fma(p, f, vf_set1(0.1276157796382904f));
    p = vf_fma(p, f, vf_set1(-0.13160182535648346f));
    p = vf_fma(p, f, vf_set1(0.14201757311820984f));
    p = vf_fma(p, f, vf_set1(-0.16623356938362122f));
    p = vf_fma(p, f, vf_set1(0.20001226663589478f));
    p = vf_fma(p, f, vf_set1(-0.2500081956386566f));
    p = vf_fma(p, f, vf_set1(0.3333333134651184f));
    const vf square = vf_mul(f, f);
    vf tail = vf_fma(vf_mul(square, f), p, vf_mul(square, vf_set1(-0.5f)));
    const vf exponent = vi_to_float(e);
    tail = vf_add(tail, vf_fma(exponent, vf_set1(-2.12194440e-4f), lost));
    return vf_fma(exponent, vf_set1(0.693359375f), vf_add(f, tail));
}

/* Two vectors of pixels at x and x + VF_LANES, to keep both arithmetic units busy; scorer is a
 * constant where this is inlined. */
INLINE void score_step(const struct score_constants *k, const float *x, int scorer,
                       vf score[2], vi class[2]) {
    const vf zero = vf_set1(0.0f), one = vf_set1(1.0f);
    vf best[2], odd[2], sum[2], weighted[2];
    vi number = vi_set1(0);
    for (int v = 0; v < 2; v++) {
        best[v] = vf_set1(-INFINITY);
        odd[v] = sum[v] = weighted[v] = zero;
        class[v] = vi_set1(0);
    }
    const float *at = x;
    for (int c = 0; c < k->num_known; c++) {
        EDGESEG_UNROLL
        for (int v = 0; v < 2; v++) {
            const vf f = vf_load(at + v * VF_LANES);
            class[v] = vi_select(vf_gt(f, best[v]), number, class[v]);
            best[v] = vf_max(f, best[v]);
            /* 0 while all is finite, else NaN; a sum of the logits could overflow. */
            odd[v] = vf_fma(f, zero, odd[v]);
        }
        number = vi_add(number, vi_set1(1));
        at += BLOCK;
    }
    for (int c = k->num_known; c < k->num_outputs; c++) {
        EDGESEG_UNROLL
        for (int v = 0; v < 2; v++) {
            odd[v] = vf_fma(vf_load(at + v * VF_LANES), zero, odd[v]);
        }
        at += BLOCK;
    }
    if (scorer != EDGESEG_SCORER_MAXLOGIT) {
        vf void_logit[2];
        if (scorer == EDGESEG_SCORER_VOID) {
            for (int v = 0; v < 2; v++) {
                void_logit[v] = vf_load(x + (size_t)k->void_index * BLOCK + v * VF_LANES);
                best[v] = vf_max(void_logit[v], best[v]);
            }
        }
        number = vi_set1(0);
        at = x;
        for (int c = 0; c < k->num_known; c++) {
            EDGESEG_UNROLL
            for (int v = 0; v < 2; v++) {
                const vf d = vf_sub(vf_load(at + v * VF_LANES), best[v]);
                const vf e = exponential(d, k);
                if (scorer == EDGESEG_SCORER_VOID) {
                    sum[v] = vf_add(sum[v], e);
                } else {
                    /* Without the largest, whose exponential is 1: so 1 - max p and log S keep
                     * their digits where the network is sure. */
                    sum[v] = vf_add_where(sum[v], e, vi_ne(number, class[v]));
                }
                if (scorer == EDGESEG_SCORER_ENTROPY) {
                    weighted[v] = vf_fma(e, vf_max(vf_set1(k->lowest), d), weighted[v]);
                }
            }
            number = vi_add(number, vi_set1(1));
            at += BLOCK;
        }
        for (int v = 0; v < 2; v++) {
            if (scorer == EDGESEG_SCORER_VOID) {
                const vf e = exponential(vf_sub(void_logit[v], best[v]), k);
                score[v] = vf_div(e, vf_add(sum[v], e));
            } else if (scorer == EDGESEG_SCORER_MSP) {
                score[v] = vf_div(sum[v], vf_add(sum[v], one));
            } else {
                score[v] = logarithm_1p(sum[v]);
            }
        }
    }
    for (int v = 0; v < 2; v++) {
        if (scorer == EDGESEG_SCORER_MAXLOGIT) {
            score[v] = vf_sub(zero, best[v]);
        } else if (scorer == EDGESEG_SCORER_ENTROPY) {
            /* -sum p log p = log S - sum(e d / T) / S */
            const vf mean = vf_div(vf_mul(weighted[v], vf_set1(k->inverse_temperature)),
                                   vf_add(sum[v], one));
            score[v] = vf_min(vf_set1(k->highest), vf_max(zero, vf_sub(score[v], mean)));
        } else if (scorer == EDGESEG_SCORER_ENERGY) {
            score[v] = vf_sub(zero, vf_fma(score[v], vf_set1(k->temperature), best[v]));
        }
        if (scorer == EDGESEG_SCORER_MAXLOGIT || scorer == EDGESEG_SCORER_ENERGY) {
            score[v] = vf_min(vf_set1(k->highest), vf_max(vf_set1(-k->highest), score[v]));
        }
        score[v] = vf_select(vf_nan(odd[v]), vf_set1(k->highest), score[v]);
    }
}

INLINE void score_block(const struct score_constants *k, const float *tile, int n,
                        uint8_t *classes, void *scores, int scorer, int type) {
    for (int j = 0; j < n; j += STEP) {
        vf score[2];
        vi class[2];
        score_step(k, tile + j, scorer, score, class);
        for (int v = 0; v < 2; v++) {
            const int at = j + v * VF_LANES;
            vi_store_u8(classes + at, class[v]);
            if (type == EDGESEG_FLOAT16) {
                vf_store_half((uint16_t *)scores + at, score[v]);
            } else {
                vf_store((float *)scores + at, score[v]);
            }
        }
    }
}

#define DEFINE_SCORE(NAME, SCORER, TYPE)                                                  \
    static void score_##NAME(const struct score_constants *k, const float *tile, int n,   \
                             uint8_t *classes, void *scores) {                            \
        score_block(k, tile, n, classes, scores, SCORER, TYPE);                           \
    }
DEFINE_SCORE(msp_16, EDGESEG_SCORER_MSP, EDGESEG_FLOAT16)
DEFINE_SCORE(msp_32, EDGESEG_SCORER_MSP, EDGESEG_FLOAT32)
DEFINE_SCORE(maxlogit_16, EDGESEG_SCORER_MAXLOGIT, EDGESEG_FLOAT16)
DEFINE_SCORE(maxlogit_32, EDGESEG_SCORER_MAXLOGIT, EDGESEG_FLOAT32)
DEFINE_SCORE(entropy_16, EDGESEG_SCORER_ENTROPY, EDGESEG_FLOAT16)
DEFINE_SCORE(entropy_32, EDGESEG_SCORER_ENTROPY, EDGESEG_FLOAT32)
DEFINE_SCORE(void_16, EDGESEG_SCORER_VOID, EDGESEG_FLOAT16)
DEFINE_SCORE(void_32, EDGESEG_SCORER_VOID, EDGESEG_FLOAT32)
DEFINE_SCORE(energy_16, EDGESEG_SCORER_ENERGY, EDGESEG_FLOAT16)
DEFINE_SCORE(energy_32, EDGESEG_SCORER_ENERGY, EDGESEG_FLOAT32)

typedef void (*scoring)(const struct score_constants *k, const float *tile, int n,
                        uint8_t *classes, void *scores);
static const scoring scorings[5][2] = {
    {score_msp_16, score_msp_32},         {score_maxlogit_16, score_maxlogit_32},
    {score_entropy_16, score_entropy_32}, {score_void_16, score_void_32},
    {score_energy_16, score_energy_32},
};

/* --- phases into the order of the frame ---------------------------------------------------- */

/* out[2 i] = a[i], out[2 i + 1] = b[i] */
static void interleave_8(const uint8_t *restrict a, const uint8_t *restrict b, int n,
                         uint8_t *restrict out) {
    for (int i = 0; i < n; i++) {
        out[2 * i] = a[i];
        out[2 * i + 1] = b[i];
    }
}
static void interleave_16(const uint16_t *restrict a, const uint16_t *restrict b, int n,
                          uint16_t *restrict out) {
    for (int i = 0; i < n; i++) {
        out[2 * i] = a[i];
        out[2 * i + 1] = b[i];
    }
}
static void interleave_32(const uint32_t *restrict a, const uint32_t *restrict b, int n,
                          uint32_t *restrict out) {
    for (int i = 0; i < n; i++) {
        out[2 * i] = a[i];
        out[2 * i + 1] = b[i];
    }
}

INLINE void interleave(const unsigned char *a, const unsigned char *b, int n, size_t size,
                       unsigned char *out) {
    if (size == 1) {
        interleave_8(a, b, n, out);
    } else if (size == 2) {
        interleave_16((const void *)a, (const void *)b, n, (void *)out);
    } else {
        interleave_32((const void *)a, (const void *)b, n, (void *)out);
    }
}

/* from holds factor phases, BLOCK elements apart, and as much room behind them. A power of two
 * is interleaved in rounds, phase p with phase p + half. */
INLINE void write_phases(unsigned char *from, int factor, int n, size_t size,
                         unsigned char *out) {
    if (factor == 1) {
        memcpy(out, from, (size_t)n * size);
        return;
    }
    if ((factor & (factor - 1)) != 0) {
        for (int j = 0; j < n; j++) {
            for (int p = 0; p < factor; p++) {
                memcpy(out, from + (size_t)(p * BLOCK + j) * size, size);
                out += size;
            }
        }
        return;
    }
    const size_t all = (size_t)factor * BLOCK * size;
    unsigned char *source = from, *target = from + all;
    size_t length = BLOCK * size;
    for (int phases = factor, m = n; phases > 1; phases /= 2, m *= 2) {
        const size_t half = (size_t)(phases / 2) * length;
        for (int p = 0; p < phases / 2; p++) {
            unsigned char *to = phases == 2 ? out : target + 2 * (size_t)p * length;
            interleave(source + (size_t)p * length, source + half + (size_t)p * length, m, size,
                       to);
        }
        unsigned char *swap = source;
        source = target;
        target = swap;
        length *= 2;
    }
}

/* --- one feature row ------------------------------------------------------------------------ */

static void head_unit(const edgeseg_head *head, const struct scratch *s, int unit) {
    const int kind = head->kind, factor = head->factor;
    const int outputs = head->constants.num_outputs;
    const scoring score = scorings[head->scorer][head->score_type];
    const size_t size = head->score_type == EDGESEG_FLOAT16 ? 2 : 4;
    const size_t row_length = (size_t)head->width * (size_t)factor;
    float *const next = s->packed + (size_t)head->channels_in * PACKED;
    int first = unit * factor, last = first + factor;
    if (kind == EDGESEG_HEAD_BILINEAR) {
        first = head->first_row[unit];
        last = head->first_row[unit + 1];
    }
    for (int origin = 0; origin < head->width; origin += BLOCK) {
        const int n = head->width - origin < BLOCK ? head->width - origin : BLOCK;
        const int rounded = (n + STEP - 1) / STEP * STEP;
        if (kind == EDGESEG_HEAD_BILINEAR) {
            const int below = unit + 1 < head->height ? unit + 1 : unit;
            pack_for_bilinear(head, unit, origin, n, s->packed);
            pack_for_bilinear(head, below, origin, n, next);
        } else {
            pack_for_deconvolution(head, unit, origin, n, s->packed);
            if (kind == EDGESEG_HEAD_DECONV3X3) {
                pack_for_deconvolution(head, unit + 1, origin, n, next);
            }
        }
        for (int row = first; row < last; row++) {
            if (kind == EDGESEG_HEAD_BILINEAR) {
                interpolate_rows(outputs, s->packed, next, head->row_weight[row], s->lerped);
            }
            for (int p = 0; p < factor; p++) {
                if (kind == EDGESEG_HEAD_BILINEAR) {
                    interpolate_columns(outputs, s->lerped, head->phase_offset[p],
                                        head->phase_weight[p], rounded, s->tile);
                } else if (kind == EDGESEG_HEAD_IDENTITY) {
                    copy_columns(outputs, s->packed, rounded, s->tile);
                } else {
                    deconvolve(head, &head->phases[2 * (row - first) + p], s->packed, rounded,
                               s->tile);
                }
                if (head->prototypes != NULL) {
                    distances(head, rounded, s->tile);
                }
                score(&head->constants, s->tile, rounded, s->classes + p * BLOCK,
                      s->scores + (size_t)(p * BLOCK) * size);
            }
            const size_t at = (size_t)row * row_length + (size_t)origin * (size_t)factor;
            write_phases(s->classes, factor, n, 1, head->class_map + at);
            write_phases(s->scores, factor, n, size, (unsigned char *)head->score + at * size);
        }
    }
}
