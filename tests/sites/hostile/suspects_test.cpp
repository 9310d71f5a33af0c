// The protocol against a site whose deltas are wrong.
#include <doctest/doctest.h>

#include "sites/hostile/partners.h"

namespace pelago::sites {
namespace {

TEST_CASE("honest partners are never suspected") {
  Partners partners({.num_sites = 3});
  for (int i = 0; i < 60; ++i) CHECK(partners.exchange().size() == 3);
  CHECK(partners.events("site_suspect").empty());
}

TEST_CASE("a site that sends a wrong delta sits the round out, is named, and returns when clean") {
  struct Attack {
    const char* fault;
    Spoil spoil;
  };
  for (const Attack& attack :
       {Attack{"direction", negate}, Attack{"norm", enlarge}, Attack{"norm", stand_still}}) {
    CAPTURE(attack.fault);
    Partners partners({.num_sites = 3});
    for (int i = 0; i < 15; ++i) CHECK(partners.exchange().size() == 3);
    const std::vector<std::string> others = {"site0", "site2"};
    CHECK(partners.exchange(1, attack.spoil) == others);
    const auto suspects = partners.events("site_suspect");
    REQUIRE(suspects.size() == 1);
    CHECK(suspects[0]["site"] == "site1");
    CHECK(suspects[0]["fault"] == attack.fault);
    // The rest of the round without it, whatever it sends.
    for (int64_t i = 1; i < Partners::kFragments; ++i)
      CHECK(partners.exchange(1, attack.spoil) == others);
    CHECK(partners.events("site_suspect").size() == 1);
    CHECK(partners.exchange().size() == 3);  // back
    for (int64_t i = 1; i < 2 * Partners::kFragments; ++i) CHECK(partners.exchange().size() == 3);
    CHECK(partners.events("site_cleared").size() == 1);
  }
}

TEST_CASE("a site that goes on sending wrong deltas is out longer each time") {
  Partners partners({.num_sites = 4});
  for (int i = 0; i < 15; ++i) partners.exchange();
  int num_with = 0;
  for (int i = 0; i < 30; ++i) num_with += partners.exchange(3, enlarge).size() == 4 ? 1 : 0;
  CHECK(num_with == 0);  // nothing of it ever counted
  CHECK(partners.events("site_suspect").size() <= 4);
}

TEST_CASE("of two sites, the one that changed its habit is left out, and the other goes on") {
  Partners partners({.num_sites = 2});
  for (int i = 0; i < 15; ++i) CHECK(partners.exchange().size() == 2);
  CHECK(partners.exchange(0, enlarge) == std::vector<std::string>{"site1"});
  REQUIRE(partners.events("site_suspect").size() == 1);
  CHECK(partners.events("site_suspect")[0]["site"] == "site0");
}

}  // namespace
}  // namespace pelago::sites
