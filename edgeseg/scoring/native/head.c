/* The head's handle: checks, weights in the order that the kernels read them, one run. */
#include "internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* exp below this power of two adds nothing to a float sum of at least 1, and its products are
 * still normal numbers (subnormal ones cost a hundred cycles each). */
#define SMALLEST_EXPONENT (-100.0)
#define FLOAT16_MAX 65504.0f

static bool within(int32_t value, int32_t low, int32_t high) {
    return value >= low && value <= high;
}

static bool config_is_valid(const edgeseg_head_config *c) {
    if (!within(c->kind, EDGESEG_HEAD_DECONV2X2, EDGESEG_HEAD_IDENTITY) ||
        !within(c->layout, EDGESEG_LAYOUT_NCHW, EDGESEG_LAYOUT_NHWC) ||
        !within(c->channels_in, 1, EDGESEG_MAX_CHANNELS) ||
        !within(c->num_outputs, 1, EDGESEG_MAX_OUTPUTS) ||
        !within(c->num_known, 1, c->num_outputs) ||
        !within(c->factor, 1, EDGESEG_MAX_FACTOR) || !within(c->threads, 1, EDGESEG_MAX_THREADS) ||
        !within(c->feature_height, 1, EDGESEG_MAX_SIDE / c->factor) ||
        !within(c->feature_width, 1, EDGESEG_MAX_SIDE / c->factor) ||
        !within(c->score_type, EDGESEG_FLOAT16, EDGESEG_FLOAT32)) {
        return false;
    }
    if (c->void_index != -1 && !within(c->void_index, c->num_known, c->num_outputs - 1)) {
        return false;
    }
    if (c->isomax != 0 && c->prototypes == NULL) {
        return false;
    }
    if (c->kind == EDGESEG_HEAD_DECONV2X2 || c->kind == EDGESEG_HEAD_DECONV3X3) {
        return c->factor == 2 && c->weight != NULL && c->bias != NULL;
    }
    return c->channels_in == c->num_outputs &&
           (c->kind == EDGESEG_HEAD_BILINEAR || c->factor == 1);
}

/* The input row (and column) that output parity 1 receives through kernel index k, or -1.
 * Kernel 2: output 2 i + k comes from input i. Kernel 3 with padding 1: output 2 i - 1 + k from
 * input i, so an even one sees k = 1, an odd one k = 2 of its own row and k = 0 of the next. */
static int offset_of(int kernel, int parity, int k) {
    if (kernel == 2) {
        return k == parity ? 0 : -1;
    }
    if (parity == 0) {
        return k == 1 ? 0 : -1;
    }
    return k == 2 ? 0 : (k == 0 ? 1 : -1);
}

static bool pack_weights(edgeseg_head *head, const edgeseg_head_config *c) {
    const int kernel = c->kind == EDGESEG_HEAD_DECONV2X2 ? 2 : 3;
    const int most = head->kernels->group_max;
    head->groups = (c->num_outputs + most - 1) / most;
    head->group = (c->num_outputs + head->groups - 1) / head->groups;
    const size_t padded = (size_t)head->group * (size_t)head->groups;
    head->bias = memory_open(padded, sizeof(float));
    head->weights =
        memory_open((size_t)(kernel * kernel) * (size_t)c->channels_in * padded, sizeof(float));
    if (head->bias == NULL || head->weights == NULL) {
        return false;
    }
    memcpy(head->bias, c->bias, (size_t)c->num_outputs * sizeof(float));
    float *out = head->weights;
    for (int parity = 0; parity < 4; parity++) {
        struct phase *phase = &head->phases[parity];
        phase->weight = out;
        int kernel_index[MAX_TAPS];
        for (int k = 0; k < kernel * kernel; k++) {
            int row = offset_of(kernel, parity / 2, k / kernel);
            int column = offset_of(kernel, parity % 2, k % kernel);
            if (row >= 0 && column >= 0) {
                kernel_index[phase->taps] = k;
                phase->tap[phase->taps++] = (struct tap){row, column};
            }
        }
        for (int g = 0; g < head->groups; g++) {
            for (int t = 0; t < phase->taps; t++) {
                for (int i = 0; i < c->channels_in; i++) {
                    for (int o = g * head->group; o < (g + 1) * head->group; o++) {
                        size_t at = ((size_t)i * (size_t)c->num_outputs + (size_t)o) *
                                        (size_t)(kernel * kernel) +
                                    (size_t)kernel_index[t];
                        *out++ = o < c->num_outputs ? c->weight[at] : 0.0f;
                    }
                }
            }
        }
    }
    return true;
}

/* Source position of output x: max((x + 0.5) / factor - 0.5, 0), in double and then rounded as
 * the definition in numpy does. */
static bool prepare_bilinear(edgeseg_head *head) {
    const int rows = head->height * head->factor;
    head->first_row = memory_open((size_t)head->height + 1, sizeof(int));
    head->row_weight = memory_open((size_t)rows, sizeof(float));
    if (head->first_row == NULL || head->row_weight == NULL) {
        return false;
    }
    for (int y = rows - 1; y >= 0; y--) {
        double position = fmax((y + 0.5) / head->factor - 0.5, 0.0);
        int low = (int)floor(position);
        head->row_weight[y] = (float)(position - low);
        head->first_row[low] = y;
    }
    head->first_row[head->height] = rows;
    for (int p = 0; p < head->factor; p++) {
        double position = (p + 0.5) / head->factor - 0.5;
        head->phase_offset[p] = (int)floor(position);
        head->phase_weight[p] = (float)(position - floor(position));
    }
    return true;
}

static int set_scorer(edgeseg_head *head, int scorer, double temperature) {
    struct score_constants *k = &head->constants;
    if (!within(scorer, EDGESEG_SCORER_MSP, EDGESEG_SCORER_ENERGY) || !isfinite(temperature) ||
        temperature <= 0 || (scorer == EDGESEG_SCORER_VOID && k->void_index < 0)) {
        return EDGESEG_BAD_ARGUMENT;
    }
    /* Beyond these bounds a float score no longer changes with the temperature. */
    const double t = fmin(fmax(temperature, 1e-30), 1e30);
    const double log2e = 1.4426950408889634;
    head->scorer = scorer;
    k->scale = (float)(log2e / t);
    k->lowest = (float)(SMALLEST_EXPONENT * t / log2e);
    k->temperature = (float)t;
    k->inverse_temperature = (float)(1.0 / t);
    if (scorer == EDGESEG_SCORER_MSP || scorer == EDGESEG_SCORER_VOID) {
        k->highest = 1.0f;
    } else if (scorer == EDGESEG_SCORER_ENTROPY) {
        k->highest = (float)log((double)k->num_known);
    } else {
        k->highest = FLOAT16_MAX;
    }
    return EDGESEG_OK;
}

static bool open_scratch(edgeseg_head *head, int threads) {
    const size_t channels = (size_t)head->channels_in;
    const size_t outputs = (size_t)head->constants.num_outputs;
    const size_t padded = head->groups > 0 ? (size_t)(head->group * head->groups) : outputs;
    head->scratch = memory_open((size_t)threads, sizeof *head->scratch);
    if (head->scratch == NULL) {
        return false;
    }
    for (int i = 0; i < threads; i++) {
        struct scratch *s = &head->scratch[i];
        s->packed = memory_open(2 * channels * PACKED, sizeof(float));
        s->lerped = memory_open(outputs * PACKED, sizeof(float));
        s->tile = memory_open(padded * BLOCK, sizeof(float));
        s->classes = memory_open((size_t)(2 * head->factor * BLOCK), 1);
        s->scores = memory_open((size_t)(2 * head->factor * BLOCK), 4);
        if (s->packed == NULL || s->lerped == NULL || s->tile == NULL || s->classes == NULL ||
            s->scores == NULL) {
            return false;
        }
    }
    return true;
}

int edgeseg_head_open(const edgeseg_head_config *config, edgeseg_head **out) {
    if (config == NULL || out == NULL || !config_is_valid(config)) {
        return EDGESEG_BAD_ARGUMENT;
    }
    edgeseg_head *head = calloc(1, sizeof *head);
    if (head == NULL) {
        return EDGESEG_NO_MEMORY;
    }
    head->kind = config->kind;
    head->layout = config->layout;
    head->channels_in = config->channels_in;
    head->factor = config->factor;
    head->height = config->feature_height;
    head->width = config->feature_width;
    head->score_type = config->score_type;
    head->threads = config->threads;
    head->constants.num_outputs = config->num_outputs;
    head->constants.num_known = config->num_known;
    head->constants.void_index = config->void_index;
    head->kernels = choose_kernels(config->isa);
    int status = head->kernels == NULL
                     ? EDGESEG_BAD_ARGUMENT
                     : set_scorer(head, config->scorer, config->temperature);
    bool memory = true;
    if (status == EDGESEG_OK && head->kind <= EDGESEG_HEAD_DECONV3X3) {
        memory = pack_weights(head, config);
    } else if (status == EDGESEG_OK && head->kind == EDGESEG_HEAD_BILINEAR) {
        memory = prepare_bilinear(head);
    }
    if (status == EDGESEG_OK && memory && config->isomax != 0) {
        const size_t outputs = (size_t)config->num_outputs;
        head->negative_scale = -fabsf(config->isomax_scale);
        head->prototypes = memory_open(outputs, sizeof(float));
        memory = head->prototypes != NULL;
        if (memory) {
            memcpy(head->prototypes, config->prototypes, outputs * sizeof(float));
        }
    }
    if (status == EDGESEG_OK) {
        memory = memory && open_scratch(head, config->threads);
        status = memory ? pool_open(config->threads, &head->pool) : EDGESEG_NO_MEMORY;
    }
    if (status != EDGESEG_OK) {
        edgeseg_head_close(head);
        return status;
    }
    /* Small items even out what the two threads get; a tenth of a millisecond is still far more
     * than taking one costs. */
    const int items = 32 * config->threads;
    head->units_per_item = head->height > items ? head->height / items : 1;
    *out = head;
    return EDGESEG_OK;
}

int edgeseg_head_set_scorer(edgeseg_head *head, int scorer, double temperature) {
    if (head == NULL) {
        return EDGESEG_BAD_ARGUMENT;
    }
    pool_lock(head->pool);
    int status = set_scorer(head, scorer, temperature);
    pool_unlock(head->pool);
    return status;
}

static void head_item(void *context, int slot, int item) {
    const edgeseg_head *head = context;
    int first = item * head->units_per_item;
    int last = first + head->units_per_item;
    for (int unit = first; unit < last && unit < head->height; unit++) {
        head->kernels->head_unit(head, &head->scratch[slot], unit);
    }
}

int edgeseg_head_run(edgeseg_head *head, const float *features, uint8_t *class_map,
                     void *score) {
    if (head == NULL || features == NULL || class_map == NULL || score == NULL) {
        return EDGESEG_BAD_ARGUMENT;
    }
    pool_lock(head->pool);
    head->features = features;
    head->class_map = class_map;
    head->score = score;
    int items = (head->height + head->units_per_item - 1) / head->units_per_item;
    pool_run(head->pool, head_item, head, items);
    pool_unlock(head->pool);
    return EDGESEG_OK;
}

const char *edgeseg_head_isa(const edgeseg_head *head) {
    return head == NULL ? "" : head->kernels->name;
}

void edgeseg_head_close(edgeseg_head *head) {
    if (head == NULL) {
        return;
    }
    pool_close(head->pool);
    for (int i = 0; head->scratch != NULL && i < head->threads; i++) {
        memory_close(head->scratch[i].packed);
        memory_close(head->scratch[i].lerped);
        memory_close(head->scratch[i].tile);
        memory_close(head->scratch[i].classes);
        memory_close(head->scratch[i].scores);
    }
    memory_close(head->scratch);
    memory_close(head->weights);
    memory_close(head->bias);
    memory_close(head->prototypes);
    memory_close(head->first_row);
    memory_close(head->row_weight);
    free(head);
}
