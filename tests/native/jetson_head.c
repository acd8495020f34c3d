/* Runs the head's kernel over what a test wrote, on the machine that this is built for:
 *
 *     jetson_head CONFIG FEATURES WEIGHTS OUTPUT
 *
 * CONFIG: nine numbers: kind layout channels_in num_outputs num_known void_index factor height
 * width (of the features). WEIGHTS: float32 weight, then bias; empty without. OUTPUT takes, for
 * every scorer that there is, the class map and the float32 score. Prints the instruction set.
 */
#include "edgeseg_kernels.h"

#include <stdio.h>
#include <stdlib.h>

static float *floats(const char *path, size_t *count) {
    FILE *file = fopen(path, "rb");
    if (file == NULL || fseek(file, 0, SEEK_END) != 0) {
        exit(3);
    }
    *count = (size_t)ftell(file) / sizeof(float);
    rewind(file);
    float *values = malloc(*count * sizeof(float) + 1);
    if (values == NULL || fread(values, sizeof(float), *count, file) != *count) {
        exit(3);
    }
    (void)fclose(file);
    return values;
}

int main(int argc, char **argv) {
    edgeseg_head_config config = {.score_type = EDGESEG_FLOAT32, .threads = 2, .temperature = 1.5};
    FILE *text = argc == 5 ? fopen(argv[1], "r") : NULL;
    if (text == NULL ||
        fscanf(text, "%d %d %d %d %d %d %d %d %d", &config.kind, &config.layout,
               &config.channels_in, &config.num_outputs, &config.num_known, &config.void_index,
               &config.factor, &config.feature_height, &config.feature_width) != 9) {
        return 2;
    }
    size_t count = 0, weights = 0;
    float *features = floats(argv[2], &count), *weight = floats(argv[3], &weights);
    if (weights > 0) {
        config.weight = weight;
        config.bias = weight + weights - (size_t)config.num_outputs;
    }
    const size_t scale = (size_t)config.factor * (size_t)config.factor;
    const size_t pixels = (size_t)config.feature_height * (size_t)config.feature_width * scale;
    uint8_t *classes = malloc(pixels);
    float *score = malloc(pixels * sizeof(float));
    FILE *out = fopen(argv[4], "wb");
    if (classes == NULL || score == NULL || out == NULL) {
        return 3;
    }
    for (int scorer = EDGESEG_SCORER_MSP; scorer <= EDGESEG_SCORER_ENERGY; scorer++) {
        edgeseg_head *head = NULL;
        config.scorer = scorer;
        if (edgeseg_head_open(&config, &head) != EDGESEG_OK ||
            edgeseg_head_run(head, features, classes, score) != EDGESEG_OK) {
            return 4;
        }
        (void)fwrite(classes, 1, pixels, out);
        (void)fwrite(score, sizeof(float), pixels, out);
        printf("%s\n", edgeseg_head_isa(head));
        edgeseg_head_close(head);
    }
    free(features);
    free(weight);
    free(classes);
    free(score);
    return fclose(out);
}
