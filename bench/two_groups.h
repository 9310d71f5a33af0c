// Two vendor groups of two chips add up a vector: once over the hosts alone (every chip copies the
// whole vector out and in), once hierarchically (native inside a group, only each rank's half
// passes its host). Chips are slowed down so far that the host's own work hides behind their time;
// the emulated figures are that time on real chips. A second run without slowdown shows the host's
// work alone.
#pragma once

#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "bench/report.h"
#include "chips/catalogue.h"
#include "chips/collective.h"
#include "chips/links.h"
#include "chips/torch.h"

namespace pelago::bench::two_groups {

constexpr int kNumRanks = 4;
constexpr int kTurns = 5;
constexpr int kCardsInNode = 8;

enum Way { kHosts, kHierarchical, kNumWays };

/// Seconds of the slowest rank by way and turn, in memory that all ranks share.
struct Times {
  double seconds[kNumWays][kTurns][kNumRanks];
  bool is_right[kNumRanks];
};

struct Setup {
  int64_t num_values;
  double slowdown;
  std::string second_chip;  // of ranks 2 and 3
  std::filesystem::path folder;
};

inline chips::CollectiveOptions options_of(Way way,
                                           int rank,
                                           const Setup& setup,
                                           chips::Device& device) {
  chips::CollectiveOptions options = {
      .rank = rank,
      .num_ranks = kNumRanks,
      .rendezvous_dir = setup.folder / (way == kHosts ? "hosts" : "hierarchical"),
      .device = &device};
  if (way == kHosts) return options;
  options.native_library = "emuccl";
  options.vendor_groups = {0, 0, 1, 1};
  const chips::Chip& chip = *device.chip();
  options.links = {
      .group_bytes_per_s = chips::group_bytes_per_s(chip, /*group_size=*/2, kCardsInNode),
      .pair_bytes_per_s = chips::pair_bytes_per_s(chip, kCardsInNode)};
  return options;
}

/// One rank's whole life: both ways, turn by turn.
inline void run_rank(int rank, const Setup& setup, Times& times) {
  const chips::Catalogue catalogue = chips::Catalogue::built_in();
  const std::string chip = rank < 2 ? "a100" : setup.second_chip;
  const auto device =
      chips::open_device("emulated:" + chip, catalogue, {.slowdown = setup.slowdown});
  at::set_num_threads(1);
  std::array<std::unique_ptr<chips::Collective>, kNumWays> ways;
  for (const Way way : {kHosts, kHierarchical}) {
    ways[way] = chips::open_collective(options_of(way, rank, setup, *device));
  }
  const at::Tensor ones = at::ones({setup.num_values}).mul_(rank + 1);
  at::Tensor values = ones.to(device->torch_device());
  times.is_right[rank] = true;
  for (int turn = -1; turn < kTurns; ++turn) {  // the first one grows buffers and is not counted
    for (const Way way : {kHosts, kHierarchical}) {
      values.copy_(ones);
      device->synchronize();
      ways[way]->barrier();
      const double begin_s = steady_now_s();
      ways[way]->all_reduce_sum(values);
      device->synchronize();
      if (turn >= 0) times.seconds[way][turn][rank] = steady_now_s() - begin_s;
      const at::Tensor sum = values.cpu();
      times.is_right[rank] &= sum.min().item<float>() == 10 && sum.max().item<float>() == 10;
    }
  }
}

/// Runs the ranks as processes; the parent has touched no chip before.
inline Times run_ranks(const Setup& setup) {
  void* const memory =
      ::mmap(nullptr, sizeof(Times), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) fail("no shared memory for the ranks' times");
  auto* const times = new (memory) Times{};
  std::vector<pid_t> children;
  for (int rank = 0; rank < kNumRanks; ++rank) {
    children.push_back(::fork());
    if (children.back() != 0) continue;
    try {
      run_rank(rank, setup, *times);
    } catch (const std::exception& error) {
      fmt::print(stderr, "rank {}: {}\n", rank, error.what());
      ::_exit(kExitFailed);
    }
    ::_exit(kExitDone);
  }
  bool is_right = true;
  for (int rank = 0; rank < kNumRanks; ++rank) {
    int status = -1;
    ::waitpid(children[static_cast<size_t>(rank)], &status, 0);
    is_right = is_right && status == 0 && times->is_right[rank];
  }
  const Times result = *times;
  ::munmap(memory, sizeof(Times));
  if (!is_right) fail("a rank failed or holds another sum than 10");
  return result;
}

inline double median_s(const Times& times, Way way) {
  std::array<double, kTurns> slowest;
  for (int turn = 0; turn < kTurns; ++turn) {
    slowest[static_cast<size_t>(turn)] = *std::ranges::max_element(times.seconds[way][turn]);
  }
  std::ranges::sort(slowest);
  return slowest[kTurns / 2];
}

class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "pelago-XXXXXX").string();
    if (::mkdtemp(pattern.data()) == nullptr) fail("cannot create a folder like {}", pattern);
    path_ = pattern;
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  ~TemporaryFolder() { std::filesystem::remove_all(path_); }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

/// The ratio: over the hosts alone to hierarchical, both on A100s and the second chip.
inline void measure(const std::string& second_chip,
                    double slowdown,
                    double megabytes,
                    Report& report) {
  const auto num_values = static_cast<int64_t>(megabytes * 1e6 / 4);
  const TemporaryFolder paced, unpaced;
  const Times chip_times = run_ranks({.num_values = num_values,
                                      .slowdown = slowdown,
                                      .second_chip = second_chip,
                                      .folder = paced.path()});
  const Times host_times = run_ranks({.num_values = num_values,
                                      .slowdown = 1e-3,
                                      .second_chip = second_chip,
                                      .folder = unpaced.path()});
  report.metrics["slowdown"] = slowdown;
  report.metrics["hosts_emulated_ms"] = median_s(chip_times, kHosts) / slowdown * 1e3;
  report.metrics["hierarchical_emulated_ms"] = median_s(chip_times, kHierarchical) / slowdown * 1e3;
  report.metrics["hosts_wall_ms"] = median_s(host_times, kHosts) * 1e3;
  report.metrics["hierarchical_wall_ms"] = median_s(host_times, kHierarchical) * 1e3;
  report.ratio = median_s(chip_times, kHosts) / median_s(chip_times, kHierarchical);
  report.target = 1.1;
}

}  // namespace pelago::bench::two_groups
