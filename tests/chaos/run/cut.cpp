#include "chaos/run/cut.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdlib>
#include <regex>
#include <utility>

#include "tests/wan/output_of.h"

namespace pelago::chaos {

std::optional<std::string> Cut::obstacle() {
  if (::geteuid() != 0) return "needs root";
  if (std::system("command -v nft ip >/dev/null 2>&1") != 0) {
    return "needs nft: install nftables and iproute2";
  }
  return std::nullopt;
}

Cut::Cut(std::string space, const CutRules& rules) : space_(std::move(space)) {
  static int num_made = 0;
  table_ = fmt::format("inet cut{}", num_made++);
  std::string script = fmt::format(
      "add table {0}\n"
      "add chain {0} in {{ type filter hook input priority 0; }}\n"
      "add chain {0} out {{ type filter hook output priority 0; }}\n",
      table_);
  const auto add = [&](const char* chain,
                       const char* side,
                       const char* end,
                       const std::vector<std::string>& addresses) {
    for (const std::string& address : addresses) {
      const std::string whom = address == "any" ? fmt::format("{} \"line0\"", side)
                                                : fmt::format("ip {} {}", end, address);
      script += fmt::format("add rule {} {} {} {} counter drop\n", table_, chain, whom, rules.more);
    }
  };
  add("in", "iifname", "saddr", rules.drop_from);
  add("out", "oifname", "daddr", rules.drop_to);
  wan::output_of(fmt::format("ip netns exec {} nft -f - 2>&1 <<'END'\n{}END\n", space_, script));
}

Cut::~Cut() {
  const std::string command =
      fmt::format("ip netns exec {} nft delete table {} 2>/dev/null", space_, table_);
  if (std::system(command.c_str()) != 0) {
    std::fprintf(stderr, "chaos: a cut in %s is already gone\n", space_.c_str());
  }
}

int64_t Cut::num_dropped() const {
  const std::string listing =
      wan::output_of(fmt::format("ip netns exec {} nft list table {} 2>&1", space_, table_));
  static const std::regex counted(R"(counter packets (\d+))");
  int64_t num = 0;
  for (std::sregex_iterator hit(listing.begin(), listing.end(), counted), end; hit != end; ++hit) {
    num += std::stoll((*hit)[1]);
  }
  return num;
}

}  // namespace pelago::chaos
