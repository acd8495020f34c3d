/* Opening, describing and closing a session. */
#include "session.h"

#include "error.h"
#include "machine.h"
#include "sized.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define ALIGNMENT 64

/* The structs of version 0.1. */
#define OPTIONS_LEAST SIZE_UP_TO(edgeseg_session_options, deadline_ns)
#define INFO_LEAST SIZE_UP_TO(edgeseg_session_info, score_type)

int choose(const edgeseg_bundle *bundle, const char *scorer, double temperature,
           const struct scorer *current, struct choice *chosen) {
    const struct scorer *found =
        scorer == NULL ? current : manifest_scorer(&bundle->manifest, scorer);
    if (found == NULL) {
        return fail(EDGESEG_STATUS_ARGUMENT, "the bundle has no scorer '%s'", scorer);
    }
    if (!isfinite(temperature) || temperature < 0) {
        return fail(EDGESEG_STATUS_ARGUMENT, "temperature %g is not a positive number",
                    temperature);
    }
    chosen->scorer = found;
    chosen->temperature = temperature > 0 ? temperature : found->temperature;
    return EDGESEG_STATUS_OK;
}

double default_threshold(const struct choice *chosen) {
    const struct scorer *s = chosen->scorer;
    const bool known = s->has_threshold && !(s->temperature < chosen->temperature) &&
                       !(s->temperature > chosen->temperature);
    return known ? s->threshold : (double)NAN;
}

static int check_options(const edgeseg_session_options *o) {
    if (o->threads < 0 || o->threads > MAX_THREADS) {
        return fail(EDGESEG_STATUS_ARGUMENT, "%d threads cannot be had; give 1 to %d, or 0",
                    (int)o->threads, MAX_THREADS);
    }
    if (o->score_type != EDGESEG_SCORE_FLOAT16 && o->score_type != EDGESEG_SCORE_FLOAT32) {
        return fail(EDGESEG_STATUS_ARGUMENT, "score type %d is neither float16 nor float32",
                    (int)o->score_type);
    }
    if (o->deadline_ns < 0) {
        return fail(EDGESEG_STATUS_ARGUMENT, "a deadline of %lld ns lies before the frame",
                    (long long)o->deadline_ns);
    }
    if (o->has_threshold != 0 && !isfinite(o->threshold)) {
        return fail(EDGESEG_STATUS_ARGUMENT, "threshold %g is not a finite number", o->threshold);
    }
    return EDGESEG_STATUS_OK;
}

static void *aligned(size_t bytes) {
    void *memory = aligned_alloc(ALIGNMENT, (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
    if (memory != NULL) {
        memset(memory, 0, bytes);
    }
    return memory;
}

static int open_buffers(edgeseg_session *s) {
    const struct manifest *m = &s->bundle->manifest;
    const size_t pixels = (size_t)m->height * (size_t)m->width;
    s->frame = aligned(pixels * 3);
    s->class_map = aligned(pixels);
    s->score = aligned(pixels * (s->score_type == EDGESEG_SCORE_FLOAT16 ? 2 : 4));
    if (s->frame == NULL || s->class_map == NULL || s->score == NULL) {
        return fail_memory("a session");
    }
    s->preprocess.height = m->height;
    s->preprocess.width = m->width;
    s->preprocess.threads = s->threads;
    s->region_pixels = (int64_t)pixels;
    return EDGESEG_STATUS_OK;
}

static int open_engine(edgeseg_session *s, const edgeseg_session_options *options) {
    const edgeseg_bundle *b = s->bundle;
    const struct manifest *m = &b->manifest;
    const int64_t rows = m->height / m->head.factor, columns = m->width / m->head.factor;
    const int64_t channels = b->channels_in;
    s->body = (struct body){
        .file = &b->body,
        .path = b->body_path,
        .height = m->height,
        .width = m->width,
        .features = (size_t)rows * (size_t)columns * (size_t)channels,
        .shapes = {{1, channels, rows, columns}},
        .ranks = {4, 0},
        .compute_precision = m->compute_precision,
        .threads = s->threads,
        .frame = s->frame,
        .library = options->engine_library,
    };
    if (m->head.layout == EDGESEG_LAYOUT_NHWC) {
        /* Bodies may leave rows and columns in one axis: engines write channels-last features
         * straight to their place only then. */
        const int64_t shapes[2][4] = {{1, rows, columns, channels}, {1, rows * columns, channels}};
        memcpy(s->body.shapes, shapes, sizeof shapes);
        s->body.ranks[1] = 3;
    }
    return engine_open(options->engine, &s->body, &s->engine);
}

static int open_head(edgeseg_session *s) {
    const edgeseg_bundle *b = s->bundle;
    const struct head_entry *h = &b->manifest.head;
    const edgeseg_head_config config = {
        .kind = h->kind,
        .layout = h->layout,
        .channels_in = b->channels_in,
        .num_outputs = h->num_outputs,
        .num_known = h->num_known,
        .void_index = h->void_index,
        .factor = h->factor,
        .feature_height = b->manifest.height / h->factor,
        .feature_width = b->manifest.width / h->factor,
        .scorer = s->chosen.scorer->id,
        .score_type = s->score_type,
        .threads = s->threads,
        .isomax = h->isomax,
        .isomax_scale = (float)h->isomax_scale,
        .temperature = s->chosen.temperature,
        .weight = b->weight,
        .bias = b->bias,
        .prototypes = b->prototypes,
    };
    return kernel_status(edgeseg_head_open(&config, &s->head), "the head");
}

/* What an engine allocates on its first run should not happen on the first frame. */
static int warm_up(edgeseg_session *s) {
    const float *features;
    const int status = s->engine->class->run(s->engine, s->frame, &features);
    if (status != EDGESEG_STATUS_OK) {
        return status;
    }
    return kernel_status(edgeseg_head_run(s->head, features, s->class_map, s->score), "the head");
}

static int open_session(edgeseg_session *s, const edgeseg_session_options *o) {
    const struct scorer *usual = manifest_default_scorer(&s->bundle->manifest);
    int status = check_options(o);
    if (status == EDGESEG_STATUS_OK) {
        status = choose(s->bundle, o->scorer, o->temperature, usual, &s->chosen);
    }
    if (status != EDGESEG_STATUS_OK) {
        return status;
    }
    const int cores = available_cores();
    s->threads = o->threads > 0 ? o->threads : cores < MAX_THREADS ? cores : MAX_THREADS;
    s->score_type = o->score_type;
    s->skip_stale = o->skip_stale != 0;
    s->deadline_ns = o->deadline_ns;
    s->threshold = o->has_threshold != 0 ? o->threshold : default_threshold(&s->chosen);
    status = open_buffers(s);
    if (status == EDGESEG_STATUS_OK) {
        status = open_engine(s, o);
    }
    if (status == EDGESEG_STATUS_OK) {
        status = open_head(s);
    }
    return status == EDGESEG_STATUS_OK ? warm_up(s) : status;
}

int edgeseg_session_open(const edgeseg_bundle *bundle, const edgeseg_session_options *options,
                         edgeseg_session **session) {
    const edgeseg_session_options defaults = EDGESEG_SESSION_OPTIONS_INIT;
    edgeseg_session_options known;
    if (bundle == NULL || session == NULL) {
        return fail(EDGESEG_STATUS_ARGUMENT, "edgeseg_session_open needs a bundle and a place for "
                                             "the handle, not NULL");
    }
    if (!sized_in(&known, sizeof known, OPTIONS_LEAST, options == NULL ? &defaults : options)) {
        return fail(EDGESEG_STATUS_ARGUMENT, "the size of edgeseg_session_options is not set, or "
                                             "it asks for what this version does not know");
    }
    edgeseg_session *s = calloc(1, sizeof *s);
    if (s == NULL) {
        return fail_memory("a session");
    }
    if (pthread_mutex_init(&s->mutex, NULL) != 0) {
        free(s);
        return fail_memory("a session");
    }
    /* A handle's count of owners is the one thing in it that is written to. */
    s->bundle = bundle_keep((edgeseg_bundle *)(uintptr_t)bundle);
    const int status = open_session(s, &known);
    if (status != EDGESEG_STATUS_OK) {
        edgeseg_session_close(s);
        return status;
    }
    *session = s;
    return EDGESEG_STATUS_OK;
}

void edgeseg_session_close(edgeseg_session *session) {
    if (session == NULL) {
        return;
    }
    if (session->engine != NULL) {
        session->engine->class->close(session->engine);
    }
    edgeseg_head_close(session->head);
    preprocess_close(&session->preprocess);
    free(session->frame);
    free(session->class_map);
    free(session->score);
    free(session->region);
    edgeseg_bundle_close(session->bundle);
    (void)pthread_mutex_destroy(&session->mutex);
    free(session);
}

int edgeseg_session_describe(edgeseg_session *session, edgeseg_session_info *info) {
    if (session == NULL || info == NULL) {
        return fail(EDGESEG_STATUS_ARGUMENT, "edgeseg_session_describe was given NULL");
    }
    pthread_mutex_lock(&session->mutex);
    const edgeseg_session_info found = {
        .size = sizeof found,
        .engine = session->engine->class->name,
        .engine_version = session->engine->version,
        .engine_library = session->engine->library,
        .compute_precision = session->engine->compute_precision,
        .isa = edgeseg_head_isa(session->head),
        .scorer = scorer_names[session->chosen.scorer->id],
        .temperature = session->chosen.temperature,
        .threads = session->threads,
        .score_type = session->score_type,
    };
    pthread_mutex_unlock(&session->mutex);
    return sized_out(info, &found, sizeof found, INFO_LEAST)
               ? EDGESEG_STATUS_OK
               : fail(EDGESEG_STATUS_ARGUMENT, "the size of edgeseg_session_info is not set; use "
                                               "the _INIT macro");
}
