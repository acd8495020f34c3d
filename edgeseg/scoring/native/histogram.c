/* Histogram of scores by their upper 24 bits, for exact ranking metrics in bounded memory.
 *
 * Two histograms of 64 MB: a copy per thread would cost more than the counting. Instead every
 * thread looks at every pixel and counts those whose cache line it owns, so that no two threads
 * write the same one. float16 has only 65536 values, so there every thread counts its share of
 * the pixels in a small table of its own.
 */
#include "internal.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define BATCH 2048
#define KEY_MAX 0xffffffu
#define HALF_VALUES 65536

struct part {
    const void *scores;
    const uint8_t *labels;
    size_t count;
    uint32_t *counts[2]; /* by label */
    uint32_t *halves;    /* [3][HALF_VALUES] by label, the last for the rest; NULL for float32 */
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

static void *count_floats(void *argument) {
    const struct part *p = argument;
    uint32_t keys[BATCH], wanted[BATCH];
    for (size_t start = 0; start < p->count; start += BATCH) {
        const size_t n = p->count - start < BATCH ? p->count - start : BATCH;
        const float *scores = (const float *)p->scores + start;
        for (size_t i = 0; i < n; i++) {
            uint32_t bits;
            memcpy(&bits, &scores[i], sizeof bits);
            keys[i] = key_of(bits);
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

static void *count_halves(void *argument) {
    const struct part *p = argument;
    const uint16_t *scores = p->scores;
    for (size_t i = 0; i < p->count; i++) {
        const size_t label = p->labels[i] < 2 ? p->labels[i] : 2;
        p->halves[label * HALF_VALUES + scores[i]]++;
    }
    return NULL;
}

static void merge_halves(const struct part *p) {
    for (size_t label = 0; label < 2; label++) {
        for (size_t half = 0; half < HALF_VALUES; half++) {
            const uint32_t count = p->halves[label * HALF_VALUES + half];
            if (count != 0) {
                p->counts[label][key_of(bits_of_half((uint16_t)half))] += count;
            }
        }
    }
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
    const bool half = score_type == EDGESEG_FLOAT16;
    /* Below this a thread costs more than it saves. */
    const size_t used = count < 65536 ? 1 : (size_t)threads;
    const size_t table = 3 * HALF_VALUES;
    uint32_t *halves = half ? memory_open(used * table, sizeof *halves) : NULL;
    if (half && halves == NULL) {
        return EDGESEG_NO_MEMORY;
    }
    for (size_t i = 0; i < used; i++) {
        parts[i] = (struct part){.scores = scores,
                                 .labels = labels,
                                 .count = count,
                                 .counts = {negative, positive},
                                 .part = (uint32_t)i,
                                 .parts = (uint32_t)used};
        if (half) {
            const size_t first = count / used * i;
            parts[i].halves = halves + i * table;
            parts[i].scores = (const uint16_t *)scores + first;
            parts[i].labels = labels + first;
            parts[i].count = i + 1 < used ? count / used : count - first;
        }
    }
    void *(*const work)(void *) = half ? count_halves : count_floats;
    for (size_t i = 1; i < used; i++) {
        started[i] = pthread_create(&thread[i], NULL, work, &parts[i]) == 0;
    }
    for (size_t i = 0; i < used; i++) {
        if (!started[i]) {
            (void)work(&parts[i]);
        }
    }
    for (size_t i = 0; i < used; i++) {
        if (started[i]) {
            pthread_join(thread[i], NULL);
        }
        if (half) {
            merge_halves(&parts[i]);
        }
    }
    memory_close(halves);
    return EDGESEG_OK;
}
