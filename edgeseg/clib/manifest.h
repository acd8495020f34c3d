/* bundle.json: what the library needs of it, read with suspicion. */
#ifndef EDGESEG_MANIFEST_H
#define EDGESEG_MANIFEST_H

#include "json.h"

#define MANIFEST_MAX_CLASSES 64
#define MANIFEST_SCORERS 5

struct scorer {
    int id; /* enum edgeseg_scorer of the kernels */
    double temperature, threshold;
    bool has_threshold;
};

struct listed_file {
    char *name;
    char sha256[65];
    int64_t bytes;
};

struct head_entry {
    int kind, layout; /* enums of the kernels */
    int factor, num_outputs, num_known;
    int void_index; /* -1 for none */
    bool isomax;
    double isomax_scale;
};

struct manifest {
    char *network, *weights, *license;
    const char *precision, *compute_precision; /* constant texts */
    int height, width;
    int num_classes;
    char *classes[MANIFEST_MAX_CLASSES];
    uint8_t palette[MANIFEST_MAX_CLASSES][3];
    struct scorer scorers[MANIFEST_SCORERS];
    int num_scorers;
    struct head_entry head;
    struct listed_file *files;
    int num_files;
};

/* Names of the scorers, in the order of the kernels' enum. */
extern const char *const scorer_names[MANIFEST_SCORERS];

/* Errors: ARTEFACT, NO_MEMORY; manifest is to be freed then, too. */
int manifest_read(struct manifest *manifest, const char *text, size_t length, const char *path);
void manifest_free(struct manifest *manifest);

/* NULL where the bundle has no such scorer. */
const struct scorer *manifest_scorer(const struct manifest *manifest, const char *name);
/* "void" where the network was trained for it, else "msp", else the first. */
const struct scorer *manifest_default_scorer(const struct manifest *manifest);
const struct listed_file *manifest_file(const struct manifest *manifest, const char *name);

#endif
