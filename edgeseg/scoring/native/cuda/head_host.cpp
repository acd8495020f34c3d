/* The pixels of head.cu in plain loops, to prove the numbers of its source without a GPU. */
#include "head_pixel.h"

#include <stddef.h>

extern "C" void edgeseg_head_on_host(const struct cuda_head *head) {
    const int width = head->width * head->factor, height = head->height * head->factor;
    for (int y = 0; y < height; y++) {
        for (int x = 0; x < width; x++) {
            float f[EDGESEG_OUTPUTS];
            pixel_logits(*head, head->weight, 0, y, x, f);
            const struct pixel_result result = judge(*head, f);
            const size_t at = (size_t)y * (size_t)width + (size_t)x;
            head->class_map[at] = result.label;
            if (head->score_half) {
                head->score_half[at] = half_bits(result.score);
            } else {
                head->score_float[at] = result.score;
            }
        }
    }
}

extern "C" unsigned short edgeseg_half_bits(float value) { return half_bits(value); }
extern "C" size_t edgeseg_cuda_head_bytes(void) { return sizeof(struct cuda_head); }
