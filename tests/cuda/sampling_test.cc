#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <numeric>
#include <thread>

#include "kernels/cuda/sampling.h"
#include "sampling/sampler.h"
#include "tests/cuda/device_array.h"

namespace caravan::cuda {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// CUDA_FORCE_PTX_JIT=1 runs the compute_80 PTX, as other GPUs than Hopper do.
LaunchContext context_of_this_code() {
  LaunchContext context = device_context();
  if (std::getenv("CUDA_FORCE_PTX_JIT") != nullptr) {
    context.compute_capability = 80;
    context.use_pdl = false;
  }
  return context;
}

/// Rows that are sampled by one launch, and the same rows for the host.
struct Batch {
  Batch(int64_t rows, int64_t vocab, int64_t row_stride)
      : num_rows(rows),
        vocab_size(vocab),
        stride(row_stride),
        logits(static_cast<size_t>(rows * row_stride), 1e30f),
        params(static_cast<size_t>(rows)),
        histories(static_cast<size_t>(rows)) {}

  std::span<float> row(int64_t i) {
    return {&logits[static_cast<size_t>(i * stride)], static_cast<size_t>(vocab_size)};
  }

  std::vector<int32_t> sample_on_device(const LaunchContext& context, bool is_greedy = false,
                                        bool has_seen = true) {
    const int64_t num_words = (vocab_size + 31) / 32;
    DeviceArray seen(static_cast<size_t>(num_rows * num_words) * 4);
    std::vector<RowSampling> rows(static_cast<size_t>(num_rows));
    for (size_t i = 0; i < rows.size(); ++i) {
      rows[i].temperature = params[i].temperature;
      rows[i].top_k = params[i].top_k;
      rows[i].top_p = params[i].top_p;
      rows[i].repetition_penalty = params[i].repetition_penalty;
      rows[i].seed = params[i].seed;
      rows[i].counter = histories[i].size();
      rows[i].history_slot = static_cast<int32_t>(rows.size() - 1 - i);
      if (!has_seen) continue;
      const DeviceArray ids(histories[i]);
      launch_mark_seen(seen.as<uint32_t>(), rows[i].history_slot, vocab_size, ids.as<int32_t>(),
                       static_cast<int64_t>(histories[i].size()), true, context);
      CARAVAN_CUDA_CHECK(cudaStreamSynchronize(context.stream));
    }
    const DeviceArray device_logits(logits);
    const DeviceArray device_rows(rows);
    DeviceArray tokens(static_cast<size_t>(num_rows) * 4);
    int32_t* host_tokens = nullptr;
    CARAVAN_CUDA_CHECK(
        cudaHostAlloc(&host_tokens, static_cast<size_t>(num_rows) * 4, cudaHostAllocMapped));
    SampleArgs args;
    args.num_rows = num_rows;
    args.vocab_size = vocab_size;
    args.logits_stride = stride;
    args.logits = device_logits.as<float>();
    args.rows = device_rows.as<RowSampling>();
    args.is_greedy = is_greedy;
    args.seen = has_seen ? seen.as<uint32_t>() : nullptr;
    args.tokens = tokens.as<int32_t>();
    args.host_tokens = host_tokens;
    launch_sample(args, context);
    std::vector<int32_t> got = tokens.host<int32_t>();
    // Where there is no token the host is told and the device has the harmless 0.
    for (int64_t i = 0; i < num_rows; ++i) {
      int32_t& token = got[static_cast<size_t>(i)];
      EXPECT_EQ(token, std::max(host_tokens[i], 0)) << "row " << i;
      token = host_tokens[i];
    }
    CARAVAN_CUDA_CHECK(cudaFreeHost(host_tokens));
    if (has_seen) check_seen(seen.host<uint32_t>(), rows, got);
    return got;
  }

  /// The bits are those of the history and of the chosen token.
  void check_seen(const std::vector<uint32_t>& seen, const std::vector<RowSampling>& rows,
                  const std::vector<int32_t>& chosen) const {
    const int64_t num_words = (vocab_size + 31) / 32;
    for (size_t i = 0; i < rows.size(); ++i) {
      std::vector<uint32_t> wanted(static_cast<size_t>(num_words), 0);
      std::vector<int32_t> ids = histories[i];
      if (chosen[i] != kNoToken) ids.push_back(chosen[i]);
      for (const int32_t id : ids) wanted[static_cast<size_t>(id / 32)] |= 1u << (id % 32);
      ASSERT_TRUE(
          std::equal(wanted.begin(), wanted.end(), seen.begin() + rows[i].history_slot * num_words))
          << "row " << i;
    }
  }

  std::vector<int32_t> sample_on_host() {
    std::vector<int32_t> tokens(static_cast<size_t>(num_rows));
    parallel([&](int64_t i) {
      Sampler sampler;
      tokens[static_cast<size_t>(i)] =
          sampler.sample(row(i), params[static_cast<size_t>(i)], histories[static_cast<size_t>(i)]);
    });
    return tokens;
  }

  template <typename Function>
  void parallel(Function function) {
    std::atomic<int64_t> next{0};
    std::vector<std::thread> threads;
    for (unsigned i = 0; i < std::max(1u, std::thread::hardware_concurrency()); ++i) {
      threads.emplace_back([&] {
        for (int64_t r = next++; r < num_rows; r = next++) function(r);
      });
    }
    for (std::thread& thread : threads) thread.join();
  }

  /// Bell-shaped logits of several widths, every third row rounded so that many are equal; any
  /// combination of parameters.
  void randomize(uint64_t seed) {
    parallel([&](int64_t i) {
      uint64_t counter = 0;
      const auto uniform = [&] {
        return uniform_random(seed * 1000003 + static_cast<uint64_t>(i), counter++);
      };
      const auto pick = [&](auto... choices) {
        const double list[] = {static_cast<double>(choices)...};
        return list[static_cast<size_t>(uniform() * sizeof...(choices))];
      };
      const double width = pick(0.01, 1, 3, 3, 6, 12);
      const double step = i % 3 == 0 ? pick(0.25, 1e-3) : 0;
      for (float& v : row(i)) {
        double bell = (uniform() + uniform() + uniform() + uniform() - 2) * std::sqrt(3.0) * width;
        if (step > 0) bell = std::round(bell / step) * step;
        v = static_cast<float>(bell);
      }
      SamplingParams& p = params[static_cast<size_t>(i)];
      p.temperature = static_cast<float>(pick(0, 0.3, 0.7, 1, 1, 1.5, 10));
      p.top_k = static_cast<int32_t>(pick(0, 0, 0, 1, 5, 50, 1000, 40000, vocab_size));
      p.top_p = static_cast<float>(pick(1, 1, 0.95, 0.9, 0.5, 0.01));
      p.repetition_penalty = static_cast<float>(pick(1, 1, 1.2, 0.8));
      p.seed = static_cast<uint64_t>(uniform() * 1e18);
      std::vector<int32_t>& history = histories[static_cast<size_t>(i)];
      history.resize(1 + static_cast<size_t>(uniform() * 200));
      for (int32_t& id : history) {
        id = static_cast<int32_t>(uniform() * static_cast<double>(vocab_size));
      }
    });
  }

  int64_t num_rows, vocab_size, stride;
  std::vector<float> logits;
  std::vector<SamplingParams> params;
  std::vector<std::vector<int32_t>> histories;
};

/// Number of rows whose token is not the host's.
int compare(Batch& batch, const std::vector<int32_t>& got) {
  const std::vector<int32_t> wanted = batch.sample_on_host();
  int num_different = 0;
  for (size_t i = 0; i < wanted.size(); ++i) {
    if (got[i] == wanted[i]) continue;
    ++num_different;
    const SamplingParams& p = batch.params[i];
    std::printf(
        "row %d of vocab %d: got %d, host %d (temperature %g, top_k %d, top_p %g, penalty "
        "%g)\n",
        static_cast<int>(i), static_cast<int>(batch.vocab_size), got[i], wanted[i], p.temperature,
        p.top_k, p.top_p, p.repetition_penalty);
  }
  return num_different;
}

TEST(SamplingTest, ChoosesTheHostsToken) {
  struct Size {
    int64_t vocab_size, stride, num_rows;
    int num_batches;
  };
  // The last vocabulary does not fit shared memory.
  const Size sizes[] = {{1, 1, 20, 1},         {7, 7, 2000, 1},        {100, 103, 2000, 1},
                        {1000, 1000, 2000, 1}, {50257, 50304, 256, 6}, {50304, 50304, 256, 2},
                        {50258, 50259, 64, 1}, {100003, 100003, 64, 2}};
  const LaunchContext context = context_of_this_code();
  int num_rows = 0, num_different = 0;
  for (const Size& size : sizes) {
    for (int i = 0; i < size.num_batches; ++i) {
      Batch batch(size.num_rows, size.vocab_size, size.stride);
      batch.randomize(static_cast<uint64_t>(size.vocab_size * 10 + i));
      num_different += compare(batch, batch.sample_on_device(context));
      num_rows += static_cast<int>(size.num_rows);
    }
  }
  std::printf("%d of %d rows differ from the host\n", num_different, num_rows);
  // Where the rounding of cumulative sums decides: 1e-4 expected at most.
  EXPECT_LE(num_different, 1);
}

TEST(SamplingTest, ATokenDoesNotDependOnItsCompany) {
  const LaunchContext context = context_of_this_code();
  Batch batch(48, 50257, 50260);
  batch.randomize(99);
  const std::vector<int32_t> together = batch.sample_on_device(context);
  EXPECT_EQ(batch.sample_on_device(context), together);
  for (const int64_t i : {0, 7, 47}) {
    Batch alone(1, 50257, 50257);
    std::copy(batch.row(i).begin(), batch.row(i).end(), alone.row(0).begin());
    alone.params[0] = batch.params[static_cast<size_t>(i)];
    alone.histories[0] = batch.histories[static_cast<size_t>(i)];
    EXPECT_EQ(alone.sample_on_device(context)[0], together[static_cast<size_t>(i)]);
  }
}

TEST(SamplingTest, EqualLogitsGoByLowerId) {
  const LaunchContext context = context_of_this_code();
  for (const int64_t vocab_size : {7, 50257}) {
    Batch batch(60, vocab_size, vocab_size);
    for (int64_t i = 0; i < batch.num_rows; ++i) {
      const auto row = static_cast<size_t>(i);
      for (size_t id = 0; id < batch.row(i).size(); ++id) {
        batch.row(i)[id] = i % 2 == 0 ? 1.5f : (id % 3 == 0 ? 0.0f : -0.0f);
      }
      batch.params[row].temperature = i < 4 ? 0.0f : 0.8f;
      batch.params[row].top_k = i % 5 == 0 ? static_cast<int32_t>(vocab_size * 4 / 5) : 0;
      batch.params[row].top_p = i % 3 == 0 ? 0.5f : 1.0f;
      batch.params[row].seed = static_cast<uint64_t>(i);
    }
    EXPECT_EQ(compare(batch, batch.sample_on_device(context)), 0);
  }
}

TEST(SamplingTest, OneTokenLeft) {
  const LaunchContext context = context_of_this_code();
  for (const bool is_sampled : {false, true}) {
    for (const int64_t vocab_size : {7, 50257, 100003}) {
      Batch batch(4, vocab_size, vocab_size);
      const auto last = static_cast<size_t>(vocab_size - 1);
      for (int64_t i = 0; i < batch.num_rows; ++i) {
        std::fill(batch.row(i).begin(), batch.row(i).end(), -kInfinity);
        SamplingParams& p = batch.params[static_cast<size_t>(i)];
        p.temperature = is_sampled ? 1.0f : 0.0f;
        p.top_p = i < 2 ? 1.0f : 0.9f;
        p.top_k = i < 3 ? 0 : 5;
        p.seed = static_cast<uint64_t>(i);
      }
      batch.row(0)[3] = -1e30f;
      batch.row(1)[last] = -3.0f;
      batch.row(2)[6] = 0.0f;
      batch.row(3)[last] = 7.0f;
      const auto end = static_cast<int32_t>(last);
      const std::vector<int32_t> wanted{3, end, 6, end};
      EXPECT_EQ(batch.sample_on_device(context), wanted);
      EXPECT_EQ(batch.sample_on_host(), wanted);
      if (!is_sampled) {
        EXPECT_EQ(batch.sample_on_device(context, true, false), wanted);
      }
    }
  }
}

// One number that is none, at every place where a thread, a warp, a part of the row or its tail
// begins or ends; the rows beside it are not touched by it.
TEST(SamplingTest, RowsThatAreNotFiniteHaveNoToken) {
  const LaunchContext context = context_of_this_code();
  for (const int64_t vocab_size : {1, 7, 1023, 50257, 50258, 100003}) {
    std::vector<int64_t> places;
    for (const int64_t place : {int64_t{0}, int64_t{1}, int64_t{3}, int64_t{4}, int64_t{127},
                                int64_t{4095}, int64_t{4096}, int64_t{6283}, int64_t{6284},
                                int64_t{16384}, int64_t{50256}, vocab_size / 2, vocab_size - 1}) {
      if (place < vocab_size) places.push_back(place);
    }
    const float bad[] = {NAN, -NAN, kInfinity};
    // Three rows a place, one that is -infinity throughout, and good ones between.
    const auto num_rows = static_cast<int64_t>(2 * (places.size() * 3 + 1));
    Batch batch(num_rows, vocab_size, vocab_size + 3);
    batch.randomize(static_cast<uint64_t>(vocab_size));
    for (int64_t i = 0; i < num_rows; i += 2) {
      const auto at = static_cast<size_t>(i / 2);
      if (at == places.size() * 3) {
        std::fill(batch.row(i).begin(), batch.row(i).end(), -kInfinity);
      } else {
        batch.row(i)[static_cast<size_t>(places[at / 3])] = bad[at % 3];
      }
    }
    const auto check = [&](const std::vector<int32_t>& got, const char* what) {
      const std::vector<int32_t> wanted = batch.sample_on_host();
      for (size_t i = 0; i < got.size(); ++i) {
        EXPECT_EQ(wanted[i] == kNoToken, i % 2 == 0) << "host, row " << i;
        EXPECT_EQ(got[i] == kNoToken, i % 2 == 0)
            << what << ", vocab " << vocab_size << ", row " << i << ": " << got[i];
      }
    };
    check(batch.sample_on_device(context), "sampled");
    for (SamplingParams& p : batch.params) p = {};
    check(batch.sample_on_device(context), "greedy rows");
    check(batch.sample_on_device(context, true, true), "argmax");
    check(batch.sample_on_device(context, true, false), "argmax, nothing seen");
    Batch few(2, vocab_size, vocab_size + 3);  // few rows: the kernel with several blocks a row
    for (int64_t first = 0; first < num_rows; first += 2) {
      for (int64_t i = 0; i < 2; ++i) {
        const auto from = batch.row(first + i);
        std::copy(from.begin(), from.end(), few.row(i).begin());
      }
      const std::vector<int32_t> got = few.sample_on_device(context, true, false);
      EXPECT_EQ(got[0], kNoToken) << "vocab " << vocab_size << ", row " << first;
      EXPECT_EQ(got[1], argmax(few.row(1)));
    }
  }
}

TEST(SamplingTest, GreedyTakesTheLowestIdOfATie) {
  const LaunchContext context = context_of_this_code();
  for (const int64_t num_rows : {1, 3, 16, 17, 40, 256}) {
    for (const int64_t vocab_size : {1, 7, 1023, 50257, 50304}) {
      for (const int64_t stride : {vocab_size, (vocab_size + 63) / 64 * 64}) {
        if (num_rows > 40 && vocab_size > 1023) continue;
        Batch batch(num_rows, vocab_size, stride);
        batch.randomize(static_cast<uint64_t>(num_rows + vocab_size));
        std::vector<int32_t> wanted;
        for (int64_t i = 0; i < num_rows; ++i) {
          batch.params[static_cast<size_t>(i)] = {};
          // The maximum twice, at places that move over all parts of the row.
          const auto first = static_cast<size_t>(i * 997 % vocab_size);
          const auto second =
              (first + static_cast<size_t>(vocab_size) / 2) % static_cast<size_t>(vocab_size);
          batch.row(i)[first] = batch.row(i)[second] = 100.0f;
          wanted.push_back(static_cast<int32_t>(std::min(first, second)));
          EXPECT_EQ(argmax(batch.row(i)), wanted.back());
        }
        EXPECT_EQ(batch.sample_on_device(context, true, true), wanted);
        EXPECT_EQ(batch.sample_on_device(context, true, false), wanted);
        EXPECT_EQ(batch.sample_on_device(context, false, true), wanted);
      }
    }
  }
}

// A decode step is filled up to a number of rows that was recorded; what those rows choose must not
// count as history of the sequence in slot 0.
TEST(SamplingTest, RowsThatFillTheBatchLeaveNoTrace) {
  const LaunchContext context = context_of_this_code();
  constexpr int64_t kVocabSize = 100;
  constexpr int32_t kRows = 4;
  for (const bool is_greedy : {false, true}) {
    std::vector<float> logits(kRows * kVocabSize, 0.0f);
    std::vector<RowSampling> rows(kRows);
    for (int32_t i = 0; i < kRows; ++i) {
      logits[static_cast<size_t>(i * kVocabSize + 20 * i + 5)] = 50.0f;
      rows[static_cast<size_t>(i)].temperature = is_greedy ? 0.0f : 1.0f;
      rows[static_cast<size_t>(i)].history_slot = i == 2 ? 0 : -1;
    }
    const DeviceArray seen(std::vector<uint32_t>(4, 0));
    const DeviceArray device_logits(logits), device_rows(rows);
    const DeviceArray tokens(kRows * sizeof(int32_t));
    SampleArgs args;
    args.num_rows = kRows;
    args.vocab_size = args.logits_stride = kVocabSize;
    args.logits = device_logits.as<float>();
    args.rows = device_rows.as<RowSampling>();
    args.is_greedy = is_greedy;
    args.seen = seen.as<uint32_t>();
    args.tokens = tokens.as<int32_t>();
    launch_sample(args, context);
    EXPECT_EQ(tokens.host<int32_t>(), (std::vector<int32_t>{5, 25, 45, 65}));
    EXPECT_EQ(seen.host<uint32_t>(), (std::vector<uint32_t>{0, 1u << (45 - 32), 0, 0}));
  }
}

TEST(SamplingTest, FrequenciesFollowTheSoftmax) {
  const LaunchContext context = context_of_this_code();
  const std::vector<float> logits{0.5f, 2.0f, -1.0f, 2.0f, 1.0f, -3.0f, 0.0f};
  constexpr int64_t kDraws = 40000;
  Batch batch(kDraws, 7, 7);
  for (int64_t i = 0; i < kDraws; ++i) {
    std::copy(logits.begin(), logits.end(), batch.row(i).begin());
    batch.params[static_cast<size_t>(i)].temperature = 0.7f;
    batch.params[static_cast<size_t>(i)].seed = static_cast<uint64_t>(i);
  }
  std::vector<double> counts(7, 0);
  for (const int32_t id : batch.sample_on_device(context, false, false)) {
    counts[static_cast<size_t>(id)] += 1;
  }
  double total = 0, chi_square = 0;
  for (const float logit : logits) total += std::exp(logit / 0.7);
  for (size_t i = 0; i < counts.size(); ++i) {
    const double wanted = kDraws * std::exp(logits[i] / 0.7) / total;
    chi_square += (counts[i] - wanted) * (counts[i] - wanted) / wanted;
  }
  EXPECT_LT(chi_square, 30.0);  // 6 degrees of freedom: 4e-5 of all seeds
}

}  // namespace
}  // namespace caravan::cuda
