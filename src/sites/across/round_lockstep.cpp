// Sites that train in step, as stages of common pipelines. There are no exchanges: what the
// coordinator does is to begin and end the run, and to begin it again. A site that is lost, or
// starts anew, takes the others' work with it back to the newest checkpoint that all have, which
// each of them holds whole:
//
//   kTraining -> a site is lost -> all others are told to return -> kGathering -> kStarting
//
// Whoever was told so comes with a new incarnation; what its last start still says is refused. A
// line that has lost something is like a site that is lost, but that both its ends return. A site
// that does not return within absence_s, or starts that come to no new step, end the run.
//
// A checkpoint is whole at every site that has it. So they go on from the newest that any of them
// has, and who lacks it fetches it; where there had been one and none is left, the run ends.
#include <algorithm>

#include "base/error.h"
#include "base/text/json.h"
#include "sites/protocol/round_machine.h"

namespace pelago::sites {

using nlohmann::json;

namespace {

constexpr int64_t kVainRestartsMax = 5;  // in a row: it is not the sites
constexpr int64_t kStopMarginSteps = 3;  // a report may be a step old, and the word takes a while

}  // namespace

void RoundMachine::restart_together(const std::string& why) {
  if (phase_ != RunPhase::kStarting && phase_ != RunPhase::kTraining) return;
  if (stop_requested_) {
    // Nobody is to begin again what was to end; the newest checkpoint stays.
    give_up(why + ", while the run was stopping; go on with --resume");
    return;
  }
  ++in_step_.num_restarts;
  record("restarting_together", json{{"reason", why}, {"restarts", in_step_.num_restarts}}.dump());
  if (++in_step_.num_vain_restarts > kVainRestartsMax) {
    give_up(fmt::format("{}; {} starts in a row came to no new step", why, kVainRestartsMax));
    return;
  }
  for (Site& site : sites_) {
    if (site.incarnation == 0) continue;
    if (!site.dead) dismiss(site, why + "; all sites start again together", kExitTryAgain);
    site.past.insert(site.incarnation);
    site.incarnation = 0;
    site.welcome.reset();
    site.status.reset();
    site.lost_s.reset();
    site.dead = false;
    site.is_unheard = false;
  }
  stop_step_.reset();
  in_step_.gathering_s = now_s_;
  phase_ = RunPhase::kGathering;
}

/// How far it is. Returns whether this start of all sites is over with what it says.
bool RoundMachine::note_in_step(const Site& site) {
  const SiteStatus& status = *site.status;
  if (status.completed_steps > in_step_.progress_step) {
    in_step_.progress_step = status.completed_steps;
    in_step_.num_vain_restarts = 0;
  }
  if (!is_lockstep()) return false;
  if (status.saved_step > in_step_.saved_step) {
    in_step_.saved_step = status.saved_step;
    in_step_.saved_at = site.name;
    keep_run();
  }
  const bool is_under_way = phase_ == RunPhase::kStarting || phase_ == RunPhase::kTraining;
  if (status.lost_line.empty() || !is_under_way) return false;  // else it is still to be released
  restart_together(fmt::format("site {}: {}", site.name, status.lost_line));
  return true;
}

/// The start is decided. From here on no checkpoint but those up to this step is known to be of it.
void RoundMachine::note_start() {
  in_step_.start_number = ++epoch_;
  in_step_.saved_step = start_step_;
  in_step_.saved_at.clear();
  for (const Site& site : sites_) {
    if (start_step_ > 0 && has_start(site) && in_step_.saved_at.empty()) {
      in_step_.saved_at = site.name;
    }
  }
}

/// What the run had and nobody has any more. A checkpoint of sites in step has all their stages.
std::string RoundMachine::what_is_lost() const {
  if (!is_lockstep() || in_step_.saved_step <= 0) return "";
  return fmt::format(
      "the model of step {}, of which site {} had all stages, is lost: put its folder "
      "checkpoints/step-{} back and go on with --resume, or ",
      in_step_.saved_step,
      in_step_.saved_at,
      in_step_.saved_step);
}

/// Whose checkpoint is that of the start: the same, or there were no start.
void RoundMachine::name_donors(Welcome& welcome) const {
  for (const Site& site : sites_) {
    for (const CheckpointOffer& offer : site.hello.checkpoints) {
      if (offer.step != start_step_ || offer.hash.empty()) continue;
      welcome.checkpoint_hash = offer.hash;
      welcome.donors.push_back({.site = site.name, .address = site.hello.address});
    }
  }
}

/// The others need not wait until its silence is noticed, and learn the reason.
void RoundMachine::hear_last_words(Site& site, const Report& report) {
  if (!is_lockstep() || report.name != "site_failed" || !is_live(site)) return;
  const json words = try_parse_json(report.json);
  const bool has_message = words.is_object() && words.contains("message");
  const json message = has_message ? words.at("message") : json();
  mark_dead(site, message.is_string() ? message.get<std::string>() : "it failed");
}

void RoundMachine::miss_absent_sites() {
  if (now_s_ - in_step_.gathering_s < options_.absence_s) return;
  std::string absent;
  for (const Site& site : sites_) {
    if (site.incarnation != 0 && !site.dead) continue;
    absent += (absent.empty() ? "" : ", ") + site.name;
  }
  give_up(fmt::format(
      "site {} did not come back within {:.0f} s, and the others cannot go on without its stages: "
      "go on with it, or with a fleet without it, and --resume",
      absent,
      options_.absence_s));
}

/// All ranks decide with rank 0, which hears of it first: a margin keeps the others from being
/// asked for a step that is over.
void RoundMachine::stop_in_step() {
  int64_t step = start_step_;
  for (const Site& site : sites_) {
    if (site.status) step = std::max(step, site.status->completed_steps);
  }
  step += kStopMarginSteps;
  if (step >= options_.schedule.num_steps) return;  // it ends by itself, and soon
  stop_step_ = step;
  record("stopping", json{{"not_before_step", step}}.dump());
  send_live(StopAt{step});
}

void RoundMachine::give_up(const std::string& why) {
  failure_ = why;
  for (Site& site : sites_) {
    if (is_lockstep() && site.incarnation != 0 && !site.dead) dismiss(site, why, kExitFailed);
  }
}

}  // namespace pelago::sites
