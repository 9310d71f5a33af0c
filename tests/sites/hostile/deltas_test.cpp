// Wrong deltas over real lines: TLS, sockets and all. Whatever one site sends, the others commit
// their exchange without it, hold the same bits, and say its name.
#include <doctest/doctest.h>

#include "sites/hostile/certificates.h"
#include "sites/hostile/partners.h"

namespace pelago::sites {
namespace {

const std::vector<std::string> kSites = {"site0", "site1", "site2"};
const std::vector<std::string> kOthers = {"site0", "site2"};

PartnersOptions over_real_lines(const Certificates& certificates, int bits) {
  PartnersOptions options;
  options.num_sites = kSites.size();
  options.bits = bits;
  std::vector<std::string> names = kSites;
  names.emplace_back(kCoordinatorName);
  std::map<std::string, std::string> addresses;
  for (const std::string& name : names) {
    auto line = certificates.open(name);
    addresses[name] = line->address();
    options.lines.emplace(name, std::move(line));
  }
  for (const auto& [name, line] : options.lines) {
    for (const auto& [peer, address] : addresses) {
      if (peer != name) line->set_address(peer, address);
    }
  }
  return options;
}

TEST_CASE("over real lines, a negated delta is left out and named") {
  const Certificates certificates("deltas", kSites);
  Partners partners(over_real_lines(certificates, /*bits=*/8));
  for (int i = 0; i < 15; ++i) CHECK(partners.exchange() == kSites);
  CHECK(partners.exchange(1, negate) == kOthers);
  const auto suspects = partners.events("site_suspect");
  REQUIRE(suspects.size() == 1);
  CHECK(suspects[0]["site"] == "site1");
  CHECK(suspects[0]["fault"] == "direction");
}

TEST_CASE("over real lines, deltas of NaN, of nothing and too long ones are left out and named") {
  struct Attack {
    const char* what;
    SpoilBytes spoil;
  };
  const Certificates certificates("nan", kSites);
  const Attack attacks[] = {
      {"nan", [](std::string& payload) { std::fill(payload.begin(), payload.end(), '\xff'); }},
      {"nothing", [](std::string& payload) { payload.clear(); }},
      {"too long", [](std::string& payload) { payload += "more"; }}};
  for (const Attack& attack : attacks) {
    CAPTURE(attack.what);
    Partners partners(over_real_lines(certificates, /*bits=*/32));
    CHECK(partners.exchange() == kSites);
    CHECK(partners.exchange_bytes(1, attack.spoil) == kOthers);
    const auto suspects = partners.events("site_suspect");
    REQUIRE(suspects.size() == 1);
    CHECK(suspects[0]["site"] == "site1");
    CHECK(suspects[0]["fault"] == "malformed");
  }
}

}  // namespace
}  // namespace pelago::sites
