/* Histogram of scores by their upper 24 bits, for exact ranking metrics in bounded memory.
 *
 * Two histograms of 64 MB: a copy per thread would cost more than the counting. Instead every
 * thread looks at every pixel and counts those whose cache line it owns, so that no two threads
 * write the same one.
 */
#include "internal.h"

#include <pthread.h>
#include <string.h>

#define BATCH 2048
#define KEY_MAX 0xffffffu

struct part {
    const void *scores;
    const uint8_t *labels;
    size_t count;
    uint32_t *counts[2]; /* by label */
    int32_t type;
    uint32_t part, parts;
};

static inline uint32_t bits_of_half(uint16_t half) {
    const uint32_t sign = (uint32_t)(half & 0x8000u) << 16;
    const uint32_t rest = half & 0x7fffu;
    if (rest >= 0x7c00u) {
        return sign | 0x7f800000u | (rest & 0x3ffu) << 13;
    }
    /* Subnormal ones count in steps of 2^-24. */
    const float small = (float)rest * 0x1p-24f;
    uint32_t bits;
    memcpy(&bits, &small, sizeof bits);
    bits = rest < 0x400u ? bits : (rest << 13) + (112u << 23);
    return sign | bits;
}

static inline uint32_t key_of(uint32_t bits) {
    const uint32_t magnitude = bits & 0x7fffffffu;
    /* All ones for negative numbers; -0 counts as 0. */
    const uint32_t negative = 0u - (uint32_t)((bits >> 31) & (magnitude != 0u));
    const uint32_t ordered = magnitude ^ (0x80000000u ^ negative);
    return magnitude > 0x7f800000u ? KEY_MAX : ordered >> 8;
}

static void *count_part(void *argument) {
    const struct part *p = argument;
    uint32_t keys[BATCH], wanted[BATCH];
    for (size_t start = 0; start < p->count; start += BATCH) {
        const size_t n = p->count - start < BATCH ? p->count - start : BATCH;
        if (p->type == EDGESEG_FLOAT32) {
            const float *scores = (const float *)p->scores + start;
            for (size_t i = 0; i < n; i++) {
                uint32_t bits;
                memcpy(&bits, &scores[i], sizeof bits);
                keys[i] = key_of(bits);
            }
        } else {
            const uint16_t *scores = (const uint16_t *)p->scores + start;
            for (size_t i = 0; i < n; i++) {
                keys[i] = key_of(bits_of_half(scores[i]));
            }
        }
        /* Without a branch: which pixels are a thread's own is as good as random. */
        const uint8_t *labels = p->labels + start;
        size_t m = 0;
        for (size_t i = 0; i < n; i++) {
            /* Sixteen counters share a cache line; multiplying spreads clustered scores. */
            const uint32_t hash = (keys[i] >> 4) * 0x9e3779b1u;
            const uint32_t owner = (uint32_t)(((uint64_t)hash * p->parts) >> 32);
            wanted[m] = keys[i] | (uint32_t)labels[i] << 24;
            m += (owner == p->part) & (labels[i] < 2);
        }
        for (size_t i = 0; i < m; i++) {
            p->counts[wanted[i] >> 24][wanted[i] & KEY_MAX]++;
        }
    }
    return NULL;
}

int edgeseg_score_histogram(const void *scores, int32_t score_type, const uint8_t *labels,
                            size_t count, uint32_t *positive, uint32_t *negative,
                            int32_t threads) {
    if (positive == NULL || negative == NULL || threads < 1 || threads > EDGESEG_MAX_THREADS ||
        (score_type != EDGESEG_FLOAT16 && score_type != EDGESEG_FLOAT32) ||
        (count > 0 && (scores == NULL || labels == NULL))) {
        return EDGESEG_BAD_ARGUMENT;
    }
    struct part parts[EDGESEG_MAX_THREADS];
    pthread_t thread[EDGESEG_MAX_THREADS];
    bool started[EDGESEG_MAX_THREADS] = {false};
    /* Below this a thread costs more than it saves. */
    const int used = count < 65536 ? 1 : threads;
    for (int i = 0; i < used; i++) {
        parts[i] = (struct part){.scores = scores,
                                 .labels = labels,
                                 .count = count,
                                 .counts = {negative, positive},
                                 .type = score_type,
                                 .part = (uint32_t)i,
                                 .parts = (uint32_t)used};
        started[i] = i > 0 && pthread_create(&thread[i], NULL, count_part, &parts[i]) == 0;
    }
    for (int i = 0; i < used; i++) {
        if (started[i]) {
            continue;
        }
        (void)count_part(&parts[i]);
    }
    for (int i = 1; i < used; i++) {
        if (started[i]) {
            pthread_join(thread[i], NULL);
        }
    }
    return EDGESEG_OK;
}
