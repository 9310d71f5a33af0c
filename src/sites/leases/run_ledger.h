// The account of a run's tokens, from its journal: live or finished, by whoever may read its
// folder.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "plan/plan.h"

namespace pelago::sites {

/// Of one site's lane, in tokens. Every token of the run's steps stands in spent, lost or unread;
/// the others tell more about them (leases/token_ledger.h).
struct TokenAccount {
  std::string site;
  int64_t spent = 0;     // in a committed delta
  int64_t partly = 0;    // of spent: not in every fragment's
  int64_t repeated = 0;  // in two committed deltas of one fragment
  int64_t lost = 0;      // passed over
  int64_t unread = 0;    // not in a committed delta yet, to be read by this or a later start
  int64_t returned = 0;  // of unread or spent since: read once in vain by a start that died
};

/// In plan order; empty for a run that keeps no journal. Throws Failure if it cannot be read.
std::vector<TokenAccount> read_token_accounts(const std::filesystem::path& run_dir,
                                              const plan::Plan& plan);

}  // namespace pelago::sites
