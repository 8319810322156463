#include "kernels/cuda/sampling.h"

#include "kernels/cuda/ptx.cuh"

namespace caravan::cuda {

namespace {

// A logit's rank is one 64-bit number: the logit's bits made orderable above, ~id below. The larger
// one comes first; equal logits go by lower id. NaN ranks below -infinity.
__device__ __forceinline__ uint32_t ordered_key(float v) {
  if (v != v) return 0;
  const uint32_t bits = v == 0.0f ? 0u : __float_as_uint(v);  // -0 equals 0
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float key_value(uint32_t key) {
  return __uint_as_float((key & 0x80000000u) != 0 ? key & 0x7fffffffu : ~key);
}
__device__ __forceinline__ uint64_t rank_of(float v, int id) {
  return static_cast<uint64_t>(ordered_key(v)) << 32 | static_cast<uint32_t>(~id);
}
__device__ __forceinline__ int rank_id(uint64_t rank) {
  return static_cast<int>(~static_cast<uint32_t>(rank));
}

__device__ __forceinline__ uint64_t warp_max(uint64_t v) {
#pragma unroll
  for (int i = 16; i > 0; i /= 2) {
    const uint64_t other = __shfl_xor_sync(~0u, v, i);
    v = other > v ? other : v;
  }
  return v;
}
__device__ __forceinline__ uint64_t warp_sum(uint64_t v) {
#pragma unroll
  for (int i = 16; i > 0; i /= 2) v += __shfl_xor_sync(~0u, v, i);
  return v;
}

/// All threads get the maximum; scratch holds one number a warp.
template <int kThreads>
__device__ __forceinline__ uint64_t block_max(uint64_t v, uint64_t* scratch) {
  v = warp_max(v);
  __syncthreads();
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v;
  __syncthreads();
  return warp_max(scratch[threadIdx.x % (kThreads / 32)]);
}

/// id < 0: there is no token. The host is told, the next step finds a harmless one.
__device__ __forceinline__ void finish_row(const SampleArgs& p, int64_t row, int id) {
  p.tokens[row] = max(id, 0);
  if (p.host_tokens != nullptr) {
    *static_cast<volatile int32_t*>(p.host_tokens + row) = id;
    __threadfence_system();
  }
  if (p.seen != nullptr && id >= 0 && p.rows[row].history_slot >= 0) {
    const int64_t num_words = (p.vocab_size + 31) / 32;
    atomicOr(p.seen + p.rows[row].history_slot * num_words + id / 32, 1u << (id % 32));
  }
}

// ---- greedy ----

/// As ordered_key(), but NaN above +infinity: the maximum then tells whether the row is finite.
__device__ __forceinline__ uint32_t checked_key(float v) { return v != v ? ~0u : ordered_key(v); }
constexpr uint32_t kKeyOfInfinity = 0xff800000u;
constexpr uint32_t kKeyOfMinusInfinity = 0x007fffffu;

/// The id of the row's largest rank of checked_key(), kNoToken when it is not that of a number.
__device__ __forceinline__ int finite_id(uint64_t best) {
  const auto key = static_cast<uint32_t>(best >> 32);
  return key > kKeyOfMinusInfinity && key < kKeyOfInfinity ? rank_id(best) : kNoToken;
}

/// The thread's largest rank among the row's logits number begin ... end - 1.
template <int kThreads>
__device__ __forceinline__ uint64_t best_of(const float* __restrict__ logits, int begin, int end) {
  uint32_t best_key = 0;
  int best_id = begin;
  const auto take = [&](float v, int id) {
    const uint32_t key = checked_key(v);
    if (key > best_key) {  // ids grow: the lowest stays
      best_key = key;
      best_id = id;
    }
  };
  const int thread = static_cast<int>(threadIdx.x);
  int i = begin + thread * 4;
  if (reinterpret_cast<uintptr_t>(logits + begin) % 16 == 0) {
    for (; i + 3 + 3 * kThreads * 4 < end; i += 4 * kThreads * 4) {
      float4 v[4];
#pragma unroll
      for (int u = 0; u < 4; ++u) {
        v[u] = *reinterpret_cast<const float4*>(logits + i + u * kThreads * 4);
      }
#pragma unroll
      for (int u = 0; u < 4; ++u) {
        take(v[u].x, i + u * kThreads * 4);
        take(v[u].y, i + u * kThreads * 4 + 1);
        take(v[u].z, i + u * kThreads * 4 + 2);
        take(v[u].w, i + u * kThreads * 4 + 3);
      }
    }
    for (; i + 3 < end; i += kThreads * 4) {
      const float4 v = *reinterpret_cast<const float4*>(logits + i);
      take(v.x, i);
      take(v.y, i + 1);
      take(v.z, i + 2);
      take(v.w, i + 3);
    }
  }
  for (; i < end; i += kThreads * 4) {
    for (int j = i; j < min(i + 4, end); ++j) take(logits[j], j);
  }
  return static_cast<uint64_t>(best_key) << 32 | static_cast<uint32_t>(~best_id);
}

constexpr int kArgmaxThreads = 1024;

/// One block a row.
__global__ void __launch_bounds__(kArgmaxThreads) sample_argmax_kernel(const SampleArgs p) {
  __shared__ uint64_t scratch[kArgmaxThreads / 32];
  pdl_launch_dependents();
  pdl_wait();
  const int64_t row = blockIdx.x;
  const uint64_t best = block_max<kArgmaxThreads>(
      best_of<kArgmaxThreads>(p.logits + row * p.logits_stride, 0, static_cast<int>(p.vocab_size)),
      scratch);
  if (threadIdx.x == 0) finish_row(p, row, finite_id(best));
}

/// Few rows: eight blocks a row. One multiprocessor takes about 2 us to read 200 KB from L2.
constexpr int kClusterBlocks = 8;
constexpr int kClusterThreads = 512;
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define CARAVAN_CLUSTER_DIMS __cluster_dims__(kClusterBlocks, 1, 1)
#else
#define CARAVAN_CLUSTER_DIMS
#endif

__global__ void CARAVAN_CLUSTER_DIMS __launch_bounds__(kClusterThreads)
    sample_argmax_cluster_kernel(const SampleArgs p) {
#if __CUDA_ARCH__ >= 900
  __shared__ uint64_t scratch[kClusterThreads / 32];
  __shared__ uint64_t best_of_block[kClusterBlocks];
  cluster_arrive();
  pdl_launch_dependents();
  pdl_wait();
  const auto rank = static_cast<int>(cluster_rank());
  const int64_t row = blockIdx.x / kClusterBlocks;
  const auto vocab_size = static_cast<int>(p.vocab_size);
  const int part = ((vocab_size + kClusterBlocks - 1) / kClusterBlocks + 3) / 4 * 4;
  const int begin = min(rank * part, vocab_size);
  const uint64_t best =
      block_max<kClusterThreads>(best_of<kClusterThreads>(p.logits + row * p.logits_stride, begin,
                                                          min(begin + part, vocab_size)),
                                 scratch);
  cluster_wait();  // the first block of the cluster runs: its shared memory is there
  if (threadIdx.x == 0) store_cluster_u64(shared_address(best_of_block + rank), best, 0);
  cluster_sync();
  if (rank == 0 && threadIdx.x < 32) {
    const uint64_t whole = warp_max(best_of_block[threadIdx.x % kClusterBlocks]);
    if (threadIdx.x == 0) finish_row(p, row, finite_id(whole));
  }
#else
  (void)p;
  __trap();
#endif
}

// ---- sampling ----
//
// The host sorts the row and walks along the cumulative probabilities. Here every probability is a
// fixed-point number, so that sums are exact and do not depend on their order, and "the first place
// of the sorted row where the sum reaches `need`" is searched without sorting: bins of the logit's
// distance to the maximum, then the ranks inside one bin.

constexpr int kThreads = 1024;
constexpr int kBins = 2048;
constexpr int kMaxCandidates = kThreads;
/// The first bins hold few logits of great weight: there the guess wants to know where in its bin
/// each one lies.
constexpr int kHeadBins = 512;
/// Fractions of a bin, so that 2^19 of them fit 32 bits.
constexpr int kHeadSteps = 4096;
/// exp(logit - max) is a multiple of 2^-44: 2^19 of them fit 64 bits with one to spare, and what is
/// lost below is 1e-9 of the sum when 50,000 tokens share it.
constexpr int kMassBits = 44;
constexpr int64_t kMaxVocab = int64_t{1} << 19;
/// exp(-31.5) 2^44 < 1/2.
constexpr float kMaxDepth = 31.5f;

__device__ __forceinline__ uint64_t mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}
/// As uniform_random of src/sampling: SplitMix64, Steele et al. 2014.
__device__ __forceinline__ double uniform_random(uint64_t seed, uint64_t counter) {
  constexpr uint64_t kGolden = 0x9e3779b97f4a7c15ull;
  const uint64_t key = mix(seed + kGolden);
  return static_cast<double>(mix(key + (counter + 1) * kGolden) >> 11) * 0x1.0p-53;
}

struct SampleShared {
  double exp2_table[16];  // 2^(i/16)
  uint64_t scratch[3][kThreads / 32];
  uint64_t candidate_rank[kMaxCandidates];
  uint64_t candidate_mass[kMaxCandidates];
  union {
    uint32_t count[kBins];
    float approximate[kBins];  // about the sum of exp(logit - max) of this bin and those before it
  };
  int32_t head_offset[kHeadBins];  // sum over the bin of kHeadSteps (place in the bin - its middle)
  uint64_t chosen_sum;
  int num_candidates;
  int chosen_bin;
  uint32_t chosen_before;
  alignas(16) float values[];  // written four at a time
};

/// A position of the sorted row.
struct Place {
  uint64_t rank;
  uint64_t sum;  // of the weights up to it, itself included
};

/// Sums over the kept elements of the bins before one, in it, and of all.
struct Sums {
  uint64_t before, inside, total;
};

template <bool kIsStaged>
struct Row {
  const float* __restrict__ logits;
  const uint32_t* __restrict__ seen;  // null without penalty
  float temperature;                  // 0: not divided
  float penalty;
  int vocab_size;
  SampleShared* shared;
  float max_value;
  float bins_per_unit;
  uint64_t cut;  // ranks below are not kept

  __device__ __forceinline__ float adjusted(float v, int id) const {
    if (seen != nullptr && (seen[id / 32] >> (id % 32) & 1) != 0) {
      v = v > 0.0f ? __fdiv_rn(v, penalty) : __fmul_rn(v, penalty);
    }
    return temperature != 0.0f ? __fdiv_rn(v, temperature) : v;
  }
  __device__ __forceinline__ float value(int id) const {
    return kIsStaged ? shared->values[id] : adjusted(logits[id], id);
  }
  /// In bins; monotone in v, which is what makes bins intervals of ranks.
  __device__ __forceinline__ float depth_of(float v) const {
    return fminf((max_value - v) * bins_per_unit, kBins - 1);  // NaN: the last
  }
  /// Bin b is b - 1/2 ... b + 1/2. Adding 2^23 rounds faster than a conversion does.
  static __device__ __forceinline__ int bin_at(float depth) {
    return static_cast<int>(__float_as_uint(depth + 0x1p23f) - 0x4b000000u);
  }
  __device__ __forceinline__ int bin_of(float v) const { return bin_at(depth_of(v)); }
  /// exp(v - max) 2^44, relative error 1e-10. The difference of two floats is exact in double.
  __device__ __forceinline__ uint64_t mass_of(float v) const {
    if (!(max_value - v < kMaxDepth)) return 0;
    const double d = static_cast<double>(v) - static_cast<double>(max_value);
    constexpr double kRound = 0x1.8p52;
    const double z = fma(d, 23.083120654223414, kRound);        // 16 / ln 2
    const double r = fma(kRound - z, 0.043321698784996581, d);  // ln 2 / 16
    const int n = __double2loint(z);                            // <= 0
    double e = fma(r, fma(r, fma(r, fma(r, 1.0 / 24, 1.0 / 6), 0.5), 1.0), 1.0);
    e *= shared->exp2_table[n & 15];
    e = __hiloint2double(__double2hiint(e) + ((n >> 4) + kMassBits) * (1 << 20), __double2loint(e));
    return static_cast<uint64_t>(__double_as_longlong(e + 0x1.0p52)) & ((1ull << 52) - 1);
  }
  template <typename Function>
  __device__ __forceinline__ void for_each(Function function) const {
    const int thread = static_cast<int>(threadIdx.x);
    int first = 0;
    if constexpr (kIsStaged) {
      first = vocab_size / 4 * 4;
      for (int id = thread * 4; id < first; id += kThreads * 4) {
        const float4 v = *reinterpret_cast<const float4*>(shared->values + id);
        function(id, v.x);
        function(id + 1, v.y);
        function(id + 2, v.z);
        function(id + 3, v.w);
      }
    }
    for (int id = first + thread; id < vocab_size; id += kThreads) function(id, value(id));
  }
};

__device__ __forceinline__ Sums block_sums(Sums v, SampleShared* shared) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  v.before = warp_sum(v.before);
  v.inside = warp_sum(v.inside);
  v.total = warp_sum(v.total);
  __syncthreads();
  if (lane == 0) {
    shared->scratch[0][warp] = v.before;
    shared->scratch[1][warp] = v.inside;
    shared->scratch[2][warp] = v.total;
  }
  __syncthreads();
  return {warp_sum(shared->scratch[0][lane]), warp_sum(shared->scratch[1][lane]),
          warp_sum(shared->scratch[2][lane])};
}

__device__ __forceinline__ void clear_candidates(SampleShared* shared) {
  __syncthreads();
  if (threadIdx.x == 0) shared->num_candidates = 0;
  __syncthreads();
}
__device__ __forceinline__ void add_candidate(SampleShared* shared, uint64_t rank, uint64_t mass) {
  const int at = atomicAdd(&shared->num_candidates, 1);
  if (at >= kMaxCandidates) return;
  shared->candidate_rank[at] = rank;
  shared->candidate_mass[at] = mass;
}

/// Masses before `bin`, in it, and of all up to last_bin; what is in it becomes the candidates.
/// cut_bin: that of row.cut.
template <bool kIsStaged>
__device__ __noinline__ Sums measure(const Row<kIsStaged> row, int bin, int last_bin, int cut_bin) {
  clear_candidates(row.shared);
  Sums sums{};
  row.for_each([&](int id, float v) {
    const int b = row.bin_of(v);
    if (b > last_bin || (b == cut_bin && rank_of(v, id) < row.cut)) return;
    const uint64_t mass = row.mass_of(v);
    sums.total += mass;
    if (b < bin) sums.before += mass;
    if (b == bin && mass != 0) {
      sums.inside += mass;
      add_candidate(row.shared, rank_of(v, id), mass);
    }
  });
  return block_sums(sums, row.shared);  // and a barrier for the candidates
}

/// First place of bin `bin` where the sum reaches need; `before` is the sum of the bins before it.
/// A weight is 1 with kByCount, otherwise a mass, and measure() has just left the candidates.
template <bool kByCount, bool kIsStaged>
__device__ __noinline__ Place find_in_bin(const Row<kIsStaged> row, int bin, uint64_t before,
                                          uint64_t need) {
  SampleShared* shared = row.shared;
  const int thread = static_cast<int>(threadIdx.x);
  const auto weight_of = [&](float v) { return kByCount ? uint64_t{1} : row.mass_of(v); };
  // The place is in [low, high).
  uint64_t low = row.cut, high = ~uint64_t{0};
  const auto gather = [&] {
    clear_candidates(shared);
    row.for_each([&](int id, float v) {
      if (row.bin_of(v) != bin) return;
      const uint64_t rank = rank_of(v, id);
      const uint64_t weight = weight_of(v);
      if (rank >= low && rank < high && weight != 0) add_candidate(shared, rank, weight);
    });
    __syncthreads();
    return shared->num_candidates;
  };
  int num_candidates = kByCount ? gather() : shared->num_candidates;
  if (num_candidates > kMaxCandidates) {
    // Many logits all but equal: halve the range of ranks. First to the ranks that occur.
    uint64_t smallest = ~uint64_t{0}, largest = 0;
    row.for_each([&](int id, float v) {
      const uint64_t rank = rank_of(v, id);
      if (row.bin_of(v) != bin || rank < low) return;
      smallest = rank < smallest ? rank : smallest;
      largest = rank > largest ? rank : largest;
    });
    low = ~block_max<kThreads>(~smallest, shared->scratch[0]);
    high = block_max<kThreads>(largest, shared->scratch[0]) + 1;
    uint64_t num_inside = static_cast<uint64_t>(num_candidates);
    while (num_inside > kMaxCandidates) {
      const uint64_t middle = low + (high - low) / 2;
      Sums upper{};
      row.for_each([&](int id, float v) {
        const uint64_t rank = rank_of(v, id);
        if (row.bin_of(v) != bin || rank < middle || rank >= high) return;
        const uint64_t weight = weight_of(v);
        upper.total += weight;
        upper.inside += weight != 0 ? 1 : 0;
      });
      upper = block_sums(upper, shared);
      if (before + upper.total >= need) {
        low = middle;
        num_inside = upper.inside;
      } else {
        high = middle;
        before += upper.total;
        num_inside -= upper.inside;
      }
    }
    num_candidates = gather();
  }

  uint64_t rank = 0, sum = before;
  if (thread < num_candidates) {
    rank = shared->candidate_rank[thread];
    for (int i = 0; i < num_candidates; ++i) {
      if (shared->candidate_rank[i] >= rank) sum += shared->candidate_mass[i];
    }
  }
  const uint64_t chosen = block_max<kThreads>(sum >= need ? rank : 0, shared->scratch[0]);
  if (thread < num_candidates && rank == chosen) shared->chosen_sum = sum;
  __syncthreads();
  return {chosen, shared->chosen_sum};
}

/// Bin where `approximate` reaches `need`, within first ... last.
__device__ __forceinline__ int guess_bin(const SampleShared* shared, float need, int first,
                                         int last) {
  while (first < last) {
    const int middle = (first + last) / 2;
    if (shared->approximate[middle] >= need) {
      last = middle;
    } else {
      first = middle + 1;
    }
  }
  return first;
}

/// First place where the sum of masses reaches need. sums: of `bin`, the first guess. offset: what
/// `approximate` misses, improved by every measurement.
template <bool kIsStaged>
__device__ __forceinline__ Place find_by_mass(const Row<kIsStaged>& row, uint64_t need, int bin,
                                              Sums sums, int last, int cut_bin, double* offset) {
  constexpr double kUnit = 1.0 / (1ull << kMassBits);
  int first = 0;
  for (int tries = 1;; ++tries) {
    if (need <= sums.before) {
      last = bin - 1;
      *offset = static_cast<double>(sums.before) * kUnit - row.shared->approximate[last];
    } else if (need > sums.before + sums.inside) {
      *offset =
          static_cast<double>(sums.before + sums.inside) * kUnit - row.shared->approximate[bin];
      first = bin + 1;
    } else {
      return find_in_bin<false>(row, bin, sums.before, need);
    }
    bin = tries <= 3 ? guess_bin(row.shared,
                                 static_cast<float>(static_cast<double>(need) * kUnit - *offset),
                                 first, last)
                     : (first + last) / 2;
    sums = measure(row, bin, bin, cut_bin);
  }
}

template <bool kIsStaged>
__global__ void __launch_bounds__(kThreads, 1) sample_kernel(const SampleArgs p) {
  extern __shared__ __align__(16) unsigned char dynamic_shared[];
  auto* shared = reinterpret_cast<SampleShared*>(dynamic_shared);
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32;
  pdl_launch_dependents();
  if (thread < 16) shared->exp2_table[thread] = exp2(thread / 16.0);
  for (int i = thread; i < kBins; i += kThreads) shared->count[i] = 0;
  for (int i = thread; i < kHeadBins; i += kThreads) shared->head_offset[i] = 0;
  pdl_wait();

  const int64_t row_index = blockIdx.x;
  const RowSampling sampling = p.rows[row_index];
  Row<kIsStaged> row{};
  row.logits = p.logits + row_index * p.logits_stride;
  row.vocab_size = static_cast<int>(p.vocab_size);
  row.temperature = sampling.temperature;
  row.penalty = sampling.repetition_penalty;
  row.shared = shared;
  if (p.seen != nullptr && sampling.history_slot >= 0 && sampling.repetition_penalty != 1.0f) {
    row.seen = p.seen + sampling.history_slot * ((p.vocab_size + 31) / 32);
  }

  // The values, the first of the greatest and the least number.
  float most = -INFINITY, least = INFINITY;
  int best_id = -1;
  bool is_bad = false;  // NaN or +infinity among the logits as they came
  const auto check = [&](float logit) { is_bad |= !(logit < INFINITY); };
  const auto take = [&](int id, float v) {
    if (v > most) {
      most = v;
      best_id = id;
    }
    least = fminf(least, v > -INFINITY ? v : INFINITY);  // false for NaN
  };
  if (kIsStaged && reinterpret_cast<uintptr_t>(row.logits) % 16 == 0) {
    // Unrolled, so that loads are in flight before the divisions.
    const int num_fours = row.vocab_size / 4;
#pragma unroll 4
    for (int i = thread; i < num_fours; i += kThreads) {
      float4 v = reinterpret_cast<const float4*>(row.logits)[i];
      check(v.x);
      check(v.y);
      check(v.z);
      check(v.w);
      v.x = row.adjusted(v.x, i * 4);
      v.y = row.adjusted(v.y, i * 4 + 1);
      v.z = row.adjusted(v.z, i * 4 + 2);
      v.w = row.adjusted(v.w, i * 4 + 3);
      reinterpret_cast<float4*>(shared->values)[i] = v;
      take(i * 4, v.x);
      take(i * 4 + 1, v.y);
      take(i * 4 + 2, v.z);
      take(i * 4 + 3, v.w);
    }
    for (int id = num_fours * 4 + thread; id < row.vocab_size; id += kThreads) {
      check(row.logits[id]);
      shared->values[id] = row.adjusted(row.logits[id], id);
      take(id, shared->values[id]);
    }
  } else {
    for (int id = thread; id < row.vocab_size; id += kThreads) {
      check(row.logits[id]);
      const float v = row.adjusted(row.logits[id], id);
      if (kIsStaged) shared->values[id] = v;
      take(id, v);
    }
  }
  constexpr uint64_t kBad = ~uint64_t{0};  // above every rank
  const uint64_t best = block_max<kThreads>(is_bad        ? kBad
                                            : best_id < 0 ? 0
                                                          : rank_of(most, best_id),
                                            shared->scratch[0]);
  const uint32_t least_key = __reduce_min_sync(~0u, ordered_key(least));
  if (lane == 0) shared->scratch[1][thread / 32] = least_key;
  __syncthreads();
  least = key_value(__reduce_min_sync(~0u, static_cast<uint32_t>(shared->scratch[1][lane])));
  if (best == kBad || best == 0) {  // 0: nothing above -infinity
    if (thread == 0) finish_row(p, row_index, kNoToken);
    return;
  }
  row.max_value = key_value(static_cast<uint32_t>(best >> 32));
  // A division that overflows: infinity has no softmax, the first infinity it is.
  if (sampling.temperature == 0.0f || sampling.top_k == 1 || row.max_value == INFINITY) {
    if (thread == 0) finish_row(p, row_index, rank_id(best));
    return;
  }

  const float depth = fminf(row.max_value - least, kMaxDepth);
  row.bins_per_unit = depth > 0.0f ? (kBins - 1) / depth : 0.0f;
  // How many logits each bin holds. The last one can hold most of the row, so it is counted apart.
  uint32_t num_last = 0;
  row.for_each([&](int, float v) {
    const float at = row.depth_of(v);
    const int bin = row.bin_at(at);
    if (bin == kBins - 1) {
      ++num_last;
    } else {
      atomicAdd(&shared->count[bin], 1u);
      if (bin < kHeadBins) {
        atomicAdd(&shared->head_offset[bin],
                  static_cast<int32_t>((at - static_cast<float>(bin)) * kHeadSteps));
      }
    }
  });
  num_last = __reduce_add_sync(~0u, num_last);
  if (lane == 0 && num_last != 0) atomicAdd(&shared->count[kBins - 1], num_last);
  __syncthreads();

  // Running sums over the bins, two a thread: counts, and masses as if all logits of a bin lay in
  // its middle or, in the first bins, in their mean.
  static_assert(kBins == 2 * kThreads);
  const uint32_t count0 = shared->count[2 * thread];
  const uint32_t count1 = shared->count[2 * thread + 1];
  const float unit = depth / (kBins - 1);
  const auto mass_of_bin = [&](int bin, uint32_t count) {
    if (count == 0) return 0.0f;
    const auto n = static_cast<float>(count);
    const float offset =
        bin < kHeadBins ? static_cast<float>(shared->head_offset[bin]) / (n * kHeadSteps) : 0.0f;
    return n * expf(-unit * (static_cast<float>(bin) + offset));
  };
  const float mass0 = mass_of_bin(2 * thread, count0);
  const float mass1 = mass_of_bin(2 * thread + 1, count1);
  uint32_t count_sum = count0 + count1;
  float mass_sum = mass0 + mass1;
#pragma unroll
  for (int i = 1; i < 32; i *= 2) {
    const uint32_t other_count = __shfl_up_sync(~0u, count_sum, i);
    const float other_mass = __shfl_up_sync(~0u, mass_sum, i);
    if (lane >= i) {
      count_sum += other_count;
      mass_sum += other_mass;
    }
  }
  if (lane == 31) {
    shared->scratch[0][thread / 32] = count_sum;
    shared->scratch[1][thread / 32] = __float_as_uint(mass_sum);
  }
  __syncthreads();
  for (int i = 0; i < thread / 32; ++i) {
    count_sum += static_cast<uint32_t>(shared->scratch[0][i]);
    mass_sum += __uint_as_float(static_cast<uint32_t>(shared->scratch[1][i]));
  }
  shared->approximate[2 * thread] = mass_sum - mass1;
  shared->approximate[2 * thread + 1] = mass_sum;

  int last_bin = kBins - 1;
  int cut_bin = kBins;  // none
  if (sampling.top_k > 0 && sampling.top_k < row.vocab_size) {
    const auto top_k = static_cast<uint32_t>(sampling.top_k);
    const uint32_t before = count_sum - count0 - count1;
    if (before < top_k && top_k <= count_sum) {
      const bool is_second = before + count0 < top_k;
      shared->chosen_bin = 2 * thread + (is_second ? 1 : 0);
      shared->chosen_before = before + (is_second ? count0 : 0);
    }
    __syncthreads();
    last_bin = shared->chosen_bin;
    row.cut = find_in_bin<true>(row, last_bin, shared->chosen_before, top_k).rank;
    cut_bin = last_bin;
  }
  __syncthreads();

  // All of what is kept, and on the way the place that is asked for, if the guess is good.
  const double draw = uniform_random(sampling.seed, sampling.counter);
  const bool has_top_p = sampling.top_p < 1.0f;
  const double share = has_top_p ? static_cast<double>(sampling.top_p) : draw;
  int bin =
      guess_bin(shared, static_cast<float>(share) * shared->approximate[last_bin], 0, last_bin);
  Sums sums = measure(row, bin, last_bin, cut_bin);
  double offset = 0;
  uint64_t kept = sums.total;
  if (has_top_p) {
    const auto need = static_cast<uint64_t>(ceil(share * static_cast<double>(kept)));
    const Place place =
        find_by_mass(row, max(uint64_t{1}, min(need, kept)), bin, sums, last_bin, cut_bin, &offset);
    row.cut = place.rank;
    kept = place.sum;
    last_bin = cut_bin = row.bin_of(key_value(static_cast<uint32_t>(place.rank >> 32)));
    const double wanted = draw * static_cast<double>(kept) / (1ull << kMassBits);
    bin = guess_bin(shared, static_cast<float>(wanted - offset), 0, last_bin);
    sums = measure(row, bin, bin, cut_bin);
  }
  const uint64_t need =
      min(static_cast<uint64_t>(floor(draw * static_cast<double>(kept))) + 1, kept);
  const Place place = find_by_mass(row, need, bin, sums, last_bin, cut_bin, &offset);
  if (thread == 0) finish_row(p, row_index, rank_id(place.rank));
}

__global__ void __launch_bounds__(1024)
    mark_seen_kernel(uint32_t* row, int64_t vocab_size, const int32_t* __restrict__ ids,
                     int64_t count, bool clear_first) {
  pdl_launch_dependents();
  pdl_wait();
  if (clear_first) {
    for (int64_t i = threadIdx.x; i < (vocab_size + 31) / 32; i += 1024) row[i] = 0;
    __syncthreads();
  }
  for (int64_t i = threadIdx.x; i < count; i += 1024) {
    const int32_t id = ids[i];
    if (id >= 0 && id < vocab_size) atomicOr(row + id / 32, 1u << (id % 32));
  }
}

int max_shared_bytes() {
  int device = 0, num_bytes = 0;
  CARAVAN_CUDA_CHECK(cudaGetDevice(&device));
  CARAVAN_CUDA_CHECK(
      cudaDeviceGetAttribute(&num_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  return num_bytes;
}

}  // namespace

void launch_sample(const SampleArgs& args, const LaunchContext& context) {
  if (args.num_rows == 0) return;
  if (args.vocab_size < 1 || args.vocab_size > kMaxVocab) {
    throw_invalid("sample: vocab_size is not in 1 ... 2^19");
  }
  if (args.rows == nullptr && (!args.is_greedy || args.seen != nullptr)) {
    throw_invalid("sample: no row parameters");
  }
  const auto num_rows = static_cast<unsigned>(args.num_rows);
  if (args.is_greedy) {
    // Exactly 90: sm_90a's code runs nowhere else, and the PTX for the others has no clusters.
    if (context.compute_capability == 90 && args.num_rows * kClusterBlocks <= context.num_sms) {
      launch(context, sample_argmax_cluster_kernel, dim3(num_rows * kClusterBlocks),
             dim3(kClusterThreads), 0, args);
    } else {
      launch(context, sample_argmax_kernel, dim3(num_rows), dim3(kArgmaxThreads), 0, args);
    }
    return;
  }
  const size_t staged_bytes =
      sizeof(SampleShared) + static_cast<size_t>(args.vocab_size) * sizeof(float);
  if (staged_bytes <= static_cast<size_t>(max_shared_bytes())) {
    launch(context, sample_kernel<true>, dim3(num_rows), dim3(kThreads), staged_bytes, args);
  } else {
    launch(context, sample_kernel<false>, dim3(num_rows), dim3(kThreads), sizeof(SampleShared),
           args);
  }
}

void launch_mark_seen(uint32_t* seen, int64_t slot, int64_t vocab_size, const int32_t* ids,
                      int64_t count, bool clear_first, const LaunchContext& context) {
  launch(context, mark_seen_kernel, dim3(1), dim3(1024), 0, seen + slot * ((vocab_size + 31) / 32),
         vocab_size, ids, count, clear_first);
}

}  // namespace caravan::cuda
