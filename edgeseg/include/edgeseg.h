/* edgeseg: class map and pixel-wise anomaly score for every camera frame.
 *
 * A bundle (a folder written by `edgeseg export`) is opened once; any number of sessions run it.
 * A session loads an inference engine at run time, runs the network's body in it and the head in
 * its own kernels. The results are those of the Python package, bit for bit, on the same engine
 * with the same number of threads.
 *
 *     edgeseg_bundle *bundle = NULL;
 *     edgeseg_session *session = NULL;
 *     edgeseg_session_options options = EDGESEG_SESSION_OPTIONS_INIT;
 *     edgeseg_frame frame = EDGESEG_FRAME_INIT;
 *     edgeseg_result result = EDGESEG_RESULT_INIT;
 *     if (edgeseg_bundle_open("ready", &bundle) < 0 ||
 *         edgeseg_session_open(bundle, &options, &session) < 0) {
 *         fprintf(stderr, "%s\n", edgeseg_last_error());
 *     }
 *     ... fill frame ...
 *     int status = edgeseg_session_run(session, &frame, &result);
 *
 * Status. Every function that can fail returns an int: 0 done, positive done with a remark,
 * negative failed. After a failure edgeseg_last_error() has one sentence about it; output
 * arguments are then as they were, unless a function says otherwise.
 *
 * Threads. A bundle is never written to and may be used from any thread. A session may be used
 * from any thread; calls on one session run one after another. Sessions are independent of each
 * other. Nothing else is shared: the library has no global state but the error text, of which
 * every thread has its own. After fork() a child must not use its parent's sessions.
 *
 * Memory. The library never frees or keeps what a caller gives it, except that a bundle stays in
 * memory until it and its last session are closed. edgeseg_session_run() allocates nothing after
 * the first frame, as long as frames keep their size and format; engines may allocate on their
 * own.
 *
 * Growth. Structs start with their size, which the _INIT macros fill in. Fields are only ever
 * added at the end, and zero in a field that a caller does not know means the default.
 */
#ifndef EDGESEG_H
#define EDGESEG_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define EDGESEG_PUBLIC __attribute__((visibility("default")))
#else
#define EDGESEG_PUBLIC
#endif

/* The version of this header; edgeseg_version() has that of the library. Programs built with one
 * minor version run with any later one of the same major version. */
#define EDGESEG_VERSION_MAJOR 0
#define EDGESEG_VERSION_MINOR 1
#define EDGESEG_VERSION_PATCH 0

/* Negative ones but -1, -5 and -6 are the exit codes of the command line with another sign. */
enum edgeseg_status_code {
    EDGESEG_STATUS_OK = 0,
    EDGESEG_STATUS_LATE = 1,      /* the result stands, and is older than the deadline */
    EDGESEG_STATUS_STALE = 2,     /* the frame was too old on arrival; there is no result */
    EDGESEG_STATUS_ENGINE = -1,   /* the engine failed while running */
    EDGESEG_STATUS_ARGUMENT = -2, /* an argument cannot be, or the bundle has no such thing */
    EDGESEG_STATUS_MISSING = -3,  /* an engine is not there */
    EDGESEG_STATUS_ARTEFACT = -4, /* the bundle is damaged, unknown or refused by the engine */
    EDGESEG_STATUS_NO_MEMORY = -5,
    EDGESEG_STATUS_NO_THREAD = -6, /* a worker thread could not be started */
    EDGESEG_STATUS_INPUT = -7      /* a file or folder is not there or cannot be read */
};

/* How a frame lies in memory. All channels are 8 bits. */
enum edgeseg_pixels {
    EDGESEG_PIXELS_BGR = 0,  /* plane[0]: B G R, B G R, ... */
    EDGESEG_PIXELS_RGB = 1,  /* plane[0]: R G B, R G B, ... */
    EDGESEG_PIXELS_NV12 = 2, /* plane[0]: Y; plane[1]: U V, U V, ..., at half the rows and
                                columns; width and height are even */
    EDGESEG_PIXELS_YUYV = 3  /* plane[0]: Y U Y V, ...; the width is even */
};

/* Colour of NV12 and YUYV. */
enum edgeseg_matrix { EDGESEG_MATRIX_BT601 = 0, EDGESEG_MATRIX_BT709 = 1 };
enum edgeseg_range {
    EDGESEG_RANGE_LIMITED = 0, /* Y in 16 .. 235, U and V in 16 .. 240 */
    EDGESEG_RANGE_FULL = 1     /* 0 .. 255 */
};

enum edgeseg_score_type { EDGESEG_SCORE_FLOAT16 = 0, EDGESEG_SCORE_FLOAT32 = 1 };

typedef struct edgeseg_bundle edgeseg_bundle;
typedef struct edgeseg_session edgeseg_session;

/* "0.1.0"; the version of the Python package that the library belongs to. */
EDGESEG_PUBLIC const char *edgeseg_version(void);

/* "ok", "late", "stale", "engine", ...; "unknown" for a number that is none. */
EDGESEG_PUBLIC const char *edgeseg_status_name(int status);

/* One sentence about the last call of this thread that failed; "" where none has. Valid until
 * this thread's next call fails. */
EDGESEG_PUBLIC const char *edgeseg_last_error(void);

/* --- the bundle ------------------------------------------------------------------------- */

/* Reads and verifies a bundle: every file that its manifest lists must be there with the sha256
 * that it states.
 *
 * folder: of the bundle. bundle: receives a handle; close it with edgeseg_bundle_close().
 * Errors: INPUT (no such folder, unreadable), ARTEFACT (not a bundle, another schema, damaged),
 * NO_MEMORY, ARGUMENT. */
EDGESEG_PUBLIC int edgeseg_bundle_open(const char *folder, edgeseg_bundle **bundle);

/* NULL is allowed. Sessions of the bundle go on working. */
EDGESEG_PUBLIC void edgeseg_bundle_close(edgeseg_bundle *bundle);

/* What a bundle promises. Texts belong to the bundle. */
typedef struct edgeseg_contract {
    size_t size;
    int32_t height;      /* of the network's frame, and of class map and score, in pixels */
    int32_t width;
    int32_t num_classes; /* known classes; the class map holds 0 .. num_classes - 1 */
    int32_t num_scorers;
    int32_t has_void;    /* 1 where the network has a void output, which "void" needs */
    int32_t reserved;
    const char *network;           /* "erfnet" */
    const char *weights;           /* where the weights come from */
    const char *license;           /* terms of the weights */
    const char *precision;         /* "float32", "float16" or "int8" */
    const char *compute_precision; /* what is not integer is computed in "f32" or "bf16" */
    const char *default_scorer;
    const char *body_sha256; /* 64 hexadecimal digits */
} edgeseg_contract;

#define EDGESEG_CONTRACT_INIT {sizeof(edgeseg_contract), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}

/* Errors: ARGUMENT. */
EDGESEG_PUBLIC int edgeseg_bundle_contract(const edgeseg_bundle *bundle,
                                           edgeseg_contract *contract);

typedef struct edgeseg_scorer_defaults {
    size_t size;
    const char *name;      /* "msp", "maxlogit", "entropy", "void" or "energy" */
    double temperature;    /* greater than 0 */
    double threshold;      /* 99th percentile of the score on calibration frames */
    int32_t has_threshold; /* 0 where none is known; threshold is then 0 */
    int32_t reserved;
} edgeseg_scorer_defaults;

#define EDGESEG_SCORER_DEFAULTS_INIT {sizeof(edgeseg_scorer_defaults), 0, 0, 0, 0, 0}

/* index: 0 .. num_scorers - 1. Errors: ARGUMENT. */
EDGESEG_PUBLIC int edgeseg_bundle_scorer(const edgeseg_bundle *bundle, int32_t index,
                                         edgeseg_scorer_defaults *defaults);

/* Name of a known class, UTF-8, owned by the bundle; NULL where index is out of range. */
EDGESEG_PUBLIC const char *edgeseg_bundle_class(const edgeseg_bundle *bundle, int32_t index);

/* rgb: receives the colour of a known class. Errors: ARGUMENT. */
EDGESEG_PUBLIC int edgeseg_bundle_colour(const edgeseg_bundle *bundle, int32_t index,
                                         uint8_t rgb[3]);

/* --- the session ------------------------------------------------------------------------ */

typedef struct edgeseg_session_options {
    size_t size;
    /* "openvino", "onnxruntime", or "tensorrt" where the library was built with it. NULL or
     * "auto": the first of these that is found here. */
    const char *engine;
    /* Path of the engine's shared library (libonnxruntime.so..., libopenvino_c.so...). NULL: the
     * path in EDGESEG_ONNXRUNTIME_LIBRARY or EDGESEG_OPENVINO_LIBRARY, else that of the Python
     * package installed beside edgeseg's, else what the system's loader finds. Trusted: it is
     * loaded into the process. Not with "auto". */
    const char *engine_library;
    const char *scorer;     /* NULL: the bundle's default scorer */
    double temperature;     /* greater than 0; 0: the bundle's for the scorer */
    double threshold;       /* of the summary, used where has_threshold is 1 */
    int32_t has_threshold;  /* 0: the bundle's, as edgeseg_session_threshold() tells */
    int32_t threads;        /* 1 .. 64, of the engine and of the kernels; 0: the physical cores
                               that the process may use */
    int32_t score_type;     /* enum edgeseg_score_type */
    int32_t skip_stale;     /* 1: a frame older than the deadline on arrival is not run */
    int64_t deadline_ns;    /* largest age of a result, from capture; 0: none */
} edgeseg_session_options;

#define EDGESEG_SESSION_OPTIONS_INIT                                                            \
    {sizeof(edgeseg_session_options), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}

/* Loads the engine, compiles the body and runs it once on a black frame.
 *
 * options: NULL for the defaults. session: receives a handle; close it with
 * edgeseg_session_close(). Takes up to seconds.
 *
 * A graph that makes the engine's compiler crash takes the process with it; run
 * `edgeseg run BUNDLE --backend NAME` once to find out in a child process.
 *
 * Errors: ARGUMENT, MISSING (no such engine here), ARTEFACT (the engine refuses the body, or it
 * does not fit the head), ENGINE, NO_MEMORY, NO_THREAD. */
EDGESEG_PUBLIC int edgeseg_session_open(const edgeseg_bundle *bundle,
                                        const edgeseg_session_options *options,
                                        edgeseg_session **session);

/* NULL is allowed. No call on the session may be under way. */
EDGESEG_PUBLIC void edgeseg_session_close(edgeseg_session *session);

/* Of the next frames. scorer: NULL keeps the one in use. temperature: 0 for the bundle's.
 * The threshold becomes the bundle's for them, if it has one. Errors: ARGUMENT. */
EDGESEG_PUBLIC int edgeseg_session_set_scorer(edgeseg_session *session, const char *scorer,
                                              double temperature);

/* Of the next summaries: pixels at or above it count. NAN: no threshold. Errors: ARGUMENT. */
EDGESEG_PUBLIC int edgeseg_session_set_threshold(edgeseg_session *session, double threshold);

/* The threshold in use; NAN where there is none: the bundle has none for the scorer, or the
 * temperature is not the one that it was taken at. */
EDGESEG_PUBLIC double edgeseg_session_threshold(const edgeseg_session *session);

/* Where the next summaries look. mask: uint8 [height][width] at the network's size, not 0 where a
 * pixel counts; copied. NULL: everywhere. row_stride: bytes from one row to the next.
 * Errors: ARGUMENT (0 everywhere), NO_MEMORY. */
EDGESEG_PUBLIC int edgeseg_session_set_region(edgeseg_session *session, const uint8_t *mask,
                                              ptrdiff_t row_stride);

/* deadline_ns: see the options. Errors: ARGUMENT (negative). */
EDGESEG_PUBLIC int edgeseg_session_set_deadline(edgeseg_session *session, int64_t deadline_ns,
                                                int32_t skip_stale);

/* How a session runs. Texts belong to the session. */
typedef struct edgeseg_session_info {
    size_t size;
    const char *engine;         /* "onnxruntime" or "openvino" */
    const char *engine_version; /* as the engine tells it */
    const char *engine_library; /* path or name that was loaded */
    const char *compute_precision; /* what the engine really uses: "f32", "bf16" or "other" */
    const char *isa;            /* of the kernels: "avx512", "avx2", "neon" or "scalar" */
    const char *scorer;         /* constant text: also valid after the session */
    double temperature;
    int32_t threads;
    int32_t score_type;
} edgeseg_session_info;

#define EDGESEG_SESSION_INFO_INIT {sizeof(edgeseg_session_info), 0, 0, 0, 0, 0, 0, 0, 0, 0}

/* Errors: ARGUMENT. */
EDGESEG_PUBLIC int edgeseg_session_describe(edgeseg_session *session, edgeseg_session_info *info);

/* --- one frame --------------------------------------------------------------------------- */

typedef struct edgeseg_frame {
    size_t size;
    const uint8_t *plane[2];
    ptrdiff_t stride[2]; /* bytes from one row to the next; may be negative, and is at least as
                            large as a row otherwise */
    int32_t height;      /* 1 .. 65536 pixels; any size, resized to the network's with an
                            antialiased triangle filter, bit-equal to Pillow's BILINEAR */
    int32_t width;
    int32_t pixels;      /* enum edgeseg_pixels */
    int32_t matrix;      /* enum edgeseg_matrix; of NV12 and YUYV, as is range */
    int32_t range;       /* enum edgeseg_range */
    int32_t reserved;
    int64_t captured_ns; /* CLOCK_MONOTONIC, in nanoseconds, not negative and not in the future;
                            0: the moment of the call */
} edgeseg_frame;

#define EDGESEG_FRAME_INIT {sizeof(edgeseg_frame), {0, 0}, {0, 0}, 0, 0, 0, 0, 0, 0, 0}

/* Nanoseconds. */
typedef struct edgeseg_timings {
    int64_t convert; /* YUV to BGR */
    int64_t resize;  /* to the network's size; 0 for BGR of that size without gaps between rows,
                        which the engine reads where it lies */
    int64_t body;    /* the engine */
    int64_t head;    /* upsampling, class map, score */
    int64_t summary;
    int64_t total;   /* the whole call, waiting for another call on the session included */
} edgeseg_timings;

typedef struct edgeseg_summary {
    double max;      /* largest score in the region of interest */
    double fraction; /* share of its pixels at or above the threshold, 0 .. 1; -1 without one */
    int64_t pixels;  /* in the region */
} edgeseg_summary;

typedef struct edgeseg_result {
    size_t size;
    /* In: where to write; NULL for the session's own memory, which the next call on it
     * overwrites. Several threads that share a session must give their own.
     * class_map_out: uint8 [height][width]. score_out: float16 or float32 [height][width],
     * aligned to its type. Both contiguous, of the network's size. */
    uint8_t *class_map_out;
    void *score_out;
    /* Out. NULL and zero where the call failed or the frame was stale, but for the age of a stale
     * one: an old result can never be taken for a new one. */
    const uint8_t *class_map; /* [height][width], 0 .. num_classes - 1; void never appears */
    const void *score;        /* [height][width], larger is more anomalous, never NaN; a pixel
                                 whose logits are not finite has the scorer's largest score */
    int64_t age_ns;           /* from capture to the end of the call */
    uint64_t sequence;        /* of the frame: 1 for the first that the body ran on, 2 ... */
    edgeseg_summary summary;
    edgeseg_timings timings;
} edgeseg_result;

#define EDGESEG_RESULT_INIT                                                                     \
    {sizeof(edgeseg_result), 0, 0, 0, 0, 0, 0, {0, 0, 0}, {0, 0, 0, 0, 0, 0}}

/* Class map, score and summary of one frame.
 *
 * Returns OK, LATE (age_ns is greater than the deadline), STALE, or an error: ARGUMENT (the frame
 * or the result cannot be), ENGINE, NO_MEMORY, NO_THREAD. After an error the session may go on
 * with the next frame. */
EDGESEG_PUBLIC int edgeseg_session_run(edgeseg_session *session, const edgeseg_frame *frame,
                                       edgeseg_result *result);

/* The same for the features of the last frame that was run, by another scorer: costs the head
 * alone. Changes nothing of the session. scorer and temperature as in
 * edgeseg_session_set_scorer(); the summary uses the threshold that would then be in force.
 * age_ns is 0: the caller knows the frame. Errors: ARGUMENT (also where no frame has been run). */
EDGESEG_PUBLIC int edgeseg_session_rescore(edgeseg_session *session, const char *scorer,
                                           double temperature, edgeseg_result *result);

/* The body alone, for those who score by other means or by several scorers: afterwards
 * edgeseg_session_features() and edgeseg_session_rescore() work. No deadline is looked at.
 * Errors: as edgeseg_session_run(). */
EDGESEG_PUBLIC int edgeseg_session_infer(edgeseg_session *session, const edgeseg_frame *frame);

/* What the body made of the last frame: float32, rows x columns x channels or channels x rows x
 * columns as the bundle's head has it. Valid until the next call on the session. count: how many
 * numbers. Errors: ARGUMENT (no frame has been run). */
EDGESEG_PUBLIC int edgeseg_session_features(edgeseg_session *session, const float **features,
                                            size_t *count);

#ifdef __cplusplus
}
#endif
#endif
