// When the run begins and ends.
#include <algorithm>

#include "base/error.h"
#include "base/text/json.h"
#include "sites/protocol/round_machine.h"

namespace pelago::sites {

using nlohmann::json;

namespace {

std::optional<int64_t> newest_common_step(const std::vector<KnownSite>& sites) {
  std::optional<int64_t> newest;
  for (const CheckpointOffer& offer : sites.front().hello.checkpoints) {
    const bool is_common = std::all_of(sites.begin(), sites.end(), [&](const KnownSite& site) {
      const auto& offers = site.hello.checkpoints;
      return std::any_of(offers.begin(), offers.end(), [&](const CheckpointOffer& other) {
        return other.step == offer.step && other.hash == offer.hash;
      });
    });
    if (is_common) newest = std::max(newest.value_or(0), offer.step);
  }
  return newest;
}

}  // namespace

void RoundMachine::advance() {
  if (failure_) return;
  if (phase_ == RunPhase::kGathering) start_if_gathered();
  if (failure_) return;
  if (phase_ == RunPhase::kStarting) allow_if_ready();
  if (phase_ != RunPhase::kTraining) return;
  revoke_lost();
  collect_ready();
  for (auto state = exchanges_.begin(); state != exchanges_.end();) {
    const int64_t exchange = state->first;
    advance_exchange(exchange, state->second);
    state = commits_.contains(exchange) ? exchanges_.erase(state) : std::next(state);
  }
  finish_if_done();
}

void RoundMachine::start_if_gathered() {
  const auto is_here = [](const Site& site) { return site.incarnation != 0 && !site.dead; };
  if (stop_requested_) {
    phase_ = RunPhase::kOver;
    keep_run();
    for (Site& site : sites_) {
      if (is_here(site)) dismiss(site, "the run was stopped before it began", kExitDone);
    }
    return;
  }
  if (!std::all_of(sites_.begin(), sites_.end(), is_here)) {
    if (in_step_.num_restarts > 0) miss_absent_sites();
    return;
  }
  if (options_.resume || in_step_.num_restarts > 0) {
    const std::optional<int64_t> newest = newest_common_step(sites_);
    if (!newest && options_.resume) {
      give_up("no good checkpoint that all sites have; start afresh with --fresh");
      return;
    }
    start_step_ = newest.value_or(0);
    start_mode_ = newest ? StartMode::kResume : StartMode::kFresh;
  }
  if (is_lockstep()) in_step_.start_number = ++epoch_;
  while (next_exchange_ < options_.schedule.num_regular() && start_step_ > 0 &&
         options_.schedule.first_step_after(next_exchange_) <= start_step_) {
    ++next_exchange_;
  }
  first_logged_ = next_exchange_;
  phase_ = RunPhase::kStarting;
  live_.reset();
  go_back();
  keep_run();
  const bool is_resumed = start_mode_ == StartMode::kResume;
  record("run_starting", json{{"step", start_step_}, {"resumed", is_resumed}}.dump());
  for (Site& site : sites_) {
    site.welcome = first_welcome(site);
    keep_site(site);
    send(site, *site.welcome);
  }
}

void RoundMachine::allow_if_ready() {
  if (stop_requested_) {
    phase_ = RunPhase::kOver;
    keep_run();
    send_live(Release{});
    return;
  }
  const bool all_ready = std::all_of(sites_.begin(), sites_.end(), [&](const Site& site) {
    return is_live(site) && site.status && site.status->phase == SitePhase::kReady;
  });
  if (!all_ready) return;
  phase_ = RunPhase::kTraining;
  keep_run();
  record("run_started", json{{"step", start_step_}}.dump());
  for (Site& site : sites_) send(site, AllowTraining{site.incarnation});
}

// Its workers are at work, or have just been told to be.
bool RoundMachine::trains(const Site& site) const {
  if (!is_live(site) || !site.status) return false;
  return site.status->phase == SitePhase::kTraining ||
         (site.status->phase == SitePhase::kReady && site.welcome->mode != StartMode::kJoin);
}

// It was told to start where the run began, and is not there yet.
bool RoundMachine::begins(const Site& site) const {
  return is_live(site) && site.welcome->mode != StartMode::kJoin &&
         (!site.status || site.status->phase < SitePhase::kTraining);
}

void RoundMachine::finish_if_done() {
  const bool all_heard = std::none_of(sites_.begin(), sites_.end(), [&](const Site& site) {
    return is_live(site) && site.is_unheard;
  });
  if (!all_heard) {
    forsaken_s_.reset();
    return;
  }
  const auto goes_on = [&](const Site& site) { return trains(site) || begins(site); };
  if (std::any_of(sites_.begin(), sites_.end(), goes_on)) {
    forsaken_s_.reset();
    return;
  }
  const bool any_finished =
      std::any_of(sites_.begin(), sites_.end(), [](const Site& site) { return is_finished(site); });
  if (!any_finished) {
    // A site that only could not be heard for a while may yet come back, with all that it holds.
    const bool any_silent = std::any_of(
        sites_.begin(), sites_.end(), [](const Site& site) { return site.dead && site.welcome; });
    if (!forsaken_s_) forsaken_s_ = now_s_;
    if (now_s_ - *forsaken_s_ >
        (any_silent ? options_.absence_s : kSilentHeartbeats * options_.heartbeat_s)) {
      failure_ = "no site is left that trains; go on from the newest checkpoint with --resume";
    }
    return;
  }
  phase_ = RunPhase::kOver;
  keep_run();
  record("run_over", json{{"commits", num_commits_}}.dump());
  send_live(Release{});
}

}  // namespace pelago::sites
