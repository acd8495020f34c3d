// Class map and anomaly score of a frame, in C++17: handles that close themselves, errors as
// exceptions of the program's own, results in its own memory.
//
//     segment BUNDLE ENGINE THREADS OUTPUT FRAME.ppm...
//
// Writes what segment.c writes.
//
//     c++ -std=c++17 segment.cpp $(pkg-config --cflags --libs edgeseg) -o segment
#include "netpbm.h"

#include <edgeseg.h>

#include <cstdlib>
#include <iostream>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

struct Closer {
    void operator()(edgeseg_bundle *bundle) const { edgeseg_bundle_close(bundle); }
    void operator()(edgeseg_session *session) const { edgeseg_session_close(session); }
    void operator()(std::uint8_t *memory) const { std::free(memory); }
};

int check(int status) {
    if (status < 0) {
        throw std::runtime_error(edgeseg_last_error());
    }
    return status;
}

class Segmenter {
  public:
    Segmenter(const std::string &folder, const std::string &engine, int threads) {
        edgeseg_bundle *bundle = nullptr;
        check(edgeseg_bundle_open(folder.c_str(), &bundle));
        bundle_.reset(bundle);
        edgeseg_contract contract = EDGESEG_CONTRACT_INIT;
        check(edgeseg_bundle_contract(bundle, &contract));
        edgeseg_session_options options = EDGESEG_SESSION_OPTIONS_INIT;
        options.engine = engine.c_str();
        options.threads = threads;
        edgeseg_session *session = nullptr;
        check(edgeseg_session_open(bundle, &options, &session));
        session_.reset(session);
        const auto pixels = static_cast<std::size_t>(contract.height) *
                            static_cast<std::size_t>(contract.width);
        classes.resize(pixels);
        score.resize(pixels);
    }

    edgeseg_summary run(const std::string &path) {
        edgeseg_frame frame = EDGESEG_FRAME_INIT;
        const std::unique_ptr<std::uint8_t, Closer> pixels(
            read_ppm(path.c_str(), &frame.height, &frame.width));
        if (!pixels) {
            throw std::runtime_error("'" + path + "' is not a PPM file of 8 bits");
        }
        frame.plane[0] = pixels.get();
        frame.stride[0] = static_cast<std::ptrdiff_t>(frame.width) * 3;
        frame.pixels = EDGESEG_PIXELS_RGB;
        edgeseg_result result = EDGESEG_RESULT_INIT;
        result.class_map_out = classes.data();
        result.score_out = score.data();
        check(edgeseg_session_run(session_.get(), &frame, &result));
        return result.summary;
    }

    std::vector<std::uint8_t> classes;
    std::vector<std::uint16_t> score; // float16

  private:
    std::unique_ptr<edgeseg_bundle, Closer> bundle_;
    std::unique_ptr<edgeseg_session, Closer> session_;
};

} // namespace

int main(int argc, char **argv) {
    if (argc < 6) {
        std::cerr << "usage: segment BUNDLE ENGINE THREADS OUTPUT FRAME.ppm...\n";
        return 2;
    }
    try {
        Segmenter segmenter(argv[1], argv[2], std::atoi(argv[3]));
        for (int i = 5; i < argc; ++i) {
            const edgeseg_summary summary = segmenter.run(argv[i]);
            const std::string stem = std::string(argv[4]) + "/" + std::to_string(i - 5);
            if (write_raw((stem + ".classes").c_str(), segmenter.classes.data(),
                          segmenter.classes.size()) != 0 ||
                write_raw((stem + ".score").c_str(), segmenter.score.data(),
                          2 * segmenter.score.size()) != 0) {
                throw std::runtime_error(std::string("'") + argv[4] + "' cannot be written to");
            }
            std::cout << argv[i] << " max " << summary.max << " fraction " << summary.fraction
                      << '\n';
        }
    } catch (const std::exception &error) {
        std::cerr << error.what() << '\n';
        return 1;
    }
    return 0;
}
