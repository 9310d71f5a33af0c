// A fragment's hash is the root of a tree. Its bytes (global weights, then outer momentum) are cut
// into leaves of a mebibyte, each leaf has a hash, and the hash of these hashes is the fragment's.
// So whoever knows the hash that was committed can tell of a list of leaf hashes whether it is the
// true one, and then of each leaf by itself whether its bytes are right, whoever sent them: a site
// that joins takes leaves from several donors at once, and names the one that sends others.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "train/messages.h"

namespace pelago::sites {

/// One MiB of f32: a second of a line of 8 Mbit/s.
inline constexpr int64_t kLeafValues = int64_t{1} << 18;

/// Where the leaves of a fragment of num_values lie in its bytes.
class LeafLayout {
 public:
  explicit LeafLayout(int64_t num_values, int64_t leaf_values = kLeafValues);
  int64_t num_leaves() const { return 2 * num_each_; }
  /// [begin, end) in bytes: first those of the weights, then those of the momentum.
  train::Fragment bytes(int64_t leaf_idx) const;

 private:
  int64_t num_values_, leaf_values_, num_each_;
};

/// XXH3-128 of each leaf, in 32 hex digits.
std::vector<std::string> hash_leaves(std::span<const float> global,
                                     std::span<const float> momentum,
                                     int64_t leaf_values = kLeafValues);
/// The fragment's hash.
std::string root_of(const std::vector<std::string>& leaf_hashes);
std::string hash_fragment(std::span<const float> global,
                          std::span<const float> momentum,
                          int64_t leaf_values = kLeafValues);

}  // namespace pelago::sites
