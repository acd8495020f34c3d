/* A bundle on an engine. */
#ifndef EDGESEG_SESSION_H
#define EDGESEG_SESSION_H

#include "bundle.h"
#include "edgeseg_kernels.h"
#include "engine.h"
#include "frame.h"

#include <pthread.h>

#define MAX_THREADS EDGESEG_MAX_THREADS

struct choice {
    const struct scorer *scorer;
    double temperature;
};

struct edgeseg_session {
    pthread_mutex_t mutex; /* guards what follows, and the calls */
    edgeseg_bundle *bundle;
    struct body body;
    struct engine *engine;
    edgeseg_head *head;
    struct preprocess preprocess;
    uint8_t *frame; /* what the engine reads where a caller's frame is not as it must be */
    uint8_t *class_map;
    void *score;
    const float *features; /* of the last frame; NULL before the first */
    struct choice chosen;
    double threshold; /* NAN for none */
    uint8_t *region;  /* NULL for everywhere */
    int64_t region_pixels;
    int32_t score_type, threads, skip_stale;
    int64_t deadline_ns;
    uint64_t sequence;
};

/* scorer NULL: current's. temperature 0: the bundle's. Errors: ARGUMENT. */
int choose(const edgeseg_bundle *bundle, const char *scorer, double temperature,
           const struct scorer *current, struct choice *chosen);
/* The bundle's for a choice, or NAN. */
double default_threshold(const struct choice *chosen);

#endif
