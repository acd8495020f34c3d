/* Compiles only where the places in ort_abi.h are those of the official header. */
#include "ort_abi.h"

#include <onnxruntime_c_api.h>
#include <stddef.h>

#define AT(place, name)                                                                            \
    _Static_assert(offsetof(OrtApi, name) == (place) * sizeof(void *), #name)

AT(ORT_GET_ERROR_MESSAGE, GetErrorMessage);
AT(ORT_CREATE_ENV, CreateEnv);
AT(ORT_CREATE_SESSION_FROM_ARRAY, CreateSessionFromArray);
AT(ORT_CREATE_SESSION_OPTIONS, CreateSessionOptions);
AT(ORT_SET_SESSION_EXECUTION_MODE, SetSessionExecutionMode);
AT(ORT_SET_SESSION_LOG_SEVERITY_LEVEL, SetSessionLogSeverityLevel);
AT(ORT_SET_SESSION_GRAPH_OPTIMIZATION_LEVEL, SetSessionGraphOptimizationLevel);
AT(ORT_SET_INTRA_OP_NUM_THREADS, SetIntraOpNumThreads);
AT(ORT_SET_INTER_OP_NUM_THREADS, SetInterOpNumThreads);
AT(ORT_SESSION_GET_INPUT_COUNT, SessionGetInputCount);
AT(ORT_SESSION_GET_OUTPUT_COUNT, SessionGetOutputCount);
AT(ORT_SESSION_GET_INPUT_TYPE_INFO, SessionGetInputTypeInfo);
AT(ORT_SESSION_GET_OUTPUT_TYPE_INFO, SessionGetOutputTypeInfo);
AT(ORT_SESSION_GET_INPUT_NAME, SessionGetInputName);
AT(ORT_SESSION_GET_OUTPUT_NAME, SessionGetOutputName);
AT(ORT_CREATE_TENSOR_WITH_DATA, CreateTensorWithDataAsOrtValue);
AT(ORT_CAST_TYPE_INFO_TO_TENSOR_INFO, CastTypeInfoToTensorInfo);
AT(ORT_GET_TENSOR_ELEMENT_TYPE, GetTensorElementType);
AT(ORT_GET_DIMENSIONS_COUNT, GetDimensionsCount);
AT(ORT_GET_DIMENSIONS, GetDimensions);
AT(ORT_CREATE_CPU_MEMORY_INFO, CreateCpuMemoryInfo);
AT(ORT_ALLOCATOR_FREE, AllocatorFree);
AT(ORT_GET_ALLOCATOR_WITH_DEFAULT_OPTIONS, GetAllocatorWithDefaultOptions);
AT(ORT_RELEASE_ENV, ReleaseEnv);
AT(ORT_RELEASE_STATUS, ReleaseStatus);
AT(ORT_RELEASE_MEMORY_INFO, ReleaseMemoryInfo);
AT(ORT_RELEASE_SESSION, ReleaseSession);
AT(ORT_RELEASE_VALUE, ReleaseValue);
AT(ORT_RELEASE_TYPE_INFO, ReleaseTypeInfo);
AT(ORT_RELEASE_SESSION_OPTIONS, ReleaseSessionOptions);
AT(ORT_ADD_SESSION_CONFIG_ENTRY, AddSessionConfigEntry);
AT(ORT_RUN_WITH_BINDING, RunWithBinding);
AT(ORT_CREATE_IO_BINDING, CreateIoBinding);
AT(ORT_RELEASE_IO_BINDING, ReleaseIoBinding);
AT(ORT_BIND_INPUT, BindInput);
AT(ORT_BIND_OUTPUT, BindOutput);

_Static_assert(ORT_LOG_ERROR == ORT_LOGGING_LEVEL_ERROR, "severity");
_Static_assert(ORT_LOG_FATAL == ORT_LOGGING_LEVEL_FATAL, "severity");
_Static_assert(ORT_SEQUENTIAL_MODE == ORT_SEQUENTIAL, "mode");
_Static_assert(ORT_ALL_OPTIMIZATIONS == ORT_ENABLE_ALL, "level");
_Static_assert(ORT_TENSOR_FLOAT == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, "type");
_Static_assert(ORT_TENSOR_UINT8 == ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, "type");
_Static_assert(ORT_DEVICE_ALLOCATOR == OrtDeviceAllocator, "allocator");
_Static_assert(ORT_MEMORY_DEFAULT == OrtMemTypeDefault, "memory");
