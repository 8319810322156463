#include "kernels/cuda/tensor_map.h"

#include <string>

#include "kernels/cuda/launch.h"

namespace caravan::cuda {

namespace {

/// Asked of the runtime, so that nothing links with libcuda.
decltype(&cuTensorMapEncodeTiled) tensor_map_encoder() {
  static const auto encoder = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found{};
    CARAVAN_CUDA_CHECK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                                        cudaEnableDefault, &found));
    if (found != cudaDriverEntryPointSuccess) {
      throw_unsupported(
          "the CUDA driver has no cuTensorMapEncodeTiled: update it to 12.0 or newer");
    }
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
  }();
  return encoder;
}

}  // namespace

CUtensorMap make_tensor_map(DType dtype, const void* data, std::initializer_list<cuuint64_t> sizes,
                            std::initializer_list<cuuint64_t> strides,
                            std::initializer_list<cuuint32_t> box, CUtensorMapSwizzle swizzle) {
  const CUtensorMapDataType type =
      dtype == DType::kF16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  const cuuint32_t steps[3] = {1, 1, 1};
  CUtensorMap map;
  const CUresult result = tensor_map_encoder()(
      &map, type, static_cast<cuuint32_t>(sizes.size()), const_cast<void*>(data), sizes.begin(),
      strides.begin(), box.begin(), steps, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    throw_invalid("cuTensorMapEncodeTiled failed with code " + std::to_string(result));
  }
  return map;
}

}  // namespace caravan::cuda
