#pragma once

#include <optional>
#include <string>

namespace caravan {

/// Where the limits are read; tests give folders of their own.
struct CpuLimitPaths {
  std::string groups = "/proc/self/cgroup";
  std::string root = "/sys/fs/cgroup";
};

/// CPUs that the cgroups of this process (v2 or v1) allow, e.g. 1.5: the least quota / period of
/// its group and of the groups above. Unset without a limit.
std::optional<double> cpu_quota(const CpuLimitPaths& paths = {});

/// Threads that can run at once: the CPUs of the affinity mask, at most the whole ones of the
/// quota, at least 1.
int num_usable_cpus(const CpuLimitPaths& paths = {});

/// How many of `wanted` threads can be made beside those that run, all at once; they end before the
/// function returns. Less than `wanted` under a limit of processes (ulimit -u, a cgroup's
/// pids.max).
int num_startable_threads(int wanted);

}  // namespace caravan
