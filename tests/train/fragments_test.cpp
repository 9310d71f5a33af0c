#include <doctest/doctest.h>

#include <set>

#include "train/site_runner.h"

namespace pelago::train {
namespace {

TEST_CASE("fragments cover the flat vector exactly, sizes within a tenth, for every preset") {
  for (const std::string& name : model::preset_names()) {
    const model::ModelConfig config = model::preset(name);
    const int64_t num_values = config.num_parameters();
    for (const int64_t count : {1, 2, 3, 4, 7, 16}) {
      CAPTURE(name);
      CAPTURE(count);
      const auto fragments = cut_fragments(config, count);
      REQUIRE(fragments.size() == static_cast<size_t>(count));
      CHECK(fragments.front().begin == 0);
      CHECK(fragments.back().end == num_values);
      const double ideal = static_cast<double>(num_values) / static_cast<double>(count);
      for (size_t i = 0; i < fragments.size(); ++i) {
        if (i > 0) CHECK(fragments[i].begin == fragments[i - 1].end);
        const auto length = static_cast<double>(fragments[i].end - fragments[i].begin);
        CHECK(length >= 0.9 * ideal - 1);
        CHECK(length <= 1.1 * ideal + 1);
      }
    }
  }
}

TEST_CASE("a cut falls on a tensor's border if one is near") {
  model::ModelConfig config = model::preset("1m");
  config.num_hidden_layers = 64;  // small tensors: borders are everywhere
  std::set<int64_t> borders{0};
  int64_t end = 0;
  for (const auto& spec : model::parameter_specs(config)) borders.insert(end += spec.num_values());
  const auto fragments = cut_fragments(config, 4);
  for (const Fragment& fragment : fragments) CHECK(borders.contains(fragment.end));
}

}  // namespace
}  // namespace pelago::train
