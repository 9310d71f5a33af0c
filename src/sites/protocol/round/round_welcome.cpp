// How a site is taken in: where it starts, at the run's beginning or in its midst.
#include <algorithm>

#include "base/error.h"
#include "sites/protocol/round_machine.h"

namespace pelago::sites {

void RoundMachine::answer_hello(Site& site) {
  const bool was_welcome = site.welcome.has_value();
  if (failure_) {
    dismiss(site, *failure_, kExitFailed);
  } else if (phase_ == RunPhase::kOver) {
    dismiss(site, "the run is over", kExitDone);
  } else if (site.welcome) {
    send(site, *site.welcome);
  } else if (phase_ == RunPhase::kStarting && can_start(site)) {
    site.welcome = first_welcome(site);
    send(site, *site.welcome);
  } else if (phase_ == RunPhase::kTraining) {
    welcome_joiner(site);
  }
  if (!was_welcome && site.welcome) keep_site(site);
}

Welcome RoundMachine::first_welcome(const Site& site) const {
  Welcome welcome{.incarnation = site.incarnation,
                  .mode = start_mode_,
                  .start_step = start_step_,
                  .data_step = start_step_,
                  .first_exchange = first_logged_,
                  .first_logged = first_logged_,
                  .donors = {},
                  .shares = {shares().changes().begin(), shares().changes().end()}};
  if (is_lockstep()) {
    welcome.start_number = in_step_.start_number;
    for (const Site& peer : sites_) welcome.peers.push_back({peer.name, peer.hello.address});
  }
  for (const CheckpointOffer& offer : site.hello.checkpoints) {
    const bool is_it = start_mode_ == StartMode::kResume && offer.step == start_step_;
    if (is_it) welcome.data_step = offer.data_step;
  }
  if (is_lockstep() && !has_start(site)) name_donors(welcome);
  return welcome;
}

// Whether it can begin where the run began.
bool RoundMachine::has_start(const Site& site) const {
  const auto& offers = site.hello.checkpoints;
  return start_mode_ == StartMode::kFresh ||
         std::any_of(offers.begin(), offers.end(), [&](const CheckpointOffer& offer) {
           return offer.step == start_step_;
         });
}

// The first exchange that nobody has come to yet: the others would wait for one that they have.
int64_t RoundMachine::first_untouched() const {
  int64_t first = next_exchange_;
  const auto is_begun = [&](int64_t exchange) {
    const auto found = exchanges_.find(exchange);
    const auto fragment = static_cast<size_t>(fragment_of(exchange));
    const bool is_reached = std::any_of(sites_.begin(), sites_.end(), [&](const Site& holder) {
      return ready(holder, exchange) != nullptr ||
             (is_live(holder) && holder.status && holder.status->applied[fragment] >= exchange);
    });
    return commits_.contains(exchange) || is_reached ||
           (found != exchanges_.end() && found->second.begin.has_value());
  };
  while (first <= options_.schedule.num_regular() && is_begun(first)) ++first;
  return first;
}

// Where the others are now. It will have all that was exchanged before `first`: from the snapshot
// of the last of these on it need not wait for that merge, nor be ahead of the others until it.
int64_t RoundMachine::joining_step(const Site& site, int64_t first) const {
  const int64_t after = options_.schedule.first_step_after(first - 1);
  if (first == 0) return std::max(start_step_, after);
  const int64_t least = std::min(snapshot_step(first - 1), after);
  return std::max(start_step_, std::clamp(others_step(site), least, after));
}

void RoundMachine::welcome_joiner(Site& site) {
  const int64_t first = first_untouched();
  if (first > options_.schedule.num_regular() || stop_requested_) {
    dismiss(site, "the run is about to end without this site", kExitDone);
    return;
  }
  Welcome welcome{.incarnation = site.incarnation,
                  .mode = StartMode::kJoin,
                  .start_step = joining_step(site, first),
                  .data_step = ledger_.next_data_step(lane_of(site)),
                  .first_exchange = first,
                  .first_logged = first_logged_,
                  .donors = {},
                  .shares = {shares().changes().begin(), shares().changes().end()}};
  for (const Site& donor : sites_) {
    const bool has_state =
        is_live(donor) && (donor.is_unheard || trains(donor) || is_finished(donor));
    if (has_state) welcome.donors.push_back({.site = donor.name, .address = donor.hello.address});
  }
  if (welcome.donors.empty()) {
    // As long as nothing is committed, what the others held is what anybody can start with.
    if (commits_.empty() && has_start(site)) send(site, *(site.welcome = first_welcome(site)));
    return;  // else advance() finds that no site is left
  }
  site.welcome = welcome;
  send(site, welcome);
  for (int64_t fragment = 0; fragment < options_.schedule.num_fragments; ++fragment) {
    if (const Made* newest = newest_commit(fragment)) send(site, for_site(*newest, site));
  }
}

void RoundMachine::allow(Site& site) {
  // Its start may lie behind the step at which the others stop: it has nothing to add to that.
  if (stop_requested_ && site.welcome->mode == StartMode::kJoin) {
    send(site, Release{});
  } else {
    send(site, AllowTraining{site.incarnation});
  }
}

}  // namespace pelago::sites
