/* A stand-in for libonnxruntime: the C ABI that libedgeseg uses, with a body of a few lines. It
 * allocates nothing while it runs, so that sanitizers, valgrind and a counter of allocations see
 * the library alone, and it can be told to fail.
 *
 * Graph: 'frame' uint8 [1, 64, 128, 3] -> 'features' float32 [1, 16, 32, 64], each the mean of a
 * block of 2 x 2 pixels, scaled and shifted by channel. FAKE_ORT (environment), read at every run:
 * "nan", "error", or "slow" (20 ms). "old": the API is refused.
 */
#define _POSIX_C_SOURCE 200809L
#include "ort_abi.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define HEIGHT 64
#define WIDTH 128
#define CHANNELS 16

struct value {
    void *data;
};

struct binding {
    const struct value *input, *output;
};

static struct ort_api api;
static char failure[] = "the engine was told to fail";
static char somewhere; /* for objects that nobody looks into */

static int told(const char *what) {
    const char *mode = getenv("FAKE_ORT");
    return mode != NULL && strcmp(mode, what) == 0;
}

static const char *message(const void *status) { return status; }
static void *any_env(int severity, const char *id, void **env) {
    (void)severity;
    (void)id;
    *env = &somewhere;
    return NULL;
}
static void *any_object(void **object) {
    *object = &somewhere;
    return NULL;
}
static void *set_int(void *options, int number) {
    (void)options;
    (void)number;
    return NULL;
}
static void *set_entry(void *options, const char *key, const char *text) {
    (void)options;
    (void)key;
    (void)text;
    return NULL;
}
static void *open_session(const void *env, const void *model, size_t size, const void *options,
                          void **session) {
    (void)env;
    (void)model;
    (void)options;
    *session = malloc(1); /* so that one that is not released is seen */
    return size == 0 || *session == NULL ? failure : NULL;
}
static void *count_one(const void *session, size_t *count) {
    (void)session;
    *count = 1;
    return NULL;
}
static void *port_type(size_t index, void **type, char kind) {
    char *made = malloc(1);
    if (made == NULL || index != 0) {
        return failure;
    }
    *made = kind;
    *type = made;
    return NULL;
}
static void *input_type(const void *session, size_t index, void **type) {
    (void)session;
    return port_type(index, type, 'i');
}
static void *output_type(const void *session, size_t index, void **type) {
    (void)session;
    return port_type(index, type, 'o');
}
static void *port_name(char **name, const char *text) {
    *name = malloc(strlen(text) + 1);
    if (*name == NULL) {
        return failure;
    }
    memcpy(*name, text, strlen(text) + 1);
    return NULL;
}
static void *input_name(const void *session, size_t index, void *allocator, char **name) {
    (void)session;
    (void)index;
    (void)allocator;
    return port_name(name, "frame");
}
static void *output_name(const void *session, size_t index, void *allocator, char **name) {
    (void)session;
    (void)index;
    (void)allocator;
    return port_name(name, "features");
}
static void *free_name(void *allocator, void *name) {
    (void)allocator;
    free(name);
    return NULL;
}
static void *cast_type(const void *type, const void **tensor) {
    *tensor = type;
    return NULL;
}
static void *element_type(const void *tensor, int *type) {
    *type = *(const char *)tensor == 'i' ? ORT_TENSOR_UINT8 : ORT_TENSOR_FLOAT;
    return NULL;
}
static void *count_axes(const void *tensor, size_t *rank) {
    (void)tensor;
    *rank = 4;
    return NULL;
}
static void *read_axes(const void *tensor, int64_t *axes, size_t rank) {
    static const int64_t in[] = {1, HEIGHT, WIDTH, 3};
    static const int64_t out[] = {1, CHANNELS, HEIGHT / 2, WIDTH / 2};
    memcpy(axes, *(const char *)tensor == 'i' ? in : out, rank * sizeof *axes);
    return NULL;
}
static void *cpu_memory(int allocator, int kind, void **memory) {
    (void)allocator;
    (void)kind;
    *memory = &somewhere;
    return NULL;
}
static void *tensor(const void *memory, void *data, size_t bytes, const int64_t *shape, size_t rank,
                    int type, void **value) {
    (void)memory;
    size_t expected = type == ORT_TENSOR_UINT8 ? 1 : 4;
    for (size_t i = 0; i < rank; i++) {
        expected *= (size_t)shape[i];
    }
    struct value *made = malloc(sizeof *made);
    if (made == NULL || bytes != expected) {
        free(made);
        return failure;
    }
    made->data = data;
    *value = made;
    return NULL;
}
static void *make_binding(void *session, void **binding) {
    (void)session;
    *binding = calloc(1, sizeof(struct binding));
    return *binding == NULL ? failure : NULL;
}
static void *bind_input(void *binding, const char *name, const void *value) {
    ((struct binding *)binding)->input = value;
    return strcmp(name, "frame") == 0 ? NULL : failure;
}
static void *bind_output(void *binding, const char *name, const void *value) {
    ((struct binding *)binding)->output = value;
    return strcmp(name, "features") == 0 ? NULL : failure;
}

static void *run(void *session, const void *options, const void *binding) {
    (void)session;
    (void)options;
    const struct binding *b = binding;
    const uint8_t *frame = b->input->data;
    float *features = b->output->data;
    if (told("error")) {
        return failure;
    }
    if (told("slow")) {
        const struct timespec wait = {0, 20000000};
        (void)nanosleep(&wait, NULL);
    }
    for (int c = 0; c < CHANNELS; c++) {
        for (int y = 0; y < HEIGHT / 2; y++) {
            for (int x = 0; x < WIDTH / 2; x++) {
                const uint8_t *at = frame + (2 * y * WIDTH + 2 * x) * 3 + c % 3;
                const int sum = at[0] + at[3] + at[3 * WIDTH] + at[3 * WIDTH + 3];
                *features++ = (float)sum * (float)(c + 1) / 4096.0f - 0.1f * (float)c;
            }
        }
    }
    if (told("nan")) {
        features[-1] = NAN;
    }
    return NULL;
}

static void keep(void *object) { (void)object; }

#define SET(place, made) api.function[place] = (ort_any)(made)

static const struct ort_api *get_api(uint32_t version) {
    if (told("old") || version != ORT_ABI_VERSION) {
        return NULL;
    }
    return &api;
}

static const char *get_version(void) { return "0.0.0-fake"; }

/* Before any thread can ask for it. */
__attribute__((constructor)) static void fill(void) {
    SET(ORT_GET_ERROR_MESSAGE, message);
    SET(ORT_CREATE_ENV, any_env);
    SET(ORT_CREATE_SESSION_FROM_ARRAY, open_session);
    SET(ORT_CREATE_SESSION_OPTIONS, any_object);
    SET(ORT_SET_SESSION_EXECUTION_MODE, set_int);
    SET(ORT_SET_SESSION_LOG_SEVERITY_LEVEL, set_int);
    SET(ORT_SET_SESSION_GRAPH_OPTIMIZATION_LEVEL, set_int);
    SET(ORT_SET_INTRA_OP_NUM_THREADS, set_int);
    SET(ORT_SET_INTER_OP_NUM_THREADS, set_int);
    SET(ORT_SESSION_GET_INPUT_COUNT, count_one);
    SET(ORT_SESSION_GET_OUTPUT_COUNT, count_one);
    SET(ORT_SESSION_GET_INPUT_TYPE_INFO, input_type);
    SET(ORT_SESSION_GET_OUTPUT_TYPE_INFO, output_type);
    SET(ORT_SESSION_GET_INPUT_NAME, input_name);
    SET(ORT_SESSION_GET_OUTPUT_NAME, output_name);
    SET(ORT_CREATE_TENSOR_WITH_DATA, tensor);
    SET(ORT_CAST_TYPE_INFO_TO_TENSOR_INFO, cast_type);
    SET(ORT_GET_TENSOR_ELEMENT_TYPE, element_type);
    SET(ORT_GET_DIMENSIONS_COUNT, count_axes);
    SET(ORT_GET_DIMENSIONS, read_axes);
    SET(ORT_CREATE_CPU_MEMORY_INFO, cpu_memory);
    SET(ORT_ALLOCATOR_FREE, free_name);
    SET(ORT_GET_ALLOCATOR_WITH_DEFAULT_OPTIONS, any_object);
    SET(ORT_RELEASE_ENV, keep);
    SET(ORT_RELEASE_STATUS, keep);
    SET(ORT_RELEASE_MEMORY_INFO, keep);
    SET(ORT_RELEASE_SESSION, free);
    SET(ORT_RELEASE_VALUE, free);
    SET(ORT_RELEASE_TYPE_INFO, free);
    SET(ORT_RELEASE_SESSION_OPTIONS, keep);
    SET(ORT_ADD_SESSION_CONFIG_ENTRY, set_entry);
    SET(ORT_RUN_WITH_BINDING, run);
    SET(ORT_CREATE_IO_BINDING, make_binding);
    SET(ORT_RELEASE_IO_BINDING, free);
    SET(ORT_BIND_INPUT, bind_input);
    SET(ORT_BIND_OUTPUT, bind_output);
}

const struct ort_api_base *OrtGetApiBase(void);
const struct ort_api_base *OrtGetApiBase(void) {
    static const struct ort_api_base base = {get_api, get_version};
    return &base;
}
