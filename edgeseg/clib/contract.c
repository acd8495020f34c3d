/* What a bundle promises, for those who open it. */
#include "bundle.h"
#include "error.h"
#include "sized.h"

#include <string.h>

/* The structs of version 0.1. */
#define CONTRACT_LEAST SIZE_UP_TO(edgeseg_contract, body_sha256)
#define DEFAULTS_LEAST SIZE_UP_TO(edgeseg_scorer_defaults, reserved)

static int not_sized(const char *name) {
    return fail(EDGESEG_STATUS_ARGUMENT, "%s is NULL or its size is not set; use the _INIT macro",
                name);
}

int edgeseg_bundle_contract(const edgeseg_bundle *bundle, edgeseg_contract *contract) {
    if (bundle == NULL) {
        return fail(EDGESEG_STATUS_ARGUMENT, "edgeseg_bundle_contract was given no bundle");
    }
    const struct manifest *m = &bundle->manifest;
    const edgeseg_contract found = {
        .size = sizeof found,
        .height = m->height,
        .width = m->width,
        .num_classes = m->num_classes,
        .num_scorers = m->num_scorers,
        .has_void = m->head.void_index >= 0,
        .network = m->network,
        .weights = m->weights,
        .license = m->license,
        .precision = m->precision,
        .compute_precision = m->compute_precision,
        .default_scorer = scorer_names[manifest_default_scorer(m)->id],
        .body_sha256 = bundle->body.sha256,
    };
    if (contract == NULL || !sized_out(contract, &found, sizeof found, CONTRACT_LEAST)) {
        return not_sized("edgeseg_contract");
    }
    return EDGESEG_STATUS_OK;
}

int edgeseg_bundle_scorer(const edgeseg_bundle *bundle, int32_t index,
                          edgeseg_scorer_defaults *defaults) {
    if (bundle == NULL || index < 0 || index >= bundle->manifest.num_scorers) {
        return fail(EDGESEG_STATUS_ARGUMENT, "there is no scorer %d in the bundle", (int)index);
    }
    const struct scorer *s = &bundle->manifest.scorers[index];
    const edgeseg_scorer_defaults found = {
        .size = sizeof found,
        .name = scorer_names[s->id],
        .temperature = s->temperature,
        .threshold = s->threshold,
        .has_threshold = s->has_threshold,
    };
    if (defaults == NULL || !sized_out(defaults, &found, sizeof found, DEFAULTS_LEAST)) {
        return not_sized("edgeseg_scorer_defaults");
    }
    return EDGESEG_STATUS_OK;
}

const char *edgeseg_bundle_class(const edgeseg_bundle *bundle, int32_t index) {
    if (bundle == NULL || index < 0 || index >= bundle->manifest.num_classes) {
        return NULL;
    }
    return bundle->manifest.classes[index];
}

int edgeseg_bundle_colour(const edgeseg_bundle *bundle, int32_t index, uint8_t rgb[3]) {
    if (bundle == NULL || rgb == NULL || index < 0 || index >= bundle->manifest.num_classes) {
        return fail(EDGESEG_STATUS_ARGUMENT, "there is no class %d in the bundle", (int)index);
    }
    memcpy(rgb, bundle->manifest.palette[index], 3);
    return EDGESEG_STATUS_OK;
}
