// What a site holds for the whole run, in host memory: the global weights, the outer momentum, and
// the quantisation error still owed to the others. Global weights and momentum are bit-identical at
// all sites after the same commits: the outer step runs on the CPU in f32 in a fixed order with
// + - x only (no fused multiply-add: this folder is compiled with -ffp-contract=off).
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "sites/fetch/leaves.h"
#include "train/messages.h"

namespace pelago::sites {

/// Nesterov on the mean delta, as Streaming DiLoCo has it (arXiv:2501.18512).
struct OuterOptions {
  double lr = 0.4;
  double momentum = 0.9;
  /// Global weights become the plain mean of the local ones: the last word of a run. Momentum has
  /// no later round to be set right in, and the mean of sites at rest lies lower than each of them.
  static OuterOptions final() { return {.lr = 1, .momentum = 0}; }
};

/// A fragment after an outer step, not yet believed. hash: once all of it is there.
struct FragmentOutcome {
  std::vector<float> global;
  std::vector<float> momentum;
  std::string hash;
};

/// Its weights, then its momentum: in the order of GlobalState::to_bytes().
std::string bytes_of(const FragmentOutcome& outcome);

class GlobalState {
 public:
  /// global: [N]. Momentum and error start at zero. leaf_values: the same at all sites.
  GlobalState(std::vector<float> global,
              std::vector<train::Fragment> fragments,
              int64_t leaf_values = kLeafValues);

  std::span<const float> global() const { return global_; }
  std::span<const float> momentum() const { return momentum_; }
  std::span<const float> kept_error() const { return kept_error_; }
  std::span<const float> global(int64_t fragment) const { return part(global_, fragment); }
  std::span<const float> momentum(int64_t fragment) const { return part(momentum_, fragment); }
  std::span<const float> kept_error(int64_t fragment) const { return part(kept_error_, fragment); }
  const std::vector<train::Fragment>& fragments() const { return fragments_; }
  /// The newest commit each fragment holds; -1: none.
  const std::vector<int64_t>& applied() const { return applied_; }
  /// Of each fragment, one past the last data step of the site's lane that went out with an
  /// exchange.
  const std::vector<int64_t>& sent_data() const { return sent_data_; }
  /// Over everything that must be equal at all sites at the same step.
  std::string hash() const;

  FragmentOutcome outer_step(int64_t fragment,
                             std::span<const float> mean,
                             const OuterOptions& options) const;
  /// The same for a part of the fragment that begins at its value `begin`; the hash is not made.
  void outer_step_of_part(int64_t fragment,
                          int64_t begin,
                          std::span<const float> mean,
                          const OuterOptions& options,
                          FragmentOutcome& outcome) const;
  /// Of an outcome that is whole: what a commit vouches for.
  std::string hash_of(const FragmentOutcome& outcome) const {
    return hash_fragment(outcome.global, outcome.momentum, leaf_values_);
  }
  /// Makes an outcome the fragment's state as of this commit.
  void apply(int64_t fragment, int64_t exchange, const FragmentOutcome& outcome);
  /// error: empty if nothing is owed. sent_data: one past the last data step that went out with it.
  void keep_error(int64_t fragment, std::span<const float> error, int64_t sent_data);

  /// A fragment as bytes for a site that lacks it, and back. kCorrupt if the length or the hash is
  /// wrong or a value is not finite.
  std::string to_bytes(int64_t fragment) const;
  std::string fragment_hash(int64_t fragment) const { return root_of(leaf_hashes(fragment)); }
  std::vector<std::string> leaf_hashes(int64_t fragment) const;
  LeafLayout leaf_layout(int64_t fragment) const;
  /// The bytes of one leaf.
  std::string leaf(int64_t fragment, int64_t leaf_idx) const;
  Result<FragmentOutcome> from_bytes(int64_t fragment,
                                     const std::string& bytes,
                                     const std::string& hash) const;

  /// Everything, from a checkpoint or for a joining site (one sent_data for all fragments).
  void restore(std::span<const float> global,
               std::span<const float> momentum,
               std::span<const float> kept_error,
               std::vector<int64_t> applied,
               std::vector<int64_t> sent_data);
  void set_sent_data(int64_t data_step);

 private:
  std::span<const float> part(const std::vector<float>& values, int64_t fragment) const;
  std::span<float> part(std::vector<float>& values, int64_t fragment);

  std::vector<train::Fragment> fragments_;
  std::vector<float> global_, momentum_, kept_error_;  // [N] each
  std::vector<int64_t> applied_;
  std::vector<int64_t> sent_data_;
  int64_t leaf_values_;
};

}  // namespace pelago::sites
