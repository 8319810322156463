// The smallest program on libcaravan: opens a model and completes one prompt, streaming.
//   generate MODEL_DIR "prompt" [max_output_len]

#include <cstdio>
#include <cstdlib>
#include <exception>

#include "caravan/llm.h"

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: %s MODEL_DIR PROMPT [MAX_OUTPUT_LEN]\n", argv[0]);
    return 64;
  }
  try {
    caravan::Llm llm = caravan::Llm::open({.model = argv[1]});
    caravan::SamplingParams params;
    params.max_output_len = argc > 3 ? std::atol(argv[3]) : 32;
    const caravan::Completion completion =
        llm.generate(argv[2], params, [](size_t, std::string_view text) {
          std::fwrite(text.data(), 1, text.size(), stdout);
          std::fflush(stdout);
        });
    std::printf("\n%lld tokens in %.1f ms\n",
                static_cast<long long>(completion.timings.num_output_tokens),
                completion.timings.prefill_ms + completion.timings.decode_ms);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
  return 0;
}
