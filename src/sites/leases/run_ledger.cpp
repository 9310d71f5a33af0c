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
  for (const plan::SitePlan& site : plan.sites) options.sites.push_back(site.name);
  options.schedule = {.inner_steps = plan.exchange.inner_steps,
                      .num_fragments = plan.exchange.fragments,
                      .overlap_steps = plan.exchange.overlap_steps,
                      .num_steps = plan.steps};
  const RoundMachine rounds(options, state);
  std::vector<TokenAccount> accounts;
  for (const plan::SitePlan& site : plan.sites) {
    const int64_t step_tokens = site.batch_sequences * plan.sequence_length;
    const LaneAccount lane = rounds.account(site.name);
    accounts.push_back(
        {.site = site.name,
         .spent = lane.spent * step_tokens,
         .partly = lane.partly * step_tokens,
         .repeated = lane.repeated * step_tokens,
         .lost = lane.lost * step_tokens,
         .unread = std::max<int64_t>(plan.steps - lane.spent - lane.lost, 0) * step_tokens,
         .returned = lane.returned * step_tokens});
  }
  return accounts;
}

}  // namespace pelago::sites
