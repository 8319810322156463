// libFuzzer target of torch files. The first byte says what the rest is: a whole file, a pickle to
// run, or a pickle to wrap as the state of a legacy file, which saves the fuzzer the way there.

#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "core/error.h"
#include "format/torch_file.h"
#include "format/torch_pickle.h"
#include "tests/fuzz/cpu_budget.h"
#include "tests/malformed/builders.h"

namespace caravan {
namespace {

void require(bool is_true) {
  if (!is_true) std::abort();
}

void fuzz_file(std::string_view file) {
  for (const TorchTensor& tensor :
       parse_torch_file({reinterpret_cast<const std::byte*>(file.data()), file.size()}, "FILE")) {
    const StoredTensor stored{"", tensor.dtype, tensor.shape, nullptr, 0, tensor.strides};
    const uint64_t num_bytes = tensor.shape.num_elements() == 0 ? 0 : stored.span_bytes();
    require(tensor.offset <= file.size() && num_bytes <= file.size() - tensor.offset);
  }
}

void fuzz_pickle(std::string_view bytes) {
  const Pickle pickle =
      run_pickle({reinterpret_cast<const std::byte*>(bytes.data()), bytes.size()}, 0, "FILE");
  require(pickle.end <= bytes.size() && pickle.root < pickle.objects.size());
  for (const PickleObject& object : pickle.objects) {
    for (const uint32_t item : object.items) require(item < pickle.objects.size());
  }
}

void fuzz(uint8_t kind, std::string_view rest) {
  if (kind % 3 == 0) {
    fuzz_file(rest);
  } else if (kind % 3 == 1) {
    fuzz_pickle(rest);
  } else {
    test::LegacyFile file = test::torch_legacy();
    file.state = rest;
    fuzz_file(file.bytes());
    fuzz_file(test::torch_zip(std::string(rest)));
  }
}

}  // namespace
}  // namespace caravan

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace caravan;
  const CpuBudget budget(size);
  if (size == 0) return 0;
  try {
    fuzz(data[0], {reinterpret_cast<const char*>(data) + 1, size - 1});
  } catch (const Error& error) {
    require(error.code() == ErrorCode::kCorrupt || error.code() == ErrorCode::kUnsupported);
    require(std::string_view(error.what()).find('\n') == std::string_view::npos);
  }
  return 0;
}
