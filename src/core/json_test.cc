#include <gtest/gtest.h>
#include <malloc.h>

#include <algorithm>
#include <ctime>
#include <limits>
#include <set>
#include <string>
#include <unordered_set>
#include <vector>

#include "core/error.h"
#include "core/json.h"
#include "core/json_text.h"
#include "core/keyed_hash.h"

namespace caravan {
namespace {

std::string problem_of(std::string_view text, const JsonLimits& limits = {}) {
  try {
    parse_json(text, "f", limits);
  } catch (const Error& e) {
    return e.what();
  }
  return "accepted";
}

TEST(JsonTest, NamesTheOffsetOfTheFirstMistake) {
  const auto message = [](const char* text) -> std::string {
    try {
      parse_json(text, "f.json");
    } catch (const Error& e) {
      return e.what();
    }
    return "accepted";
  };
  EXPECT_EQ(message("{\"a\": 1, \"a\": 2}").find("f.json: offset "), 0u);
  EXPECT_NE(message("{\"a\": 1, \"a\": 2}").find("the key \"a\" appears twice"), std::string::npos);
  EXPECT_NE(message("{\"a\": tru}").find("not valid JSON"), std::string::npos);
  EXPECT_NE(message("{} x").find("offset 3: text after the end"), std::string::npos);
  EXPECT_NE(message("").find("not valid JSON"), std::string::npos);
  EXPECT_NE(message(std::string(100, '[').c_str()).find("not valid JSON"), std::string::npos);
  EXPECT_EQ(message("{\"a\": {\"b\": 1}, \"c\": {\"b\": 2}} \n"), "accepted");
}

TEST(JsonTest, ByteOrderMarks) {
  EXPECT_EQ(parse_json("\xef\xbb\xbf{\"a\":1}", "f"), parse_json("{\"a\":1}", "f"));
  EXPECT_EQ(problem_of("\xef\xbb\xbf{} x"), "f: offset 6: text after the end of the JSON value");
  EXPECT_NE(problem_of("\xef\xbb\xbf\xef\xbb\xbf{}"), "accepted");  // one is skipped, not two
  EXPECT_EQ(problem_of(std::string_view("\xff\xfe{\0}\0", 6)),
            "f: UTF-16 text, expected UTF-8: convert it");
  EXPECT_EQ(parse_json("\"\xef\xbb\xbf\"", "f").as_string(), "\xef\xbb\xbf");  // inside: kept
}

TEST(JsonTest, LoneSurrogatesBecomeReplacementCharacters) {
  const auto text_of = [](std::string_view json) {
    return std::string(parse_json(json, "f").as_string());
  };
  const std::string mark = "\xef\xbf\xbd";
  EXPECT_EQ(text_of(R"("a \ud83d")"), "a " + mark);
  EXPECT_EQ(text_of(R"("\uDE00b")"), mark + "b");
  EXPECT_EQ(text_of(R"("\ud83d\ude00")"), "\xf0\x9f\x98\x80");
  EXPECT_EQ(text_of(R"("\ud83d\ud83d\ude00")"), mark + "\xf0\x9f\x98\x80");
  EXPECT_EQ(text_of(R"("\ude00\ud83d")"), mark + mark);
  EXPECT_EQ(text_of(R"("\ud83dA\n")"), mark + "A\n");
  EXPECT_EQ(text_of(R"("\\ud83d")"), "\\ud83d");  // an escaped backslash, no surrogate
  EXPECT_EQ(text_of(R"("\\\ud83d")"), "\\" + mark);
  EXPECT_EQ(parse_json(R"({"\udc00":1})", "f").as_object().begin()->key(), mark);
  EXPECT_NE(problem_of(R"("\ud83)"), "accepted");
  EXPECT_NE(problem_of(R"("\ud83d)"), "accepted");
  EXPECT_NE(problem_of("\"\\"), "accepted");
  EXPECT_NE(problem_of(R"("\ud8zz")"), "accepted");
  EXPECT_NE(problem_of(R"("\ud83d" x)").find("offset 9: text after"), std::string::npos);
}

TEST(JsonTest, KeepsNul) {
  EXPECT_EQ(
      parse_json(R"({"a\u0000b":"c\u0000d"})", "f"),
      (boost::json::object{{boost::json::string_view("a\0b", 3), boost::json::string("c\0d", 3)}}));
  EXPECT_EQ(problem_of(R"({"a\u0000":1,"a\u0000b":2})"), "accepted");
  EXPECT_NE(problem_of(R"({"a\u0000b":1,"a\u0000b":2})"), "accepted");
}

TEST(JsonTest, MembersAreCounted) {
  JsonLimits limits;
  limits.max_members = 2;
  EXPECT_NO_THROW(parse_json(R"({"a":{"a":1,"b":2},"b":{}})", "f", limits));
  EXPECT_EQ(problem_of(R"({"a":1,"b":[{"a":1,"b":2,"c":3}]})", limits),
            "f: offset 27: an object of more than 2 members");
}

/// MurmurHash64A backwards: the key of 8 bytes that libstdc++'s std::hash of strings maps to
/// `hash`.
std::string key_of_std_hash(uint64_t hash) {
  constexpr uint64_t kMul = 0xc6a4a7935bd1e995, kSeed = 0xc70f6907;
  uint64_t inverse = kMul;  // Newton's iteration modulo 2^64
  for (int i = 0; i < 6; ++i) inverse *= 2 - kMul * inverse;
  const auto unshift = [](uint64_t x) { return x ^ (x >> 47); };
  uint64_t h = unshift(unshift(hash) * inverse) * inverse;
  uint64_t data = (h ^ (kSeed ^ (8 * kMul))) * inverse;
  data = unshift(data) * inverse;
  return {reinterpret_cast<const char*>(&data), sizeof(data)};
}

/// `count` keys of 8 printable bytes that share a bucket of a table of num_buckets.
std::vector<std::string> colliding_keys(size_t count, uint64_t num_buckets) {
  std::vector<std::string> keys;
  for (uint64_t i = 1; keys.size() < count; ++i) {
    const uint64_t multiple = i * 0x9e3779b97f4a7c15 % (UINT64_MAX / num_buckets);
    std::string key = key_of_std_hash(multiple * num_buckets);
    const bool is_printable = std::all_of(key.begin(), key.end(), [](char c) {
      return c >= 0x20 && c < 0x7f && c != '"' && c != '\\';
    });
    if (is_printable) keys.push_back(std::move(key));
  }
  return keys;
}

/// The members of the fullest bucket.
template <typename Set>
size_t fullest_bucket(const Set& set) {
  size_t most = 0;
  for (size_t i = 0; i < set.bucket_count(); ++i) most = std::max(most, set.bucket_size(i));
  return most;
}

TEST(KeyedHashTest, KeysThatStdHashPutsInOneBucketAreSpread) {
  constexpr size_t kCount = 2000;
  const uint64_t num_buckets = std::unordered_set<int>(kCount).bucket_count();
  const std::vector<std::string> keys = colliding_keys(kCount, num_buckets);
  ASSERT_EQ(std::set<std::string>(keys.begin(), keys.end()).size(), kCount);
  std::unordered_set<std::string> plain(num_buckets);
  plain.insert(keys.begin(), keys.end());
  ASSERT_EQ(plain.bucket_count(), num_buckets);
  ASSERT_EQ(fullest_bucket(plain), kCount);  // the attack works on std::hash
  KeyedSet<std::string> keyed(num_buckets);
  keyed.insert(keys.begin(), keys.end());
  EXPECT_LT(fullest_bucket(keyed), 20u);  // e^-1 of them have one key; 20 is beyond chance

  KeyedSet<uint64_t> numbers(num_buckets);
  for (uint64_t i = 0; i < kCount; ++i) numbers.insert(i * num_buckets);
  EXPECT_LT(fullest_bucket(numbers), 20u);
}

TEST(KeyedHashTest, TextOfAnyKindHasOneHash) {
  const KeyedHash hash;
  EXPECT_EQ(hash("abc"), hash(std::string("abc")));
  EXPECT_EQ(hash(std::string_view("a\0b", 3)), hash(std::string("a\0b", 3)));
  EXPECT_NE(hash(std::string_view("a\0b", 3)), hash(std::string_view("a")));
}

double cpu_seconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

double parse_seconds(const std::vector<std::string>& keys) {
  std::string text = "{";
  for (const std::string& key : keys) text += "\"" + key + "\":1,";
  text.back() = '}';
  const double start = cpu_seconds();
  const size_t size = parse_json(text, "flood").as_object().size();
  EXPECT_EQ(size, keys.size());
  return cpu_seconds() - start;
}

std::vector<std::string> ordinary_keys(size_t count) {
  std::vector<std::string> keys;
  for (size_t i = 0; i < count; ++i) keys.push_back(fmt::format("key{:05}", i));
  return keys;
}

TEST(JsonTest, KeysThatCollideInStdHashCostNoMore) {
  constexpr size_t kCount = 20000;
  std::unordered_set<size_t> grown;
  for (size_t i = 0; i < kCount; ++i) grown.insert(i);
  const double plain = parse_seconds(ordinary_keys(kCount));
  // Without a keyed hash they cost 100 times as much.
  EXPECT_LT(parse_seconds(colliding_keys(kCount, grown.bucket_count())), 10 * plain + 0.1);
}

constexpr std::string_view kLetters =
    "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";

TEST(JsonTest, KeysThatCollideInBoostsDigestCostNoMore) {
  // FNV-1a modulo 4096 with the salt of a table that lies 16 bytes into a page, as large ones do
  // unless larger ones were freed before. With 2^17 members all keys whose 12 low bits agree share
  // 32 buckets.
  mallopt(M_MMAP_THRESHOLD, 128 << 10);
  constexpr size_t kCount = size_t{1} << 17;
  constexpr uint64_t kBuckets = 4096;
  const auto add = [](uint64_t hash, std::string_view text) {
    for (const char c : text) hash = (hash ^ static_cast<uint64_t>(c)) * 0x100000001b3;
    return hash % kBuckets;
  };
  std::vector<std::vector<std::string>> suffixes(kBuckets);  // that lead from a hash to 0
  for (uint64_t hash = 0; hash < kBuckets; ++hash) {
    for (const char a : kLetters) {
      for (const char b : kLetters) {
        if (const std::string text{a, b}; add(hash, text) == 0) suffixes[hash].push_back(text);
      }
    }
  }
  std::vector<std::string> keys;
  for (uint64_t i = 0; keys.size() < kCount; ++i) {
    const std::string prefix = fmt::format("{:x}:", i);
    for (const std::string& suffix : suffixes[add(0xcbf29ce484222325 + 16, prefix)]) {
      if (keys.size() < kCount) keys.push_back(prefix + suffix);
    }
  }
  const double plain = parse_seconds(ordinary_keys(kCount));
  EXPECT_LT(parse_seconds(keys), 10 * plain + 0.2);
}

TEST(JsonTextTest, WritesNumbersAsPeopleDo) {
  EXPECT_EQ(json_number(1.49), "1.49");
  EXPECT_EQ(json_number(14.945158), "14.945158");
  EXPECT_EQ(json_number(1e-5), "1e-05");
  EXPECT_EQ(json_number(0.0001), "0.0001");
  EXPECT_EQ(json_number(0), "0.0");
  EXPECT_EQ(json_number(-0.0), "-0.0");
  EXPECT_EQ(json_number(-3), "-3.0");
  EXPECT_EQ(json_number(100000), "100000.0");
  EXPECT_EQ(json_number(1e15), "1000000000000000.0");
  EXPECT_EQ(json_number(1e300), "1e+300");
  EXPECT_EQ(json_number(0.1 + 0.2), "0.30000000000000004");
  EXPECT_EQ(json_number(std::numeric_limits<double>::quiet_NaN()), "null");
  EXPECT_EQ(json_number(-std::numeric_limits<double>::infinity()), "null");
  for (const double number : {1.49, 1e-320, 1.7976931348623157e308, -0.0, 123456789.125, 3.0}) {
    const boost::json::value read = parse_json(json_number(number), "number");
    ASSERT_TRUE(read.is_double()) << json_number(number);
    EXPECT_EQ(read.get_double(), number);
  }
}

TEST(JsonTextTest, ReadsBackAsTheSameValue) {
  const std::string text = R"({"a":[1,-2,18446744073709551615,1.5,true,false,null,[],{}],)"
                           R"("\u0001\"":"\\\b\f\n\r\t\u0000é/"})";
  EXPECT_EQ(to_json_text(parse_json(text, "text")), text);
  EXPECT_EQ(to_json_text(boost::json::object{{"k", 1}}), R"({"k":1})");
}

}  // namespace
}  // namespace caravan
