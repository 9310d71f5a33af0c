#include "sites/leases/run_ledger.h"

#include <algorithm>

#include "sites/journal.h"
#include "sites/protocol/round_machine.h"

namespace pelago::sites {

std::vector<TokenAccount> read_token_accounts(const std::filesystem::path& run_dir,
                                              const plan::Plan& plan) {
  const DurableState state = read_journal_state(run_dir / "journal.sqlite");
  if (state.empty()) return {};
  RoundOptions options;
  for (const plan::SitePlan& site : plan.sites) {
    options.sites.push_back(site.name);
    options.shares.push_back(site.batch_sequences);
  }
  options.schedule = {.inner_steps = plan.exchange.inner_steps,
                      .num_fragments = plan.exchange.fragments,
                      .overlap_steps = plan.exchange.overlap_steps,
                      .num_steps = plan.steps};
  const RoundMachine rounds(options, state);
  std::vector<TokenAccount> accounts;
  for (size_t idx = 0; idx < plan.sites.size(); ++idx) {
    const plan::SitePlan& site = plan.sites[idx];
    const int64_t tokens = plan.sequence_length;  // of a sequence
    const LaneAccount lane = rounds.account(site.name);
    const int64_t all = rounds.shares().count(idx, StepRange{.begin = 0, .end = plan.steps});
    accounts.push_back({.site = site.name,
                        .spent = lane.spent * tokens,
                        .partly = lane.partly * tokens,
                        .repeated = lane.repeated * tokens,
                        .lost = lane.lost * tokens,
                        .unread = std::max<int64_t>(all - lane.spent - lane.lost, 0) * tokens,
                        .returned = lane.returned * tokens});
  }
  return accounts;
}

}  // namespace pelago::sites
