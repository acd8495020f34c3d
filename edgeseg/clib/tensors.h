/* A reader of the safetensors format for the few small tensors of a head.
 *
 * The format: a little-endian uint64 with the length of the header, a JSON header that maps names
 * to dtype, shape and byte range, then the data, without holes or overlaps.
 */
#ifndef EDGESEG_TENSORS_H
#define EDGESEG_TENSORS_H

#include "files.h"
#include "json.h"

#define TENSORS_MAX 32
#define TENSOR_MAX_RANK 8

struct tensor {
    const struct json_node *name;
    const uint8_t *data;
    size_t bytes;
    size_t count;
    int element_size;
    char dtype[4];
    int rank;
    int64_t shape[TENSOR_MAX_RANK];
};

struct tensors {
    struct json json;
    struct tensor list[TENSORS_MAX];
    int count;
};

/* file must live as long. path: for messages. Errors: ARTEFACT, NO_MEMORY. */
int tensors_open(struct tensors *tensors, const struct file *file, const char *path);
void tensors_close(struct tensors *tensors);

/* NULL where there is none. */
const struct tensor *tensors_find(const struct tensors *tensors, const char *name);

/* The values as float32, to be freed. Errors: ARTEFACT (another dtype than F32 and F16, or a
 * number that is not finite), NO_MEMORY. */
int tensor_floats(const struct tensor *tensor, const char *path, float **values);

#endif
