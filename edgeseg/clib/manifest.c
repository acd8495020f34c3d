#include "manifest.h"

#include "edgeseg_kernels.h"
#include "error.h"

#include <stdlib.h>
#include <string.h>

#define SCHEMA "edgeseg.bundle/1"
#define MIN_SIDE 8
#define MAX_SIDE 8192
#define MAX_FILES 256

const char *const scorer_names[MANIFEST_SCORERS] = {"msp", "maxlogit", "entropy", "void",
                                                    "energy"};

struct reading {
    struct manifest *m;
    const struct json *json;
    const struct json_node *root;
    const char *path;
};

static int damaged(const struct reading *r, const char *what) {
    return fail(EDGESEG_STATUS_ARTEFACT, "'%s' is damaged (%s); export the bundle again", r->path,
                what);
}

static const struct json_node *member(const struct reading *r, const char *key) {
    return json_member(r->json, r->root, key);
}

/* Index of a string among names, or -1. */
static int choice(const struct json *json, const struct json_node *node,
                  const char *const names[], int count) {
    for (int i = 0; i < count; i++) {
        if (json_equals(json, node, names[i])) {
            return i;
        }
    }
    return -1;
}

static int read_text(const struct reading *r, const struct json_node *node, char **text) {
    bool memory;
    *text = json_string(r->json, node, &memory);
    if (*text != NULL) {
        return EDGESEG_STATUS_OK;
    }
    return memory ? fail_memory(r->path) : damaged(r, "a text is missing or not a text");
}

/* A text that a manifest may lack. */
static int read_optional(const struct reading *r, const char *key, char **text) {
    const struct json_node *node = member(r, key);
    if (node != NULL) {
        return read_text(r, node, text);
    }
    *text = calloc(1, 1);
    return *text == NULL ? fail_memory(r->path) : EDGESEG_STATUS_OK;
}

static bool read_int(const struct reading *r, const struct json_node *node, int low, int high,
                     int *value) {
    int64_t found;
    if (!json_integer(r->json, node, &found) || found < low || found > high) {
        return false;
    }
    *value = (int)found;
    return true;
}

static int read_size(const struct reading *r) {
    if (!read_int(r, member(r, "height"), MIN_SIDE, MAX_SIDE, &r->m->height) ||
        !read_int(r, member(r, "width"), MIN_SIDE, MAX_SIDE, &r->m->width)) {
        return damaged(r, "height or width is not between 8 and 8192");
    }
    return EDGESEG_STATUS_OK;
}

static bool read_colour(const struct reading *r, const struct json_node *node, uint8_t rgb[3]) {
    if (!json_is(node, JSON_ARRAY) || node->count != 3) {
        return false;
    }
    const struct json_node *item = json_first(r->json, node);
    for (int i = 0; i < 3; i++, item = json_next(r->json, node, item)) {
        int value;
        if (!read_int(r, item, 0, 255, &value)) {
            return false;
        }
        rgb[i] = (uint8_t)value;
    }
    return true;
}

static int read_classes(const struct reading *r) {
    const struct json_node *classes = member(r, "classes"), *palette = member(r, "palette");
    if (!json_is(classes, JSON_ARRAY) || !json_is(palette, JSON_ARRAY) ||
        classes->count != palette->count || classes->count == 0 ||
        classes->count > MANIFEST_MAX_CLASSES) {
        return damaged(r, "classes and palette are not two lists of the same length up to 64");
    }
    const struct json_node *name = json_first(r->json, classes);
    const struct json_node *colour = json_first(r->json, palette);
    for (; name != NULL; name = json_next(r->json, classes, name)) {
        const int i = r->m->num_classes;
        int status = read_text(r, name, &r->m->classes[i]);
        if (status != EDGESEG_STATUS_OK) {
            return status;
        }
        r->m->num_classes++;
        if (!read_colour(r, colour, r->m->palette[i])) {
            return damaged(r, "a colour is not three numbers from 0 to 255");
        }
        colour = json_next(r->json, palette, colour);
    }
    return EDGESEG_STATUS_OK;
}

static int read_scorers(const struct reading *r) {
    const struct json_node *scorers = member(r, "scorers");
    if (!json_is(scorers, JSON_OBJECT) || scorers->count == 0) {
        return damaged(r, "no scorer");
    }
    for (int id = 0; id < MANIFEST_SCORERS; id++) {
        const struct json_node *entry = json_member(r->json, scorers, scorer_names[id]);
        if (entry == NULL) {
            continue;
        }
        const struct json_node *threshold = json_member(r->json, entry, "threshold");
        const struct json_node *temperature = json_member(r->json, entry, "temperature");
        struct scorer *s = &r->m->scorers[r->m->num_scorers++];
        *s = (struct scorer){.id = id, .temperature = 1.0};
        const uint32_t known = (threshold != NULL ? 1u : 0u) + (temperature != NULL ? 1u : 0u);
        if (!json_is(entry, JSON_OBJECT) || entry->count != known) {
            return damaged(r, "a scorer's entry has something that is not known");
        }
        if ((temperature != NULL && !json_number(r->json, temperature, &s->temperature)) ||
            s->temperature <= 0) {
            return damaged(r, "a scorer's temperature is not a positive number");
        }
        s->has_threshold = threshold != NULL && !json_is(threshold, JSON_NULL);
        if (s->has_threshold && !json_number(r->json, threshold, &s->threshold)) {
            return damaged(r, "a scorer's threshold is not a number");
        }
    }
    if ((uint32_t)r->m->num_scorers != scorers->count) {
        return damaged(r, "unknown scorer");
    }
    return EDGESEG_STATUS_OK;
}

static int read_precision(const struct reading *r) {
    static const char *const stored[] = {"float32", "float16", "int8"};
    static const char *const computed[] = {"f32", "bf16"};
    const struct json_node *compute = member(r, "compute_precision");
    const int s = choice(r->json, member(r, "precision"), stored, 3);
    const int c = compute == NULL ? 0 : choice(r->json, compute, computed, 2);
    if (s < 0 || c < 0) {
        return damaged(r, "unknown precision");
    }
    r->m->precision = stored[s];
    r->m->compute_precision = computed[c];
    return EDGESEG_STATUS_OK;
}

/* What the library does not use, and other readers refuse. */
static int check_rest(const struct reading *r) {
    static const char *const objects[] = {"structure", "counts", "calibration", "accuracy"};
    const struct json_node *creator = member(r, "created_by");
    if (member(r, "structure") == NULL) {
        return damaged(r, "it has no structure");
    }
    for (size_t i = 0; i < sizeof objects / sizeof objects[0]; i++) {
        const struct json_node *node = member(r, objects[i]);
        if (node != NULL && !json_is(node, JSON_OBJECT)) {
            return damaged(r, "a part of it is not an object");
        }
    }
    return creator == NULL || json_is(creator, JSON_STRING) ? EDGESEG_STATUS_OK
                                                            : damaged(r, "created_by is no text");
}

static int read_head(const struct reading *r) {
    static const char *const kinds[] = {"deconv2x2", "deconv3x3", "bilinear", "identity"};
    static const char *const layouts[] = {"nchw", "nhwc"};
    const struct json *json = r->json;
    const struct json_node *node = member(r, "head");
    const struct json_node *index = json_member(json, node, "void_index");
    const struct json_node *scale = json_member(json, node, "isomax_distance_scale");
    struct head_entry *h = &r->m->head;
    h->kind = choice(json, json_member(json, node, "kind"), kinds, 4);
    h->layout = choice(json, json_member(json, node, "layout"), layouts, 2);
    h->void_index = -1;
    if (h->kind < 0 || h->layout < 0) {
        return damaged(r, "the head's kind or layout is unknown");
    }
    if (!read_int(r, json_member(json, node, "num_outputs"), 1, EDGESEG_MAX_OUTPUTS,
                  &h->num_outputs) ||
        !read_int(r, json_member(json, node, "num_known"), 1, h->num_outputs, &h->num_known) ||
        !read_int(r, json_member(json, node, "factor"), 1, EDGESEG_MAX_FACTOR, &h->factor) ||
        index == NULL || scale == NULL ||
        (!json_is(index, JSON_NULL) &&
         !read_int(r, index, h->num_known, h->num_outputs - 1, &h->void_index))) {
        return damaged(r, "the head's outputs, void index or factor cannot be");
    }
    h->isomax = !json_is(scale, JSON_NULL);
    if (h->isomax && !json_number(json, scale, &h->isomax_scale)) {
        return damaged(r, "isomax_distance_scale is not a number");
    }
    const bool deconvolution =
        h->kind == EDGESEG_HEAD_DECONV2X2 || h->kind == EDGESEG_HEAD_DECONV3X3;
    if ((deconvolution && h->factor != 2) ||
        (h->kind == EDGESEG_HEAD_IDENTITY && h->factor != 1) ||
        r->m->height % h->factor != 0 || r->m->width % h->factor != 0) {
        return damaged(r, "the head cannot upsample by its factor to height and width");
    }
    if (h->num_known != r->m->num_classes) {
        return damaged(r, "the head has not as many known outputs as there are classes");
    }
    if (h->void_index < 0 && manifest_scorer(r->m, "void") != NULL) {
        return damaged(r, "scorer void without a void output");
    }
    return EDGESEG_STATUS_OK;
}

static bool is_plain(const char *name) {
    return name[0] != '\0' && strchr(name, '/') == NULL && strcmp(name, ".") != 0 &&
           strcmp(name, "..") != 0;
}

static int read_files(const struct reading *r) {
    const struct json_node *files = member(r, "files");
    if (!json_is(files, JSON_OBJECT) || files->count > MAX_FILES) {
        return damaged(r, "it lists no files");
    }
    r->m->files = calloc((size_t)files->count + 1, sizeof *r->m->files);
    if (r->m->files == NULL) {
        return fail_memory(r->path);
    }
    const struct json_node *key = json_first(r->json, files);
    while (key != NULL) {
        const struct json_node *entry = json_next(r->json, files, key);
        const struct json_node *sha = json_member(r->json, entry, "sha256");
        struct listed_file *f = &r->m->files[r->m->num_files];
        int status = read_text(r, key, &f->name);
        if (status != EDGESEG_STATUS_OK) {
            return status;
        }
        /* Keys differ as they are written, but two spellings may mean one name. */
        const bool repeated = manifest_file(r->m, f->name) != NULL;
        r->m->num_files++;
        if (repeated) {
            return damaged(r, "it lists a file twice");
        }
        if (!is_plain(f->name)) {
            return fail(EDGESEG_STATUS_ARTEFACT,
                        "'%s' lists '%s', which is not a plain file name; do not use it", r->path,
                        f->name);
        }
        if (!json_is(sha, JSON_STRING) || sha->escaped || sha->length != 64 ||
            !json_integer(r->json, json_member(r->json, entry, "bytes"), &f->bytes)) {
            return damaged(r, "a file's sha256 or size is missing");
        }
        memcpy(f->sha256, r->json->text + sha->start, 64);
        key = json_next(r->json, files, entry);
    }
    return EDGESEG_STATUS_OK;
}

static int read_all(const struct reading *r) {
    static int (*const steps[])(const struct reading *) = {
        check_rest, read_size,      read_classes, read_scorers,
        read_precision, read_head, read_files};
    int status = read_text(r, member(r, "network"), &r->m->network);
    if (status == EDGESEG_STATUS_OK) {
        status = read_optional(r, "weights_name", &r->m->weights);
    }
    if (status == EDGESEG_STATUS_OK) {
        status = read_optional(r, "license", &r->m->license);
    }
    for (size_t i = 0; status == EDGESEG_STATUS_OK && i < sizeof steps / sizeof steps[0]; i++) {
        status = steps[i](r);
    }
    return status;
}

int manifest_read(struct manifest *manifest, const char *text, size_t length, const char *path) {
    *manifest = (struct manifest){0};
    struct json json;
    const enum json_outcome outcome = json_parse(&json, text, length);
    if (outcome != JSON_OK) {
        return outcome == JSON_NO_MEMORY
                   ? fail_memory(path)
                   : fail(EDGESEG_STATUS_ARTEFACT,
                          "'%s' is not valid JSON; export the bundle again", path);
    }
    const struct reading r = {manifest, &json, json.nodes, path};
    const struct json_node *schema = member(&r, "schema");
    int status;
    if (!json_is(schema, JSON_STRING)) {
        status = fail(EDGESEG_STATUS_ARTEFACT,
                      "'%s' is not the manifest of a bundle: it names no schema", path);
    } else if (!json_equals(&json, schema, SCHEMA)) {
        status = fail(EDGESEG_STATUS_ARTEFACT,
                      "'%s' has schema '%.*s', and this version reads '" SCHEMA
                      "'; export it again with this version",
                      path, schema->length > 60 ? 60 : (int)schema->length,
                      json.text + schema->start);
    } else {
        status = read_all(&r);
    }
    json_free(&json);
    return status;
}

void manifest_free(struct manifest *manifest) {
    free(manifest->network);
    free(manifest->weights);
    free(manifest->license);
    for (int i = 0; i < manifest->num_classes; i++) {
        free(manifest->classes[i]);
    }
    for (int i = 0; i < manifest->num_files; i++) {
        free(manifest->files[i].name);
    }
    free(manifest->files);
}

const struct scorer *manifest_scorer(const struct manifest *manifest, const char *name) {
    for (int i = 0; i < manifest->num_scorers; i++) {
        if (strcmp(scorer_names[manifest->scorers[i].id], name) == 0) {
            return &manifest->scorers[i];
        }
    }
    return NULL;
}

const struct scorer *manifest_default_scorer(const struct manifest *manifest) {
    const struct scorer *found = manifest_scorer(manifest, "void");
    found = found != NULL ? found : manifest_scorer(manifest, "msp");
    return found != NULL ? found : &manifest->scorers[0];
}

const struct listed_file *manifest_file(const struct manifest *manifest, const char *name) {
    for (int i = 0; i < manifest->num_files; i++) {
        if (strcmp(manifest->files[i].name, name) == 0) {
            return &manifest->files[i];
        }
    }
    return NULL;
}
