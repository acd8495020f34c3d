/* C ABI of the native kernels: the fused head, the preprocess, the score histogram.
 *
 * Every function that can fail returns a status; nothing is written to an output unless it
 * returns EDGESEG_OK. Handles are independent of each other and may be used from any thread;
 * calls on one handle run one after another. A handle owns its worker threads, which sleep
 * between calls. After fork() the child may go on using a handle: it then works without workers.
 */
#ifndef EDGESEG_KERNELS_H
#define EDGESEG_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define EDGESEG_API __attribute__((visibility("default")))
#else
#define EDGESEG_API
#endif

/* Raised whenever a struct, a constant or the meaning of an argument changes. */
#define EDGESEG_KERNELS_ABI 1

enum edgeseg_status {
    EDGESEG_OK = 0,
    EDGESEG_BAD_ARGUMENT = 1,
    EDGESEG_NO_MEMORY = 2,
    EDGESEG_NO_THREAD = 3
};

enum edgeseg_isa {
    EDGESEG_ISA_AUTO = 0, /* the best one, or the one that the variable EDGESEG_ISA names */
    EDGESEG_ISA_SCALAR = 1,
    EDGESEG_ISA_NEON = 2,
    EDGESEG_ISA_AVX2 = 3,
    EDGESEG_ISA_AVX512 = 4
};

enum edgeseg_head_kind {
    EDGESEG_HEAD_DECONV2X2 = 0, /* ConvTranspose2d, kernel 2, stride 2 */
    EDGESEG_HEAD_DECONV3X3 = 1, /* kernel 3, stride 2, padding 1, output padding 1 */
    EDGESEG_HEAD_BILINEAR = 2,  /* integer factor, align_corners=False */
    EDGESEG_HEAD_IDENTITY = 3
};

enum edgeseg_layout { EDGESEG_LAYOUT_NCHW = 0, EDGESEG_LAYOUT_NHWC = 1 };

enum edgeseg_scorer {
    EDGESEG_SCORER_MSP = 0,
    EDGESEG_SCORER_MAXLOGIT = 1,
    EDGESEG_SCORER_ENTROPY = 2,
    EDGESEG_SCORER_VOID = 3,
    EDGESEG_SCORER_ENERGY = 4
};

enum edgeseg_float { EDGESEG_FLOAT16 = 0, EDGESEG_FLOAT32 = 1 };

#define EDGESEG_MAX_OUTPUTS 64
#define EDGESEG_MAX_CHANNELS 4096
#define EDGESEG_MAX_FACTOR 32
#define EDGESEG_MAX_SIDE 65536
#define EDGESEG_MAX_THREADS 64

typedef struct edgeseg_head edgeseg_head;
typedef struct edgeseg_resize edgeseg_resize;

typedef struct edgeseg_head_config {
    int32_t kind;           /* enum edgeseg_head_kind */
    int32_t layout;         /* enum edgeseg_layout, of the features */
    int32_t channels_in;    /* of the features; equals num_outputs without weights */
    int32_t num_outputs;    /* 1 .. EDGESEG_MAX_OUTPUTS */
    int32_t num_known;      /* 1 .. num_outputs; the class map is the argmax over these */
    int32_t void_index;     /* num_known .. num_outputs - 1, or -1 without a void output */
    int32_t factor;         /* of bilinear; 2 for the deconvolutions, 1 for identity */
    int32_t feature_height; /* the frame is factor times as large */
    int32_t feature_width;
    int32_t scorer;     /* enum edgeseg_scorer */
    int32_t score_type; /* enum edgeseg_float */
    int32_t threads;    /* 1 .. EDGESEG_MAX_THREADS, the caller's included */
    int32_t isa;        /* enum edgeseg_isa */
    int32_t isomax;     /* 1: logit_c = -|isomax_scale| * |f_c - prototypes_c| */
    float isomax_scale;
    float reserved;          /* 0 */
    double temperature;      /* > 0 */
    const float *weight;     /* [channels_in][num_outputs][k][k], or NULL */
    const float *bias;       /* [num_outputs], or NULL */
    const float *prototypes; /* [num_outputs], or NULL; all three are copied */
} edgeseg_head_config;

EDGESEG_API int edgeseg_kernels_abi_version(void);

/* What EDGESEG_ISA_AUTO stands for at this moment: "avx512", "avx2", "neon" or "scalar". */
EDGESEG_API const char *edgeseg_kernels_isa(void);

EDGESEG_API const char *edgeseg_status_text(int status);

EDGESEG_API int edgeseg_head_open(const edgeseg_head_config *config, edgeseg_head **head);

EDGESEG_API int edgeseg_head_set_scorer(edgeseg_head *head, int scorer, double temperature);

/* features: float32 in the head's layout; class_map: uint8 [H][W]; score: float16 or float32
 * [H][W]. All contiguous. Allocates nothing. */
EDGESEG_API int edgeseg_head_run(edgeseg_head *head, const float *features, uint8_t *class_map,
                                 void *score);

EDGESEG_API const char *edgeseg_head_isa(const edgeseg_head *head);

/* NULL is allowed. No call on the handle may be under way. */
EDGESEG_API void edgeseg_head_close(edgeseg_head *head);

/* Resize of uint8 frames with three channels by Pillow's antialiased BILINEAR filter, bit for
 * bit. swap_rb: exchange the first and third channel. */
EDGESEG_API int edgeseg_resize_open(int32_t in_height, int32_t in_width, int32_t out_height,
                                    int32_t out_width, int32_t swap_rb, int32_t threads,
                                    int32_t isa, edgeseg_resize **plan);

/* row_stride: bytes from one row of the frame to the next (may be negative); out: contiguous
 * [out_height][out_width][3], not overlapping the frame. */
EDGESEG_API int edgeseg_resize_run(edgeseg_resize *plan, const uint8_t *frame,
                                   ptrdiff_t row_stride, uint8_t *out);

EDGESEG_API void edgeseg_resize_close(edgeseg_resize *plan);

/* Add the scores of pixels with label 1 to positive and with label 0 to negative, both
 * uint32[2^24], at the upper 24 bits of the float32 value mapped to an unsigned number in the
 * same order; -0 counts as 0, NaN as the largest key. Other labels are skipped. */
EDGESEG_API int edgeseg_score_histogram(const void *scores, int32_t score_type,
                                        const uint8_t *labels, size_t count, uint32_t *positive,
                                        uint32_t *negative, int32_t threads);

#ifdef __cplusplus
}
#endif
#endif
