#include "core/cpu_count.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

namespace caravan {
namespace {

/// A tree of cgroup files.
class CpuQuota : public ::testing::Test {
 protected:
  CpuQuota() : folder_(::testing::TempDir() + "cpu_quota_" + std::to_string(::getpid())) {}
  ~CpuQuota() override { std::filesystem::remove_all(folder_); }

  void write(const std::string& path, const std::string& text) {
    const std::filesystem::path file = folder_ + "/" + path;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file) << text;
  }
  std::optional<double> quota() const {
    return cpu_quota({folder_ + "/groups", folder_ + "/root"});
  }
  int num_cpus() const { return num_usable_cpus({folder_ + "/groups", folder_ + "/root"}); }

  std::string folder_;
};

TEST_F(CpuQuota, NoFilesMeanNoLimit) {
  EXPECT_EQ(quota(), std::nullopt);
  write("groups", "0::/a\n");
  EXPECT_EQ(quota(), std::nullopt);
  EXPECT_GE(num_cpus(), 1);
}

TEST_F(CpuQuota, Version2TakesTheLeastOfTheGroupAndItsParents) {
  write("groups", "0::/pod/container\n");
  write("root/pod/container/cpu.max", "max 100000\n");
  EXPECT_EQ(quota(), std::nullopt);
  write("root/pod/cpu.max", "150000 100000\n");
  EXPECT_EQ(quota(), 1.5);
  EXPECT_EQ(num_cpus(), 1);
  write("root/pod/container/cpu.max", "50000 100000\n");
  EXPECT_EQ(quota(), 0.5);
  EXPECT_EQ(num_cpus(), 1);  // half a CPU is one thread
  write("root/pod/container/cpu.max", "100000000 1000\n");
  write("root/pod/cpu.max", "max 100000\n");
  EXPECT_EQ(quota(), 100000);
  EXPECT_EQ(num_cpus(), num_usable_cpus({"/none", "/none"}));
}

TEST_F(CpuQuota, AContainerSeesItsOwnGroupAsTheRoot) {
  write("groups", "0::/\n");
  write("root/cpu.max", "200000 100000\n");
  EXPECT_EQ(quota(), 2.0);
}

TEST_F(CpuQuota, Version1) {
  write("groups", "9:memory:/m\n4:cpu,cpuacct:/docker/x\n1:cpuset:/docker/x\n");
  write("root/cpu/docker/x/cpu.cfs_quota_us", "-1\n");
  write("root/cpu/docker/x/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(quota(), std::nullopt);
  write("root/cpu,cpuacct/docker/x/cpu.cfs_quota_us", "50000\n");
  write("root/cpu,cpuacct/docker/x/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(quota(), 0.5);
  // Without a namespace for cgroups a container finds its own group at the root.
  write("groups", "4:cpu,cpuacct:/not/mounted/here\n");
  write("root/cpu/cpu.cfs_quota_us", "300000\n");
  write("root/cpu/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(quota(), 3.0);
}

TEST_F(CpuQuota, BrokenFilesAreNoLimit) {
  write("groups", "nonsense\n0:/\n0::relative\n");
  write("root/cpu.max", "");
  EXPECT_EQ(quota(), std::nullopt);
  for (const char* text : {"50000 0\n", "x y\n", "-1 100000\n", "0 100000\n"}) {
    write("groups", "0::/\n");
    write("root/cpu.max", text);
    EXPECT_EQ(quota(), std::nullopt) << text;
  }
}

TEST(NumStartableThreads, AreAllThatAreWantedWithoutALimit) {
  EXPECT_EQ(num_startable_threads(0), 0);
  EXPECT_EQ(num_startable_threads(8), 8);
}

}  // namespace
}  // namespace caravan
