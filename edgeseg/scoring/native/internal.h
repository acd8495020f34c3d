/* Shared by the sources of the library; nothing here is part of the ABI. */
#ifndef EDGESEG_INTERNAL_H
#define EDGESEG_INTERNAL_H

#include "edgeseg_kernels.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define EDGESEG_UNROLL _Pragma("GCC unroll 16")

#define CACHE_LINE 64

/* Input pixels of one row that are worked on at a time: their features, the logits of one phase
 * and the results stay in the first-level cache. A multiple of two vectors of every ISA. */
#define BLOCK 64
/* Room on both sides of a block for neighbours: one vector of the widest ISA. */
#define HALO 16
#define PACKED (HALO + BLOCK + HALO)
#define MAX_TAPS 4

/* --- threads --------------------------------------------------------------------------- */

typedef void (*pool_job)(void *context, int slot, int item);

struct pool;

int pool_open(int threads, struct pool **pool);
/* Calls job(context, slot, item) for every item in 0 .. items - 1; slot < threads names the
 * thread, for its scratch memory. Calls from several threads run one after another. */
void pool_run(struct pool *pool, pool_job job, void *context, int items);
void pool_lock(struct pool *pool);
void pool_unlock(struct pool *pool);
void pool_close(struct pool *pool);

/* --- memory ---------------------------------------------------------------------------- */

/* Zeroed, aligned to a cache line, count * size checked for overflow; NULL on failure. */
void *memory_open(size_t count, size_t size);
void memory_close(void *memory);

/* --- the head --------------------------------------------------------------------------- */

/* One product of a deconvolution's phase: the feature row (0 this one, 1 the next) and column
 * (0 or 1 to the right) that the weights apply to. */
struct tap {
    int row;
    int column;
};

struct phase {
    int taps;
    struct tap tap[MAX_TAPS];
    const float *weight; /* per group of outputs [taps][channels_in][group] */
};

struct score_constants {
    int num_outputs;
    int num_known;
    int void_index;
    float scale;       /* log2(e) / T */
    float lowest;      /* of f - max f: below it exp is as good as zero */
    float temperature;
    float inverse_temperature;
    float highest; /* score of a pixel with a logit that is not finite */
};

struct scratch {
    float *packed; /* [2][channels_in][PACKED]: the features of two rows around a block */
    float *lerped; /* [num_outputs][PACKED]: bilinear between the two */
    float *tile;   /* [outputs_padded][BLOCK]: logits of one phase of the block */
    uint8_t *classes; /* [2][factor][BLOCK]: results per phase, and room to interleave them */
    unsigned char *scores; /* the same, 4 bytes each */
};

struct edgeseg_head {
    int kind, layout, channels_in, factor;
    int height, width; /* of the features */
    int scorer, score_type, threads;
    int group, groups; /* outputs accumulated at a time */
    struct score_constants constants;
    struct phase phases[4]; /* [row parity][column parity] */
    float *weights;
    float *bias;       /* [groups * group] */
    float *prototypes; /* NULL without IsoMax+ */
    float negative_scale;
    /* bilinear: rows first_row[i] .. first_row[i + 1] - 1 lie between feature rows i and i + 1 */
    int *first_row;
    float *row_weight; /* [height * factor] */
    int phase_offset[EDGESEG_MAX_FACTOR];
    float phase_weight[EDGESEG_MAX_FACTOR];
    const struct isa_kernels *kernels;
    struct scratch *scratch; /* [threads] */
    struct pool *pool;
    int units_per_item;
    const float *features; /* of the run under way */
    uint8_t *class_map;
    void *score;
};

/* --- the resize ------------------------------------------------------------------------- */

struct resize_axis {
    int in, out;
    int taps_max;
    int *start;       /* [out] first input sample */
    int *count;       /* [out] */
    int32_t *weights; /* [out][taps_max], fixed point with 22 bits after the point */
};

struct resize_scratch {
    uint8_t *source; /* [4][source_stride] padded copies of input rows */
    uint8_t *middle; /* [middle_rows][middle_stride] rows after the horizontal pass */
};

struct edgeseg_resize {
    struct resize_axis horizontal, vertical;
    bool has_horizontal, has_vertical, down_first, swap_rb;
    int threads;
    int chunks;              /* of four samples, per horizontal output */
    int32_t *horizontal_packed; /* [out rounded up to 4][chunks][4] */
    int *horizontal_at;      /* [out rounded up to 4] byte offset of the first sample */
    int32_t *vertical_packed; /* [out][vertical_pairs][2] */
    int vertical_pairs;
    size_t source_stride, middle_stride;
    int middle_rows;
    int rows_per_item;
    const struct isa_kernels *kernels;
    struct resize_scratch *scratch; /* [threads] */
    struct pool *pool;
    const uint8_t *frame; /* of the run under way */
    ptrdiff_t row_stride;
    uint8_t *out;
};

/* --- one set of kernels per ISA --------------------------------------------------------- */

struct isa_kernels {
    int isa;
    const char *name;
    int group_max;
    /* All output rows that belong to feature row unit. */
    void (*head_unit)(const struct edgeseg_head *head, const struct scratch *scratch, int unit);
    /* Output rows first .. last - 1. */
    void (*resize_rows)(const struct edgeseg_resize *plan, const struct resize_scratch *scratch,
                        int first, int last);
};

extern const struct isa_kernels kernels_scalar;
#if defined(__x86_64__)
extern const struct isa_kernels kernels_avx2, kernels_avx512;
#elif defined(__aarch64__)
extern const struct isa_kernels kernels_neon;
#endif

/* NULL where isa is unknown or this machine does not have it. */
const struct isa_kernels *choose_kernels(int isa);

#endif
