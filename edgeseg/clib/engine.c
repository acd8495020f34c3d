#include "engine.h"

#include "error.h"

#include <string.h>

/* In the order in which "auto" tries them. */
static const struct engine_class *const classes[] = {
    &engine_openvino,
    &engine_onnxruntime,
#if defined(EDGESEG_WITH_TENSORRT)
    &engine_tensorrt,
#endif
};

#define CLASSES (sizeof classes / sizeof classes[0])

static int open_first(const struct body *body, struct engine **engine) {
    if (body->library != NULL) {
        return fail(EDGESEG_STATUS_ARGUMENT,
                    "engine_library needs the engine's name beside it, not 'auto'");
    }
    for (size_t i = 0; i < CLASSES; i++) {
        const int status = classes[i]->open(body, engine);
        if (status != EDGESEG_STATUS_MISSING) {
            return status;
        }
    }
    return fail(EDGESEG_STATUS_MISSING,
                "no inference engine was found; install onnxruntime or openvino, or name the "
                "library in EDGESEG_ONNXRUNTIME_LIBRARY or EDGESEG_OPENVINO_LIBRARY");
}

int engine_open(const char *name, const struct body *body, struct engine **engine) {
    if (name == NULL || strcmp(name, "auto") == 0) {
        return open_first(body, engine);
    }
    for (size_t i = 0; i < CLASSES; i++) {
        if (strcmp(name, classes[i]->name) == 0) {
            return classes[i]->open(body, engine);
        }
    }
    if (strcmp(name, "tensorrt") == 0) {
        return fail(EDGESEG_STATUS_MISSING,
                    "this libedgeseg was built without TensorRT; use onnxruntime or openvino");
    }
    return fail(EDGESEG_STATUS_ARGUMENT,
                "engine '%s' is unknown; choose auto, onnxruntime or openvino", name);
}

static bool same_shape(const int64_t *a, int rank_a, const int64_t *b, int rank_b) {
    return rank_a == rank_b && memcmp(a, b, (size_t)rank_a * sizeof *a) == 0;
}

int check_input(const struct body *body, const char *name, bool type_fits, int rank,
                const int64_t *shape) {
    const int64_t expected[4] = {1, body->height, body->width, 3};
    if (!type_fits || strcmp(name, "frame") != 0 || !same_shape(shape, rank, expected, 4)) {
        return fail(EDGESEG_STATUS_ARTEFACT,
                    "'%s' does not take 'frame' uint8 [1, %d, %d, 3] as its bundle promises; "
                    "export the bundle again",
                    body->path, body->height, body->width);
    }
    return EDGESEG_STATUS_OK;
}

int check_output(const struct body *body, const char *name, bool type_fits, int rank,
                 const int64_t *shape) {
    if (!type_fits || strcmp(name, "features") != 0 ||
        (!same_shape(shape, rank, body->shapes[0], body->ranks[0]) &&
         !same_shape(shape, rank, body->shapes[1], body->ranks[1]))) {
        return fail(EDGESEG_STATUS_ARTEFACT,
                    "'%s' does not give 'features' float32 [1, %lld, %lld, %lld] as its head needs "
                    "them; export the bundle again",
                    body->path, (long long)body->shapes[0][1], (long long)body->shapes[0][2],
                    (long long)body->shapes[0][3]);
    }
    return EDGESEG_STATUS_OK;
}
