#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "core/dtype.h"

namespace caravan {

/// How the values of a linear layer's weight W lie in memory; y[n] = sum over k of x[k] * W(k, n),
/// k < in_features, n < out_features.
enum class LinearLayout : uint8_t {
  kInOut,         // [in, out] row-major: Hugging Face Conv1D (GPT-2's c_attn, c_proj, c_fc)
  kOutIn,         // [out, in] row-major: wte and lm_head, torch.nn.Linear
  kPanel32,       // [ceil(out/32)][in][32]: CPU kernels, float32 and float16
  kPanel32Pairs,  // [ceil(out/32)][ceil(in/32)*16][32][2]: CPU kernels, bfloat16. Element
                  // (k, n) of a panel is at [k/2][n][k%2], the order that AMX tiles and vdpbf16ps
                  // read
  kCore8x8,       // [round_up(out, 128)/8][round_up(in, 64)/8][8 out][8 in]: CUDA kernels, 16 bits.
                  // 8x8 matrices as ldmatrix and wgmma (no swizzle) read them; eight outputs are
                  // one contiguous stream
};

/// Columns of one panel of kPanel32 and kPanel32Pairs: one cache line of 16-bit weights.
inline constexpr int64_t kPanelWidth = 32;
/// kCore8x8: features are padded to whole tiles of the CUDA kernels.
inline constexpr int64_t kCoreOutMultiple = 128;
inline constexpr int64_t kCoreInMultiple = 64;

/// "in_out", "out_in", "panel32", "panel32_pairs", "core8x8".
const char* linear_layout_name(LinearLayout layout);
std::optional<LinearLayout> parse_linear_layout(std::string_view name);

/// Elements stored, padding (zeros) included. Errors: kInvalidArgument on overflow.
int64_t linear_num_elements(LinearLayout layout, int64_t in_features, int64_t out_features);

/// Index of W(k, n). Requires: 0 <= k < in_features, 0 <= n < out_features.
int64_t linear_index(LinearLayout layout, int64_t in_features, int64_t out_features, int64_t k,
                     int64_t n);

/// dst = src in another layout, the dtype kept; padding is written as zeros.
/// src: kInOut or kOutIn. dst holds linear_num_elements(dst_layout, ...) elements.
/// Errors: kUnsupported for another src layout or an element size other than 2 or 4.
void pack_linear(const void* src, LinearLayout src_layout, DType dtype, int64_t in_features,
                 int64_t out_features, LinearLayout dst_layout, void* dst);

}  // namespace caravan
