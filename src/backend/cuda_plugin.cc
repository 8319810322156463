#include "backend/cuda_plugin.h"

extern "C" __attribute__((visibility("default"))) const caravan::CudaPlugin* caravan_cuda_plugin() {
  static constexpr caravan::CudaPlugin kPlugin{CARAVAN_VERSION, caravan::make_cuda_backend};
  return &kPlugin;
}
