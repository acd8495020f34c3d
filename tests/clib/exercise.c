/* Uses everything of edgeseg.h; meant to be run under a sanitizer, valgrind or a counter of
 * allocations.
 *
 *     exercise open FOLDER...                  prints a status per folder
 *     exercise run BUNDLE ENGINE LIBRARY       a bundle of 64x128; LIBRARY may be "-"
 *     exercise repeat BUNDLE ENGINE LIBRARY N  N frames after warm-up, between two marks
 */
#include "edgeseg.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define HEIGHT 64
#define WIDTH 128
#define PIXELS (HEIGHT * WIDTH)
#define THREADS 4

#define REQUIRE(condition)                                                                         \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "line %d: %s does not hold (%s)\n", __LINE__, #condition,              \
                    edgeseg_last_error());                                                         \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

/* Defined by the counter of allocations where it is preloaded. */
__attribute__((weak)) void count_allocations(int on);

static uint8_t *noise(size_t size, unsigned seed) {
    uint8_t *memory = malloc(size); /* exact, so that a sanitizer sees every byte beyond */
    REQUIRE(memory != NULL);
    for (size_t i = 0; i < size; i++) {
        seed = seed * 1664525u + 1013904223u;
        memory[i] = (uint8_t)(seed >> 24);
    }
    return memory;
}

static edgeseg_session *open_session(const edgeseg_bundle *bundle, char **argv, int threads,
                                     int score_type) {
    edgeseg_session_options options = EDGESEG_SESSION_OPTIONS_INIT;
    edgeseg_session *session = NULL;
    options.engine = argv[0];
    options.engine_library = strcmp(argv[1], "-") == 0 ? NULL : argv[1];
    options.threads = threads;
    options.score_type = score_type;
    REQUIRE(edgeseg_session_open(bundle, &options, &session) == EDGESEG_STATUS_OK);
    return session;
}

static edgeseg_frame view(const uint8_t *memory, int pixels, int height, int width, int gap) {
    edgeseg_frame frame = EDGESEG_FRAME_INIT;
    const int bytes[] = {3, 3, 1, 2};
    frame.pixels = pixels;
    frame.height = height;
    frame.width = width;
    frame.stride[0] = (ptrdiff_t)width * bytes[pixels] + gap;
    frame.stride[1] = frame.stride[0];
    frame.plane[0] = memory;
    frame.plane[1] = memory + height * frame.stride[0];
    return frame;
}

static size_t memory_of(int pixels, int height, int width, int gap) {
    const size_t bytes[] = {3, 3, 1, 2};
    const size_t stride = (size_t)width * bytes[pixels] + (size_t)gap;
    const size_t rows = (size_t)height + (pixels == EDGESEG_PIXELS_NV12 ? (size_t)height / 2 : 0);
    return rows * stride - (size_t)gap; /* the last row ends where its pixels do */
}

static void every_format(edgeseg_session *session) {
    const int sizes[][2] = {{HEIGHT, WIDTH}, {2, 2}, {90, 160}, {34, 302}, {130, 50}};
    for (int pixels = EDGESEG_PIXELS_BGR; pixels <= EDGESEG_PIXELS_YUYV; pixels++) {
        for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
            for (int variant = 0; variant < 4; variant++) {
                const int gap = variant % 2 == 0 ? 0 : 6;
                const int height = sizes[i][0], width = sizes[i][1];
                uint8_t *memory = noise(memory_of(pixels, height, width, gap), 7);
                edgeseg_frame frame = view(memory, pixels, height, width, gap);
                frame.matrix = variant / 2;
                frame.range = variant % 2;
                edgeseg_result result = EDGESEG_RESULT_INIT;
                REQUIRE(edgeseg_session_run(session, &frame, &result) == EDGESEG_STATUS_OK);
                REQUIRE(result.class_map != NULL && result.score != NULL);
                REQUIRE(result.summary.pixels == PIXELS && result.age_ns > 0);
                for (int p = 0; p < PIXELS; p++) {
                    REQUIRE(result.class_map[p] < 19);
                }
                free(memory);
            }
        }
    }
}

static void upside_down(edgeseg_session *session) {
    uint8_t *memory = noise(PIXELS * 3, 3), *flipped = malloc(PIXELS * 3);
    uint8_t *classes = malloc(PIXELS);
    REQUIRE(flipped != NULL && classes != NULL);
    for (int y = 0; y < HEIGHT; y++) {
        memcpy(flipped + y * WIDTH * 3, memory + (HEIGHT - 1 - y) * WIDTH * 3, WIDTH * 3);
    }
    edgeseg_frame frame = view(memory, EDGESEG_PIXELS_BGR, HEIGHT, WIDTH, 0);
    edgeseg_result result = EDGESEG_RESULT_INIT;
    result.class_map_out = classes;
    REQUIRE(edgeseg_session_run(session, &frame, &result) == EDGESEG_STATUS_OK);
    frame = view(flipped + (HEIGHT - 1) * WIDTH * 3, EDGESEG_PIXELS_BGR, HEIGHT, WIDTH, 0);
    frame.stride[0] = -frame.stride[0];
    result.class_map_out = NULL;
    REQUIRE(edgeseg_session_run(session, &frame, &result) == EDGESEG_STATUS_OK);
    REQUIRE(memcmp(result.class_map, classes, PIXELS) == 0);
    free(memory);
    free(flipped);
    free(classes);
}

static void settings(edgeseg_session *session, const edgeseg_bundle *bundle) {
    edgeseg_contract contract = EDGESEG_CONTRACT_INIT;
    edgeseg_session_info info = EDGESEG_SESSION_INFO_INIT;
    REQUIRE(edgeseg_bundle_contract(bundle, &contract) == EDGESEG_STATUS_OK);
    REQUIRE(contract.height == HEIGHT && contract.width == WIDTH && contract.num_classes == 19);
    REQUIRE(strcmp(contract.default_scorer, "void") == 0);
    REQUIRE(strlen(contract.body_sha256) == 64);
    for (int i = 0; i < contract.num_scorers; i++) {
        edgeseg_scorer_defaults defaults = EDGESEG_SCORER_DEFAULTS_INIT;
        REQUIRE(edgeseg_bundle_scorer(bundle, i, &defaults) == EDGESEG_STATUS_OK);
        REQUIRE(edgeseg_session_set_scorer(session, defaults.name, 0) == EDGESEG_STATUS_OK);
        REQUIRE(edgeseg_session_threshold(session) >= defaults.threshold &&
                edgeseg_session_threshold(session) <= defaults.threshold);
        REQUIRE(edgeseg_session_set_scorer(session, NULL, 3.0) == EDGESEG_STATUS_OK);
        REQUIRE(isnan(edgeseg_session_threshold(session)));
    }
    for (int i = 0; i < contract.num_classes; i++) {
        uint8_t rgb[3];
        REQUIRE(strlen(edgeseg_bundle_class(bundle, i)) > 0);
        REQUIRE(edgeseg_bundle_colour(bundle, i, rgb) == EDGESEG_STATUS_OK);
    }
    REQUIRE(edgeseg_bundle_class(bundle, contract.num_classes) == NULL);
    REQUIRE(edgeseg_session_set_scorer(session, "void", 0) == EDGESEG_STATUS_OK);
    REQUIRE(edgeseg_session_describe(session, &info) == EDGESEG_STATUS_OK);
    REQUIRE(strcmp(info.scorer, "void") == 0 && info.threads >= 1);
    uint8_t *mask = calloc(1, PIXELS);
    REQUIRE(mask != NULL);
    REQUIRE(edgeseg_session_set_region(session, mask, WIDTH) == EDGESEG_STATUS_ARGUMENT);
    mask[5] = 1;
    REQUIRE(edgeseg_session_set_region(session, mask, WIDTH) == EDGESEG_STATUS_OK);
    REQUIRE(edgeseg_session_set_region(session, NULL, 0) == EDGESEG_STATUS_OK);
    free(mask);
}

static void wrong_calls(edgeseg_session *session, const edgeseg_bundle *bundle, char **argv) {
    uint8_t *memory = noise(PIXELS * 3, 1);
    const edgeseg_frame good = view(memory, EDGESEG_PIXELS_BGR, HEIGHT, WIDTH, 0);
    edgeseg_frame frame = good;
    edgeseg_result result = EDGESEG_RESULT_INIT;
    edgeseg_session *other = NULL;
    edgeseg_session_options options = EDGESEG_SESSION_OPTIONS_INIT;
    struct {
        edgeseg_session_options known;
        int64_t later;
    } future = {EDGESEG_SESSION_OPTIONS_INIT, 0};
#define REFUSED(change)                                                                            \
    do {                                                                                           \
        frame = good;                                                                              \
        change;                                                                                    \
        REQUIRE(edgeseg_session_run(session, &frame, &result) == EDGESEG_STATUS_ARGUMENT);         \
        REQUIRE(result.class_map == NULL && result.score == NULL);                                 \
        REQUIRE(edgeseg_last_error()[0] != '\0');                                                  \
    } while (0)
    REFUSED(frame.size = 0);
    REFUSED(frame.size = 8);
    REFUSED(frame.plane[0] = NULL);
    REFUSED(frame.stride[0] = WIDTH * 3 - 1);
    REFUSED(frame.stride[0] = 0);
    REFUSED(frame.height = 0);
    REFUSED(frame.width = -1);
    REFUSED(frame.width = 1 << 20);
    REFUSED(frame.pixels = 17);
    REFUSED((frame.pixels = EDGESEG_PIXELS_NV12, frame.plane[1] = NULL));
    REFUSED((frame.pixels = EDGESEG_PIXELS_YUYV, frame.matrix = 2));
    REFUSED((frame.pixels = EDGESEG_PIXELS_YUYV, frame.width = WIDTH - 1));
    REFUSED(frame.captured_ns = INT64_MAX);
    REQUIRE(edgeseg_session_run(session, &good, NULL) == EDGESEG_STATUS_ARGUMENT);
    REQUIRE(edgeseg_session_run(session, &good, &result) == EDGESEG_STATUS_OK);
    REQUIRE(edgeseg_session_run(NULL, &good, &result) == EDGESEG_STATUS_ARGUMENT);
    REQUIRE(result.class_map == NULL && result.sequence == 0);
    result.score_out = memory + 1;
    REQUIRE(edgeseg_session_run(session, &good, &result) == EDGESEG_STATUS_ARGUMENT);
    result.score_out = NULL;
    options.engine = argv[0];
    options.engine_library = strcmp(argv[1], "-") == 0 ? NULL : argv[1];
    options.threads = 65;
    REQUIRE(edgeseg_session_open(bundle, &options, &other) == EDGESEG_STATUS_ARGUMENT);
    options.threads = 1;
    options.scorer = "magic";
    REQUIRE(edgeseg_session_open(bundle, &options, &other) == EDGESEG_STATUS_ARGUMENT);
    options.scorer = NULL;
    options.temperature = NAN;
    REQUIRE(edgeseg_session_open(bundle, &options, &other) == EDGESEG_STATUS_ARGUMENT);
    options.temperature = 0;
    options.engine_library = "/nowhere/libengine.so";
    REQUIRE(edgeseg_session_open(bundle, &options, &other) == EDGESEG_STATUS_MISSING);
    options.engine = "tensorrt";
    REQUIRE(edgeseg_session_open(bundle, &options, &other) == EDGESEG_STATUS_MISSING);
    REQUIRE(other == NULL);
    /* A program of a later version: fine, as long as it asks for nothing that is not known. */
    future.known.size = sizeof future;
    future.known.engine = argv[0];
    future.known.engine_library = strcmp(argv[1], "-") == 0 ? NULL : argv[1];
    REQUIRE(edgeseg_session_open(bundle, &future.known, &other) == EDGESEG_STATUS_OK);
    edgeseg_session_close(other);
    future.later = 1;
    other = NULL;
    REQUIRE(edgeseg_session_open(bundle, &future.known, &other) == EDGESEG_STATUS_ARGUMENT);
    free(memory);
}

static void deadlines(edgeseg_session *session) {
    uint8_t *memory = noise(PIXELS * 3, 1);
    edgeseg_frame frame = view(memory, EDGESEG_PIXELS_BGR, HEIGHT, WIDTH, 0);
    edgeseg_result result = EDGESEG_RESULT_INIT;
    REQUIRE(edgeseg_session_set_deadline(session, -1, 0) == EDGESEG_STATUS_ARGUMENT);
    REQUIRE(edgeseg_session_set_deadline(session, 1, 0) == EDGESEG_STATUS_OK);
    frame.captured_ns = 1; /* since the machine was started */
    REQUIRE(edgeseg_session_run(session, &frame, &result) == EDGESEG_STATUS_LATE);
    REQUIRE(result.class_map != NULL && result.sequence > 0);
    REQUIRE(edgeseg_session_set_deadline(session, 1, 1) == EDGESEG_STATUS_OK);
    REQUIRE(edgeseg_session_run(session, &frame, &result) == EDGESEG_STATUS_STALE);
    REQUIRE(result.class_map == NULL && result.score == NULL && result.sequence == 0);
    REQUIRE(edgeseg_session_set_deadline(session, 0, 0) == EDGESEG_STATUS_OK);
    free(memory);
}

struct caller {
    edgeseg_session *session;
    const uint8_t *memory, *expected;
    pthread_t thread;
};

static void *call(void *argument) {
    const struct caller *c = argument;
    uint8_t *classes = malloc(PIXELS);
    float *score = malloc(PIXELS * sizeof *score);
    REQUIRE(classes != NULL && score != NULL);
    for (int i = 0; i < 8; i++) {
        const edgeseg_frame frame = view(c->memory, EDGESEG_PIXELS_RGB, HEIGHT, WIDTH, 0);
        edgeseg_result result = EDGESEG_RESULT_INIT;
        edgeseg_session_info info = EDGESEG_SESSION_INFO_INIT;
        result.class_map_out = classes;
        result.score_out = score;
        REQUIRE(edgeseg_session_run(c->session, &frame, &result) == EDGESEG_STATUS_OK);
        REQUIRE(memcmp(classes, c->expected, PIXELS) == 0);
        REQUIRE(edgeseg_session_describe(c->session, &info) == EDGESEG_STATUS_OK);
        REQUIRE(edgeseg_session_set_threshold(c->session, 0.5) == EDGESEG_STATUS_OK);
        /* Every thread has its own text. */
        REQUIRE(edgeseg_session_set_scorer(c->session, "magic", 0) == EDGESEG_STATUS_ARGUMENT);
        REQUIRE(strstr(edgeseg_last_error(), "magic") != NULL);
    }
    free(classes);
    free(score);
    return NULL;
}

static void many_threads(const edgeseg_bundle *bundle, char **argv, int shared) {
    struct caller callers[THREADS];
    edgeseg_session *sessions[THREADS];
    uint8_t *memory = noise(PIXELS * 3, 11), *expected = malloc(PIXELS);
    REQUIRE(expected != NULL);
    for (int i = 0; i < THREADS; i++) {
        sessions[i] = shared && i > 0 ? sessions[0]
                                      : open_session(bundle, argv, 2, EDGESEG_SCORE_FLOAT32);
    }
    const edgeseg_frame frame = view(memory, EDGESEG_PIXELS_RGB, HEIGHT, WIDTH, 0);
    edgeseg_result result = EDGESEG_RESULT_INIT;
    result.class_map_out = expected;
    REQUIRE(edgeseg_session_run(sessions[0], &frame, &result) == EDGESEG_STATUS_OK);
    for (int i = 0; i < THREADS; i++) {
        callers[i] = (struct caller){sessions[i], memory, expected, 0};
        REQUIRE(pthread_create(&callers[i].thread, NULL, call, &callers[i]) == 0);
    }
    for (int i = 0; i < THREADS; i++) {
        REQUIRE(pthread_join(callers[i].thread, NULL) == 0);
    }
    for (int i = 0; i < (shared ? 1 : THREADS); i++) {
        edgeseg_session_close(sessions[i]);
    }
    free(memory);
    free(expected);
}

static void score_again(const edgeseg_bundle *bundle, char **argv) {
    edgeseg_session *session = open_session(bundle, argv, 1, EDGESEG_SCORE_FLOAT32);
    edgeseg_result result = EDGESEG_RESULT_INIT;
    const float *features;
    size_t count;
    REQUIRE(edgeseg_session_rescore(session, "msp", 0, &result) == EDGESEG_STATUS_ARGUMENT);
    REQUIRE(edgeseg_session_features(session, &features, &count) == EDGESEG_STATUS_ARGUMENT);
    uint8_t *memory = noise(PIXELS * 3, 5);
    const edgeseg_frame frame = view(memory, EDGESEG_PIXELS_BGR, HEIGHT, WIDTH, 0);
    REQUIRE(edgeseg_session_run(session, &frame, &result) == EDGESEG_STATUS_OK);
    const double before = result.summary.max;
    REQUIRE(edgeseg_session_rescore(session, "energy", 2.0, &result) == EDGESEG_STATUS_OK);
    REQUIRE(result.sequence == 1 && result.summary.fraction < 0);
    REQUIRE(edgeseg_session_features(session, &features, &count) == EDGESEG_STATUS_OK);
    REQUIRE(count == 16 * PIXELS / 4 && isfinite(features[count - 1]));
    REQUIRE(edgeseg_session_run(session, &frame, &result) == EDGESEG_STATUS_OK);
    REQUIRE(result.summary.max <= before && result.summary.max >= before);
    REQUIRE(edgeseg_session_infer(session, &frame) == EDGESEG_STATUS_OK);
    REQUIRE(edgeseg_session_rescore(session, NULL, 0, &result) == EDGESEG_STATUS_OK);
    REQUIRE(result.summary.max <= before && result.summary.max >= before);
    edgeseg_session_close(session);
    free(memory);
}

static void run_all(edgeseg_bundle *bundle, char **argv) {
    for (int type = EDGESEG_SCORE_FLOAT16; type <= EDGESEG_SCORE_FLOAT32; type++) {
        edgeseg_session *session = open_session(bundle, argv, 1 + type, type);
        every_format(session);
        upside_down(session);
        settings(session, bundle);
        wrong_calls(session, bundle, argv);
        deadlines(session);
        edgeseg_session_close(session);
    }
    score_again(bundle, argv);
    many_threads(bundle, argv, 1);
    many_threads(bundle, argv, 0);
    /* A session outlives the handle of its bundle. */
    edgeseg_session *session = open_session(bundle, argv, 1, EDGESEG_SCORE_FLOAT16);
    edgeseg_bundle_close(bundle);
    upside_down(session);
    edgeseg_session_close(session);
}

static void repeat(edgeseg_bundle *bundle, char **argv, int frames) {
    edgeseg_session *session = open_session(bundle, argv, 2, EDGESEG_SCORE_FLOAT16);
    uint8_t *memory = noise(memory_of(EDGESEG_PIXELS_NV12, 90, 160, 0), 5);
    edgeseg_frame frame = view(memory, EDGESEG_PIXELS_NV12, 90, 160, 0);
    edgeseg_result result = EDGESEG_RESULT_INIT;
    REQUIRE(edgeseg_session_run(session, &frame, &result) == EDGESEG_STATUS_OK);
    if (count_allocations != NULL) {
        count_allocations(1);
    }
    for (int i = 0; i < frames; i++) {
        REQUIRE(edgeseg_session_run(session, &frame, &result) == EDGESEG_STATUS_OK);
        REQUIRE(edgeseg_session_rescore(session, "msp", 0, &result) == EDGESEG_STATUS_OK);
    }
    if (count_allocations != NULL) {
        count_allocations(0);
    }
    edgeseg_session_close(session);
    edgeseg_bundle_close(bundle);
    free(memory);
}

int main(int argc, char **argv) {
    edgeseg_bundle *bundle = NULL;
    if (argc > 2 && strcmp(argv[1], "open") == 0) {
        for (int i = 2; i < argc; i++) {
            const int status = edgeseg_bundle_open(argv[i], &bundle);
            printf("%s\n", status < 0 ? edgeseg_last_error() : edgeseg_status_name(status));
            edgeseg_bundle_close(bundle);
            bundle = NULL;
        }
        return 0;
    }
    if (argc < 5) {
        return 2;
    }
    REQUIRE(edgeseg_bundle_open(argv[2], &bundle) == EDGESEG_STATUS_OK);
    if (argc > 5) {
        repeat(bundle, argv + 3, atoi(argv[5]));
    } else {
        run_all(bundle, argv + 3);
    }
    printf("ok\n");
    return 0;
}
