/* The part of ONNX Runtime's C ABI that the library uses.
 *
 * OrtApi is a struct of function pointers that is only ever appended to, so a function's place in
 * it is part of the ABI: the numbers below are those of onnxruntime_c_api.h. All of them were
 * there long before version 17; tests/clib/check_ort_abi.c compares them with the official header
 * where there is one.
 */
#ifndef EDGESEG_ORT_ABI_H
#define EDGESEG_ORT_ABI_H

#include <stdint.h>

/* Of ONNX Runtime 1.17, the oldest that the Python package takes. */
#define ORT_ABI_VERSION 17

enum ort_function {
    ORT_GET_ERROR_MESSAGE = 2,
    ORT_CREATE_ENV = 3,
    ORT_CREATE_SESSION_FROM_ARRAY = 8,
    ORT_CREATE_SESSION_OPTIONS = 10,
    ORT_SET_SESSION_EXECUTION_MODE = 13,
    ORT_SET_SESSION_LOG_SEVERITY_LEVEL = 22,
    ORT_SET_SESSION_GRAPH_OPTIMIZATION_LEVEL = 23,
    ORT_SET_INTRA_OP_NUM_THREADS = 24,
    ORT_SET_INTER_OP_NUM_THREADS = 25,
    ORT_SESSION_GET_INPUT_COUNT = 30,
    ORT_SESSION_GET_OUTPUT_COUNT = 31,
    ORT_SESSION_GET_INPUT_TYPE_INFO = 33,
    ORT_SESSION_GET_OUTPUT_TYPE_INFO = 34,
    ORT_SESSION_GET_INPUT_NAME = 36,
    ORT_SESSION_GET_OUTPUT_NAME = 37,
    ORT_CREATE_TENSOR_WITH_DATA = 49,
    ORT_CAST_TYPE_INFO_TO_TENSOR_INFO = 55,
    ORT_GET_TENSOR_ELEMENT_TYPE = 60,
    ORT_GET_DIMENSIONS_COUNT = 61,
    ORT_GET_DIMENSIONS = 62,
    ORT_CREATE_CPU_MEMORY_INFO = 69,
    ORT_ALLOCATOR_FREE = 76,
    ORT_GET_ALLOCATOR_WITH_DEFAULT_OPTIONS = 78,
    ORT_RELEASE_ENV = 92,
    ORT_RELEASE_STATUS = 93,
    ORT_RELEASE_MEMORY_INFO = 94,
    ORT_RELEASE_SESSION = 95,
    ORT_RELEASE_VALUE = 96,
    ORT_RELEASE_TYPE_INFO = 98,
    ORT_RELEASE_SESSION_OPTIONS = 100,
    ORT_ADD_SESSION_CONFIG_ENTRY = 130,
    ORT_RUN_WITH_BINDING = 133,
    ORT_CREATE_IO_BINDING = 134,
    ORT_RELEASE_IO_BINDING = 135,
    ORT_BIND_INPUT = 136,
    ORT_BIND_OUTPUT = 137,
    ORT_FUNCTIONS = 138
};

/* Values of its enums. */
#define ORT_LOG_ERROR 3
#define ORT_LOG_FATAL 4
#define ORT_SEQUENTIAL_MODE 0
#define ORT_ALL_OPTIMIZATIONS 99
#define ORT_TENSOR_FLOAT 1
#define ORT_TENSOR_UINT8 2
#define ORT_DEVICE_ALLOCATOR 0
#define ORT_MEMORY_DEFAULT 0

typedef void (*ort_any)(void); /* cast to its type before it is called */

struct ort_api {
    ort_any function[ORT_FUNCTIONS];
};

struct ort_api_base {
    /* NULL where the version is newer than the library. */
    const struct ort_api *(*get_api)(uint32_t version);
    const char *(*get_version_string)(void);
};

typedef const struct ort_api_base *(*ort_get_api_base)(void);

#endif
