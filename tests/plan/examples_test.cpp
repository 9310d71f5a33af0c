#include <fmt/format.h>

#include "plan/fixtures.h"

namespace pelago::plan {
namespace {

Plan plan_example(const std::string& name) {
  const std::filesystem::path examples =
      std::filesystem::path(__FILE__).parent_path() / "../../examples";
  return make_plan(read_job(examples / (name + ".job.toml"), {}),
                   read_fleet(examples / (name + ".fleet.toml"), catalogue()),
                   catalogue(),
                   nullptr,
                   2);
}

TEST_CASE("the example of two sites gives every chip a share and the line an easy task") {
  const Plan plan = plan_example("two-sites");
  REQUIRE(plan.sites.size() == 2);
  CHECK(plan.sites[0].devices.size() == 2);
  CHECK(plan.sites[1].devices.size() == 2);
  CHECK(plan.predicted_line_mbit_s < 200);
  CHECK(plan.links[0].emulate);
  CHECK(plan.warnings.empty());
}

TEST_CASE("the example of one site has three kinds of chip and exchanges nothing") {
  const Plan plan = plan_example("one-site");
  REQUIRE(plan.sites.size() == 1);
  CHECK(plan.sites[0].devices.size() == 3);
  CHECK(plan.exchange.fragments == 0);
}

TEST_CASE("the native example emulates nothing") {
  CHECK(plan_example("native").emulation_slowdown == 0);
}

}  // namespace
}  // namespace pelago::plan
