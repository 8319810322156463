#include <algorithm>
#include <limits>

#include "core/tensor.h"
#include "kernels/cuda/linear_wgmma.h"

namespace caravan::cuda {

namespace {

constexpr LinearWgmmaConfig kConfigs[] = {{128, 256}, {128, 192}, {128, 128},
                                          {128, 96},  {128, 64},  {64, 64}};

/// Microseconds of 64 k of one tile on every SM, writing y included. H100 at its power limit,
/// camel-5b's four shapes at T = 512 and 2048 (64 x 64: 128), time / waves / (in / 64):
///   128x256 0.73-0.93   128x192 0.59-0.70   128x128 0.40-0.46   128x96 0.35-0.49
///   128x64  0.27-0.40   64x64   0.24-0.27
/// The narrow ones take more from L2 for a product, and suffer as soon as there are several waves.
double step_us(const LinearWgmmaConfig& c) {
  if (c.tile_rows == 64) return 0.26;
  switch (c.tile_columns) {
    case 256:
      return 0.78;
    case 192:
      return 0.63;
    case 128:
      return 0.45;
    case 96:
      return 0.37;
    default:
      return 0.31;
  }
}

}  // namespace

std::span<const LinearWgmmaConfig> wgmma_configs() { return kConfigs; }

LinearWgmmaConfig choose_wgmma_config(int64_t num_tokens, int64_t out_features, int num_sms) {
  LinearWgmmaConfig best;
  double best_us = std::numeric_limits<double>::infinity();
  for (const LinearWgmmaConfig& c : kConfigs) {
    const int64_t tiles =
        ceil_div(num_tokens, c.tile_rows) * ceil_div(out_features, c.tile_columns);
    const int64_t waves = ceil_div(tiles, std::max(1, num_sms));
    // 128 x 96 pays when W streams from memory once (T = 128, 12288 x 4096: 37.6 us, 128 x 128
    // 41.3); at T = 320 it takes 0.5 us a step. 128 x 128 at T = 16384 takes 0.58.
    if (c.tile_columns == 96 && num_tokens > c.tile_rows) continue;
    if (c.tile_columns < 192 && num_tokens > 2048 && waves > 1) continue;
    if (c.tile_columns < 96 && waves > 1) continue;
    const double us = static_cast<double>(waves) * step_us(c);
    if (us < best_us) {
      best_us = us;
      best = c;
    }
  }
  return best;
}

}  // namespace caravan::cuda
