/* The head on the GPU, for engines that end at the features.
 *
 * A thread makes two neighbouring pixels of a row, so that all threads of a warp read the same
 * weights (one broadcast from shared memory) and write two classes and two scores at a time. A
 * block takes ROWS rows of one parity: a transposed convolution uses half of its kernel there.
 * Grid: x ceil(W / (2 * blockDim.x)), y 2 * ceil(H / (2 * ROWS)); shared memory as
 * edgeseg/scoring/cuda.py computes it.
 */
#include "head_pixel.h"

#define ROWS 4

EDGESEG_DEVICE struct pixel_result pixel(const struct cuda_head &head, const float *weight,
                                         int first_row, int y, int x) {
    float f[EDGESEG_OUTPUTS];
    pixel_logits(head, weight, first_row, y, x, f);
    return judge(head, f);
}

EDGESEG_DEVICE void store(const struct cuda_head &head, size_t at, struct pixel_result result) {
    head.class_map[at] = result.label;
    if (head.score_half) {
        head.score_half[at] = half_bits(result.score);
    } else {
        head.score_float[at] = result.score;
    }
}

/* Seven blocks an SM leave a thread 72 registers. Left to itself the compiler takes fewer on some
 * architectures, and spills there. */
extern "C" __global__ void __launch_bounds__(128, 7) edgeseg_head(const struct cuda_head head) {
    extern __shared__ float weight[];
    const int parity = (int)(blockIdx.y & 1);
    const int tap = head.channels * EDGESEG_OUTPUTS;
    /* Kernel rows of this parity: 2x2 its own; 3x3 the middle one, or first to last. */
    int first_row = 0, count = 0;
    if (head.kind == HEAD_DECONV2X2) {
        first_row = parity;
        count = 2 * tap;
    } else if (head.kind == HEAD_DECONV3X3) {
        first_row = parity ? 0 : 1;
        count = (parity ? 9 : 3) * tap;
    }
    const int kernel = head.kind == HEAD_DECONV2X2 ? 2 : 3;
    for (int i = (int)threadIdx.x; i < count; i += (int)blockDim.x) {
        weight[i] = head.weight[first_row * kernel * tap + i];
    }
    __syncthreads();
    const int width = head.width * head.factor, height = head.height * head.factor;
    const int x = 2 * (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (x >= width) {
        return;
    }
    for (int r = 0; r < ROWS; r++) {
        const int y = (int)(blockIdx.y >> 1) * 2 * ROWS + 2 * r + parity;
        if (y >= height) {
            return;
        }
        const size_t at = (size_t)y * (size_t)width + (size_t)x;
        struct pixel_result left = {0, 0.0f}, right = left;
        /* One copy of the arithmetic, and no array: unrolled it needs twice the registers, and an
         * array that is indexed by a variable lies in local memory. */
#pragma unroll 1
        for (int p = 0; p < 2 && x + p < width; p++) {
            left = right;
            right = pixel(head, weight, first_row, y, x + p);
        }
        if (x + 1 == width) {
            store(head, at, right);
        } else if (width % 2 == 0 && head.score_half) {
            *(uchar2 *)(head.class_map + at) = make_uchar2(left.label, right.label);
            *(ushort2 *)(head.score_half + at) =
                make_ushort2(half_bits(left.score), half_bits(right.score));
        } else {
            store(head, at, left);
            store(head, at + 1, right);
        }
    }
}
