/* The resize's handle. The filter is Pillow's: a triangle as wide as two output samples (at
 * least two input samples), weights normalised in double and rounded to 22 bits; across first,
 * rounded to uint8, then down, or the other way round where Pillow 13 does so. (Earlier versions
 * always go across first, which in those cases differs by one grey level at some pixels.)
 */
#include "internal.h"

#include <math.h>
#include <stdlib.h>

#define PRECISION 22
#define MIDDLE_BYTES (256 * 1024)

static void axis_close(struct resize_axis *axis) {
    memory_close(axis->start);
    memory_close(axis->count);
    memory_close(axis->weights);
}

static bool axis_open(struct resize_axis *axis, int in, int out) {
    const double scale = (double)in / out;
    const double filter_scale = scale < 1.0 ? 1.0 : scale;
    const int taps_max = (int)ceil(filter_scale) * 2 + 1;
    axis->in = in;
    axis->out = out;
    axis->taps_max = taps_max;
    axis->start = memory_open((size_t)out, sizeof(int));
    axis->count = memory_open((size_t)out, sizeof(int));
    axis->weights = memory_open((size_t)out * (size_t)taps_max, sizeof(int32_t));
    double *exact = memory_open((size_t)taps_max, sizeof(double));
    const bool memory = axis->start != NULL && axis->count != NULL && axis->weights != NULL &&
                        exact != NULL;
    const double inverse = 1.0 / filter_scale;
    for (int x = 0; memory && x < out; x++) {
        const double center = (x + 0.5) * scale;
        int first = (int)(center - filter_scale + 0.5);
        int last = (int)(center + filter_scale + 0.5);
        first = first < 0 ? 0 : first;
        last = last > in ? in : last;
        double total = 0.0;
        for (int k = 0; k < last - first; k++) {
            const double distance = fabs((k + first - center + 0.5) * inverse);
            exact[k] = distance < 1.0 ? 1.0 - distance : 0.0;
            total += exact[k];
        }
        axis->start[x] = first;
        axis->count[x] = last - first;
        for (int k = 0; k < last - first; k++) {
            const double weight = total != 0.0 ? exact[k] / total : exact[k];
            axis->weights[(size_t)x * (size_t)taps_max + (size_t)k] =
                (int32_t)(0.5 + weight * (1 << PRECISION));
        }
    }
    memory_close(exact);
    return memory;
}

static int32_t pair(int32_t a, int32_t b) {
    return (int32_t)(((uint32_t)a & 0xffffu) | (uint32_t)b << 16);
}

static bool pack_horizontal(edgeseg_resize *plan) {
    const struct resize_axis *axis = &plan->horizontal;
    int most = 1;
    for (int x = 0; x < axis->out; x++) {
        most = axis->count[x] > most ? axis->count[x] : most;
    }
    plan->chunks = (most + 3) / 4;
    const size_t padded = ((size_t)axis->out + 3) / 4 * 4;
    plan->horizontal_at = memory_open(padded, sizeof(int));
    plan->horizontal_packed = memory_open(padded * (size_t)plan->chunks, 4 * sizeof(int32_t));
    if (plan->horizontal_at == NULL || plan->horizontal_packed == NULL) {
        return false;
    }
    for (int x = 0; x < axis->out; x++) {
        plan->horizontal_at[x] = 3 * axis->start[x];
        for (int chunk = 0; chunk < plan->chunks; chunk++) {
            int32_t low[4], high[4];
            for (int i = 0; i < 4; i++) {
                const int k = 4 * chunk + i;
                const int32_t w =
                    k < axis->count[x]
                        ? axis->weights[(size_t)x * (size_t)axis->taps_max + (size_t)k]
                        : 0;
                low[i] = w & 0x7fff;
                high[i] = w >> 15;
            }
            int32_t *to =
                plan->horizontal_packed + ((size_t)x * (size_t)plan->chunks + (size_t)chunk) * 4;
            to[0] = pair(low[0], low[1]);
            to[1] = pair(low[2], low[3]);
            to[2] = pair(high[0], high[1]);
            to[3] = pair(high[2], high[3]);
        }
    }
    /* A row is read in steps of four samples of three bytes, 16 bytes at a time. */
    plan->source_stride =
        ((size_t)axis->in * 3 + 12 * (size_t)plan->chunks + 2 * CACHE_LINE) / CACHE_LINE *
        CACHE_LINE;
    return true;
}

static bool pack_vertical(edgeseg_resize *plan) {
    const struct resize_axis *axis = &plan->vertical;
    plan->vertical_pairs = (axis->taps_max + 1) / 2;
    plan->vertical_packed =
        memory_open((size_t)axis->out * (size_t)plan->vertical_pairs, 2 * sizeof(int32_t));
    if (plan->vertical_packed == NULL) {
        return false;
    }
    for (int y = 0; y < axis->out; y++) {
        const int32_t *w = axis->weights + (size_t)y * (size_t)axis->taps_max;
        int32_t *to = plan->vertical_packed + (size_t)y * (size_t)plan->vertical_pairs * 2;
        for (int k = 0; k < axis->count[y]; k += 2) {
            const int32_t second = k + 1 < axis->count[y] ? w[k + 1] : 0;
            to[k] = pair(w[k] & 0x7fff, second & 0x7fff);
            to[k + 1] = pair(w[k] >> 15, second >> 15);
        }
    }
    return true;
}

static bool open_scratch(edgeseg_resize *plan, int threads) {
    const int out = plan->vertical.out;
    plan->middle_stride =
        ((size_t)plan->horizontal.out * 3 + 3 * CACHE_LINE) / CACHE_LINE * CACHE_LINE;
    /* As many output rows at a time as keep their rows between the passes in the second-level
     * cache, but enough items for all threads. */
    const double scale = plan->has_vertical ? (double)plan->vertical.in / out : 1.0;
    double rows = (double)MIDDLE_BYTES / (double)plan->middle_stride / (scale < 1 ? 1 : scale);
    rows = fmin(rows, (double)out / (4.0 * threads));
    plan->rows_per_item = rows > 1.0 ? (int)rows : 1;
    plan->middle_rows = 0;
    for (int first = 0; first < out; first += plan->rows_per_item) {
        int last = first + plan->rows_per_item < out ? first + plan->rows_per_item : out;
        int needed = last - first;
        if (plan->down_first) {
            needed = 4;
        } else if (plan->has_vertical) {
            needed = plan->vertical.start[last - 1] + plan->vertical.count[last - 1] -
                     plan->vertical.start[first];
        }
        plan->middle_rows = needed > plan->middle_rows ? needed : plan->middle_rows;
    }
    plan->scratch = memory_open((size_t)threads, sizeof *plan->scratch);
    if (plan->scratch == NULL) {
        return false;
    }
    for (int i = 0; i < threads; i++) {
        struct resize_scratch *s = &plan->scratch[i];
        /* Rows are worked on four at a time. */
        s->middle = memory_open((size_t)plan->middle_rows + 4, plan->middle_stride);
        if (plan->has_horizontal) {
            s->source = memory_open(4, plan->source_stride);
        }
        if (s->middle == NULL || (plan->has_horizontal && s->source == NULL)) {
            return false;
        }
    }
    return true;
}

int edgeseg_resize_open(int32_t in_height, int32_t in_width, int32_t out_height,
                        int32_t out_width, int32_t swap_rb, int32_t threads, int32_t isa,
                        edgeseg_resize **out) {
    const int32_t sides[4] = {in_height, in_width, out_height, out_width};
    for (int i = 0; i < 4; i++) {
        if (sides[i] < 1 || sides[i] > EDGESEG_MAX_SIDE) {
            return EDGESEG_BAD_ARGUMENT;
        }
    }
    const struct isa_kernels *kernels = choose_kernels(isa);
    if (out == NULL || threads < 1 || threads > EDGESEG_MAX_THREADS || kernels == NULL) {
        return EDGESEG_BAD_ARGUMENT;
    }
    edgeseg_resize *plan = calloc(1, sizeof *plan);
    if (plan == NULL) {
        return EDGESEG_NO_MEMORY;
    }
    plan->kernels = kernels;
    plan->threads = threads;
    plan->swap_rb = swap_rb != 0;
    plan->has_horizontal = in_width != out_width;
    plan->has_vertical = in_height != out_height;
    const int fewer_rows = in_height - out_height, fewer_columns = in_width - out_width;
    plan->down_first = plan->has_horizontal && fewer_rows > 0 && fewer_rows > 2 * fewer_columns;
    bool memory = axis_open(&plan->horizontal, in_width, out_width) &&
                  axis_open(&plan->vertical, in_height, out_height) && pack_horizontal(plan) &&
                  pack_vertical(plan) && open_scratch(plan, threads);
    int status = memory ? pool_open(threads, &plan->pool) : EDGESEG_NO_MEMORY;
    if (status != EDGESEG_OK) {
        edgeseg_resize_close(plan);
        return status;
    }
    *out = plan;
    return EDGESEG_OK;
}

static void resize_item(void *context, int slot, int item) {
    const edgeseg_resize *plan = context;
    int first = item * plan->rows_per_item;
    int last = first + plan->rows_per_item;
    last = last < plan->vertical.out ? last : plan->vertical.out;
    plan->kernels->resize_rows(plan, &plan->scratch[slot], first, last);
}

int edgeseg_resize_run(edgeseg_resize *plan, const uint8_t *frame, ptrdiff_t row_stride,
                       uint8_t *out) {
    if (plan == NULL || frame == NULL || out == NULL) {
        return EDGESEG_BAD_ARGUMENT;
    }
    pool_lock(plan->pool);
    plan->frame = frame;
    plan->row_stride = row_stride;
    plan->out = out;
    pool_run(plan->pool, resize_item, plan,
             (plan->vertical.out + plan->rows_per_item - 1) / plan->rows_per_item);
    pool_unlock(plan->pool);
    return EDGESEG_OK;
}

void edgeseg_resize_close(edgeseg_resize *plan) {
    if (plan == NULL) {
        return;
    }
    pool_close(plan->pool);
    for (int i = 0; plan->scratch != NULL && i < plan->threads; i++) {
        memory_close(plan->scratch[i].source);
        memory_close(plan->scratch[i].middle);
    }
    memory_close(plan->scratch);
    memory_close(plan->horizontal_packed);
    memory_close(plan->horizontal_at);
    memory_close(plan->vertical_packed);
    axis_close(&plan->horizontal);
    axis_close(&plan->vertical);
    free(plan);
}
