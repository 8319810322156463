#include <algorithm>
#include <limits>

#include "kernels/cuda/linear_wgmma.h"

namespace caravan::cuda {

namespace {

constexpr LinearWgmmaConfig kConfigs[] = {
    {128, 256, 1, 1, false}, {128, 256, 2, 1, false}, {128, 192, 1, 1, false},
    {128, 192, 2, 1, false}, {128, 128, 1, 1, false}, {128, 128, 2, 1, false},
    {128, 128, 1, 1, true},  {128, 128, 2, 1, true},  {128, 128, 1, 2, true},
    {128, 96, 1, 1, false},  {128, 64, 1, 1, false},  {128, 64, 2, 1, false},
    {64, 64, 1, 1, false},   {64, 64, 2, 1, false},
};

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// Expected nanoseconds, but for a constant.
double expected_ns(const LinearWgmmaConfig& c, int64_t num_tokens, int64_t out_features,
                   int64_t in_features, int num_sms) {
  const int cluster = c.cluster_rows * c.cluster_columns;
  const int64_t tiles = ceil_div(num_tokens, c.tile_rows * c.cluster_rows) *
                        ceil_div(out_features, c.tile_columns * c.cluster_columns);
  const int64_t num_clusters = std::max(1, num_sms / cluster);
  const double waves = static_cast<double>(ceil_div(tiles, num_clusters));
  const double blocks = static_cast<double>(std::min(tiles, num_clusters) * cluster);
  // 64 k of a tile. 2,048 products a clock at the 1.5 GHz that the power limit leaves; x and W come
  // in at 115 GB/s a block, 12 TB/s together (measured: 128 x 96, 64 and 43 blocks).
  const double products = c.tile_rows * c.tile_columns * 64 / 2048.0 / 1.5;
  const double bytes = (c.tile_rows + c.tile_columns) * 128 / std::min(115.0, 12000.0 / blocks);
  const double main = static_cast<double>(ceil_div(in_features, 64)) * std::max(products, bytes);
  // Writing y: 5,500 clocks for 128 x 256.
  const double epilogue = c.tile_rows * c.tile_columns * (5500.0 / 32768) / 1.5;
  return c.is_ping_pong ? waves * main + 1.5 * epilogue : waves * (main + epilogue);
}

}  // namespace

std::span<const LinearWgmmaConfig> wgmma_configs() { return kConfigs; }

LinearWgmmaConfig choose_wgmma_config(int64_t num_tokens, int64_t out_features, int64_t in_features,
                                      int num_sms) {
  LinearWgmmaConfig best;
  double best_ns = std::numeric_limits<double>::infinity();
  for (const LinearWgmmaConfig& c : kConfigs) {
    const double ns = expected_ns(c, num_tokens, out_features, in_features, num_sms);
    if (ns < best_ns) {
      best_ns = ns;
      best = c;
    }
  }
  return best;
}

}  // namespace caravan::cuda
