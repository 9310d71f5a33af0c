#include "chips/links.h"

#include <doctest/doctest.h>

namespace pelago::chips {
namespace {

const Chip& chip(const char* name) {
  static const Catalogue catalogue = Catalogue::built_in();
  return catalogue.find(name);
}

TEST_CASE("through switches any pair and any group gets all links of a card") {
  for (const char* name : {"a100", "a800", "h20"}) {
    CAPTURE(name);
    const double one_way = chip(name).link_gb_s * 1e9 / 2;
    const double pair = pair_bytes_per_s(chip(name), 8);
    CHECK(pair > 0.7 * one_way);
    CHECK(pair < one_way);
    for (const int group_size : {2, 4, 8}) {
      CHECK(group_bytes_per_s(chip(name), group_size, 8) == pair);
    }
  }
}

TEST_CASE("in a mesh a pair gets one link of seven, and a group as many as it has others") {
  for (const char* name : {"910b", "mi300x"}) {
    CAPTURE(name);
    const double all = group_bytes_per_s(chip(name), 8, 8);
    CHECK(pair_bytes_per_s(chip(name), 8) == doctest::Approx(all / 7));
    CHECK(group_bytes_per_s(chip(name), 2, 8) == doctest::Approx(all / 7));
    CHECK(group_bytes_per_s(chip(name), 4, 8) == doctest::Approx(all * 3 / 7));
    // A node with fewer cards has no more links between two of them.
    CHECK(pair_bytes_per_s(chip(name), 2) == pair_bytes_per_s(chip(name), 8));
  }
}

TEST_CASE("groups get what was measured on nodes of eight") {
  // All-gather (github.com gameofdimension/limulidae), GB/s.
  CHECK(group_bytes_per_s(chip("910b"), 8, 8) == doctest::Approx(149e9).epsilon(0.1));
  CHECK(group_bytes_per_s(chip("910b"), 4, 8) == doctest::Approx(64e9).epsilon(0.1));
  CHECK(group_bytes_per_s(chip("a800"), 8, 8) == doctest::Approx(173e9).epsilon(0.1));
}

TEST_CASE("cards without links go over PCIe, and without a direct path through host memory") {
  CHECK(pair_bytes_per_s(chip("nvidia-a100-80g-pcie"), 8) ==
        host_bytes_per_s(chip("nvidia-a100-80g-pcie")));
  CHECK(pair_bytes_per_s(chip("nvidia-rtx4090"), 2) ==
        host_bytes_per_s(chip("nvidia-rtx4090")) / 2);
  CHECK(group_bytes_per_s(chip("huawei-310p"), 4, 8) == host_bytes_per_s(chip("huawei-310p")));
}

TEST_CASE("pairs of a node with more cards than a mesh joins may only have the host") {
  CHECK(mesh_cards(chip("910a")) == 4);
  CHECK(pair_bytes_per_s(chip("910a"), 8) == host_bytes_per_s(chip("910a")));
  CHECK(group_bytes_per_s(chip("910a"), 4, 8) ==
        doctest::Approx(3 * pair_bytes_per_s(chip("910a"), 4)));
  CHECK(group_bytes_per_s(chip("910a"), 8, 8) == host_bytes_per_s(chip("910a")));
}

TEST_CASE("the host is as far as the chip's generation of PCIe") {
  const double gen4 = host_bytes_per_s(chip("a100"));
  const double gen5 = host_bytes_per_s(chip("h20"));
  CHECK(gen4 == doctest::Approx(25.2e9));
  CHECK(gen5 == doctest::Approx(2 * gen4));
  CHECK(host_bytes_per_s(chip("nvidia-rtx4090")) == gen4);
  CHECK(host_bytes_per_s(chip("910a")) == gen4);
  CHECK(host_bytes_per_s(chip("910b")) == gen5);
}

TEST_CASE("every chip of the catalogue has a rate for every group") {
  const Catalogue catalogue = Catalogue::built_in();
  for (const Chip& any : catalogue.chips()) {
    CAPTURE(any.id);
    CHECK(host_bytes_per_s(any) > 10e9);
    for (const int group_size : {2, 4, 8}) {
      CHECK(group_bytes_per_s(any, group_size, 8) > 1e9);
      CHECK(group_bytes_per_s(any, group_size, 8) <= 1e12);
      CHECK(pair_bytes_per_s(any, group_size) > 1e9);
    }
  }
}

}  // namespace
}  // namespace pelago::chips
