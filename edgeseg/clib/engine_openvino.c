/* OpenVINO on the CPU, through its C API. */
#include "engine.h"
#include "error.h"
#include "openvino_abi.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_RANK 4
#define LAST_TYPE 40 /* of its element types, by far */

struct openvino_engine {
    struct engine base;
    struct openvino_api api;
    const struct body *body;
    int type_float32, type_uint8;
    void *core, *compiled, *request, *input, *output;
    const uint8_t *bound; /* what the input reads */
};

static int refused(const struct openvino_engine *e, const char *what) {
    const char *message = e->api.ov_get_last_err_msg();
    return fail(EDGESEG_STATUS_ARTEFACT,
                "engine 'openvino' refuses '%s' (%s: %.300s); try another engine or export the "
                "bundle again",
                e->body->path, what, message == NULL ? "no reason given" : message);
}

static int load_api(struct openvino_engine *e, const char *wanted) {
    static const char *const functions[] = {OPENVINO_FUNCTIONS};
    static const char *const names[] = {"libopenvino_c.so", NULL};
    static const struct engine_files files = {"EDGESEG_OPENVINO_LIBRARY", "openvino/libs",
                                              "libopenvino_c.so", names};
    _Static_assert(sizeof e->api == sizeof functions, "a name for every function");
    void *handle;
    const int status = engine_load("openvino", &files, wanted, &handle, e->base.library);
    if (status != EDGESEG_STATUS_OK) {
        return status;
    }
    for (size_t i = 0; i < sizeof functions / sizeof functions[0]; i++) {
        void *symbol = dlsym(handle, functions[i]);
        if (symbol == NULL) {
            return fail(EDGESEG_STATUS_MISSING,
                        "'%s' has no %s; install OpenVINO 2025.0 or newer", e->base.library,
                        functions[i]);
        }
        memcpy((char *)&e->api + i * sizeof symbol, &symbol, sizeof symbol);
    }
    struct openvino_version version = {NULL, NULL};
    if (e->api.ov_get_openvino_version(&version) == 0) {
        (void)snprintf(e->base.version, sizeof e->base.version, "%s", version.build);
        e->api.ov_version_free(&version);
    }
    return EDGESEG_STATUS_OK;
}

/* Bytes of one element of a type; 0 for a type that is no plain number. */
static size_t element_bytes(const struct openvino_engine *e, int type) {
    const int64_t axes[1] = {8}; /* types of one bit are one byte then, not eight */
    struct openvino_shape shape = {0, NULL};
    void *tensor = NULL;
    size_t bytes = 0;
    if (e->api.ov_shape_create(1, axes, &shape) != 0) {
        return 0;
    }
    if (e->api.ov_tensor_create(type, shape, &tensor) == 0) {
        if (e->api.ov_tensor_get_byte_size(tensor, &bytes) != 0) {
            bytes = 0;
        }
        e->api.ov_tensor_free(tensor);
    }
    (void)e->api.ov_shape_free(&shape);
    return bytes / 8;
}

/* The numbers of its element types moved twice between 2024 and 2026, as types were added and
 * removed, but their order stands: ... bf16 f16 f32 f64 i4 i8 i16 i32 i64 (types below a byte) u8
 * u16 u32 u64 ... So they are found by the sizes of their elements. */
static int find_types(struct openvino_engine *e) {
    int sequences = 0;
    for (int type = 0; type < LAST_TYPE && e->type_uint8 < 0; type++) {
        const size_t bytes = element_bytes(e, type);
        if (e->type_float32 < 0) {
            if (bytes == 2 && element_bytes(e, type + 1) == 4 && element_bytes(e, type + 2) == 8) {
                e->type_float32 = type + 1;
                type += 2;
            }
        } else if (bytes == 1 && element_bytes(e, type + 1) == 2 &&
                   element_bytes(e, type + 2) == 4 && element_bytes(e, type + 3) == 8) {
            if (++sequences == 2) {
                e->type_uint8 = type;
            }
            type += 3;
        }
    }
    return e->type_uint8 >= 0 ? EDGESEG_STATUS_OK
                              : fail(EDGESEG_STATUS_MISSING,
                                     "openvino %s numbers its element types in a way that is not "
                                     "known; use onnxruntime",
                                     e->base.version);
}

/* The settings of edgeseg/runtime/backends/openvino.py. */
static int compile(struct openvino_engine *e) {
    char threads[16];
    void *model = NULL;
    const struct body *b = e->body;
    (void)snprintf(threads, sizeof threads, "%d", b->threads);
    if (e->api.ov_core_create(&e->core) != 0) {
        return refused(e, "core");
    }
    if (e->api.ov_core_read_model_from_memory_buffer(
            e->core, (const char *)b->file->content, b->file->size, NULL, &model) != 0) {
        return refused(e, "reading");
    }
    /* The precision is never left to the engine: on CPUs with AMX it would compute float32 graphs
     * in bf16. */
    const int outcome = e->api.ov_core_compile_model(
        e->core, model, "CPU", 8, &e->compiled, "PERFORMANCE_HINT", "LATENCY", "NUM_STREAMS", "1",
        "INFERENCE_NUM_THREADS", threads, "INFERENCE_PRECISION_HINT", b->compute_precision);
    e->api.ov_model_free(model);
    return outcome == 0 ? EDGESEG_STATUS_OK : refused(e, "compiling");
}

static int read_precision(struct openvino_engine *e) {
    char *value = NULL;
    if (e->api.ov_compiled_model_get_property(e->compiled, "INFERENCE_PRECISION_HINT", &value) !=
        0) {
        return refused(e, "precision");
    }
    const bool f32 = strcmp(value, "f32") == 0;
    const bool bf16 = strcmp(value, "bf16") == 0;
    e->base.compute_precision = f32 ? "f32" : bf16 ? "bf16" : "other";
    e->api.ov_free(value);
    if (!f32 && strcmp(e->body->compute_precision, "f32") == 0) {
        return fail(EDGESEG_STATUS_ARTEFACT,
                    "openvino does not compute '%s' in f32 as its bundle asks; use onnxruntime",
                    e->body->path);
    }
    return EDGESEG_STATUS_OK;
}

static int check_port(struct openvino_engine *e, bool input, struct openvino_shape *shape) {
    void *port = NULL;
    char *name = NULL;
    int type = -1, status;
    int (*const find)(const void *, void **) =
        input ? e->api.ov_compiled_model_input : e->api.ov_compiled_model_output;
    if (find(e->compiled, &port) != 0) {
        return refused(e, "ports");
    }
    if (e->api.ov_port_get_any_name(port, &name) != 0 ||
        e->api.ov_port_get_element_type(port, &type) != 0 ||
        e->api.ov_const_port_get_shape(port, shape) != 0) { /* refuses what is not static */
        status = refused(e, "shape");
    } else {
        const int rank = shape->rank >= 1 && shape->rank <= MAX_RANK ? (int)shape->rank : 0;
        status = input ? check_input(e->body, name, type == e->type_uint8, rank, shape->axes)
                       : check_output(e->body, name, type == e->type_float32, rank, shape->axes);
    }
    if (name != NULL) {
        e->api.ov_free(name);
    }
    e->api.ov_output_const_port_free(port);
    return status;
}

/* Makes the request read a frame where it lies. */
static int bind_frame(struct openvino_engine *e, const uint8_t *frame) {
    int64_t axes[4] = {1, e->body->height, e->body->width, 3};
    const struct openvino_shape shape = {4, axes};
    void *input = NULL;
    int status = e->api.ov_tensor_create_from_host_ptr(e->type_uint8, shape,
                                                       (void *)(uintptr_t)frame, &input);
    if (status != 0) {
        return status;
    }
    status = e->api.ov_infer_request_set_input_tensor(e->request, input);
    if (status != 0) {
        e->api.ov_tensor_free(input);
        return status;
    }
    if (e->input != NULL) {
        e->api.ov_tensor_free(e->input);
    }
    e->input = input;
    e->bound = frame;
    return 0;
}

static int prepare(struct openvino_engine *e) {
    if (e->api.ov_compiled_model_create_infer_request(e->compiled, &e->request) != 0 ||
        bind_frame(e, e->body->frame) != 0 ||
        e->api.ov_infer_request_get_output_tensor(e->request, &e->output) != 0) {
        return refused(e, "request");
    }
    size_t bytes;
    if (e->api.ov_tensor_get_byte_size(e->output, &bytes) != 0 ||
        bytes != e->body->features * sizeof(float)) {
        return refused(e, "size of the output");
    }
    return EDGESEG_STATUS_OK;
}

static int open_graph(struct openvino_engine *e) {
    size_t inputs = 0, outputs = 0;
    struct openvino_shape frame = {0, NULL}, features = {0, NULL};
    if (e->api.ov_compiled_model_inputs_size(e->compiled, &inputs) != 0 ||
        e->api.ov_compiled_model_outputs_size(e->compiled, &outputs) != 0 || inputs != 1 ||
        outputs != 1) {
        return fail(EDGESEG_STATUS_ARTEFACT,
                    "'%s' has not one input and one output; export the bundle again",
                    e->body->path);
    }
    int status = check_port(e, true, &frame);
    if (status == EDGESEG_STATUS_OK) {
        status = check_port(e, false, &features);
    }
    if (status == EDGESEG_STATUS_OK) {
        status = prepare(e);
    }
    (void)e->api.ov_shape_free(&frame);
    (void)e->api.ov_shape_free(&features);
    return status;
}

static void close_engine(struct engine *engine) {
    struct openvino_engine *e = (struct openvino_engine *)engine;
    const struct {
        void *object;
        void (*release)(void *);
    } parts[] = {{e->output, e->api.ov_tensor_free},
                 {e->input, e->api.ov_tensor_free},
                 {e->request, e->api.ov_infer_request_free},
                 {e->compiled, e->api.ov_compiled_model_free},
                 {e->core, e->api.ov_core_free}};
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        if (parts[i].object != NULL) {
            parts[i].release(parts[i].object);
        }
    }
    free(e);
}

static int open_engine(const struct body *body, struct engine **engine) {
    struct openvino_engine *e = calloc(1, sizeof *e);
    if (e == NULL) {
        return fail_memory("an engine");
    }
    e->base.class = &engine_openvino;
    e->body = body;
    e->type_float32 = e->type_uint8 = -1;
    int status = load_api(e, body->library);
    if (status == EDGESEG_STATUS_OK) {
        status = find_types(e);
    }
    if (status == EDGESEG_STATUS_OK) {
        status = compile(e);
    }
    if (status == EDGESEG_STATUS_OK) {
        status = read_precision(e);
    }
    if (status == EDGESEG_STATUS_OK) {
        status = open_graph(e);
    }
    if (status != EDGESEG_STATUS_OK) {
        close_engine(&e->base);
        return status;
    }
    *engine = &e->base;
    return EDGESEG_STATUS_OK;
}

static int run(struct engine *engine, const uint8_t *frame, const float **features) {
    struct openvino_engine *e = (struct openvino_engine *)engine;
    void *data = NULL;
    if ((frame != e->bound && bind_frame(e, frame) != 0) ||
        e->api.ov_infer_request_infer(e->request) != 0 ||
        e->api.ov_tensor_data(e->output, &data) != 0) {
        const char *message = e->api.ov_get_last_err_msg();
        return fail(EDGESEG_STATUS_ENGINE, "openvino failed on a frame (%.300s)",
                    message == NULL ? "no reason given" : message);
    }
    *features = data;
    return EDGESEG_STATUS_OK;
}

const struct engine_class engine_openvino = {"openvino", open_engine, run, close_engine};
