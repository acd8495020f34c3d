/* NV12 and YUYV to BGR. */
#ifndef EDGESEG_YUV_H
#define EDGESEG_YUV_H

#include "edgeseg.h"

/* Rows first .. last - 1. frame: checked, NV12 or YUYV. out: [height][width][3], contiguous. */
void yuv_to_bgr(const edgeseg_frame *frame, int first, int last, uint8_t *out);

#endif
