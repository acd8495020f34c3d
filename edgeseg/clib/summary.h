/* What a score says inside the region of interest. */
#ifndef EDGESEG_SUMMARY_H
#define EDGESEG_SUMMARY_H

#include "edgeseg.h"

/* score: [pixels], of score_type, without NaN. region: uint8 [pixels], 0 or 255, or NULL for
 * everywhere; counted: how many of it are not 0. threshold: NAN for none. The numbers are those of
 * analyse() in edgeseg/runtime/regions.py. */
void summarize(const void *score, int score_type, const uint8_t *region, int64_t counted,
               int64_t pixels, double threshold, edgeseg_summary *summary);

#endif
