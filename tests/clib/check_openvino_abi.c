/* Compiles only where openvino_abi.h and the official headers agree: a pointer to the official
 * function may be assigned to the declared one as far as C's rules go, and sizes are equal. Opaque
 * handles are void pointers on one side, so parameters are compared by count and size, not type. */
#include "openvino_abi.h"

#include <openvino/c/openvino.h>

_Static_assert(sizeof(struct openvino_shape) == sizeof(ov_shape_t), "shape");
_Static_assert(offsetof(struct openvino_shape, axes) == offsetof(ov_shape_t, dims), "shape");
_Static_assert(sizeof(struct openvino_version) == sizeof(ov_version_t), "version");
_Static_assert(offsetof(struct openvino_version, build) == offsetof(ov_version_t, buildNumber),
               "version");
_Static_assert(sizeof(ov_status_e) == sizeof(int), "status");
_Static_assert(sizeof(ov_element_type_e) == sizeof(int), "element type");
_Static_assert(OK == 0, "success");

/* Never run: that each call compiles shows the number of parameters and that each converts. */
int calls(ov_core_t *core, ov_model_t *model, ov_compiled_model_t *compiled, ov_tensor_t *tensor,
          ov_infer_request_t *request, ov_output_const_port_t *port);
int calls(ov_core_t *core, ov_model_t *model, ov_compiled_model_t *compiled, ov_tensor_t *tensor,
          ov_infer_request_t *request, ov_output_const_port_t *port) {
    ov_shape_t shape = {0, NULL};
    ov_version_t version;
    ov_element_type_e type = U8;
    size_t count;
    char *text;
    void *data;
    const int64_t axes[1] = {1};
    int sum = ov_get_openvino_version(&version) + ov_core_create(&core);
    ov_version_free(&version);
    sum += ov_core_read_model_from_memory_buffer(core, "", 0, NULL, &model);
    sum += ov_core_compile_model(core, model, "CPU", 2, &compiled, "a", "b");
    sum += ov_compiled_model_get_property(compiled, "a", &text);
    sum += ov_compiled_model_inputs_size(compiled, &count);
    sum += ov_compiled_model_outputs_size(compiled, &count);
    sum += ov_compiled_model_input(compiled, &port) + ov_compiled_model_output(compiled, &port);
    sum += ov_port_get_any_name(port, &text) + ov_port_get_element_type(port, &type);
    sum += ov_const_port_get_shape(port, &shape) + ov_shape_create(1, axes, &shape);
    sum += ov_tensor_create(type, shape, &tensor);
    sum += ov_tensor_create_from_host_ptr(type, shape, data = NULL, &tensor);
    sum += ov_tensor_get_byte_size(tensor, &count) + ov_tensor_data(tensor, &data);
    sum += ov_compiled_model_create_infer_request(compiled, &request);
    sum += ov_infer_request_set_input_tensor(request, tensor);
    sum += ov_infer_request_get_output_tensor(request, &tensor) + ov_infer_request_infer(request);
    sum += ov_get_last_err_msg() != NULL;
    ov_free(text);
    ov_tensor_free(tensor);
    ov_infer_request_free(request);
    ov_output_const_port_free(port);
    ov_compiled_model_free(compiled);
    ov_model_free(model);
    ov_core_free(core);
    return sum + (int)ov_shape_free(&shape);
}
