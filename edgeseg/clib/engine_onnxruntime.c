/* ONNX Runtime on the CPU, through its C API. */
#include "engine.h"
#include "error.h"
#include "ort_abi.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ALIGNMENT 64
#define MAX_RANK 4

/* A status is NULL, or an error that must be released. */
typedef void *ort_status;
typedef void (*release_function)(void *);
typedef ort_status (*create_env)(int severity, const char *id, void **env);
typedef ort_status (*create)(void **object);
typedef ort_status (*set_int)(void *options, int value);
typedef ort_status (*set_entry)(void *options, const char *key, const char *value);
typedef ort_status (*create_session)(const void *env, const void *model, size_t size,
                                     const void *options, void **session);
typedef ort_status (*count_ports)(const void *session, size_t *count);
typedef ort_status (*port_type)(const void *session, size_t index, void **type);
typedef ort_status (*port_name)(const void *session, size_t index, void *allocator, char **name);
typedef ort_status (*cast_type)(const void *type, const void **tensor);
typedef ort_status (*element_type)(const void *tensor, int *type);
typedef ort_status (*count_axes)(const void *tensor, size_t *rank);
typedef ort_status (*read_axes)(const void *tensor, int64_t *axes, size_t rank);
typedef ort_status (*create_memory)(int allocator, int kind, void **memory);
typedef ort_status (*create_tensor)(const void *memory, void *data, size_t bytes,
                                    const int64_t *shape, size_t rank, int type, void **value);
typedef ort_status (*create_binding)(void *session, void **binding);
typedef ort_status (*bind)(void *binding, const char *name, const void *value);
typedef ort_status (*run_binding)(void *session, const void *options, const void *binding);
typedef ort_status (*free_name)(void *allocator, void *name);
typedef const char *(*error_message)(const void *status);

struct ort_engine {
    struct engine base;
    const struct ort_api *api;
    const struct body *body;
    void *env, *session, *binding, *memory, *input, *output;
    float *features;
    const uint8_t *bound; /* what the input reads */
};

/* The function at a place of the API, as its type. */
#define CALL(engine, type, place) ((type)(engine)->api->function[place])

static void release(const struct ort_engine *e, int place, void *object) {
    if (object != NULL) {
        CALL(e, release_function, place)(object);
    }
}

static int failed(const struct ort_engine *e, int code, ort_status status) {
    const char *message = CALL(e, error_message, ORT_GET_ERROR_MESSAGE)(status);
    const char *path = e->body->path;
    const int result =
        code == EDGESEG_STATUS_ENGINE
            ? fail(code, "onnxruntime failed on a frame (%.300s)", message)
            : fail(code,
                   "engine 'onnxruntime' refuses '%s' (%.300s); try another engine or export the "
                   "bundle again",
                   path, message);
    release(e, ORT_RELEASE_STATUS, status);
    return result;
}

static int load_api(struct ort_engine *e, const char *wanted) {
    static const char *const names[] = {"libonnxruntime.so.1", "libonnxruntime.so", NULL};
    static const struct engine_files files = {"EDGESEG_ONNXRUNTIME_LIBRARY", "onnxruntime/capi",
                                              "libonnxruntime.so", names};
    void *handle;
    const int status = engine_load("onnxruntime", &files, wanted, &handle, e->base.library);
    if (status != EDGESEG_STATUS_OK) {
        return status;
    }
    void *symbol = dlsym(handle, "OrtGetApiBase");
    ort_get_api_base base;
    memcpy(&base, &symbol, sizeof base); /* ISO C casts no data pointer to a function */
    if (symbol == NULL) {
        return fail(EDGESEG_STATUS_MISSING, "'%s' is not ONNX Runtime: it has no OrtGetApiBase",
                    e->base.library);
    }
    (void)snprintf(e->base.version, sizeof e->base.version, "%s", base()->get_version_string());
    e->api = base()->get_api(ORT_ABI_VERSION);
    if (e->api == NULL) {
        return fail(EDGESEG_STATUS_MISSING,
                    "onnxruntime %s is too old: it lacks version %d of its C API; install 1.%d or "
                    "newer",
                    e->base.version, ORT_ABI_VERSION, ORT_ABI_VERSION);
    }
    return EDGESEG_STATUS_OK;
}

/* The settings of edgeseg/runtime/backends/onnxruntime.py. */
static ort_status set_options(const struct ort_engine *e, void *options) {
    const struct {
        int place, value;
    } settings[] = {
        {ORT_SET_INTRA_OP_NUM_THREADS, e->body->threads},
        {ORT_SET_INTER_OP_NUM_THREADS, 1},
        {ORT_SET_SESSION_EXECUTION_MODE, ORT_SEQUENTIAL_MODE},
        {ORT_SET_SESSION_GRAPH_OPTIMIZATION_LEVEL, ORT_ALL_OPTIMIZATIONS},
        {ORT_SET_SESSION_LOG_SEVERITY_LEVEL, ORT_LOG_FATAL},
    };
    ort_status status = NULL;
    for (size_t i = 0; status == NULL && i < sizeof settings / sizeof settings[0]; i++) {
        status = CALL(e, set_int, settings[i].place)(options, settings[i].value);
    }
    if (status == NULL) {
        /* Its workers would go on spinning after the run, on the cores that the head needs. */
        status = CALL(e, set_entry, ORT_ADD_SESSION_CONFIG_ENTRY)(
            options, "session.force_spinning_stop", "1");
    }
    return status;
}

static int open_session(struct ort_engine *e) {
    void *options = NULL;
    const struct file *file = e->body->file;
    ort_status status = CALL(e, create_env, ORT_CREATE_ENV)(ORT_LOG_ERROR, "edgeseg", &e->env);
    if (status == NULL) {
        status = CALL(e, create, ORT_CREATE_SESSION_OPTIONS)(&options);
    }
    if (status == NULL) {
        status = set_options(e, options);
    }
    if (status == NULL) {
        status = CALL(e, create_session, ORT_CREATE_SESSION_FROM_ARRAY)(
            e->env, file->content, file->size, options, &e->session);
    }
    release(e, ORT_RELEASE_SESSION_OPTIONS, options);
    return status == NULL ? EDGESEG_STATUS_OK : failed(e, EDGESEG_STATUS_ARTEFACT, status);
}

/* The type, rank and shape behind a type information. */
static ort_status read_type(const struct ort_engine *e, const void *info, int *type, size_t *rank,
                            int64_t shape[MAX_RANK]) {
    const void *tensor = NULL; /* belongs to info */
    ort_status status = CALL(e, cast_type, ORT_CAST_TYPE_INFO_TO_TENSOR_INFO)(info, &tensor);
    if (status != NULL || tensor == NULL) {
        return status;
    }
    status = CALL(e, element_type, ORT_GET_TENSOR_ELEMENT_TYPE)(tensor, type);
    if (status == NULL) {
        status = CALL(e, count_axes, ORT_GET_DIMENSIONS_COUNT)(tensor, rank);
    }
    if (status == NULL && *rank <= MAX_RANK) {
        status = CALL(e, read_axes, ORT_GET_DIMENSIONS)(tensor, shape, *rank);
    }
    return status;
}

static int check_port(const struct ort_engine *e, bool input, int64_t shape[MAX_RANK], int *rank) {
    void *info = NULL, *allocator = NULL; /* the allocator is the engine's own */
    char *name = NULL;
    int type = 0;
    size_t axes = 0;
    ort_status status = CALL(e, port_type, input ? ORT_SESSION_GET_INPUT_TYPE_INFO
                                                 : ORT_SESSION_GET_OUTPUT_TYPE_INFO)(
        e->session, 0, &info);
    if (status == NULL) {
        status = read_type(e, info, &type, &axes, shape);
    }
    release(e, ORT_RELEASE_TYPE_INFO, info);
    if (status == NULL) {
        status = CALL(e, create, ORT_GET_ALLOCATOR_WITH_DEFAULT_OPTIONS)(&allocator);
    }
    if (status == NULL) {
        status =
            CALL(e, port_name, input ? ORT_SESSION_GET_INPUT_NAME : ORT_SESSION_GET_OUTPUT_NAME)(
                e->session, 0, allocator, &name);
    }
    if (status != NULL) {
        return failed(e, EDGESEG_STATUS_ARTEFACT, status);
    }
    *rank = axes <= MAX_RANK ? (int)axes : 0;
    const int result =
        input ? check_input(e->body, name, type == ORT_TENSOR_UINT8, *rank, shape)
              : check_output(e->body, name, type == ORT_TENSOR_FLOAT, *rank, shape);
    release(e, ORT_RELEASE_STATUS, CALL(e, free_name, ORT_ALLOCATOR_FREE)(allocator, name));
    return result;
}

static int check_graph(const struct ort_engine *e, int64_t input[MAX_RANK],
                       int64_t output[MAX_RANK], int *output_rank) {
    size_t inputs = 0, outputs = 0;
    int rank;
    ort_status status =
        CALL(e, count_ports, ORT_SESSION_GET_INPUT_COUNT)(e->session, &inputs);
    if (status == NULL) {
        status = CALL(e, count_ports, ORT_SESSION_GET_OUTPUT_COUNT)(e->session, &outputs);
    }
    if (status != NULL) {
        return failed(e, EDGESEG_STATUS_ARTEFACT, status);
    }
    if (inputs != 1 || outputs != 1) {
        return fail(EDGESEG_STATUS_ARTEFACT,
                    "'%s' has not one input and one output; export the bundle again",
                    e->body->path);
    }
    const int result = check_port(e, true, input, &rank);
    return result == EDGESEG_STATUS_OK ? check_port(e, false, output, output_rank) : result;
}

/* Makes the binding read a frame where it lies. */
static ort_status bind_frame(struct ort_engine *e, const uint8_t *frame) {
    const struct body *b = e->body;
    const int64_t shape[4] = {1, b->height, b->width, 3};
    const size_t bytes = (size_t)b->height * (size_t)b->width * 3;
    void *input = NULL;
    ort_status status = CALL(e, create_tensor, ORT_CREATE_TENSOR_WITH_DATA)(
        e->memory, (void *)(uintptr_t)frame, bytes, shape, 4, ORT_TENSOR_UINT8, &input);
    if (status != NULL) {
        return status;
    }
    status = CALL(e, bind, ORT_BIND_INPUT)(e->binding, "frame", input);
    if (status != NULL) {
        release(e, ORT_RELEASE_VALUE, input);
        return status;
    }
    release(e, ORT_RELEASE_VALUE, e->input);
    e->input = input;
    e->bound = frame;
    return NULL;
}

/* Bound once: a run neither allocates nor copies the features. */
static int bind_buffers(struct ort_engine *e, const int64_t output[MAX_RANK], int output_rank) {
    const struct body *b = e->body;
    const size_t bytes = b->features * sizeof(float);
    e->features = aligned_alloc(ALIGNMENT, (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
    if (e->features == NULL) {
        return fail_memory("the features");
    }
    memset(e->features, 0, bytes);
    ort_status status = CALL(e, create_memory, ORT_CREATE_CPU_MEMORY_INFO)(
        ORT_DEVICE_ALLOCATOR, ORT_MEMORY_DEFAULT, &e->memory);
    if (status == NULL) {
        status = CALL(e, create_tensor, ORT_CREATE_TENSOR_WITH_DATA)(
            e->memory, e->features, bytes, output, (size_t)output_rank, ORT_TENSOR_FLOAT,
            &e->output);
    }
    if (status == NULL) {
        status = CALL(e, create_binding, ORT_CREATE_IO_BINDING)(e->session, &e->binding);
    }
    if (status == NULL) {
        status = bind_frame(e, b->frame);
    }
    if (status == NULL) {
        status = CALL(e, bind, ORT_BIND_OUTPUT)(e->binding, "features", e->output);
    }
    return status == NULL ? EDGESEG_STATUS_OK : failed(e, EDGESEG_STATUS_ARTEFACT, status);
}

static void close_engine(struct engine *engine) {
    struct ort_engine *e = (struct ort_engine *)engine;
    if (e->api != NULL) {
        release(e, ORT_RELEASE_IO_BINDING, e->binding);
        release(e, ORT_RELEASE_VALUE, e->input);
        release(e, ORT_RELEASE_VALUE, e->output);
        release(e, ORT_RELEASE_MEMORY_INFO, e->memory);
        release(e, ORT_RELEASE_SESSION, e->session);
        release(e, ORT_RELEASE_ENV, e->env);
    }
    free(e->features);
    free(e);
}

static int open_engine(const struct body *body, struct engine **engine) {
    struct ort_engine *e = calloc(1, sizeof *e);
    if (e == NULL) {
        return fail_memory("an engine");
    }
    e->base.class = &engine_onnxruntime;
    e->base.compute_precision = "f32"; /* it has no bfloat16 kernels for float32 graphs */
    e->body = body;
    int64_t input[MAX_RANK], output[MAX_RANK];
    int rank = 0;
    int status = load_api(e, body->library);
    if (status == EDGESEG_STATUS_OK) {
        status = open_session(e);
    }
    if (status == EDGESEG_STATUS_OK) {
        status = check_graph(e, input, output, &rank);
    }
    if (status == EDGESEG_STATUS_OK) {
        status = bind_buffers(e, output, rank);
    }
    if (status != EDGESEG_STATUS_OK) {
        close_engine(&e->base);
        return status;
    }
    *engine = &e->base;
    return EDGESEG_STATUS_OK;
}

static int run(struct engine *engine, const uint8_t *frame, const float **features) {
    struct ort_engine *e = (struct ort_engine *)engine;
    ort_status status = frame == e->bound ? NULL : bind_frame(e, frame);
    if (status == NULL) {
        status = CALL(e, run_binding, ORT_RUN_WITH_BINDING)(e->session, NULL, e->binding);
    }
    if (status != NULL) {
        return failed(e, EDGESEG_STATUS_ENGINE, status);
    }
    *features = e->features;
    return EDGESEG_STATUS_OK;
}

const struct engine_class engine_onnxruntime = {"onnxruntime", open_engine, run, close_engine};
