#include "tensors.h"

#include "error.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct dtype {
    const char *name;
    int size;
};

static const struct dtype dtypes[] = {{"F32", 4}, {"F16", 2}, {"I64", 8},
                                      {"I32", 4}, {"I8", 1},  {"U8", 1}};

static bool read_dtype(const struct json *json, const struct json_node *node, struct tensor *t) {
    for (size_t i = 0; i < sizeof dtypes / sizeof dtypes[0]; i++) {
        if (json_equals(json, node, dtypes[i].name)) {
            t->element_size = dtypes[i].size;
            memcpy(t->dtype, dtypes[i].name, strlen(dtypes[i].name) + 1);
            return true;
        }
    }
    return false;
}

static bool read_shape(const struct json *json, const struct json_node *node, struct tensor *t) {
    if (!json_is(node, JSON_ARRAY) || node->count > TENSOR_MAX_RANK) {
        return false;
    }
    t->count = 1;
    const struct json_node *item = json_first(json, node);
    for (; item != NULL; item = json_next(json, node, item)) {
        int64_t side;
        if (!json_integer(json, item, &side) || side < 0 ||
            __builtin_mul_overflow(t->count, (size_t)side, &t->count)) {
            return false;
        }
        t->shape[t->rank++] = side;
    }
    return true;
}

static bool read_range(const struct json *json, const struct json_node *node, size_t size,
                       int64_t *begin, int64_t *end) {
    const struct json_node *first = json_first(json, node);
    if (!json_is(node, JSON_ARRAY) || node->count != 2) {
        return false;
    }
    return json_integer(json, first, begin) &&
           json_integer(json, json_next(json, node, first), end) && 0 <= *begin &&
           *begin <= *end && (uint64_t)*end <= size;
}

static bool read_tensor(const struct json *json, const struct json_node *name,
                        const struct json_node *entry, const uint8_t *data, size_t size,
                        struct tensor *t) {
    int64_t begin, end;
    size_t bytes;
    *t = (struct tensor){.name = name};
    if (!read_dtype(json, json_member(json, entry, "dtype"), t) ||
        !read_shape(json, json_member(json, entry, "shape"), t) ||
        !read_range(json, json_member(json, entry, "data_offsets"), size, &begin, &end) ||
        __builtin_mul_overflow(t->count, (size_t)t->element_size, &bytes) ||
        bytes != (size_t)(end - begin)) {
        return false;
    }
    t->data = data + begin;
    t->bytes = bytes;
    return true;
}

/* Each byte of the data belongs to one tensor. */
static bool covers(const struct tensors *tensors, const uint8_t *data, size_t size) {
    size_t total = 0;
    for (int i = 0; i < tensors->count; i++) {
        const struct tensor *a = &tensors->list[i];
        total += a->bytes;
        for (int k = 0; k < i; k++) {
            const struct tensor *b = &tensors->list[k];
            if (a->data < b->data + b->bytes && b->data < a->data + a->bytes) {
                return false;
            }
        }
        if (a->data > data + size) {
            return false;
        }
    }
    return total == size;
}

static bool read_header(struct tensors *tensors, const uint8_t *data, size_t size) {
    const struct json *json = &tensors->json;
    const struct json_node *root = json->nodes, *name = json_first(json, root);
    if (!json_is(root, JSON_OBJECT)) {
        return false;
    }
    while (name != NULL) {
        const struct json_node *entry = json_next(json, root, name);
        if (!json_equals(json, name, "__metadata__")) {
            if (tensors->count == TENSORS_MAX ||
                !read_tensor(json, name, entry, data, size, &tensors->list[tensors->count])) {
                return false;
            }
            tensors->count++;
        }
        name = json_next(json, root, entry);
    }
    return covers(tensors, data, size);
}

static int invalid(const char *path) {
    return fail(EDGESEG_STATUS_ARTEFACT,
                "'%s' is not a valid safetensors file; copy it again or export it again", path);
}

int tensors_open(struct tensors *tensors, const struct file *file, const char *path) {
    *tensors = (struct tensors){0};
    uint64_t length = 0;
    if (file->size < 8) {
        return invalid(path);
    }
    for (int i = 7; i >= 0; i--) {
        length = length << 8 | file->content[i];
    }
    if (length > file->size - 8) {
        return invalid(path);
    }
    const uint8_t *text = file->content + 8;
    enum json_outcome outcome =
        json_parse(&tensors->json, (const char *)text, (size_t)length);
    if (outcome == JSON_NO_MEMORY) {
        return fail_memory(path);
    }
    if (outcome == JSON_OK &&
        read_header(tensors, text + length, file->size - 8 - (size_t)length)) {
        return EDGESEG_STATUS_OK;
    }
    tensors_close(tensors);
    return invalid(path);
}

void tensors_close(struct tensors *tensors) {
    json_free(&tensors->json);
    tensors->count = 0;
}

const struct tensor *tensors_find(const struct tensors *tensors, const char *name) {
    for (int i = 0; i < tensors->count; i++) {
        if (json_equals(&tensors->json, tensors->list[i].name, name)) {
            return &tensors->list[i];
        }
    }
    return NULL;
}

static float from_half(uint32_t half) {
    const uint32_t exponent = half >> 10 & 31, fraction = half & 0x3ff;
    float value;
    if (exponent == 31) {
        value = fraction == 0 ? INFINITY : NAN;
    } else if (exponent == 0) {
        value = (float)fraction * 0x1p-24f;
    } else {
        value = ldexpf((float)(fraction | 0x400), (int)exponent - 25);
    }
    return half & 0x8000 ? -value : value;
}

static float element(const struct tensor *t, size_t i) {
    const uint8_t *at = t->data + i * (size_t)t->element_size;
    if (t->element_size == 2) {
        return from_half((uint32_t)at[0] | (uint32_t)at[1] << 8);
    }
    const uint32_t bits = (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 |
                          (uint32_t)at[3] << 24;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

int tensor_floats(const struct tensor *tensor, const char *path, float **values) {
    if (tensor->dtype[0] != 'F') {
        return fail(EDGESEG_STATUS_ARTEFACT,
                    "'%s' holds a tensor of %s where a head has F32 or F16; export it again", path,
                    tensor->dtype);
    }
    /* count is bounded by the file's size; one more so that an empty tensor is no failure. */
    float *result = malloc((tensor->count + 1) * sizeof *result);
    if (result == NULL) {
        return fail_memory(path);
    }
    for (size_t i = 0; i < tensor->count; i++) {
        result[i] = element(tensor, i);
        if (!isfinite(result[i])) {
            free(result);
            return fail(EDGESEG_STATUS_ARTEFACT,
                        "'%s' holds numbers that are not finite; export the bundle again", path);
        }
    }
    *values = result;
    return EDGESEG_STATUS_OK;
}
