/* One frame: from the caller's pixels to class map, score and summary. */
#include "error.h"
#include "machine.h"
#include "session.h"
#include "sized.h"
#include "summary.h"

#include <string.h>

/* The structs of version 0.1. */
#define FRAME_LEAST SIZE_UP_TO(edgeseg_frame, captured_ns)
#define RESULT_LEAST SIZE_UP_TO(edgeseg_result, timings)

/* The caller's wishes, and an empty result: what stands if the call fails. */
static int take_result(edgeseg_result *given, edgeseg_result *result) {
    if (given == NULL || !sized_in(result, sizeof *result, RESULT_LEAST, given)) {
        return fail(EDGESEG_STATUS_ARGUMENT,
                    "edgeseg_result is NULL or its size is not set; use the _INIT macro");
    }
    const edgeseg_result empty = {.size = sizeof empty,
                                  .class_map_out = result->class_map_out,
                                  .score_out = result->score_out};
    *result = empty;
    (void)sized_out(given, result, sizeof *result, RESULT_LEAST);
    return EDGESEG_STATUS_OK;
}

/* After take_result(), so that the result is empty where this fails. */
static int check_session(const edgeseg_session *session, const edgeseg_result *result) {
    if (session == NULL) {
        return fail(EDGESEG_STATUS_ARGUMENT, "a session is needed to run a frame, not NULL");
    }
    const size_t alignment = session->score_type == EDGESEG_SCORE_FLOAT16 ? 2 : 4;
    if ((uintptr_t)result->score_out % alignment != 0) {
        return fail(EDGESEG_STATUS_ARGUMENT, "score_out is not aligned to its type");
    }
    return EDGESEG_STATUS_OK;
}

/* Head and summary of the features at hand. */
static int finish(edgeseg_session *s, const struct choice *chosen, double threshold,
                  edgeseg_result *result) {
    uint8_t *class_map = result->class_map_out != NULL ? result->class_map_out : s->class_map;
    void *score = result->score_out != NULL ? result->score_out : s->score;
    const int64_t start = now_ns();
    int status = edgeseg_head_set_scorer(s->head, chosen->scorer->id, chosen->temperature);
    if (status == EDGESEG_OK) {
        status = edgeseg_head_run(s->head, s->features, class_map, score);
    }
    const int64_t scored = now_ns();
    if (status != EDGESEG_OK) {
        return kernel_status(status, "the head");
    }
    summarize(score, s->score_type, s->region, s->region_pixels,
              (int64_t)s->body.height * s->body.width, threshold, &result->summary);
    result->timings.head = scored - start;
    result->timings.summary = now_ns() - scored;
    result->class_map = class_map;
    result->score = score;
    result->sequence = s->sequence;
    return EDGESEG_STATUS_OK;
}

static int infer(edgeseg_session *s, const edgeseg_frame *frame, edgeseg_result *result) {
    /* Whatever fails from here on, the features are no longer those of the last result. */
    s->features = NULL;
    const uint8_t *input = frame->plane[0];
    int status = EDGESEG_STATUS_OK;
    if (!preprocess_ready(&s->preprocess, frame)) {
        input = s->frame;
        status = preprocess_run(&s->preprocess, frame, s->frame, &result->timings);
    }
    if (status != EDGESEG_STATUS_OK) {
        return status;
    }
    const float *features;
    const int64_t start = now_ns();
    status = s->engine->class->run(s->engine, input, &features);
    result->timings.body = now_ns() - start;
    if (status == EDGESEG_STATUS_OK) {
        s->features = features;
        s->sequence++;
    }
    return status;
}

static int run(edgeseg_session *s, const edgeseg_frame *frame, int64_t start,
               edgeseg_result *result) {
    const int64_t captured = frame->captured_ns != 0 ? frame->captured_ns : start;
    const int64_t arrived = now_ns();
    if (captured > arrived) {
        /* A negative age would hide every delay. */
        return fail(EDGESEG_STATUS_ARGUMENT, "captured_ns lies %lld ns in the future; it must be "
                                             "on CLOCK_MONOTONIC",
                    (long long)(captured - arrived));
    }
    if (s->skip_stale && s->deadline_ns > 0 && arrived - captured > s->deadline_ns) {
        result->age_ns = arrived - captured;
        return EDGESEG_STATUS_STALE;
    }
    int status = infer(s, frame, result);
    if (status == EDGESEG_STATUS_OK) {
        status = finish(s, &s->chosen, s->threshold, result);
    }
    if (status != EDGESEG_STATUS_OK) {
        return status;
    }
    const int64_t end = now_ns();
    result->age_ns = end - captured;
    result->timings.total = end - start;
    return s->deadline_ns > 0 && result->age_ns > s->deadline_ns ? EDGESEG_STATUS_LATE
                                                                 : EDGESEG_STATUS_OK;
}

static int take_frame(const edgeseg_frame *given, edgeseg_frame *frame) {
    if (given == NULL || !sized_in(frame, sizeof *frame, FRAME_LEAST, given)) {
        return fail(EDGESEG_STATUS_ARGUMENT, "edgeseg_frame is NULL, its size is not set, or it "
                                             "asks for what this version does not know");
    }
    return frame_check(frame);
}

int edgeseg_session_run(edgeseg_session *session, const edgeseg_frame *frame,
                        edgeseg_result *result) {
    const int64_t start = now_ns();
    edgeseg_frame known;
    edgeseg_result found;
    int status = take_result(result, &found);
    if (status == EDGESEG_STATUS_OK) {
        status = check_session(session, &found);
    }
    if (status == EDGESEG_STATUS_OK) {
        status = take_frame(frame, &known);
    }
    if (status != EDGESEG_STATUS_OK) {
        return status;
    }
    pthread_mutex_lock(&session->mutex);
    status = run(session, &known, start, &found);
    pthread_mutex_unlock(&session->mutex);
    if (status >= 0) {
        (void)sized_out(result, &found, sizeof found, RESULT_LEAST);
    }
    return status;
}

int edgeseg_session_infer(edgeseg_session *session, const edgeseg_frame *frame) {
    edgeseg_frame known;
    edgeseg_result unused = EDGESEG_RESULT_INIT;
    if (session == NULL) {
        return fail(EDGESEG_STATUS_ARGUMENT, "edgeseg_session_infer was given no session");
    }
    int status = take_frame(frame, &known);
    if (status == EDGESEG_STATUS_OK) {
        pthread_mutex_lock(&session->mutex);
        status = infer(session, &known, &unused);
        pthread_mutex_unlock(&session->mutex);
    }
    return status;
}

int edgeseg_session_rescore(edgeseg_session *session, const char *scorer, double temperature,
                            edgeseg_result *result) {
    const int64_t start = now_ns();
    edgeseg_result found;
    struct choice chosen;
    int status = take_result(result, &found);
    if (status == EDGESEG_STATUS_OK) {
        status = check_session(session, &found);
    }
    if (status != EDGESEG_STATUS_OK) {
        return status;
    }
    pthread_mutex_lock(&session->mutex);
    if (session->features == NULL) {
        status = fail(EDGESEG_STATUS_ARGUMENT, "no frame has been run that could be scored again");
    } else {
        status = choose(session->bundle, scorer, temperature, session->chosen.scorer, &chosen);
    }
    if (status == EDGESEG_STATUS_OK) {
        status = finish(session, &chosen, default_threshold(&chosen), &found);
    }
    pthread_mutex_unlock(&session->mutex);
    if (status == EDGESEG_STATUS_OK) {
        found.timings.total = now_ns() - start;
        (void)sized_out(result, &found, sizeof found, RESULT_LEAST);
    }
    return status;
}

int edgeseg_session_features(edgeseg_session *session, const float **features, size_t *count) {
    if (session == NULL || features == NULL || count == NULL) {
        return fail(EDGESEG_STATUS_ARGUMENT, "edgeseg_session_features was given NULL");
    }
    int status = EDGESEG_STATUS_OK;
    pthread_mutex_lock(&session->mutex);
    if (session->features == NULL) {
        status = fail(EDGESEG_STATUS_ARGUMENT, "no frame has been run");
    } else {
        *features = session->features;
        *count = session->body.features;
    }
    pthread_mutex_unlock(&session->mutex);
    return status;
}
