/* The part of OpenVINO's C ABI that the library uses: declarations of functions that are looked up
 * by name. tests/clib/check_openvino_abi.c compares them with the official headers, which the
 * Python package of OpenVINO brings along.
 */
#ifndef EDGESEG_OPENVINO_ABI_H
#define EDGESEG_OPENVINO_ABI_H

#include <stddef.h>
#include <stdint.h>

struct openvino_version {
    const char *build;
    const char *description;
};

struct openvino_shape {
    int64_t rank;
    int64_t *axes;
};

/* Every status is 0 for success. Objects are opaque. */
struct openvino_api {
    int (*ov_get_openvino_version)(struct openvino_version *version);
    void (*ov_version_free)(struct openvino_version *version);
    const char *(*ov_get_last_err_msg)(void);
    void (*ov_free)(const char *text);
    int (*ov_core_create)(void **core);
    void (*ov_core_free)(void *core);
    int (*ov_core_read_model_from_memory_buffer)(const void *core, const char *model, size_t size,
                                                 const void *weights, void **result);
    void (*ov_model_free)(void *model);
    /* properties: how many texts follow, keys and values in turn */
    int (*ov_core_compile_model)(const void *core, const void *model, const char *device,
                                 size_t properties, void **compiled, ...);
    void (*ov_compiled_model_free)(void *compiled);
    int (*ov_compiled_model_get_property)(const void *compiled, const char *key, char **value);
    int (*ov_compiled_model_inputs_size)(const void *compiled, size_t *count);
    int (*ov_compiled_model_outputs_size)(const void *compiled, size_t *count);
    int (*ov_compiled_model_input)(const void *compiled, void **port);
    int (*ov_compiled_model_output)(const void *compiled, void **port);
    void (*ov_output_const_port_free)(void *port);
    int (*ov_port_get_any_name)(const void *port, char **name);
    int (*ov_port_get_element_type)(const void *port, int *type);
    int (*ov_const_port_get_shape)(const void *port, struct openvino_shape *shape);
    int (*ov_shape_create)(int64_t rank, const int64_t *axes, struct openvino_shape *shape);
    int (*ov_shape_free)(struct openvino_shape *shape);
    int (*ov_tensor_create)(int type, struct openvino_shape shape, void **tensor);
    int (*ov_tensor_create_from_host_ptr)(int type, struct openvino_shape shape, void *data,
                                          void **tensor);
    int (*ov_tensor_get_byte_size)(const void *tensor, size_t *bytes);
    int (*ov_tensor_data)(const void *tensor, void **data);
    void (*ov_tensor_free)(void *tensor);
    int (*ov_compiled_model_create_infer_request)(const void *compiled, void **request);
    void (*ov_infer_request_free)(void *request);
    int (*ov_infer_request_set_input_tensor)(void *request, const void *tensor);
    int (*ov_infer_request_get_output_tensor)(const void *request, void **tensor);
    int (*ov_infer_request_infer)(void *request);
};

/* Names of the functions above, in their order. */
#define OPENVINO_FUNCTIONS                                                                         \
    "ov_get_openvino_version", "ov_version_free", "ov_get_last_err_msg", "ov_free",                \
        "ov_core_create", "ov_core_free", "ov_core_read_model_from_memory_buffer",                 \
        "ov_model_free", "ov_core_compile_model", "ov_compiled_model_free",                        \
        "ov_compiled_model_get_property", "ov_compiled_model_inputs_size",                         \
        "ov_compiled_model_outputs_size", "ov_compiled_model_input", "ov_compiled_model_output",   \
        "ov_output_const_port_free", "ov_port_get_any_name", "ov_port_get_element_type",           \
        "ov_const_port_get_shape", "ov_shape_create", "ov_shape_free", "ov_tensor_create",         \
        "ov_tensor_create_from_host_ptr", "ov_tensor_get_byte_size", "ov_tensor_data",             \
        "ov_tensor_free", "ov_compiled_model_create_infer_request", "ov_infer_request_free",       \
        "ov_infer_request_set_input_tensor", "ov_infer_request_get_output_tensor",                 \
        "ov_infer_request_infer"

#endif
