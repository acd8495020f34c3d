#include "frame.h"

#include "error.h"
#include "internal.h"
#include "machine.h"
#include "yuv.h"

#include <stdlib.h>

#define MAX_SIDE 65536
#define ROWS 16 /* converted at a time: some tens of microseconds at full HD */

static bool stride_fits(ptrdiff_t stride, int64_t row, int32_t rows) {
    return rows == 1 || stride >= row || stride <= -row;
}

int frame_check(const edgeseg_frame *frame) {
    static const int bytes[] = {3, 3, 1, 2};
    const bool yuv = frame->pixels == EDGESEG_PIXELS_NV12 || frame->pixels == EDGESEG_PIXELS_YUYV;
    const bool two = frame->pixels == EDGESEG_PIXELS_NV12;
    if (frame->pixels < EDGESEG_PIXELS_BGR || frame->pixels > EDGESEG_PIXELS_YUYV) {
        return fail(EDGESEG_STATUS_ARGUMENT, "pixels %d of a frame are of no format that is known",
                    (int)frame->pixels);
    }
    if (frame->height < 1 || frame->height > MAX_SIDE || frame->width < 1 ||
        frame->width > MAX_SIDE) {
        return fail(EDGESEG_STATUS_ARGUMENT,
                    "a frame of %dx%d cannot be; sides are between 1 and 65536",
                    (int)frame->height, (int)frame->width);
    }
    if ((yuv && frame->width % 2 != 0) || (two && frame->height % 2 != 0)) {
        return fail(EDGESEG_STATUS_ARGUMENT,
                    "a frame of %dx%d cannot be NV12 or YUYV: pixels come in pairs there",
                    (int)frame->height, (int)frame->width);
    }
    if (yuv && (frame->matrix < EDGESEG_MATRIX_BT601 || frame->matrix > EDGESEG_MATRIX_BT709 ||
                frame->range < EDGESEG_RANGE_LIMITED || frame->range > EDGESEG_RANGE_FULL)) {
        return fail(EDGESEG_STATUS_ARGUMENT, "matrix %d or range %d of a frame is unknown",
                    (int)frame->matrix, (int)frame->range);
    }
    if (frame->plane[0] == NULL || (two && frame->plane[1] == NULL)) {
        return fail(EDGESEG_STATUS_ARGUMENT, "a plane of the frame is NULL");
    }
    const int64_t row = (int64_t)frame->width * bytes[frame->pixels];
    if (!stride_fits(frame->stride[0], row, frame->height) ||
        (two && !stride_fits(frame->stride[1], frame->width, frame->height / 2))) {
        return fail(EDGESEG_STATUS_ARGUMENT,
                    "a stride of the frame is smaller than a row of it (%lld bytes)",
                    (long long)row);
    }
    if (frame->captured_ns < 0) {
        return fail(EDGESEG_STATUS_ARGUMENT, "captured_ns is negative; it must be on "
                                             "CLOCK_MONOTONIC, or 0 for the moment of the call");
    }
    return EDGESEG_STATUS_OK;
}

int kernel_status(int status, const char *what) {
    switch (status) {
    case EDGESEG_OK:
        return EDGESEG_STATUS_OK;
    case EDGESEG_NO_MEMORY:
        return fail_memory(what);
    case EDGESEG_NO_THREAD:
        return fail(EDGESEG_STATUS_NO_THREAD,
                    "no worker thread could be started for %s; ask for fewer threads", what);
    default:
        return fail(EDGESEG_STATUS_ARGUMENT, "the kernels cannot do %s: a size is out of range",
                    what);
    }
}

static int open_plan(struct preprocess *p, const edgeseg_frame *frame, int swap) {
    if (p->plan != NULL && p->plan_height == frame->height && p->plan_width == frame->width &&
        p->plan_swap == swap) {
        return EDGESEG_STATUS_OK;
    }
    edgeseg_resize_close(p->plan);
    p->plan = NULL;
    const int status = edgeseg_resize_open(frame->height, frame->width, p->height, p->width, swap,
                                           p->threads, EDGESEG_ISA_AUTO, &p->plan);
    p->plan_height = frame->height;
    p->plan_width = frame->width;
    p->plan_swap = swap;
    return kernel_status(status, "the resize of a frame");
}

static void convert_rows(void *context, int slot, int item) {
    const struct preprocess *p = context;
    const int first = item * ROWS, rows = p->frame->height - first;
    (void)slot;
    yuv_to_bgr(p->frame, first, first + (rows < ROWS ? rows : ROWS), p->bgr);
}

static int convert(struct preprocess *p, const edgeseg_frame *frame) {
    const size_t needed = (size_t)frame->height * (size_t)frame->width * 3;
    if (needed > p->bgr_room) {
        free(p->bgr);
        p->bgr = malloc(needed);
        p->bgr_room = p->bgr == NULL ? 0 : needed;
        if (p->bgr == NULL) {
            return fail_memory("a converted frame");
        }
    }
    if (p->pool == NULL) {
        const int status = pool_open(p->threads, &p->pool);
        if (status != EDGESEG_OK) {
            return kernel_status(status, "the conversion of a frame");
        }
    }
    p->frame = frame;
    pool_lock(p->pool);
    pool_run(p->pool, convert_rows, p, (frame->height + ROWS - 1) / ROWS);
    pool_unlock(p->pool);
    return EDGESEG_STATUS_OK;
}

bool preprocess_ready(const struct preprocess *p, const edgeseg_frame *frame) {
    return frame->pixels == EDGESEG_PIXELS_BGR && frame->height == p->height &&
           frame->width == p->width && frame->stride[0] == (ptrdiff_t)frame->width * 3;
}

int preprocess_run(struct preprocess *p, const edgeseg_frame *frame, uint8_t *out,
                   edgeseg_timings *timings) {
    const int64_t start = now_ns();
    const bool yuv = frame->pixels == EDGESEG_PIXELS_NV12 || frame->pixels == EDGESEG_PIXELS_YUYV;
    int status = open_plan(p, frame, frame->pixels == EDGESEG_PIXELS_RGB);
    if (status == EDGESEG_STATUS_OK && yuv) {
        status = convert(p, frame);
    }
    if (status != EDGESEG_STATUS_OK) {
        return status;
    }
    const int64_t converted = yuv ? now_ns() : start;
    const uint8_t *from = yuv ? p->bgr : frame->plane[0];
    const ptrdiff_t stride = yuv ? (ptrdiff_t)frame->width * 3 : frame->stride[0];
    status = kernel_status(edgeseg_resize_run(p->plan, from, stride, out), "this frame");
    timings->convert = converted - start;
    timings->resize = now_ns() - converted;
    return status;
}

void preprocess_close(struct preprocess *p) {
    edgeseg_resize_close(p->plan);
    pool_close(p->pool);
    free(p->bgr);
}
