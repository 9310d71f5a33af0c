// How the ranks of a site find one another: each leaves its address as a file in a folder that all
// of them see. The same folder keeps the name of the first rank that was found lost, so that the
// ranks which then fall over one after another all blame that one and not their neighbour.
#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace pelago::chips {

struct RendezvousOptions {
  std::filesystem::path folder;  // created if absent
  int rank = 0;
  int num_ranks = 1;
  double timeout_s = 120;
  std::function<bool()> gives_up = {};  // asked while it waits: as if the time were over
};

/// Leaves content as this rank's file of that kind, waits for the others, returns every rank's in
/// rank order. Throws Failure naming the first rank that did not come within timeout_s.
std::vector<std::string> exchange_files(const RendezvousOptions& options,
                                        const std::string& kind,
                                        const std::string& content);

/// Notes lost_rank unless another rank was noted before; returns the one that stands there.
int note_lost_rank(const std::filesystem::path& folder, int lost_rank);

}  // namespace pelago::chips
