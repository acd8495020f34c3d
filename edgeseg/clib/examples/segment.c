/* Class map and anomaly score of frames, in C.
 *
 *     segment BUNDLE ENGINE THREADS OUTPUT FRAME.ppm...
 *
 * ENGINE is onnxruntime, openvino or auto. Writes OUTPUT/0.classes (uint8) and OUTPUT/0.score
 * (float16), both [height][width] of the network, for the first frame, and so on; prints a line a
 * frame. OUTPUT must be there.
 *
 *     cc segment.c $(pkg-config --cflags --libs edgeseg) -o segment
 */
#include "netpbm.h"

#include <edgeseg.h>

#include <string.h>

static int fail(const char *what) {
    fprintf(stderr, "%s: %s\n", what, edgeseg_last_error());
    return 1;
}

static int write_result(const char *folder, int index, const edgeseg_contract *contract,
                        const edgeseg_result *result) {
    const size_t pixels = (size_t)contract->height * (size_t)contract->width;
    char path[4096];
    snprintf(path, sizeof path, "%s/%d.classes", folder, index);
    if (write_raw(path, result->class_map, pixels) != 0) {
        return -1;
    }
    snprintf(path, sizeof path, "%s/%d.score", folder, index);
    return write_raw(path, result->score, 2 * pixels);
}

static int run_frame(edgeseg_session *session, const edgeseg_contract *contract, const char *folder,
                     const char *path, int index) {
    edgeseg_frame frame = EDGESEG_FRAME_INIT;
    edgeseg_result result = EDGESEG_RESULT_INIT;
    uint8_t *pixels = read_ppm(path, &frame.height, &frame.width);
    if (pixels == NULL) {
        fprintf(stderr, "'%s' is not a PPM file of 8 bits\n", path);
        return 1;
    }
    frame.plane[0] = pixels;
    frame.stride[0] = (ptrdiff_t)frame.width * 3;
    frame.pixels = EDGESEG_PIXELS_RGB;
    const int status = edgeseg_session_run(session, &frame, &result);
    free(pixels);
    if (status < 0) {
        return fail(path);
    }
    if (write_result(folder, index, contract, &result) != 0) {
        fprintf(stderr, "'%s' cannot be written to\n", folder);
        return 1;
    }
    printf("%s %s max %.6g fraction %.6g body_ms %.3f total_ms %.3f\n", path,
           edgeseg_status_name(status), result.summary.max, result.summary.fraction,
           (double)result.timings.body / 1e6, (double)result.timings.total / 1e6);
    return 0;
}

int main(int argc, char **argv) {
    edgeseg_bundle *bundle = NULL;
    edgeseg_session *session = NULL;
    edgeseg_contract contract = EDGESEG_CONTRACT_INIT;
    edgeseg_session_options options = EDGESEG_SESSION_OPTIONS_INIT;
    if (argc < 6) {
        fprintf(stderr, "usage: segment BUNDLE ENGINE THREADS OUTPUT FRAME.ppm...\n");
        return 2;
    }
    options.engine = argv[2];
    options.threads = (int32_t)atoi(argv[3]);
    int failed = 0;
    if (edgeseg_bundle_open(argv[1], &bundle) < 0 ||
        edgeseg_bundle_contract(bundle, &contract) < 0 ||
        edgeseg_session_open(bundle, &options, &session) < 0) {
        failed = fail(argv[1]);
    }
    for (int i = 5; failed == 0 && i < argc; i++) {
        failed = run_frame(session, &contract, argv[4], argv[i], i - 5);
    }
    edgeseg_session_close(session);
    edgeseg_bundle_close(bundle);
    return failed;
}
