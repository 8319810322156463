#include "core/cpu_count.h"

#include <sched.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <future>
#include <sstream>
#include <system_error>
#include <thread>
#include <vector>

namespace caravan {

namespace {

// cpu.max: "50000 100000" or "max 100000". The files of v1 hold one number each, -1: no limit.
std::optional<double> quota_of_group(const std::string& folder, bool is_v2) {
  double quota = -1;
  double period = 0;
  if (is_v2) {
    std::ifstream(folder + "/cpu.max") >> quota >> period;
  } else {
    std::ifstream(folder + "/cpu.cfs_quota_us") >> quota;
    std::ifstream(folder + "/cpu.cfs_period_us") >> period;
  }
  if (!(quota > 0 && period > 0)) return std::nullopt;
  return quota / period;
}

void take_least(std::optional<double>& least, std::optional<double> other) {
  if (other && (!least || *other < *least)) least = other;
}

bool has_item(const std::string& list, const std::string& name) {
  std::istringstream items(list);
  for (std::string item; std::getline(items, item, ',');) {
    if (item == name) return true;
  }
  return false;
}

}  // namespace

std::optional<double> cpu_quota(const CpuLimitPaths& paths) {
  std::optional<double> least;
  std::ifstream groups(paths.groups);
  for (std::string line; std::getline(groups, line);) {
    // "0::/a/b" (v2) or "4:cpu,cpuacct:/a/b".
    const size_t first = line.find(':');
    const size_t second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const bool is_v2 = controllers.empty();
    if (!is_v2 && !has_item(controllers, "cpu")) continue;
    std::string path = line.substr(second + 1);
    const std::vector<std::string> roots =
        is_v2 ? std::vector<std::string>{paths.root, paths.root + "/unified"}
              : std::vector<std::string>{paths.root + "/cpu", paths.root + "/" + controllers};
    // Up to the root, which in a container is the container's own group.
    for (;;) {
      for (const std::string& root : roots) take_least(least, quota_of_group(root + path, is_v2));
      if (path.empty() || path == "/") break;
      path.resize(path.rfind('/') == std::string::npos ? 0 : path.rfind('/'));
    }
  }
  return least;
}

int num_usable_cpus(const CpuLimitPaths& paths) {
  // A mask of 1,024 CPUs is too small for some machines; then all that are there count.
  cpu_set_t set;
  CPU_ZERO(&set);
  int num_cpus = sched_getaffinity(0, sizeof(set), &set) == 0
                     ? CPU_COUNT(&set)
                     : static_cast<int>(std::thread::hardware_concurrency());
  if (const std::optional<double> quota = cpu_quota(paths)) {
    num_cpus = static_cast<int>(std::min<double>(num_cpus, std::floor(*quota)));
  }
  return std::max(1, num_cpus);
}

int num_startable_threads(int wanted) {
  std::promise<void> end;
  const std::shared_future<void> ended = end.get_future().share();
  std::vector<std::thread> threads;
  try {
    for (int i = 0; i < wanted; ++i) threads.emplace_back([ended] { ended.wait(); });
  } catch (const std::system_error&) {
    // Those that were made are the answer.
  }
  end.set_value();
  for (std::thread& thread : threads) thread.join();
  return static_cast<int>(threads.size());
}

}  // namespace caravan
