#include "sites/fetch/leaves.h"

#include <algorithm>

#include "base/error.h"
#include "base/files.h"

namespace pelago::sites {

LeafLayout::LeafLayout(int64_t num_values, int64_t leaf_values)
    : num_values_(num_values),
      leaf_values_(leaf_values),
      num_each_((num_values + leaf_values - 1) / leaf_values) {}

train::Fragment LeafLayout::bytes(int64_t leaf_idx) const {
  PELAGO_ASSERT(leaf_idx >= 0 && leaf_idx < num_leaves(), "the caller has looked at the number");
  constexpr auto kValueBytes = static_cast<int64_t>(sizeof(float));
  const int64_t base = leaf_idx < num_each_ ? 0 : num_values_;
  const int64_t begin = (leaf_idx % num_each_) * leaf_values_;
  const int64_t end = std::min(begin + leaf_values_, num_values_);
  return {.begin = (base + begin) * kValueBytes, .end = (base + end) * kValueBytes};
}

std::vector<std::string> hash_leaves(std::span<const float> global,
                                     std::span<const float> momentum,
                                     int64_t leaf_values) {
  std::vector<std::string> hashes;
  const auto step = static_cast<size_t>(leaf_values);
  for (const std::span<const float> values : {global, momentum}) {
    for (size_t begin = 0; begin < values.size(); begin += step) {
      const size_t num_values = std::min(step, values.size() - begin);
      hashes.push_back(hash_hex(std::as_bytes(values.subspan(begin, num_values))));
    }
  }
  return hashes;
}

std::string root_of(const std::vector<std::string>& leaf_hashes) {
  std::string all;
  for (const std::string& hash : leaf_hashes) all += hash;
  return hash_hex(all);
}

std::string hash_fragment(std::span<const float> global,
                          std::span<const float> momentum,
                          int64_t leaf_values) {
  return root_of(hash_leaves(global, momentum, leaf_values));
}

}  // namespace pelago::sites
