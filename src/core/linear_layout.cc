#include "core/linear_layout.h"

#include <algorithm>
#include <limits>

#include "core/error.h"
#include "core/tensor.h"

namespace caravan {

namespace {

constexpr int64_t kPairTileDepth = 32;  // in_features of kPanel32Pairs is padded to whole AMX tiles

int64_t panel_elements(LinearLayout layout, int64_t in_features) {
  const int64_t depth =
      layout == LinearLayout::kPanel32Pairs ? round_up(in_features, kPairTileDepth) : in_features;
  return depth * kPanelWidth;
}

// One panel at a time; within it the source is walked in the order that keeps its reads contiguous.
template <typename T>
void pack_panels(const T* src, LinearLayout src_layout, int64_t in_features, int64_t out_features,
                 LinearLayout dst_layout, T* dst) {
  const int64_t num_panels = ceil_div(out_features, kPanelWidth);
  const int64_t stride = panel_elements(dst_layout, in_features);
  const bool pairs = dst_layout == LinearLayout::kPanel32Pairs;
  const auto at = [&](int64_t k, int64_t j) {
    return pairs ? (k / 2 * kPanelWidth + j) * 2 + k % 2 : k * kPanelWidth + j;
  };
#pragma omp parallel for schedule(static)
  for (int64_t p = 0; p < num_panels; ++p) {
    T* panel = dst + p * stride;
    const int64_t first = p * kPanelWidth;
    const int64_t width = std::min(kPanelWidth, out_features - first);
    if (width < kPanelWidth || pairs) std::fill(panel, panel + stride, T{0});
    if (src_layout == LinearLayout::kInOut) {
      for (int64_t k = 0; k < in_features; ++k) {
        const T* row = src + k * out_features + first;
        for (int64_t j = 0; j < width; ++j) panel[at(k, j)] = row[j];
      }
    } else {
      // Blocks of 16 source columns: both the reads and the writes stay within a few cache lines.
      for (int64_t k0 = 0; k0 < in_features; k0 += 16) {
        const int64_t k1 = std::min(k0 + 16, in_features);
        for (int64_t j = 0; j < width; ++j) {
          const T* row = src + (first + j) * in_features;
          for (int64_t k = k0; k < k1; ++k) panel[at(k, j)] = row[k];
        }
      }
    }
  }
}

// Strips of eight outputs; each strip is written front to back.
template <typename T>
void pack_cores(const T* src, LinearLayout src_layout, int64_t in_features, int64_t out_features,
                T* dst) {
  const int64_t depth = round_up(in_features, kCoreInMultiple);
  const int64_t num_strips = round_up(out_features, kCoreOutMultiple) / 8;
  const bool from_in_out = src_layout == LinearLayout::kInOut;
  const int64_t k_step = from_in_out ? out_features : 1;
  const int64_t n_step = from_in_out ? 1 : in_features;
#pragma omp parallel for schedule(static)
  for (int64_t strip = 0; strip < num_strips; ++strip) {
    T* out = dst + strip * 8 * depth;
    std::fill(out, out + 8 * depth, T{0});
    const int64_t rows = std::clamp<int64_t>(out_features - strip * 8, 0, 8);
    for (int64_t k = 0; k < in_features; ++k) {
      const T* from = src + k * k_step + strip * 8 * n_step;
      T* to = out + k / 8 * 64 + k % 8;
      for (int64_t n = 0; n < rows; ++n) to[n * 8] = from[n * n_step];
    }
  }
}

template <typename T>
void transpose(const T* src, int64_t rows, int64_t columns, T* dst) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) dst[c * rows + r] = src[r * columns + c];
  }
}

template <typename T>
void pack(const T* src, LinearLayout src_layout, int64_t in_features, int64_t out_features,
          LinearLayout dst_layout, T* dst) {
  if (src_layout == dst_layout) {
    std::copy(src, src + in_features * out_features, dst);
  } else if (dst_layout == LinearLayout::kInOut || dst_layout == LinearLayout::kOutIn) {
    const bool from_in_out = src_layout == LinearLayout::kInOut;
    transpose(src, from_in_out ? in_features : out_features,
              from_in_out ? out_features : in_features, dst);
  } else if (dst_layout == LinearLayout::kCore8x8) {
    pack_cores(src, src_layout, in_features, out_features, dst);
  } else {
    pack_panels(src, src_layout, in_features, out_features, dst_layout, dst);
  }
}

}  // namespace

const char* linear_layout_name(LinearLayout layout) {
  switch (layout) {
    case LinearLayout::kInOut:
      return "in_out";
    case LinearLayout::kOutIn:
      return "out_in";
    case LinearLayout::kPanel32:
      return "panel32";
    case LinearLayout::kPanel32Pairs:
      return "panel32_pairs";
    case LinearLayout::kCore8x8:
      return "core8x8";
  }
  return "?";
}

std::optional<LinearLayout> parse_linear_layout(std::string_view name) {
  for (const LinearLayout layout :
       {LinearLayout::kInOut, LinearLayout::kOutIn, LinearLayout::kPanel32,
        LinearLayout::kPanel32Pairs, LinearLayout::kCore8x8}) {
    if (name == linear_layout_name(layout)) return layout;
  }
  return std::nullopt;
}

int64_t linear_num_elements(LinearLayout layout, int64_t in_features, int64_t out_features) {
  switch (layout) {
    case LinearLayout::kInOut:
    case LinearLayout::kOutIn:
      return checked_mul(in_features, out_features, "linear weight");
    case LinearLayout::kCore8x8: {
      const int64_t limit = std::numeric_limits<int64_t>::max() - kCoreOutMultiple;
      CARAVAN_CHECK(in_features <= limit && out_features <= limit, "linear weight: {} x {}",
                    in_features, out_features);
      return checked_mul(round_up(in_features, kCoreInMultiple),
                         round_up(out_features, kCoreOutMultiple), "linear weight");
    }
    case LinearLayout::kPanel32:
    case LinearLayout::kPanel32Pairs:
      break;
  }
  const int64_t padded_out = checked_add(out_features, kPanelWidth, "linear weight");
  checked_mul(checked_add(in_features, kPairTileDepth, "linear weight"), padded_out,
              "linear weight");
  return ceil_div(out_features, kPanelWidth) * panel_elements(layout, in_features);
}

int64_t linear_index(LinearLayout layout, int64_t in_features, int64_t out_features, int64_t k,
                     int64_t n) {
  const int64_t panel = n / kPanelWidth * panel_elements(layout, in_features);
  const int64_t column = n % kPanelWidth;
  switch (layout) {
    case LinearLayout::kInOut:
      return k * out_features + n;
    case LinearLayout::kOutIn:
      return n * in_features + k;
    case LinearLayout::kPanel32:
      return panel + k * kPanelWidth + column;
    case LinearLayout::kPanel32Pairs:
      return panel + (k / 2 * kPanelWidth + column) * 2 + k % 2;
    case LinearLayout::kCore8x8:
      return (n / 8 * (round_up(in_features, kCoreInMultiple) / 8) + k / 8) * 64 + n % 8 * 8 +
             k % 8;
  }
  return 0;
}

void pack_linear(const void* src, LinearLayout src_layout, DType dtype, int64_t in_features,
                 int64_t out_features, LinearLayout dst_layout, void* dst) {
  CARAVAN_CHECK_CODE(src_layout == LinearLayout::kInOut || src_layout == LinearLayout::kOutIn,
                     kUnsupported, "cannot pack from layout {}", linear_layout_name(src_layout));
  const size_t size = dtype_size(dtype);
  CARAVAN_CHECK_CODE(size == 2 || size == 4, kUnsupported, "cannot pack {} weights",
                     dtype_name(dtype));
  if (size == 2) {
    pack(static_cast<const uint16_t*>(src), src_layout, in_features, out_features, dst_layout,
         static_cast<uint16_t*>(dst));
  } else {
    pack(static_cast<const uint32_t*>(src), src_layout, in_features, out_features, dst_layout,
         static_cast<uint32_t*>(dst));
  }
}

}  // namespace caravan
