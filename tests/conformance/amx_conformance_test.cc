#include <gtest/gtest.h>

#include <cmath>

#include "tests/conformance/emulated_amx.h"
#include "tests/conformance/op_cases.h"

namespace caravan {
namespace {

const CpuKernels& emulated_amx_kernels() {
  static const CpuKernels kernels = [] {
    CpuKernels table = cpu_kernels(CpuIsa::kAvx2);
    table.scratch_bytes = emulated_amx_scratch_bytes;
    table.linear = emulated_amx_linear;
    return table;
  }();
  return kernels;
}

// The blocking, packing and edges of the AMX kernel, on emulated tiles.
TEST(AmxConformance, EmulatedTilesMatchTheReference) {
  if (!cpu_isa_available(CpuIsa::kAvx2)) GTEST_SKIP() << "the emulation is compiled for AVX2";
  const Runner runner(emulated_amx_kernels(), 2);
  for (const LinearCase& c : linear_cases()) {
    if (c.dtype != DType::kBF16) continue;
    LinearData data(c);
    data.round_x_to_bfloat16();
    std::vector<float> want;
    std::vector<float> magnitude;
    data.reference(want, magnitude);
    const std::vector<float> got = data.run(runner, LinearLayout::kPanel32Pairs);
    ASSERT_EQ(got.size(), want.size()) << c.name();
    for (size_t i = 0; i < want.size(); ++i) {
      ASSERT_LE(std::fabs(got[i] - want[i]), linear_tolerance(c.in_features, magnitude[i], want[i]))
          << c.name() << " at " << i << ": got " << got[i] << ", wanted " << want[i];
    }
  }
}

TEST(AmxConformance, EmulatedRowsDoNotDependOnTheBatch) {
  if (!cpu_isa_available(CpuIsa::kAvx2)) GTEST_SKIP() << "the emulation is compiled for AVX2";
  const LinearData data({40, 1100, 70, DType::kBF16, Activation::kGelu, true, true});
  const std::vector<float> all =
      data.run(Runner(emulated_amx_kernels(), 2), LinearLayout::kPanel32Pairs);
  for (const int64_t count : {1, 3, 16, 17, 33}) {
    const std::vector<float> some =
        data.run(Runner(emulated_amx_kernels(), 1), LinearLayout::kPanel32Pairs, 5, count);
    EXPECT_TRUE(same_bits(some, {all.begin() + 5 * 70, all.begin() + (5 + count) * 70})) << count;
  }
}

// Says whether the documented order of TDPBF16PS is what the processor does.
TEST(AmxConformance, ProcessorGivesTheBitsOfTheEmulation) {
  if (!cpu_isa_available(CpuIsa::kAmx)) GTEST_SKIP() << "this processor has no AMX";
  for (const LinearCase& c : linear_cases()) {
    if (c.dtype != DType::kBF16) continue;
    const LinearData data(c);
    EXPECT_TRUE(
        same_bits(data.run(Runner(cpu_kernels(CpuIsa::kAmx), 2), LinearLayout::kPanel32Pairs),
                  data.run(Runner(emulated_amx_kernels(), 2), LinearLayout::kPanel32Pairs)))
        << c.name();
  }
}

}  // namespace
}  // namespace caravan
