/* The two passes of the resize over the vectors of one ISA; included by isa_*.c.
 *
 * A weight w (22 bits after the point) is split into w = high * 2^15 + low, so that the 16-bit
 * multiply-add instructions give sum(high * x) and sum(low * x) exactly; all sums are exact
 * modulo 2^32 and the true one is below 2^31.
 */
#include "internal.h"

#include <string.h>

#define HALF_22 (1 << 21)

static void copy_swapped(const uint8_t *from, size_t pixels, uint8_t *to) {
    for (size_t i = 0; i < 3 * pixels; i += 3) {
        uint8_t a = from[i], b = from[i + 1], c = from[i + 2];
        to[i] = c;
        to[i + 1] = b;
        to[i + 2] = a;
    }
}

/* Bytes at .. length - 1 of a row; weights as pack_vertical laid them out. All is exact, so it
 * does not matter which bytes are done here and which by vectors. */
static void vertical_bytes(const uint8_t *start, ptrdiff_t stride, int count,
                           const int32_t *weights, size_t at, size_t length, uint8_t *out) {
    for (; at < length; at++) {
        uint32_t sum = HALF_22;
        const uint8_t *row = start + at;
        for (int k = 0; k < count; k++) {
            const int shift = 16 * (k % 2);
            const uint32_t low = (uint32_t)weights[k - k % 2] >> shift & 0xffffu;
            const uint32_t high = (uint32_t)weights[k - k % 2 + 1] >> shift & 0xffffu;
            sum += (low + (high << 15)) * *row;
            row += stride;
        }
        out[at] = (uint8_t)(sum >> 22);
    }
}

#if VB_LANES > 0

/* Output row middle[r] from source[r], for VB_LANES rows; four output pixels at a time. */
static void resize_horizontal(const struct edgeseg_resize *plan, const uint8_t *const *source,
                              uint8_t *const *middle) {
    /* Samples 0 and 1 (2 and 3) of each channel side by side as 16-bit numbers. */
    static const uint8_t pairs[2][2][16] = {
        {{0, 255, 3, 255, 1, 255, 4, 255, 2, 255, 5, 255, 255, 255, 255, 255},
         {6, 255, 9, 255, 7, 255, 10, 255, 8, 255, 11, 255, 255, 255, 255, 255}},
        {{2, 255, 5, 255, 1, 255, 4, 255, 0, 255, 3, 255, 255, 255, 255, 255},
         {8, 255, 11, 255, 7, 255, 10, 255, 6, 255, 9, 255, 255, 255, 255, 255}},
    };
    static const uint8_t dense[16] = {0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14,
                                      255, 255, 255, 255};
    const vb front = vb_mask(pairs[plan->swap_rb][0]), back = vb_mask(pairs[plan->swap_rb][1]);
    const vb closer = vb_mask(dense), half = vb_set32(HALF_22);
    const int chunks = plan->chunks;
    const int32_t *w = plan->horizontal_packed;
    for (int x = 0; x < plan->horizontal.out; x += 4) {
        vb pixel[4];
        EDGESEG_UNROLL
        for (int i = 0; i < 4; i++) {
            size_t at = (size_t)plan->horizontal_at[x + i];
            vb low = half, high = vb_zero();
            for (int k = 0; k < chunks; k++) {
                const vb v = vb_load_rows(source, at);
                const vb a = vb_shuffle(v, front), b = vb_shuffle(v, back);
                low = vb_add32(low, vb_add32(vb_madd(a, vb_set32(w[0])),
                                             vb_madd(b, vb_set32(w[1]))));
                high = vb_add32(high, vb_add32(vb_madd(a, vb_set32(w[2])),
                                               vb_madd(b, vb_set32(w[3]))));
                w += 4;
                at += 12;
            }
            pixel[i] = vb_shr22(vb_add32(low, vb_shl15(high)));
        }
        const vb four = vb_pack16(vb_pack32(pixel[0], pixel[1]), vb_pack32(pixel[2], pixel[3]));
        vb_store_rows(middle, (size_t)x * 3, vb_shuffle(four, closer));
    }
}

/* One row of length bytes from count rows, stride bytes apart. */
static void resize_vertical(const uint8_t *start, ptrdiff_t stride, int count,
                            const int32_t *weights, size_t length, uint8_t *out) {
    const size_t step = 16 * VB_LANES;
    const vb half = vb_set32(HALF_22), zero = vb_zero();
    size_t at = 0;
    for (; at + step <= length; at += step) {
        vb low[4], high[4];
        EDGESEG_UNROLL
        for (int i = 0; i < 4; i++) {
            low[i] = half;
            high[i] = zero;
        }
        const uint8_t *row = start + at;
        for (int k = 0; k < count; k += 2) {
            /* The second of the last pair has weight 0 where count is odd. */
            const vb a = vb_load(row), b = vb_load(k + 1 < count ? row + stride : row);
            const vb w0 = vb_set32(weights[k]), w1 = vb_set32(weights[k + 1]);
            const vb first = vb_unpack_lo(a, b), second = vb_unpack_hi(a, b);
            const vb x[4] = {vb_unpack_lo(first, zero), vb_unpack_hi(first, zero),
                             vb_unpack_lo(second, zero), vb_unpack_hi(second, zero)};
            EDGESEG_UNROLL
            for (int i = 0; i < 4; i++) {
                low[i] = vb_add32(low[i], vb_madd(x[i], w0));
                high[i] = vb_add32(high[i], vb_madd(x[i], w1));
            }
            row += 2 * stride;
        }
        EDGESEG_UNROLL
        for (int i = 0; i < 4; i++) {
            low[i] = vb_shr22(vb_add32(low[i], vb_shl15(high[i])));
        }
        vb_store(out + at, vb_pack16(vb_pack32(low[0], low[1]), vb_pack32(low[2], low[3])));
    }
    vertical_bytes(start, stride, count, weights, at, length, out);
}

#define ROWS_AT_ONCE VB_LANES

#else

#define ROWS_AT_ONCE 1

static void resize_horizontal(const struct edgeseg_resize *plan, const uint8_t *const *source,
                              uint8_t *const *middle) {
    const struct resize_axis *axis = &plan->horizontal;
    const int first = plan->swap_rb ? 2 : 0, step = plan->swap_rb ? -1 : 1;
    uint8_t *out = middle[0];
    for (int x = 0; x < axis->out; x++) {
        const int32_t *w = axis->weights + (size_t)x * (size_t)axis->taps_max;
        const uint8_t *from = source[0] + (size_t)axis->start[x] * 3;
        for (int channel = 0; channel < 3; channel++) {
            uint32_t sum = HALF_22;
            for (int k = 0; k < axis->count[x]; k++) {
                sum += (uint32_t)w[k] * from[3 * k + first + step * channel];
            }
            *out++ = (uint8_t)(sum >> 22);
        }
    }
}

static void resize_vertical(const uint8_t *start, ptrdiff_t stride, int count,
                            const int32_t *weights, size_t length, uint8_t *out) {
    vertical_bytes(start, stride, count, weights, 0, length, out);
}

#endif

/* Down, then across, for one group of rows after the other. */
static void resize_rows_down_first(const struct edgeseg_resize *plan,
                                   const struct resize_scratch *s, int first, int last) {
    const struct resize_axis *v = &plan->vertical;
    const size_t out_length = (size_t)plan->horizontal.out * 3;
    const size_t in_length = (size_t)plan->horizontal.in * 3;
    const uint8_t *source[ROWS_AT_ONCE];
    uint8_t *middle[ROWS_AT_ONCE];
    for (int r = 0; r < ROWS_AT_ONCE; r++) {
        source[r] = s->source + (size_t)r * plan->source_stride;
        middle[r] = s->middle + (size_t)r * plan->middle_stride;
    }
    for (int row = first; row < last; row += ROWS_AT_ONCE) {
        for (int r = 0; r < ROWS_AT_ONCE && row + r < last; r++) {
            const int y = row + r;
            resize_vertical(plan->frame + (ptrdiff_t)v->start[y] * plan->row_stride,
                            plan->row_stride, v->count[y],
                            plan->vertical_packed + (size_t)y * (size_t)plan->vertical_pairs * 2,
                            in_length, s->source + (size_t)r * plan->source_stride);
        }
        resize_horizontal(plan, source, middle);
        for (int r = 0; r < ROWS_AT_ONCE && row + r < last; r++) {
            memcpy(plan->out + (size_t)(row + r) * out_length, middle[r], out_length);
        }
    }
}

static void resize_rows(const struct edgeseg_resize *plan, const struct resize_scratch *s,
                        int first, int last) {
    if (plan->down_first) {
        resize_rows_down_first(plan, s, first, last);
        return;
    }
    const struct resize_axis *v = &plan->vertical;
    const size_t out_length = (size_t)plan->horizontal.out * 3;
    const size_t in_length = (size_t)plan->horizontal.in * 3;
    const int row_first = plan->has_vertical ? v->start[first] : first;
    const int row_last = plan->has_vertical ? v->start[last - 1] + v->count[last - 1] : last;
    for (int row = row_first; row < row_last; row += ROWS_AT_ONCE) {
        const uint8_t *source[ROWS_AT_ONCE];
        uint8_t *middle[ROWS_AT_ONCE];
        for (int r = 0; r < ROWS_AT_ONCE; r++) {
            const int y = row + r < row_last ? row + r : row_last - 1;
            const uint8_t *from = plan->frame + (ptrdiff_t)y * plan->row_stride;
            source[r] = from;
            middle[r] = s->middle + (size_t)(row - row_first + r) * plan->middle_stride;
            if (plan->has_horizontal) {
                uint8_t *padded = s->source + (size_t)r * plan->source_stride;
                memcpy(padded, from, in_length);
                source[r] = padded;
            } else if (plan->swap_rb) {
                copy_swapped(from, (size_t)plan->horizontal.in, middle[r]);
            } else {
                memcpy(middle[r], from, in_length);
            }
        }
        if (plan->has_horizontal) {
            resize_horizontal(plan, source, middle);
        }
    }
    for (int y = first; y < last; y++) {
        uint8_t *out = plan->out + (size_t)y * out_length;
        if (plan->has_vertical) {
            resize_vertical(s->middle + (size_t)(v->start[y] - row_first) * plan->middle_stride,
                            (ptrdiff_t)plan->middle_stride, v->count[y],
                            plan->vertical_packed + (size_t)y * (size_t)plan->vertical_pairs * 2,
                            out_length, out);
        } else {
            memcpy(out, s->middle + (size_t)(y - row_first) * plan->middle_stride, out_length);
        }
    }
}
