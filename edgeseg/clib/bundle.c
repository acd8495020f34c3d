#include "bundle.h"

#include "edgeseg_kernels.h"
#include "error.h"
#include "tensors.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define MANIFEST_LIMIT ((size_t)4 << 20)
#define FILE_LIMIT ((size_t)512 << 20)
#define BODY "body.onnx"
#define HEAD "head.safetensors"

static int verify(const char *folder, const struct listed_file *listed, int keep,
                  struct file *file) {
    char *path = join_path(folder, listed->name);
    if (path == NULL) {
        return fail_memory(folder);
    }
    int status = file_read(path, FILE_LIMIT, keep, file);
    if (status == EDGESEG_STATUS_INPUT) {
        status = fail(EDGESEG_STATUS_ARTEFACT,
                      "bundle '%s' lists '%s', which is not there or cannot be read; copy it "
                      "again or export it again",
                      folder, listed->name);
    } else if (status == EDGESEG_STATUS_OK &&
               (listed->bytes < 0 || (uint64_t)listed->bytes != file->size)) {
        status = fail(EDGESEG_STATUS_ARTEFACT,
                      "'%s' has %zu bytes where the manifest says %lld; the bundle is damaged, "
                      "copy it again or export it again",
                      path, file->size, (long long)listed->bytes);
    } else if (status == EDGESEG_STATUS_OK && strcmp(listed->sha256, file->sha256) != 0) {
        status = fail(EDGESEG_STATUS_ARTEFACT,
                      "'%s' is not the file that the manifest describes (sha256 differs); the "
                      "bundle is damaged, copy it again or export it again",
                      path);
    }
    if (status != EDGESEG_STATUS_OK) {
        file_free(file);
    }
    free(path);
    return status;
}

static bool has_shape(const struct tensor *t, int rank, const int64_t shape[]) {
    return t != NULL && t->rank == rank &&
           memcmp(t->shape, shape, (size_t)rank * sizeof shape[0]) == 0;
}

static int load_head(edgeseg_bundle *b, const struct tensors *tensors, const char *path) {
    const struct head_entry *h = &b->manifest.head;
    const struct tensor *weight = tensors_find(tensors, "weight");
    const struct tensor *bias = tensors_find(tensors, "bias");
    const struct tensor *prototypes = tensors_find(tensors, "isomax_prototypes");
    const int64_t outputs[1] = {h->num_outputs};
    const bool deconvolution =
        h->kind == EDGESEG_HEAD_DECONV2X2 || h->kind == EDGESEG_HEAD_DECONV3X3;
    const int kernel = h->kind == EDGESEG_HEAD_DECONV2X2 ? 2 : 3;
    bool fits = !h->isomax || has_shape(prototypes, 1, outputs);
    b->channels_in = h->num_outputs;
    if (deconvolution) {
        const int64_t channels = weight == NULL ? 0 : weight->shape[0];
        const int64_t expected[4] = {channels, h->num_outputs, kernel, kernel};
        fits = fits && has_shape(weight, 4, expected) && has_shape(bias, 1, outputs) &&
               channels >= 1 && channels <= EDGESEG_MAX_CHANNELS;
        b->channels_in = (int)channels;
    } else {
        fits = fits && weight == NULL && bias == NULL;
    }
    if (!fits) {
        return fail(EDGESEG_STATUS_ARTEFACT,
                    "'%s' does not hold the weights of the head that the manifest describes; "
                    "export the bundle again",
                    path);
    }
    int status = EDGESEG_STATUS_OK;
    if (deconvolution) {
        status = tensor_floats(weight, path, &b->weight);
        status = status == EDGESEG_STATUS_OK ? tensor_floats(bias, path, &b->bias) : status;
    }
    if (status == EDGESEG_STATUS_OK && h->isomax) {
        status = tensor_floats(prototypes, path, &b->prototypes);
    }
    return status;
}

static int read_head(edgeseg_bundle *b, const struct file *file, const char *folder) {
    struct tensors tensors;
    char *path = join_path(folder, HEAD);
    int status = path == NULL ? fail_memory(folder) : tensors_open(&tensors, file, path);
    if (status == EDGESEG_STATUS_OK) {
        status = load_head(b, &tensors, path);
        tensors_close(&tensors);
    }
    free(path);
    return status;
}

static int read_listed(edgeseg_bundle *b, const char *folder) {
    const struct manifest *m = &b->manifest;
    if (manifest_file(m, BODY) == NULL || manifest_file(m, HEAD) == NULL) {
        return fail(EDGESEG_STATUS_ARTEFACT,
                    "bundle '%s' does not list " BODY " or " HEAD "; export it again", folder);
    }
    int status = EDGESEG_STATUS_OK;
    for (int i = 0; status == EDGESEG_STATUS_OK && i < m->num_files; i++) {
        struct file file;
        const struct listed_file *listed = &m->files[i];
        const bool body = strcmp(listed->name, BODY) == 0, head = strcmp(listed->name, HEAD) == 0;
        status = verify(folder, listed, body || head, &file);
        if (status != EDGESEG_STATUS_OK || body) {
            b->body = status == EDGESEG_STATUS_OK ? file : b->body;
            continue;
        }
        if (head) {
            status = read_head(b, &file, folder);
        }
        file_free(&file);
    }
    return status;
}

static int read_bundle(edgeseg_bundle *b, const char *folder) {
    struct stat about;
    char *path = join_path(folder, "bundle.json");
    b->body_path = join_path(folder, BODY);
    int status;
    struct file file = {0};
    if (path == NULL || b->body_path == NULL) {
        status = fail_memory(folder);
    } else if (stat(folder, &about) != 0) {
        status = fail(EDGESEG_STATUS_INPUT,
                      "bundle '%s' does not exist; make one with 'edgeseg export NETWORK --int8'",
                      folder);
    } else if (stat(path, &about) != 0) {
        status = fail(EDGESEG_STATUS_ARTEFACT,
                      "'%s' is not a bundle: it has no bundle.json; give the folder that "
                      "'edgeseg export' wrote",
                      folder);
    } else {
        status = file_read(path, MANIFEST_LIMIT, 1, &file);
    }
    if (status == EDGESEG_STATUS_OK) {
        status = manifest_read(&b->manifest, (const char *)file.content, file.size, path);
    }
    file_free(&file);
    free(path);
    return status == EDGESEG_STATUS_OK ? read_listed(b, folder) : status;
}

int edgeseg_bundle_open(const char *folder, edgeseg_bundle **bundle) {
    if (folder == NULL || bundle == NULL) {
        return fail(EDGESEG_STATUS_ARGUMENT, "edgeseg_bundle_open needs a folder and a place for "
                                             "the handle, not NULL");
    }
    edgeseg_bundle *b = calloc(1, sizeof *b);
    if (b == NULL) {
        return fail_memory(folder);
    }
    atomic_init(&b->owners, 1);
    const int status = read_bundle(b, folder);
    if (status != EDGESEG_STATUS_OK) {
        edgeseg_bundle_close(b);
        return status;
    }
    *bundle = b;
    return EDGESEG_STATUS_OK;
}

edgeseg_bundle *bundle_keep(edgeseg_bundle *bundle) {
    atomic_fetch_add(&bundle->owners, 1);
    return bundle;
}

void edgeseg_bundle_close(edgeseg_bundle *bundle) {
    if (bundle == NULL || atomic_fetch_sub(&bundle->owners, 1) > 1) {
        return;
    }
    manifest_free(&bundle->manifest);
    file_free(&bundle->body);
    free(bundle->body_path);
    free(bundle->weight);
    free(bundle->bias);
    free(bundle->prototypes);
    free(bundle);
}
