/* A caller's frame, and bringing it to the network's size. */
#ifndef EDGESEG_FRAME_H
#define EDGESEG_FRAME_H

#include "edgeseg.h"
#include "edgeseg_kernels.h"

#include <stdbool.h>

/* Buffers and plan for the last size and format; made anew when those change. */
struct preprocess {
    int height, width, threads; /* of the network's frame */
    edgeseg_resize *plan;
    int plan_height, plan_width, plan_swap;
    uint8_t *bgr; /* room for a converted frame */
    size_t bgr_room;
    struct pool *pool;          /* that converts it; NULL before the first one */
    const edgeseg_frame *frame; /* of the conversion under way */
};

/* Errors: ARGUMENT. */
int frame_check(const edgeseg_frame *frame);

/* Whether the engine can read the frame where it lies. */
bool preprocess_ready(const struct preprocess *p, const edgeseg_frame *frame);

/* out: [height][width][3] BGR. Sets timings->convert and resize. Errors: NO_MEMORY, NO_THREAD,
 * ARGUMENT. */
int preprocess_run(struct preprocess *p, const edgeseg_frame *frame, uint8_t *out,
                   edgeseg_timings *timings);
void preprocess_close(struct preprocess *p);

/* Status of the kernels as one of the library. */
int kernel_status(int status, const char *what);

#endif
