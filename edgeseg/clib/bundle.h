/* An opened, verified bundle. */
#ifndef EDGESEG_BUNDLE_H
#define EDGESEG_BUNDLE_H

#include "edgeseg.h"
#include "files.h"
#include "manifest.h"

#include <stdatomic.h>

struct edgeseg_bundle {
    atomic_int owners; /* the caller and every session */
    struct manifest manifest;
    struct file body;  /* what was verified is what engines are given */
    char *body_path;   /* for messages */
    int channels_in;   /* of the features */
    float *weight, *bias, *prototypes; /* NULL where the head has none */
};

edgeseg_bundle *bundle_keep(edgeseg_bundle *bundle);

#endif
