#pragma once

#include "core/linear_layout.h"
#include "core/op_params.h"
#include "kernels/cpu/simd_math.h"

namespace caravan::cpu {

inline constexpr int64_t kPanel = kPanelWidth;

template <class V, Activation kActivation>
void finish_tile_with(const LinearParams& p, int64_t row, int64_t num_rows, int64_t column,
                      const float* c) {
  const int64_t out = p.weight.out_features;
  for (int64_t r = 0; r < num_rows; ++r) {
    const float* residual = p.residual == nullptr ? nullptr : p.residual + (row + r) * out + column;
    float* y = p.y + (row + r) * out + column;
    const int64_t width = min_of(kPanel, out - column);
    for (int64_t j = 0; j < width; j += 16) {
      const int count = static_cast<int>(min_of(16, width - j));
      V value = V::load(c + r * kPanel + j);
      if (p.weight.bias != nullptr) value = value + V::load(p.weight.bias + column + j, count);
      value = activate<V, kActivation>(value);
      if (residual != nullptr) value = value + V::load(residual + j, count);
      value.store(y + j, count);
    }
  }
}

/// y[row + r][column + j] = activation(c[r][j] + bias) + residual for the columns that exist.
/// c: [num_rows][kPanel].
template <class V>
void finish_tile(const LinearParams& p, int64_t row, int64_t num_rows, int64_t column,
                 const float* c) {
  switch (p.activation) {
    case Activation::kNone:
      return finish_tile_with<V, Activation::kNone>(p, row, num_rows, column, c);
    case Activation::kGelu:
      return finish_tile_with<V, Activation::kGelu>(p, row, num_rows, column, c);
    case Activation::kGeluTanh:
      return finish_tile_with<V, Activation::kGeluTanh>(p, row, num_rows, column, c);
    case Activation::kQuickGelu:
      return finish_tile_with<V, Activation::kQuickGelu>(p, row, num_rows, column, c);
    case Activation::kRelu:
      return finish_tile_with<V, Activation::kRelu>(p, row, num_rows, column, c);
    case Activation::kSilu:
      return finish_tile_with<V, Activation::kSilu>(p, row, num_rows, column, c);
    case Activation::kTanh:
      return finish_tile_with<V, Activation::kTanh>(p, row, num_rows, column, c);
  }
}

}  // namespace caravan::cpu
