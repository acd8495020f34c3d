/* Runs every kernel on every instruction set of the machine over awkward sizes; meant to be
 * built with a sanitizer, or for another machine and run under an emulator. It compares every
 * instruction set with the portable one and every number of threads with one, bit for bit.
 */
#include "edgeseg_kernels.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static uint32_t state = 12345;

static float uniform(void) {
    state = state * 1664525u + 1013904223u;
    return (float)(state >> 8) / 16777216.0f;
}

static void *checked(size_t size) {
    void *memory = malloc(size); /* exact, so that a sanitizer sees every byte beyond */
    if (memory == NULL) {
        abort();
    }
    return memory;
}

#define REQUIRE(condition)                                                     \
    do {                                                                       \
        if (!(condition)) {                                                    \
            fprintf(stderr, "line %d: %s does not hold\n", __LINE__, #condition); \
            exit(1);                                                           \
        }                                                                      \
    } while (0)

static const int isas[] = {EDGESEG_ISA_SCALAR, EDGESEG_ISA_NEON, EDGESEG_ISA_AVX2,
                           EDGESEG_ISA_AVX512};
static int isas_seen[5];

static void head_case(int kind, int layout, int channels, int outputs, int known, int void_index,
                      int factor, int height, int width, int broken) {
    const int kernel = kind == EDGESEG_HEAD_DECONV2X2 ? 2 : 3;
    const int has_weights = kind <= EDGESEG_HEAD_DECONV3X3;
    channels = has_weights ? channels : outputs;
    const size_t count = (size_t)channels * (size_t)height * (size_t)width;
    const size_t weights = (size_t)channels * (size_t)outputs * (size_t)(kernel * kernel);
    const size_t pixels = (size_t)height * (size_t)width * (size_t)factor * (size_t)factor;
    float *features = checked(count * sizeof(float));
    float *weight = checked(weights * sizeof(float));
    float *bias = checked((size_t)outputs * sizeof(float));
    uint8_t *classes[3];
    float *score[3];
    uint16_t *half = checked(pixels * 2);
    for (int i = 0; i < 3; i++) {
        classes[i] = checked(pixels);
        score[i] = checked(pixels * sizeof(float));
    }
    for (size_t i = 0; i < count; i++) {
        features[i] = 8.0f * uniform() - 4.0f;
    }
    if (broken) {
        features[0] = NAN;
        features[count - 1] = INFINITY;
        features[count / 2] = -INFINITY;
    }
    for (size_t i = 0; i < weights; i++) {
        weight[i] = uniform() - 0.5f;
    }
    for (int i = 0; i < outputs; i++) {
        bias[i] = uniform();
    }
    edgeseg_head_config config = {.kind = kind,
                                  .layout = layout,
                                  .channels_in = channels,
                                  .num_outputs = outputs,
                                  .num_known = known,
                                  .void_index = void_index,
                                  .factor = factor,
                                  .feature_height = height,
                                  .feature_width = width,
                                  .score_type = EDGESEG_FLOAT32,
                                  .temperature = 1.5,
                                  .weight = has_weights ? weight : NULL,
                                  .bias = has_weights ? bias : NULL};
    for (int scorer = EDGESEG_SCORER_MSP; scorer <= EDGESEG_SCORER_ENERGY; scorer++) {
        if (scorer == EDGESEG_SCORER_VOID && void_index < 0) {
            continue;
        }
        config.scorer = scorer;
        for (size_t i = 0; i < sizeof isas / sizeof isas[0]; i++) {
            config.isa = isas[i];
            const int out = isas[i] == EDGESEG_ISA_SCALAR ? 0 : 1;
            edgeseg_head *head;
            config.threads = 1;
            config.score_type = EDGESEG_FLOAT32;
            if (edgeseg_head_open(&config, &head) != EDGESEG_OK) {
                continue;
            }
            isas_seen[isas[i]] = 1;
            REQUIRE(edgeseg_head_run(head, features, classes[out], score[out]) == EDGESEG_OK);
            edgeseg_head_close(head);
            config.threads = 3;
            REQUIRE(edgeseg_head_open(&config, &head) == EDGESEG_OK);
            for (int run = 0; run < 2; run++) {
                REQUIRE(edgeseg_head_run(head, features, classes[2], score[2]) == EDGESEG_OK);
                REQUIRE(memcmp(classes[out], classes[2], pixels) == 0);
                REQUIRE(memcmp(score[out], score[2], pixels * sizeof(float)) == 0);
            }
            edgeseg_head_close(head);
            config.score_type = EDGESEG_FLOAT16;
            REQUIRE(edgeseg_head_open(&config, &head) == EDGESEG_OK);
            REQUIRE(edgeseg_head_run(head, features, classes[2], half) == EDGESEG_OK);
            REQUIRE(memcmp(classes[out], classes[2], pixels) == 0);
            edgeseg_head_close(head);
            size_t other = 0;
            for (size_t p = 0; out == 1 && p < pixels; p++) {
                const float limit = 2e-5f * fmaxf(1.0f, fabsf(score[0][p]));
                REQUIRE(fabsf(score[0][p] - score[1][p]) <= limit);
                other += classes[0][p] != classes[1][p];
            }
            REQUIRE(other <= pixels / 1000);
        }
    }
    for (int i = 0; i < 3; i++) {
        free(classes[i]);
        free(score[i]);
    }
    free(half);
    free(features);
    free(weight);
    free(bias);
}

static void resize_case(int in_height, int in_width, int height, int width) {
    const size_t in = (size_t)in_height * (size_t)in_width * 3;
    const size_t size = (size_t)height * (size_t)width * 3;
    uint8_t *frame = checked(in), *expected = checked(size), *out = checked(size);
    for (size_t i = 0; i < in; i++) {
        frame[i] = (uint8_t)(uniform() * 256.0f);
    }
    for (int swap = 0; swap < 2; swap++) {
        for (size_t i = 0; i < sizeof isas / sizeof isas[0]; i++) {
            for (int flip = 0; flip < 2; flip++) {
                edgeseg_resize *plan;
                if (edgeseg_resize_open(in_height, in_width, height, width, swap, 1 + flip,
                                        isas[i], &plan) != EDGESEG_OK) {
                    continue;
                }
                const ptrdiff_t stride = (ptrdiff_t)in_width * 3;
                REQUIRE(edgeseg_resize_run(plan, frame, stride, out) == EDGESEG_OK);
                /* Upside down, to walk rows backwards; only memory accesses are of interest. */
                REQUIRE(edgeseg_resize_run(plan, frame + (in_height - 1) * stride, -stride,
                                           out) == EDGESEG_OK);
                REQUIRE(edgeseg_resize_run(plan, frame, stride, out) == EDGESEG_OK);
                edgeseg_resize_close(plan);
                if (isas[i] == EDGESEG_ISA_SCALAR && flip == 0) {
                    memcpy(expected, out, size);
                }
                REQUIRE(memcmp(expected, out, size) == 0);
            }
        }
    }
    free(frame);
    free(expected);
    free(out);
}

static void histogram_case(void) {
    enum { COUNT = 100000, BINS = 1 << 24 };
    float *scores = checked(COUNT * sizeof(float));
    uint16_t *halves = checked(COUNT * 2);
    uint8_t *labels = checked(COUNT);
    uint32_t *counts[4];
    for (int i = 0; i < 4; i++) {
        counts[i] = calloc(BINS, sizeof(uint32_t));
        REQUIRE(counts[i] != NULL);
    }
    for (size_t i = 0; i < COUNT; i++) {
        scores[i] = uniform() - 0.5f;
        halves[i] = (uint16_t)(uniform() * 65536.0f);
        labels[i] = (uint8_t)(uniform() * 4.0f);
    }
    for (int type = EDGESEG_FLOAT16; type <= EDGESEG_FLOAT32; type++) {
        const void *data = type == EDGESEG_FLOAT16 ? (const void *)halves : (const void *)scores;
        REQUIRE(edgeseg_score_histogram(data, type, labels, COUNT, counts[0], counts[1], 1) == 0);
        REQUIRE(edgeseg_score_histogram(data, type, labels, COUNT, counts[2], counts[3], 3) == 0);
        REQUIRE(memcmp(counts[0], counts[2], BINS * sizeof(uint32_t)) == 0);
        REQUIRE(memcmp(counts[1], counts[3], BINS * sizeof(uint32_t)) == 0);
    }
    for (int i = 0; i < 4; i++) {
        free(counts[i]);
    }
    free(scores);
    free(halves);
    free(labels);
}

struct shared {
    edgeseg_head *head;
    const float *features;
    const uint8_t *expected;
    size_t pixels;
};

static void *run_shared(void *argument) {
    const struct shared *s = argument;
    uint8_t *classes = checked(s->pixels);
    float *score = checked(s->pixels * sizeof(float));
    for (int i = 0; i < 20; i++) {
        REQUIRE(edgeseg_head_run(s->head, s->features, classes, score) == EDGESEG_OK);
        REQUIRE(memcmp(classes, s->expected, s->pixels) == 0);
    }
    free(classes);
    free(score);
    return NULL;
}

/* One handle called from several threads, and after a fork. */
static void threads_case(void) {
    enum { HEIGHT = 40, WIDTH = 70, CLASSES = 5, PIXELS = HEIGHT * WIDTH };
    float *features = checked(CLASSES * PIXELS * sizeof(float));
    uint8_t *expected = checked(PIXELS);
    float *score = checked(PIXELS * sizeof(float));
    for (size_t i = 0; i < CLASSES * PIXELS; i++) {
        features[i] = uniform();
    }
    edgeseg_head_config config = {.kind = EDGESEG_HEAD_IDENTITY,
                                  .channels_in = CLASSES,
                                  .num_outputs = CLASSES,
                                  .num_known = CLASSES,
                                  .void_index = -1,
                                  .factor = 1,
                                  .feature_height = HEIGHT,
                                  .feature_width = WIDTH,
                                  .score_type = EDGESEG_FLOAT32,
                                  .threads = 4,
                                  .temperature = 1.0};
    edgeseg_head *head;
    REQUIRE(edgeseg_head_open(&config, &head) == EDGESEG_OK);
    REQUIRE(edgeseg_head_run(head, features, expected, score) == EDGESEG_OK);
    struct shared shared = {head, features, expected, PIXELS};
    pthread_t callers[3];
    for (int i = 0; i < 3; i++) {
        REQUIRE(pthread_create(&callers[i], NULL, run_shared, &shared) == 0);
    }
    for (int i = 0; i < 3; i++) {
        pthread_join(callers[i], NULL);
    }
#if !defined(__SANITIZE_THREAD__)
    pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        run_shared(&shared);
        edgeseg_head_close(head);
        _exit(0);
    }
    int status = 1;
    REQUIRE(waitpid(child, &status, 0) == child && WIFEXITED(status) && status == 0);
#endif
    edgeseg_head_close(head);
    free(features);
    free(expected);
    free(score);
}

static void refusals(void) {
    edgeseg_head *head;
    edgeseg_resize *plan;
    edgeseg_head_config config = {0};
    REQUIRE(edgeseg_head_open(NULL, &head) == EDGESEG_BAD_ARGUMENT);
    REQUIRE(edgeseg_head_open(&config, &head) == EDGESEG_BAD_ARGUMENT);
    config = (edgeseg_head_config){.kind = EDGESEG_HEAD_IDENTITY, .channels_in = 2,
                                   .num_outputs = 2, .num_known = 2, .void_index = -1,
                                   .factor = 1, .feature_height = 1, .feature_width = 1,
                                   .scorer = EDGESEG_SCORER_VOID, .threads = 1,
                                   .temperature = 1.0};
    REQUIRE(edgeseg_head_open(&config, &head) == EDGESEG_BAD_ARGUMENT);
    config.scorer = EDGESEG_SCORER_MSP;
    config.temperature = NAN;
    REQUIRE(edgeseg_head_open(&config, &head) == EDGESEG_BAD_ARGUMENT);
    REQUIRE(edgeseg_resize_open(0, 1, 1, 1, 0, 1, 0, &plan) == EDGESEG_BAD_ARGUMENT);
    REQUIRE(edgeseg_head_run(NULL, NULL, NULL, NULL) == EDGESEG_BAD_ARGUMENT);
    edgeseg_head_close(NULL);
    edgeseg_resize_close(NULL);
}

/* "short" as argument: a third of the sizes, for an emulator. */
int main(int argc, char **argv) {
    const int short_run = argc > 1 && strcmp(argv[1], "short") == 0;
    static const int sizes[][2] = {{1, 1}, {2, 3}, {3, 17}, {2, 64}, {1, 65}, {2, 131}};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        const int h = sizes[i][0], w = sizes[i][1];
        if (short_run && i % 3 != 2) {
            continue;
        }
        for (int layout = 0; layout < 2; layout++) {
            const int broken = (int)(i % 2);
            head_case(EDGESEG_HEAD_DECONV2X2, layout, 16, 20, 19, 19, 2, h, w, broken);
            head_case(EDGESEG_HEAD_DECONV3X3, layout, 19, 7, 5, 6, 2, h, w, broken);
            head_case(EDGESEG_HEAD_BILINEAR, layout, 0, 20, 19, 19, 8, h, w, broken);
            head_case(EDGESEG_HEAD_BILINEAR, layout, 0, 3, 3, -1, 5, h, w, broken);
            head_case(EDGESEG_HEAD_IDENTITY, layout, 0, 64, 60, 63, 1, h, w, broken);
        }
    }
    head_case(EDGESEG_HEAD_BILINEAR, 0, 0, 2, 2, -1, 32, 2, 3, 0);
    head_case(EDGESEG_HEAD_BILINEAR, 1, 0, 1, 1, -1, 1, 2, 70, 0);
    static const int frames[][4] = {{1, 1, 1, 1},    {1, 1, 9, 7},   {37, 53, 16, 21},
                                    {90, 20, 11, 33}, {16, 21, 40, 50}, {30, 40, 30, 17},
                                    {30, 40, 13, 40}, {300, 200, 3, 2}, {12, 34, 12, 34}};
    for (size_t i = 0; i < sizeof frames / sizeof frames[0]; i++) {
        resize_case(frames[i][0], frames[i][1], frames[i][2], frames[i][3]);
    }
    histogram_case();
    threads_case();
    refusals();
    printf("ok");
    static const char *const names[] = {"", "scalar", "neon", "avx2", "avx512"};
    for (int isa = 1; isa < 5; isa++) {
        if (isas_seen[isa]) {
            printf(" %s", names[isa]);
        }
    }
    printf("\n");
    return 0;
}
