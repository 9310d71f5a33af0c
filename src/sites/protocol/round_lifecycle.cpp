// When the run begins and ends, and from which checkpoint one that is resumed goes on:
//   - From the newest that all sites have. Nobody loses anything then.
//   - But a run that was stopped goes on where it stopped, if any site has that checkpoint; and if
//     there is none that all have, from the newest that any has. All sites hold the same global
//     weights, so whoever lacks them joins, as after a crash: what it had read and not given
//     returns to its lane.
// Sites in step go on from the newest that any has, which is whole: whoever lacks it fetches it.
#include <algorithm>
#include <set>

#include "base/error.h"
#include "base/text/json.h"
#include "sites/protocol/round_machine.h"

namespace pelago::sites {

using nlohmann::json;

namespace {

/// Steps of which the sites offer the same weights, to be gone back to by those that have them.
struct Offered {
  std::set<int64_t> by_all, by_some;
};

Offered offered_steps(const std::vector<KnownSite>& sites) {
  std::map<int64_t, std::map<std::string, size_t>> counts;  // of sites, by step and hash
  for (const KnownSite& site : sites) {
    for (const CheckpointOffer& offer : site.hello.checkpoints) ++counts[offer.step][offer.hash];
  }
  Offered offered;
  for (auto& [step, by_hash] : counts) {
    // Of a copy in a store the hash may not be known: it is taken for what the others have.
    if (by_hash.size() > 1) {
      const size_t num_unknown = by_hash[""];
      by_hash.erase("");
      by_hash.begin()->second += num_unknown;
    }
    if (by_hash.size() > 1) continue;  // which of them is the run's?
    offered.by_some.insert(step);
    if (by_hash.begin()->second == sites.size()) offered.by_all.insert(step);
  }
  return offered;
}

// The journal has the commits that made it: it is not of a course that was given up. Without a
// journal there is nothing that could say so.
bool is_of_course(const train::ExchangeSchedule& schedule,
                  const std::map<int64_t, MadeCommit>& journal,
                  int64_t step) {
  for (int64_t exchange = 0; exchange < schedule.num_regular() && !journal.empty(); ++exchange) {
    if (schedule.first_step_after(exchange) > step) break;
    if (!journal.contains(exchange)) return false;
  }
  return true;
}

std::string told(const std::vector<KnownSite>& sites) {
  std::string text;
  for (const KnownSite& site : sites) {
    std::vector<int64_t> steps;
    for (const CheckpointOffer& offer : site.hello.checkpoints) steps.push_back(offer.step);
    text += fmt::format("{}site {}: {}",
                        text.empty() ? "" : "; ",
                        site.name,
                        steps.empty() ? "none" : fmt::format("steps {}", fmt::join(steps, ", ")));
  }
  return text;
}

/// Whoever takes over from a coordinator does what that one would have done: a run that began
/// afresh and has nothing to lose yet begins once more.
bool has_nothing_to_lose(const std::vector<KnownSite>& sites,
                         const std::optional<DurableState>& live,
                         const std::map<int64_t, MadeCommit>& journal) {
  const bool began_afresh = live && parse_json(live->at("run")).at("start_mode").get<int>() ==
                                        static_cast<int>(StartMode::kFresh);
  return began_afresh && journal.empty() &&
         std::all_of(sites.begin(), sites.end(), [](const KnownSite& site) {
           return site.hello.checkpoints.empty();
         });
}

}  // namespace

std::optional<int64_t> RoundMachine::step_to_resume() const {
  const Offered offered = offered_steps(sites_);
  std::optional<int64_t> newest;
  if (!offered.by_all.empty()) newest = *offered.by_all.rbegin();
  // What lies behind the newest that this run is known to have made is of another, and stays behind
  // if only some have it.
  const bool is_made = in_step_.saved_step >= 0;
  const auto can_be = [&](int64_t step) {
    if (!offered.by_some.contains(step)) return false;
    if (is_lockstep()) return !is_made || step <= in_step_.saved_step;
    return is_of_course(options_.schedule, earlier_, step);
  };
  if (!is_lockstep() && stopped_step_ && can_be(*stopped_step_)) {
    return std::max(newest.value_or(0), *stopped_step_);
  }
  if (newest && !is_lockstep()) return newest;
  const auto any = std::find_if(offered.by_some.rbegin(), offered.by_some.rend(), can_be);
  if (any == offered.by_some.rend()) return newest;
  return std::max(newest.value_or(0), *any);
}

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
    const std::optional<int64_t> newest = step_to_resume();
    const bool must_go_on =
        options_.resume && !(options_.takes_over && has_nothing_to_lose(sites_, live_, earlier_));
    if (!newest && (must_go_on || in_step_.saved_step > 0)) {
      give_up(fmt::format("no good checkpoint at any site ({}); {}start afresh with --fresh",
                          told(sites_),
                          what_is_lost()));
      return;
    }
    start_step_ = newest.value_or(0);
    start_mode_ = newest ? StartMode::kResume : StartMode::kFresh;
  }
  if (is_lockstep()) note_start();
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
    if (can_start(site)) site.welcome = first_welcome(site);
    keep_site(site);
    if (site.welcome) send(site, *site.welcome);
    if (!has_start(site)) {
      record("site_without_checkpoint", json{{"site", site.name}, {"step", start_step_}}.dump());
    }
  }
}

void RoundMachine::allow_if_ready() {
  if (stop_requested_) {
    phase_ = RunPhase::kOver;
    keep_run();
    send_live(Release{});
    return;
  }
  // Who has not what the run starts with joins the others: it is not waited for.
  const auto starts = [&](const Site& site) { return can_start(site); };
  if (std::none_of(sites_.begin(), sites_.end(), starts)) {
    return give_up(fmt::format(
        "no site has the checkpoint of step {} any more; go on with --resume", start_step_));
  }
  const bool all_ready = std::all_of(sites_.begin(), sites_.end(), [&](const Site& site) {
    const bool is_ready = is_live(site) && site.status && site.status->phase == SitePhase::kReady;
    return is_ready || !can_start(site);
  });
  if (!all_ready) return;
  phase_ = RunPhase::kTraining;
  keep_run();
  record("run_started", json{{"step", start_step_}}.dump());
  for (Site& site : sites_) {
    if (is_live(site)) send(site, AllowTraining{site.incarnation});
  }
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
    const double wait_s =
        any_silent ? options_.absence_s : kSilentHeartbeats * options_.heartbeat_s;
    if (now_s_ - *forsaken_s_ <= wait_s) return;
    // A run that is to stop and has come to nothing yet has nothing to lose. Sites in step make no
    // commits: there that cannot be told.
    if (!stop_requested_ || !commits_.empty() || is_lockstep()) {
      failure_ = "no site is left that trains; go on from the newest checkpoint with --resume";
      return;
    }
  }
  phase_ = RunPhase::kOver;
  keep_run();
  record("run_over", json{{"commits", num_commits_}}.dump());
  send_live(Release{});
}

}  // namespace pelago::sites
