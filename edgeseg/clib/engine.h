/* Inference engines behind one small interface: uint8 frame in, float32 features out. */
#ifndef EDGESEG_ENGINE_H
#define EDGESEG_ENGINE_H

#include "edgeseg.h"
#include "files.h"

#include <stdbool.h>

#define ENGINE_NAME_ROOM 256

struct engine;

/* What an engine must be told about a body, and what it is held to. */
struct body {
    const struct file *file; /* body.onnx in memory; must live as long as the engine */
    const char *path;        /* for messages */
    int height, width;
    size_t features;               /* how many numbers the head takes */
    int64_t shapes[2][4];          /* of the features, as the head may take them */
    int ranks[2];                  /* 0: there is no second one */
    const char *compute_precision; /* "f32" or "bf16" */
    int threads;
    const uint8_t *frame;          /* what the first run will read */
    const char *library;           /* path or NULL */
};

struct engine_class {
    const char *name;
    /* version, library, precision: set by open. */
    int (*open)(const struct body *body, struct engine **engine);
    /* frame: [height][width][3] BGR, of any alignment; read until the call returns. *features
     * stays valid until the next run. Errors: ENGINE. */
    int (*run)(struct engine *engine, const uint8_t *frame, const float **features);
    void (*close)(struct engine *engine);
};

/* What every engine's own struct starts with. */
struct engine {
    const struct engine_class *class;
    char version[ENGINE_NAME_ROOM];
    char library[ENGINE_NAME_ROOM];
    const char *compute_precision; /* constant text */
};

extern const struct engine_class engine_onnxruntime, engine_openvino;
#if defined(EDGESEG_WITH_TENSORRT)
/* To be given by the build that has TensorRT's headers; no source here defines it. */
extern const struct engine_class engine_tensorrt;
#endif

/* name: NULL or "auto" for the first that is found. */
int engine_open(const char *name, const struct body *body, struct engine **engine);

/* Whether the graph's one input or output is what the bundle promises; type_fits: its element type
 * is uint8 or float32. Errors: ARTEFACT. */
int check_input(const struct body *body, const char *name, bool type_fits, int rank,
                const int64_t *shape);
int check_output(const struct body *body, const char *name, bool type_fits, int rank,
                 const int64_t *shape);

/* Where an engine's shared library may be. */
struct engine_files {
    const char *variable;      /* environment variable with a path */
    const char *beside;        /* folder of the Python package, from site-packages */
    const char *prefix;        /* of the file there */
    const char *const *system; /* names for the system's loader, NULL at the end */
};

/* dlopen() of the first that is there. What was loaded stays in the process: engines leave threads
 * and thread-local data behind that must not lose their code. library: receives its name. Errors:
 * MISSING. */
int engine_load(const char *engine, const struct engine_files *files, const char *wanted,
                void **handle, char library[ENGINE_NAME_ROOM]);

#endif
