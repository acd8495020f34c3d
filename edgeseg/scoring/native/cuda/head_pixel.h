/* The head, pixel by pixel: upsampling, class and score of one output pixel.
 *
 * One source for the GPU (head.cu) and for the host loop that proves its numbers (head_host.cpp).
 * The definition is edgeseg/scoring/scorers.py. EDGESEG_OUTPUTS is known when it is compiled, so
 * that a pixel's logits stay in registers.
 */
#ifndef EDGESEG_HEAD_PIXEL_H
#define EDGESEG_HEAD_PIXEL_H

#ifndef EDGESEG_OUTPUTS
#define EDGESEG_OUTPUTS 20
#endif

#if defined(__CUDACC__)
#define EDGESEG_DEVICE __host__ __device__ __forceinline__
#define EDGESEG_UNROLLED _Pragma("unroll")
#else
#include <math.h>
#include <string.h>
#define EDGESEG_DEVICE static inline
#define EDGESEG_UNROLLED
#endif

/* As edgeseg_kernels.h has them. */
enum { HEAD_DECONV2X2 = 0, HEAD_DECONV3X3 = 1, HEAD_BILINEAR = 2, HEAD_IDENTITY = 3 };
enum { SCORE_MSP = 0, SCORE_MAXLOGIT = 1, SCORE_ENTROPY = 2, SCORE_VOID = 3, SCORE_ENERGY = 4 };

struct cuda_head {
    const float *features;
    /* Strides of the features, in floats: both layouts are the same to a pixel. */
    int channel_stride, row_stride, column_stride;
    int channels, height, width; /* of the features */
    int kind, factor;
    int known, void_index; /* -1: no void output */
    int scorer;
    const float *weight; /* [k][k][channels][EDGESEG_OUTPUTS] */
    const float *bias;   /* [EDGESEG_OUTPUTS] */
    const float *prototypes; /* NULL without IsoMax+ */
    float negative_scale;    /* -|distance scale| */
    float temperature, inverse_temperature;
    float lowest, highest; /* range of the score; broken pixels get the highest */
    unsigned char *class_map;
    unsigned short *score_half; /* float16 bits; NULL: score_float instead */
    float *score_float;
};

struct pixel_result {
    unsigned char label;
    float score;
};

/* Bits of the nearest float16, ties to even. */
EDGESEG_DEVICE unsigned short half_bits(float value) {
#if defined(__CUDA_ARCH__)
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
#elif defined(__CUDACC__)
    return 0; /* the host side of a CUDA source is never run */
#else
    unsigned int word;
    memcpy(&word, &value, sizeof word);
    const unsigned int sign = word >> 16 & 0x8000u;
    const unsigned int magnitude = word & 0x7fffffffu;
    if (magnitude >= 0x7f800000u) {
        return (unsigned short)(sign | (magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u));
    }
    if (magnitude >= 0x477ff000u) { /* rounds beyond the largest */
        return (unsigned short)(sign | 0x7c00u);
    }
    if (magnitude < 0x38800000u) { /* subnormal: in steps of 2^-24, by the adder's own rounding */
        float tiny;
        memcpy(&tiny, &magnitude, sizeof tiny);
        tiny += 0.5f;
        unsigned int steps;
        memcpy(&steps, &tiny, sizeof steps);
        return (unsigned short)(sign | (steps - 0x3f000000u));
    }
    const unsigned int odd = magnitude >> 13 & 1u;
    return (unsigned short)(sign | ((magnitude - 0x38000000u + 0xfffu + odd) >> 13));
#endif
}

/* f += weights of one tap times the features of one feature pixel. */
EDGESEG_DEVICE void add_tap(const struct cuda_head &head, const float *weight, int row, int column,
                            float (&f)[EDGESEG_OUTPUTS]) {
    const float *at = head.features + row * head.row_stride + column * head.column_stride;
    for (int c = 0; c < head.channels; c++) {
        const float x = at[c * head.channel_stride];
        const float *w = weight + c * EDGESEG_OUTPUTS;
        EDGESEG_UNROLLED
        for (int o = 0; o < EDGESEG_OUTPUTS; o++) {
            f[o] += x * w[o];
        }
    }
}

/* Logits of output pixel (y, x). weight: [k][k][channels][outputs], where it is quickest to read;
 * first_row is the kernel row that it starts with. */
EDGESEG_DEVICE void pixel_logits(const struct cuda_head &head, const float *weight, int first_row,
                                 int y, int x, float (&f)[EDGESEG_OUTPUTS]) {
    const int tap = head.channels * EDGESEG_OUTPUTS;
    if (head.kind == HEAD_DECONV2X2 || head.kind == HEAD_DECONV3X3) {
        EDGESEG_UNROLLED
        for (int o = 0; o < EDGESEG_OUTPUTS; o++) {
            f[o] = head.bias[o];
        }
    }
    if (head.kind == HEAD_DECONV2X2) {
        add_tap(head, weight + ((y & 1) - first_row) * 2 * tap + (x & 1) * tap, y / 2, x / 2, f);
    } else if (head.kind == HEAD_DECONV3X3) {
        /* Output row r = 2 i - 1 + k: even rows see one feature row (k = 1), odd rows two (k = 2
         * of the one above, k = 0 of the one below); columns the same. */
        const int rows = 1 + (y & 1), columns = 1 + (x & 1);
        for (int a = 0; a < rows; a++) {
            const int row = y / 2 + a, k = (y & 1) ? 2 - 2 * a : 1;
            for (int b = 0; b < columns; b++) {
                const int column = x / 2 + b, m = (x & 1) ? 2 - 2 * b : 1;
                if (row < head.height && column < head.width) {
                    add_tap(head, weight + ((k - first_row) * 3 + m) * tap, row, column, f);
                }
            }
        }
    } else if (head.kind == HEAD_BILINEAR) {
        const float v = fmaxf(((float)y + 0.5f) / (float)head.factor - 0.5f, 0.0f);
        const float u = fmaxf(((float)x + 0.5f) / (float)head.factor - 0.5f, 0.0f);
        const int y0 = (int)v, x0 = (int)u;
        const int y1 = y0 + 1 < head.height ? y0 + 1 : y0, x1 = x0 + 1 < head.width ? x0 + 1 : x0;
        const float ty = v - (float)y0, tx = u - (float)x0;
        const float *upper = head.features + y0 * head.row_stride;
        const float *lower = head.features + y1 * head.row_stride;
        EDGESEG_UNROLLED
        for (int o = 0; o < EDGESEG_OUTPUTS; o++) {
            const int left = o * head.channel_stride + x0 * head.column_stride;
            const int right = o * head.channel_stride + x1 * head.column_stride;
            const float a = upper[left] * (1.0f - ty) + lower[left] * ty;
            const float b = upper[right] * (1.0f - ty) + lower[right] * ty;
            f[o] = a * (1.0f - tx) + b * tx;
        }
    } else {
        const float *at = head.features + y * head.row_stride + x * head.column_stride;
        EDGESEG_UNROLLED
        for (int o = 0; o < EDGESEG_OUTPUTS; o++) {
            f[o] = at[o * head.channel_stride];
        }
    }
    if (head.prototypes) {
        EDGESEG_UNROLLED
        for (int o = 0; o < EDGESEG_OUTPUTS; o++) {
            f[o] = head.negative_scale * fabsf(f[o] - head.prototypes[o]);
        }
    }
}

/* Class and score of a pixel's logits. */
EDGESEG_DEVICE struct pixel_result judge(const struct cuda_head &head,
                                         const float (&f)[EDGESEG_OUTPUTS]) {
    const float infinite = 3.402823466e38f;
    bool broken = false;
    float top = -infinite;
    int label = 0;
    bool found = false;
    EDGESEG_UNROLLED
    for (int o = 0; o < EDGESEG_OUTPUTS; o++) {
        broken |= !(fabsf(f[o]) <= infinite);
        /* A NaN compares false; so does -Inf after the first, as in the definition. */
        if (o < head.known && (f[o] > top || (!found && f[o] == top))) {
            top = f[o];
            label = o;
            found = true;
        }
    }
    struct pixel_result result = {(unsigned char)label, head.highest};
    if (broken) {
        return result;
    }
    float score = -top;
    if (head.scorer != SCORE_MAXLOGIT) {
        const float scale = head.inverse_temperature * 1.4426950408889634f;
        float rest = 0.0f, weighted = 0.0f; /* of all known classes but the largest, e = 1 */
        EDGESEG_UNROLLED
        for (int o = 0; o < EDGESEG_OUTPUTS; o++) {
            if (o < head.known && o != label) {
                const float e = exp2f((f[o] - top) * scale);
                rest += e;
                if (e > 0.0f) { /* 0 * -Inf would be NaN */
                    weighted += e * ((f[o] - top) * head.inverse_temperature);
                }
            }
        }
        const float sum = 1.0f + rest;
        if (head.scorer == SCORE_MSP) {
            score = rest / sum;
        } else if (head.scorer == SCORE_ENTROPY) {
            score = log1pf(rest) - weighted / sum;
        } else if (head.scorer == SCORE_ENERGY) {
            score = -(top + head.temperature * log1pf(rest));
        } else {
            float v = 0.0f;
            EDGESEG_UNROLLED
            for (int o = 0; o < EDGESEG_OUTPUTS; o++) {
                v = o == head.void_index ? f[o] : v;
            }
            /* e^(v - top) may be huge, never its reciprocal's sum: divide by the larger. */
            const float away = (v - top) * scale;
            score = away <= 0.0f ? exp2f(away) / (sum + exp2f(away))
                                 : 1.0f / (1.0f + sum * exp2f(-away));
        }
    }
    result.score = fminf(fmaxf(score, head.lowest), head.highest);
    return result;
}

#endif
