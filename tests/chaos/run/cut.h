// A partition: rules of nftables in a site's namespace that drop packets, and count what they drop.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace pelago::chaos {

struct CutRules {
  std::vector<std::string> drop_from = {};  // addresses; "any": everybody
  std::vector<std::string> drop_to = {};
  std::string more = {};  // nftables words before "counter drop": "tcp sport 4811"
};

/// Lasts as long as this object.
class Cut {
 public:
  /// Why there can be no cuts here, or nothing.
  static std::optional<std::string> obstacle();
  /// space: a network namespace. Throws Failure with the words of nft.
  Cut(std::string space, const CutRules& rules);
  Cut(const Cut&) = delete;
  Cut& operator=(const Cut&) = delete;
  ~Cut();
  int64_t num_dropped() const;

 private:
  std::string space_;
  std::string table_;
};

}  // namespace pelago::chaos
