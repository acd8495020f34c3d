/* NV12 and YUYV to BGR, by ITU-R BT.601 and BT.709.
 *
 * With Kr and Kb of the matrix, Kg = 1 - Kr - Kb, and y, u, v scaled to 0 .. 255 and -127.5 ..
 * 127.5: R = y + 2 (1 - Kr) v, B = y + 2 (1 - Kb) u, G = y - 2 (1 - Kb) Kb / Kg u
 * - 2 (1 - Kr) Kr / Kg v. In fixed point, rounded to nearest: a few hundredths of a grey level from
 * the exact value before rounding. A pair of U and V holds for its whole block of pixels, as in
 * OpenCV.
 */
#include "yuv.h"

/* Coefficients then fit 16 bits, whose products every processor has vectors for. */
#define BITS 13
/* Pixels worked on at a time: their planes stay in the first-level cache. Even. */
#define BLOCK 512

struct coefficients {
    int16_t black, y, rv, gu, gv, bu; /* all but black times 2^BITS */
};

#define FIXED(x) ((int16_t)((x) * (1 << BITS) + 0.5))
/* The matrix by Kr and Kb; luma: 255 / 219 or 1; chroma: 255 / 224 or 1. */
#define MATRIX(kr, kb, start, luma, chroma)                                                        \
    {                                                                                              \
        start, FIXED(luma), FIXED(2.0 * (1.0 - (kr)) * (chroma)),                                  \
            FIXED(2.0 * (1.0 - (kb)) * (kb) / (1.0 - (kr) - (kb)) * (chroma)),                     \
            FIXED(2.0 * (1.0 - (kr)) * (kr) / (1.0 - (kr) - (kb)) * (chroma)),                     \
            FIXED(2.0 * (1.0 - (kb)) * (chroma))                                                   \
    }
#define LUMA (255.0 / 219.0)
#define CHROMA (255.0 / 224.0)

/* [matrix][range] */
static const struct coefficients table[2][2] = {
    {MATRIX(0.299, 0.114, 16, LUMA, CHROMA), MATRIX(0.299, 0.114, 0, 1.0, 1.0)},
    {MATRIX(0.2126, 0.0722, 16, LUMA, CHROMA), MATRIX(0.2126, 0.0722, 0, 1.0, 1.0)}};

static inline uint8_t clamp(int32_t fixed) {
    const int32_t value = fixed >> BITS; /* arithmetic: towards minus infinity */
    return (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value);
}

/* Pairs of pixels, of which each has a U and a V: pair i has its two Y at luma[2 * i * y_step] and
 * y_step further, its U at chroma[i * uv_step] and its V v_at further. Planes first, so that the
 * compiler finds vectors. */
static inline void pairs(const struct coefficients *c, const uint8_t *luma, int y_step,
                         const uint8_t *chroma, int uv_step, int v_at, int count, uint8_t *out) {
    uint8_t plane[3][BLOCK];
    int32_t part[3][BLOCK / 2]; /* what U and V add to B, G and R */
    const int32_t half = 1 << (BITS - 1);
    for (int i = 0; i < count; i++) {
        const int32_t u = chroma[i * uv_step] - 128, v = chroma[i * uv_step + v_at] - 128;
        part[0][i] = c->bu * u + half;
        part[1][i] = half - c->gu * u - c->gv * v;
        part[2][i] = c->rv * v + half;
    }
    for (int i = 0; i < count; i++) {
        const int32_t first = c->y * (luma[2 * i * y_step] - c->black);
        const int32_t second = c->y * (luma[(2 * i + 1) * y_step] - c->black);
        for (int k = 0; k < 3; k++) {
            plane[k][2 * i] = clamp(first + part[k][i]);
            plane[k][2 * i + 1] = clamp(second + part[k][i]);
        }
    }
    for (int x = 0; x < 2 * count; x++) {
        out[3 * x] = plane[0][x];
        out[3 * x + 1] = plane[1][x];
        out[3 * x + 2] = plane[2][x];
    }
}

void yuv_to_bgr(const edgeseg_frame *frame, int first, int last, uint8_t *out) {
    const struct coefficients *c = &table[frame->matrix][frame->range];
    for (int y = first; y < last; y++) {
        const uint8_t *luma = frame->plane[0] + y * frame->stride[0];
        uint8_t *row = out + (size_t)y * (size_t)frame->width * 3;
        for (int x = 0; x < frame->width; x += BLOCK) {
            const int left = frame->width - x, count = (left < BLOCK ? left : BLOCK) / 2;
            if (frame->pixels == EDGESEG_PIXELS_NV12) {
                const uint8_t *chroma = frame->plane[1] + y / 2 * frame->stride[1];
                pairs(c, luma + x, 1, chroma + x, 2, 1, count, row + 3 * x);
            } else {
                pairs(c, luma + 2 * x, 2, luma + 2 * x + 1, 4, 2, count, row + 3 * x);
            }
        }
    }
}
