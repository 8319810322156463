#pragma once

#include <cstdint>
#include <string>

#include "core/dtype.h"
#include "kernels/cuda/launch.h"

namespace caravan::cuda {

// What this GPU can do at best, measured here and now. All take memory of their own and give it
// back; together they take about two seconds. Where less than 1 GiB is free they return 0.

/// Sum over 8 GiB, or a third of what is free, with the best of several grid sizes.
double measure_read_gb_per_s(const LaunchContext& context);

/// Bytes read plus bytes written of a copy of 512 MiB or 8 GiB, or a third of what is free: the
/// best of cudaMemcpyAsync and a kernel with several grid sizes.
double measure_copy_gb_per_s(const LaunchContext& context);

/// From pinned memory, 256 MiB a copy, the fastest of seven.
double measure_host_to_device_gb_per_s(const LaunchContext& context);

struct MatmulCeiling {
  double tflops = 0;  // 0: not measured
  std::string note;   // which product it was, or why there is none
};
/// The best matrix product [8192, k] x [k, n] of random `dtype` with the sizes of camel-5b's layers
/// that NVIDIA's cuBLASLt reaches, by any of its first eight suggestions for a size; the note also
/// says what is left of it after half a second of work. The library is opened for this alone; where
/// it is not installed there is no figure.
MatmulCeiling measure_matmul(DType dtype, const LaunchContext& context);

/// Median milliseconds of `repeats` calls of `queue_work(user)`, by events on the stream; one more
/// goes before.
float median_ms(const LaunchContext& context, int repeats, void (*queue_work)(void* user),
                void* user);

}  // namespace caravan::cuda
