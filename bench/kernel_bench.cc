// Speed of every CPU kernel beside the ceilings of this machine, measured in the same run: the read
// bandwidth for what streams weights or cache, the peak of FMA or AMX for what computes.

#include <fmt/core.h>
#include <omp.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "core/tensor.h"
#include "kernels/cpu/ceilings.h"
#include "kernels/cpu/cpu_kernels.h"

namespace caravan {
namespace {

struct Options {
  std::string isa;
  std::string filter;
  int threads = omp_get_max_threads();
  double seconds = 0.5;  // per case
};

struct Ceilings {
  double read_gb_per_s = 0;
  double fma_gflops = 0;
  double amx_gflops = 0;
};

// Repeatable values without a library's generator: cheap enough to fill a gigabyte.
uint32_t next_random(uint32_t& state) {
  state = state * 1664525u + 1013904223u;
  return state >> 8;
}

std::vector<float> random_floats(size_t count) {
  uint32_t state = 1;
  std::vector<float> values(count);
  for (float& v : values) v = static_cast<float>(next_random(state)) / (1u << 23) - 1.0f;
  return values;
}

/// A gigabyte of weights of one dtype; cases take theirs from ever new places of it, so that a
/// weight is never still in cache from the run before.
class WeightPool {
 public:
  explicit WeightPool(DType dtype) : dtype_(dtype), buffer_(Buffer::host(size_t{1} << 30)) {
    std::vector<std::byte> pattern(size_t{1} << 20);
    const std::vector<float> values = random_floats(pattern.size() / dtype_size(dtype));
    convert_elements(values.data(), DType::kF32, pattern.data(), dtype, values.size());
    for (size_t at = 0; at < buffer_.num_bytes(); at += pattern.size()) {
      std::memcpy(buffer_.as<std::byte>() + at, pattern.data(), pattern.size());
    }
  }
  void* take(size_t num_bytes) {
    if (offset_ + num_bytes > buffer_.num_bytes()) offset_ = 0;
    void* data = buffer_.as<std::byte>() + offset_;
    offset_ += (num_bytes + 4095) / 4096 * 4096;
    return data;
  }
  DType dtype() const { return dtype_; }

 private:
  DType dtype_;
  Buffer buffer_;
  size_t offset_ = 0;
};

class Bench {
 public:
  Bench(const Options& options, CpuIsa isa, const Ceilings& ceilings)
      : options_(options), isa_(isa), kernels_(cpu_kernels(isa)), ceilings_(ceilings) {
    const CpuScratchSpec spec{options.threads, 512, 16384, 50258, 2048, 128};
    const size_t num_bytes = kernels_.scratch_bytes(spec);
    scratch_ = Buffer::host(num_bytes);
    context_ = {options.threads, scratch_.as<std::byte>(), num_bytes};
  }

  void linear(WeightPool& pool, int64_t tokens, int64_t in, int64_t out, Activation activation) {
    const std::string name =
        fmt::format("linear {} T={} [{}->{}]{}{}", dtype_name(pool.dtype()), tokens, in, out,
                    activation == Activation::kNone ? "" : " ",
                    activation == Activation::kNone ? "" : activation_name(activation));
    if (!wanted(name)) return;
    const LinearLayout layout = cpu_linear_layout(isa_, pool.dtype());
    const size_t weight_bytes =
        static_cast<size_t>(linear_num_elements(layout, in, out)) * dtype_size(pool.dtype());
    const std::vector<float> x = random_floats(static_cast<size_t>(tokens * in));
    const std::vector<float> bias = random_floats(static_cast<size_t>(out));
    // As the engine allocates them: in large pages.
    Buffer x_buffer = Buffer::host(x.size() * sizeof(float));
    std::memcpy(x_buffer.data(), x.data(), x.size() * sizeof(float));
    Buffer y = Buffer::host(static_cast<size_t>(tokens * out) * sizeof(float));
    LinearParams p;
    p.num_tokens = tokens;
    p.x = x_buffer.as<const float>();
    p.activation = activation;
    p.y = y.as<float>();
    const double seconds = best_seconds([&] {
      p.weight = {pool.take(weight_bytes), pool.dtype(), layout, in, out, bias.data()};
      kernels_.linear(p, context_);
    });
    const bool amx = isa_ == CpuIsa::kAmx && pool.dtype() == DType::kBF16;
    report(name, seconds, static_cast<double>(weight_bytes),
           2.0 * static_cast<double>(tokens * in * out),
           amx ? ceilings_.amx_gflops : ceilings_.fma_gflops, tokens > 16);
  }

  void layer_norm(int64_t tokens, int64_t hidden) {
    const std::string name = fmt::format("layer_norm T={} [{}]", tokens, hidden);
    if (!wanted(name)) return;
    const std::vector<float> x = random_floats(static_cast<size_t>(tokens * hidden));
    const std::vector<float> weight = random_floats(static_cast<size_t>(hidden));
    std::vector<float> y(x.size());
    const LayerNormParams p{tokens,        hidden, x.data(), weight.data(),
                            weight.data(), 1e-5f,  y.data()};
    const double seconds = best_seconds([&] { kernels_.layer_norm(p, context_); });
    report(name, seconds, 8.0 * static_cast<double>(tokens * hidden), 0, 0, false);
  }

  void embedding(WeightPool& pool, int64_t tokens, int64_t hidden, int64_t vocab) {
    const std::string name =
        fmt::format("embedding {} T={} [{}]", dtype_name(pool.dtype()), tokens, hidden);
    if (!wanted(name)) return;
    const LinearLayout layout = cpu_linear_layout(isa_, pool.dtype());
    const size_t weight_bytes =
        static_cast<size_t>(linear_num_elements(layout, hidden, vocab)) * dtype_size(pool.dtype());
    std::vector<int32_t> ids(static_cast<size_t>(tokens));
    std::vector<int32_t> positions(static_cast<size_t>(tokens));
    uint32_t state = 3;
    std::vector<float> out(static_cast<size_t>(tokens * hidden));
    const std::vector<float> wpe = random_floats(static_cast<size_t>(2048 * hidden));
    EmbeddingParams p;
    p.num_tokens = tokens;
    p.token_ids = ids.data();
    p.positions = positions.data();
    p.wpe = wpe.data();
    p.num_positions = 2048;
    p.out = out.data();
    const double seconds = best_seconds([&] {
      for (int32_t& id : ids) id = static_cast<int32_t>(next_random(state) % vocab);
      for (int32_t& position : positions)
        position = static_cast<int32_t>(next_random(state) % 2048);
      p.wte = {pool.take(weight_bytes), pool.dtype(), layout, hidden, vocab, nullptr};
      kernels_.embedding(p, context_);
    });
    report(name, seconds, 4.0 * static_cast<double>(tokens * hidden), 0, 0, false);
  }

  /// `seqs` sequences with `queries` tokens each, the last of `context_len` cached ones.
  void attention(WeightPool& pool, int64_t seqs, int64_t queries, int64_t context_len,
                 int64_t heads, int64_t head_dim) {
    const std::string name =
        fmt::format("attention {} seqs={} queries={} context={} [{}x{}]", dtype_name(pool.dtype()),
                    seqs, queries, context_len, heads, head_dim);
    const std::string append_name = fmt::format(
        "append_kv {} T={} [{}x{}]", dtype_name(pool.dtype()), seqs * queries, heads, head_dim);
    constexpr int64_t kBlockSize = 16;
    const int64_t blocks_per_seq = ceil_div(context_len, kBlockSize);
    const int64_t hidden = heads * head_dim;
    const int64_t tokens = seqs * queries;
    KvLayer cache;
    cache.dtype = pool.dtype();
    cache.num_blocks = blocks_per_seq * seqs;
    cache.block_size = kBlockSize;
    cache.num_heads = heads;
    cache.head_dim = head_dim;
    const size_t cache_bytes =
        static_cast<size_t>(cache.num_blocks * kBlockSize * hidden) * dtype_size(pool.dtype());
    const std::vector<float> qkv = random_floats(static_cast<size_t>(tokens * 3 * hidden));
    std::vector<float> out(static_cast<size_t>(tokens * hidden));
    std::vector<int32_t> query_start(static_cast<size_t>(seqs + 1));
    std::vector<int32_t> context_lens(static_cast<size_t>(seqs), static_cast<int32_t>(context_len));
    std::vector<int32_t> tables(static_cast<size_t>(cache.num_blocks));
    std::vector<int64_t> slots(static_cast<size_t>(tokens));
    for (int64_t s = 0; s <= seqs; ++s) {
      query_start[static_cast<size_t>(s)] = static_cast<int32_t>(s * queries);
    }
    for (size_t i = 0; i < tables.size(); ++i) tables[i] = static_cast<int32_t>(i);
    for (int64_t t = 0; t < tokens; ++t) {
      slots[static_cast<size_t>(t)] = t / queries * blocks_per_seq * kBlockSize + t % queries;
    }
    if (wanted(name)) {
      AttentionParams p;
      p.num_tokens = tokens;
      p.num_seqs = seqs;
      p.qkv = qkv.data();
      p.query_start = query_start.data();
      p.context_lens = context_lens.data();
      p.block_tables = tables.data();
      p.max_blocks_per_seq = blocks_per_seq;
      p.scale = 0.088f;
      p.out = out.data();
      const double seconds = best_seconds([&] {
        cache.k = pool.take(cache_bytes);
        cache.v = pool.take(cache_bytes);
        p.cache = cache;
        kernels_.attention(p, context_);
      });
      const double pairs = static_cast<double>(queries) * (static_cast<double>(context_len) -
                                                           0.5 * static_cast<double>(queries - 1));
      report(name, seconds, 2.0 * static_cast<double>(cache_bytes),
             4.0 * static_cast<double>(seqs * hidden) * pairs, ceilings_.fma_gflops, queries > 1);
    }
    if (wanted(append_name)) {
      const double seconds = best_seconds([&] {
        cache.k = pool.take(cache_bytes);
        cache.v = pool.take(cache_bytes);
        kernels_.append_kv({tokens, qkv.data(), slots.data(), cache}, context_);
      });
      report(append_name, seconds,
             static_cast<double>(2 * tokens * hidden) *
                 (4.0 + static_cast<double>(dtype_size(pool.dtype()))),
             0, 0, false);
    }
  }

 private:
  bool wanted(const std::string& name) const {
    return name.find(options_.filter) != std::string::npos;
  }

  // The fastest of at least five runs: others may use the machine, and only slow a run down.
  double best_seconds(const std::function<void()>& body) const {
    using Clock = std::chrono::steady_clock;
    body();
    double best = 1e30;
    const Clock::time_point first = Clock::now();
    for (int run = 0;; ++run) {
      const Clock::time_point start = Clock::now();
      body();
      const Clock::time_point end = Clock::now();
      best = std::min(best, std::chrono::duration<double>(end - start).count());
      if (run >= 5 && std::chrono::duration<double>(end - first).count() > options_.seconds) break;
    }
    return best;
  }

  void report(const std::string& name, double seconds, double num_bytes, double flops,
              double peak_gflops, bool compute_bound) const {
    const double gb_per_s = num_bytes / seconds / 1e9;
    const double gflops = flops / seconds / 1e9;
    fmt::print(
        "{:<8} {:<58} {:>10.1f} us {:>8.2f} GB/s {:>8.1f} GFLOP/s {:>6.1f} % of {}\n",
        cpu_isa_name(isa_), name, seconds * 1e6, gb_per_s, gflops,
        compute_bound ? 100 * gflops / peak_gflops : 100 * gb_per_s / ceilings_.read_gb_per_s,
        compute_bound ? "peak" : "read");
    std::fflush(stdout);
  }

  const Options& options_;
  CpuIsa isa_;
  const CpuKernels& kernels_;
  Ceilings ceilings_;
  Buffer scratch_;
  CpuContext context_;
};

void run_linear(Bench& bench, WeightPool& pool) {
  for (const int64_t tokens : {1, 4, 8, 16, 64, 512}) {
    bench.linear(pool, tokens, 4096, 12288, Activation::kNone);
    bench.linear(pool, tokens, 4096, 4096, Activation::kNone);
    bench.linear(pool, tokens, 4096, 16384, Activation::kGelu);
    bench.linear(pool, tokens, 16384, 4096, Activation::kNone);
    bench.linear(pool, tokens, 768, 2304, Activation::kNone);
    bench.linear(pool, tokens, 3072, 768, Activation::kNone);
  }
  bench.linear(pool, 1, 4096, 50258, Activation::kNone);
  bench.linear(pool, 512, 4096, 50258, Activation::kNone);
}

void run(const Options& options) {
  std::vector<CpuIsa> isas;
  if (options.isa.empty()) {
    for (const CpuIsa isa : {CpuIsa::kAvx2, CpuIsa::kAvx512, CpuIsa::kAmx}) {
      if (cpu_isa_available(isa)) isas.push_back(isa);
    }
  } else {
    const std::optional<CpuIsa> isa = parse_cpu_isa(options.isa);
    if (!isa || !cpu_isa_available(*isa)) {
      fmt::print(stderr, "kernel_bench: --isa {}: not available here\n", options.isa);
      return;
    }
    isas.push_back(*isa);
  }
  Ceilings ceilings;
  ceilings.read_gb_per_s = measure_read_gb_per_s(options.threads, size_t{1} << 30);
  ceilings.amx_gflops = measure_amx_bf16_gflops(options.threads);
  fmt::print(
      "ceilings, {} threads: read {:.1f} GB/s, AVX2 {:.0f}, AVX-512 {:.0f}, AMX bf16 {:.0f} "
      "GFLOP/s\n",
      options.threads, ceilings.read_gb_per_s, measure_fma_gflops(CpuIsa::kAvx2, options.threads),
      measure_fma_gflops(CpuIsa::kAvx512, options.threads), ceilings.amx_gflops);
  for (const DType dtype : {DType::kF16, DType::kBF16, DType::kF32}) {
    WeightPool pool(dtype);
    for (const CpuIsa isa : isas) {
      ceilings.fma_gflops = measure_fma_gflops(isa, options.threads);
      Bench bench(options, isa, ceilings);
      if (dtype == DType::kF16) {
        for (const int64_t tokens : {1, 8, 512}) bench.layer_norm(tokens, 4096);
      }
      for (const int64_t tokens : {1, 512}) bench.embedding(pool, tokens, 4096, 50258);
      if (dtype != DType::kBF16) {
        bench.attention(pool, 1, 1, 2048, 32, 128);
        bench.attention(pool, 8, 1, 512, 32, 128);
        bench.attention(pool, 1, 512, 512, 32, 128);
        bench.attention(pool, 1, 512, 512, 12, 64);
      }
      run_linear(bench, pool);
    }
  }
}

}  // namespace
}  // namespace caravan

int main(int argc, char** argv) {
  caravan::Options options;
  CLI::App app{"Speed of the CPU kernels beside the ceilings of this machine"};
  app.add_option("--isa", options.isa, "avx2, avx512 or amx; all that are available by default");
  app.add_option("--filter", options.filter, "only cases whose name contains this");
  app.add_option("--threads", options.threads, "OpenMP threads");
  app.add_option("--seconds", options.seconds, "least time for each case");
  CLI11_PARSE(app, argc, argv);
  caravan::run(options);
  return 0;
}
