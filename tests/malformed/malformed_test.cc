#include <gtest/gtest.h>

#include <set>

#include "core/log.h"
#include "tests/malformed/cases.h"

namespace caravan::test {
namespace {

std::vector<MalformedCase> all_cases() {
  std::vector<MalformedCase> cases;
  for (auto* group : {safetensors_cases, zip_cases, legacy_cases, pickle_cases, config_cases,
                      index_cases, caravan_cases}) {
    for (MalformedCase& one_case : group()) cases.push_back(std::move(one_case));
  }
  return cases;
}

class MalformedTest : public ::testing::TestWithParam<MalformedCase> {
 protected:
  void SetUp() override { set_log_level(LogLevel::kOff); }
  void TearDown() override { set_log_level(LogLevel::kInfo); }
};

TEST_P(MalformedTest, IsRefusedWithOneClearLine) {
  const MalformedCase& expected = GetParam();
  try {
    expected.read(expected.input);
    ADD_FAILURE() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.what(), expected.message);
    EXPECT_STREQ(error_code_name(error.code()), error_code_name(expected.code));
  }
}

INSTANTIATE_TEST_SUITE_P(Files, MalformedTest, ::testing::ValuesIn(all_cases()),
                         [](const auto& test) { return test.param.name; });

TEST(MalformedCasesTest, ThereAreManyAndEachHasItsOwnName) {
  std::set<std::string> names;
  for (const MalformedCase& one_case : all_cases()) {
    EXPECT_TRUE(names.insert(one_case.name).second) << one_case.name;
    EXPECT_EQ(one_case.message.find('\n'), std::string::npos) << one_case.name;
  }
  EXPECT_GE(names.size(), 300u);
}

}  // namespace
}  // namespace caravan::test
