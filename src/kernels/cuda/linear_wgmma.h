#pragma once

#include <cstdint>
#include <span>

#include "kernels/cuda/linear.h"

namespace caravan::cuda {

/// Tile of y that one block computes.
struct LinearWgmmaConfig {
  int tile_rows = 128;
  int tile_columns = 128;
  bool operator==(const LinearWgmmaConfig&) const = default;
};

/// The configurations that are built.
std::span<const LinearWgmmaConfig> wgmma_configs();

/// The one that is expected to be the fastest. The result's bits do not depend on it.
LinearWgmmaConfig choose_wgmma_config(int64_t num_tokens, int64_t out_features, int num_sms);

/// launch_linear_wgmma with a given configuration, for tests and benches. Errors: kUnsupported for
/// a configuration that is not built.
void launch_linear_wgmma_with(const LinearArgs& args, const LinearWgmmaConfig& config,
                              const LaunchContext& context);

}  // namespace caravan::cuda
