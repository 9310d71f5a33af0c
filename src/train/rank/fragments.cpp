#include <algorithm>
#include <cstdlib>

#include "base/error.h"
#include "train/site_runner.h"

namespace pelago::train {

std::vector<Fragment> cut_fragments(const model::ModelConfig& model, int64_t num_fragments) {
  std::vector<int64_t> borders{0};  // of tensors, in the flat vector
  for (const model::ParameterSpec& spec : model::parameter_specs(model)) {
    borders.push_back(borders.back() + spec.num_values());
  }
  const int64_t num_values = borders.back();
  PELAGO_ASSERT(num_fragments > 0 && num_fragments <= num_values, "a fragment holds something");
  // Both ends of a fragment may move by a twentieth of its size, which keeps sizes within a tenth.
  const int64_t reach = num_values / num_fragments / 20;
  std::vector<Fragment> fragments;
  for (int64_t i = 0; i < num_fragments; ++i) {
    const int64_t ideal = num_values * (i + 1) / num_fragments;
    const int64_t border = *std::min_element(borders.begin(), borders.end(), [&](auto a, auto b) {
      return std::abs(a - ideal) < std::abs(b - ideal);
    });
    const int64_t begin = fragments.empty() ? 0 : fragments.back().end;
    const int64_t end = std::abs(border - ideal) <= reach ? border : ideal;
    fragments.push_back({begin, end});
  }
  return fragments;
}

}  // namespace pelago::train
