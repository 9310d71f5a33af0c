// A simulated site's disk with its checkpoints. A checkpoint is written behind training and takes
// its time; until it is forced to disk a crash loses it or leaves it torn. A torn one is found by
// its hashes when the site comes back, and not offered.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/rng.h"
#include "sites/exchange/global_state.h"
#include "sites/protocol/messages.h"

namespace pelago::sites {

struct SimulatedCheckpoint {
  uint64_t incarnation = 0;  // of the start that saved it
  int64_t step = 0;
  int64_t data_step = 0;  // that the next step reads
  GlobalState state;
  std::vector<float> local;  // what the workers save
  double synced_s = 0;       // safe from then on
  bool is_torn = false;
};

class SimulatedDisk {
 public:
  void save(SimulatedCheckpoint checkpoint) {
    std::erase_if(kept_, [&](const auto& other) { return other.step == checkpoint.step; });
    kept_.push_back(std::move(checkpoint));
    constexpr size_t kKept = 3;
    if (kept_.size() > kKept) kept_.erase(kept_.begin());
  }
  void crash(double now_s, Rng& rng) {
    std::erase_if(kept_, [&](SimulatedCheckpoint& checkpoint) {
      if (checkpoint.synced_s <= now_s) return false;
      const double fate = rng.next_uniform();
      checkpoint.is_torn = fate < 0.4;
      return fate > 0.7;
    });
  }
  /// It is replaced by an empty one.
  void lose() { kept_.clear(); }
  /// What a site that starts offers to go back to.
  std::vector<CheckpointOffer> offers() const {
    std::vector<CheckpointOffer> offers;
    for (const SimulatedCheckpoint& each : kept_) {
      if (each.is_torn) continue;
      offers.push_back({.step = each.step, .hash = each.state.hash(), .data_step = each.data_step});
    }
    return offers;
  }
  /// The same weights at the same step: nobody goes back to others.
  bool holds_safely(const SimulatedCheckpoint& same, double now_s) const {
    return std::any_of(kept_.begin(), kept_.end(), [&](const SimulatedCheckpoint& each) {
      return each.step == same.step && each.synced_s <= now_s && !each.is_torn &&
             each.state.hash() == same.state.hash();
    });
  }
  const std::vector<SimulatedCheckpoint>& kept() const { return kept_; }
  /// That can be read; null: there is none.
  const SimulatedCheckpoint* newest() const {
    const auto found =
        std::find_if(kept_.rbegin(), kept_.rend(), [](const auto& each) { return !each.is_torn; });
    return found == kept_.rend() ? nullptr : &*found;
  }
  /// Null: it has none of that step.
  const SimulatedCheckpoint* find(int64_t step) const {
    const auto found = std::find_if(
        kept_.begin(), kept_.end(), [&](const auto& each) { return each.step == step; });
    return found == kept_.end() ? nullptr : &*found;
  }

 private:
  std::vector<SimulatedCheckpoint> kept_;  // oldest first
};

}  // namespace pelago::sites
