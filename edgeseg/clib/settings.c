/* What can be changed between the frames of a session. */
#include "error.h"
#include "session.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static int no_session(const char *function) {
    return fail(EDGESEG_STATUS_ARGUMENT, "%s was given no session", function);
}

int edgeseg_session_set_scorer(edgeseg_session *session, const char *scorer, double temperature) {
    if (session == NULL) {
        return no_session("edgeseg_session_set_scorer");
    }
    struct choice chosen;
    pthread_mutex_lock(&session->mutex);
    int status =
        choose(session->bundle, scorer, temperature, session->chosen.scorer, &chosen);
    if (status == EDGESEG_STATUS_OK) {
        status = kernel_status(
            edgeseg_head_set_scorer(session->head, chosen.scorer->id, chosen.temperature),
            "this scorer");
    }
    if (status == EDGESEG_STATUS_OK) {
        session->chosen = chosen;
        session->threshold = default_threshold(&chosen);
    }
    pthread_mutex_unlock(&session->mutex);
    return status;
}

int edgeseg_session_set_threshold(edgeseg_session *session, double threshold) {
    if (session == NULL) {
        return no_session("edgeseg_session_set_threshold");
    }
    if (isinf(threshold)) {
        return fail(EDGESEG_STATUS_ARGUMENT, "an infinite threshold cannot be; NAN is for none");
    }
    pthread_mutex_lock(&session->mutex);
    session->threshold = threshold;
    pthread_mutex_unlock(&session->mutex);
    return EDGESEG_STATUS_OK;
}

double edgeseg_session_threshold(const edgeseg_session *session) {
    if (session == NULL) {
        return (double)NAN;
    }
    /* Reading, too, waits for the call under way; the mutex is what changes. */
    pthread_mutex_t *mutex = (pthread_mutex_t *)(uintptr_t)&session->mutex;
    pthread_mutex_lock(mutex);
    const double threshold = session->threshold;
    pthread_mutex_unlock(mutex);
    return threshold;
}

int edgeseg_session_set_deadline(edgeseg_session *session, int64_t deadline_ns,
                                 int32_t skip_stale) {
    if (session == NULL) {
        return no_session("edgeseg_session_set_deadline");
    }
    if (deadline_ns < 0) {
        return fail(EDGESEG_STATUS_ARGUMENT, "a deadline of %lld ns lies before the frame",
                    (long long)deadline_ns);
    }
    pthread_mutex_lock(&session->mutex);
    session->deadline_ns = deadline_ns;
    session->skip_stale = skip_stale != 0;
    pthread_mutex_unlock(&session->mutex);
    return EDGESEG_STATUS_OK;
}

/* 255 where a pixel counts; how many do. */
static int64_t copy_mask(uint8_t *region, const uint8_t *mask, ptrdiff_t stride, int height,
                         int width) {
    int64_t counted = 0;
    for (int y = 0; y < height; y++) {
        const uint8_t *row = mask + y * stride;
        for (int x = 0; x < width; x++) {
            counted += row[x] != 0;
            *region++ = row[x] != 0 ? 255 : 0;
        }
    }
    return counted;
}

int edgeseg_session_set_region(edgeseg_session *session, const uint8_t *mask,
                               ptrdiff_t row_stride) {
    if (session == NULL) {
        return no_session("edgeseg_session_set_region");
    }
    const int height = session->body.height, width = session->body.width;
    int64_t counted = (int64_t)height * width;
    uint8_t *region = NULL;
    if (mask != NULL) {
        if (row_stride > -width && row_stride < width) {
            return fail(EDGESEG_STATUS_ARGUMENT, "row_stride %lld of a region %d wide is too small",
                        (long long)row_stride, width);
        }
        region = malloc((size_t)counted);
        if (region == NULL) {
            return fail_memory("a region of interest");
        }
        counted = copy_mask(region, mask, row_stride, height, width);
        if (counted == 0) {
            free(region);
            return fail(EDGESEG_STATUS_ARGUMENT,
                        "the region of interest is empty; mark at least one pixel");
        }
    }
    pthread_mutex_lock(&session->mutex);
    free(session->region);
    session->region = region;
    session->region_pixels = counted;
    pthread_mutex_unlock(&session->mutex);
    return EDGESEG_STATUS_OK;
}
