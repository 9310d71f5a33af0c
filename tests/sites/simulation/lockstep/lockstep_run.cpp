// The world of a run in step: time, faults, the end, and the resumption after it.
#include "sites/simulation/lockstep/lockstep_run.h"

#include <algorithm>
#include <cmath>

namespace pelago::sites {

namespace {

constexpr double kTickS = 0.02;
constexpr double kAbsenceS = 12;  // that the coordinator bears
constexpr double kLastWordS = 1;  // that a coordinator lives after it has given up
constexpr double kReactS = 60;    // in which a fault has either been mended or ended the run
constexpr double kResumeS = 120;  // in which a resumed run on a good network is over

std::string endpoint_of(int64_t coordinator_idx) {
  return coordinator_idx == 0 ? kCoordinatorName
                              : fmt::format("{}-{}", kCoordinatorName, coordinator_idx + 1);
}

std::vector<std::string> names(int64_t num_sites) {
  std::vector<std::string> names;
  for (int64_t i = 0; i < num_sites; ++i) names.push_back(fmt::format("site{}", i));
  return names;
}

SimulatedLines::Options lines_of(const LockstepRunOptions& options) {
  return {.loss = options.network.loss, .jitter_s = 0.1 * options.network.jitter_s};
}

}  // namespace

LockstepRunOptions any_lockstep_run(uint64_t seed) {
  Rng rng = Rng(seed).fork("any run in step");
  const auto maybe = [&](double share, uint64_t most) {
    return rng.next_uniform() < share ? static_cast<int64_t>(1 + rng.next_below(most)) : 0;
  };
  LockstepRunOptions options;
  options.num_sites = static_cast<int64_t>(2 + rng.next_below(3));
  options.num_steps = static_cast<int64_t>(16 + rng.next_below(16));
  options.checkpoint_every_steps = static_cast<int64_t>(3 + rng.next_below(6));
  options.num_crashes = maybe(0.6, 4);
  options.num_long_absences = maybe(0.1, 1);
  options.num_freezes = maybe(0.3, 2);
  options.num_partitions = maybe(0.5, 4);
  options.num_coordinator_crashes = maybe(0.5, 3);
  options.has_frozen_coordinator = rng.next_uniform() < 0.2;
  options.has_power_cut = rng.next_uniform() < 0.1;
  options.num_lost_disks = maybe(0.25, 3);
  if (rng.next_uniform() < 0.5) options.disk_loss_at_cut = rng.next_uniform();
  options.num_lost_workers = maybe(0.2, 2);
  options.restart_s = 0.3 + 4 * rng.next_uniform();
  options.site_disk_s = rng.next_uniform() < 0.5 ? 3 * rng.next_uniform() : 0;
  if (rng.next_uniform() < 0.4) options.disk_s = 0.6 * rng.next_uniform();
  if (rng.next_uniform() < 0.25) options.stop_after_s = 1 + 15 * rng.next_uniform();
  options.is_stopped_by_site = rng.next_uniform() < 0.4;
  options.has_fixed_ports = rng.next_uniform() < 0.5;
  if (rng.next_uniform() < 0.3) {
    options.num_coordinators = static_cast<int64_t>(2 + rng.next_below(2));
    options.num_store_outages = static_cast<int64_t>(rng.next_below(3));
    options.num_coordinator_crashes += static_cast<int64_t>(rng.next_below(3));
    options.disk_s = 0.01 + 0.3 * rng.next_uniform();
  }
  options.network = {.loss = rng.next_uniform() < 0.5 ? 0.15 * rng.next_uniform() : 0,
                     .doubling = rng.next_uniform() < 0.5 ? 0.15 * rng.next_uniform() : 0,
                     .jitter_s = rng.next_uniform() < 0.7 ? 0.4 * rng.next_uniform() : 0,
                     .seed = seed};
  return options;
}

LockstepRun::LockstepRun(const LockstepRunOptions& options)
    : options_(options),
      rng_(Rng(options.network.seed).fork("run in step")),
      network_(options.network, clock_),
      lines_(lines_of(options), rng_.fork("lines")),
      schedule_({.num_steps = options.num_steps}),
      truth_(schedule_, names(options.num_sites)),
      store_({.is_shared = options.num_coordinators > 1, .delay_s = options.disk_s}, truth_, rng_) {
  if (options.bug != nullptr) options.bug->plant(faulty_);
  store_.leave_out(faulty_.code.store_forgets_seats, faulty_.code.store_forgets_numbers);
  RoundOptions rounds;
  rounds.schedule = schedule_;
  rounds.heartbeat_s = 0.5;
  rounds.absence_s = kAbsenceS;
  rounds.sites = names(options.num_sites);
  sites_.resize(static_cast<size_t>(options.num_sites));
  for (size_t i = 0; i < sites_.size(); ++i) {
    sites_[i].name = rounds.sites[i];
    sites_[i].idx = i;
    sites_[i].step_s = 0.2 + 0.3 * rng_.next_uniform();
  }
  for (int64_t i = 0; i < options.num_coordinators; ++i) {
    coordinators_.push_back(std::make_unique<SimulatedCoordinator>(
        rounds, endpoint_of(i), store_, network_, clock_, faulty_.code, rng_));
  }
  for (Site& site : sites_) start(site);
  plan_faults();
}

void LockstepRun::plan_faults() {
  const auto add = [&](Fault::Kind kind, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      faults_.push_back({.at_s = rng_.next_uniform() * options_.faults_until_s, .kind = kind});
    }
  };
  add(Fault::Kind::kCrash, options_.num_crashes);
  add(Fault::Kind::kAbsence, options_.num_long_absences);
  add(Fault::Kind::kFreeze, options_.num_freezes);
  add(Fault::Kind::kPartition, options_.num_partitions);
  add(Fault::Kind::kCoordinator, options_.num_coordinator_crashes);
  add(Fault::Kind::kFreezeCoordinator, options_.has_frozen_coordinator ? 1 : 0);
  add(Fault::Kind::kStoreAway, options_.num_store_outages);
  add(Fault::Kind::kPowerCut, options_.has_power_cut ? 1 : 0);
  add(Fault::Kind::kLostDisk, options_.num_lost_disks);
  add(Fault::Kind::kLostWorkers, options_.num_lost_workers);
  std::stable_sort(faults_.begin(), faults_.end(), [](const Fault& a, const Fault& b) {
    return a.at_s > b.at_s;
  });
}

void LockstepRun::strike(const Fault& fault) {
  const double now_s = clock_.now_s();
  Site& site = sites_[rng_.next_below(sites_.size())];
  SimulatedCoordinator& coordinator = *coordinators_[rng_.next_below(coordinators_.size())];
  struck_ += fmt::format(" {:.2f}:{}:{}", now_s, static_cast<int>(fault.kind), site.name);
  const auto until = [&](double least_s, double more_s) {
    const double until_s = now_s + least_s + more_s * rng_.next_uniform();
    disturb_until(until_s);
    return until_s;
  };
  switch (fault.kind) {
    case Fault::Kind::kCrash:
      if (site.member) site.actions_left = static_cast<int64_t>(rng_.next_below(8));
      break;
    case Fault::Kind::kAbsence:
      crash(site, kAbsenceS + 10);
      break;
    case Fault::Kind::kFreeze:
      if (site.member) site.frozen_s = until(0.5, 9);
      break;
    case Fault::Kind::kCoordinator:
      coordinator.crash_after(static_cast<int64_t>(rng_.next_below(6)), until(0.2, 4) - now_s);
      break;
    case Fault::Kind::kFreezeCoordinator:
      coordinator.freeze_until(until(1, 6));
      break;
    case Fault::Kind::kStoreAway:
      store_.lose_quorum(now_s, until(0.5, 6));
      break;
    case Fault::Kind::kPowerCut:
      for (const auto& each : coordinators_) each->lose_power(until(0.2, 1) - now_s);
      for (Site& each : sites_) {
        crash(each, options_.restart_s);
        if (rng_.next_uniform() < options_.disk_loss_at_cut) each.disk.lose();
      }
      break;
    case Fault::Kind::kLostDisk:
      if (site.has_left) break;
      crash(site, options_.restart_s);
      site.disk.lose();
      break;
    case Fault::Kind::kLostWorkers:
      if (site.member && !site.has_left) fail_workers(site, "rank 0 is gone");
      break;
    case Fault::Kind::kPartition: {
      const size_t other = rng_.next_below(sites_.size() + 1);
      const std::string peer = other == sites_.size() ? coordinator.endpoint() : sites_[other].name;
      const double end_s = until(0.5, 20);
      const double flap_s = rng_.next_uniform() < 0.3 ? 0.3 + rng_.next_uniform() : 0;
      const uint64_t way = rng_.next_below(3);
      if (way != 0) partitions_.push_back({site.name, peer, end_s, flap_s});
      if (way != 1) partitions_.push_back({peer, site.name, end_s, flap_s});
      break;
    }
  }
}

void LockstepRun::flap() {
  const double now_s = clock_.now_s();
  for (const Partition& partition : partitions_) {
    const bool is_off =
        partition.flap_s > 0 && std::fmod(now_s, 2 * partition.flap_s) >= partition.flap_s;
    const bool is_blocked = now_s < partition.end_s && !is_off;
    network_.set_blocked(partition.from, partition.to, is_blocked);
    lines_.set_blocked(partition.from, partition.to, is_blocked);
  }
  std::erase_if(partitions_, [&](const Partition& each) { return now_s >= each.end_s; });
}

void LockstepRun::ask_stop() {
  if (was_stopped_ || options_.stop_after_s == 0 || clock_.now_s() < options_.stop_after_s) return;
  Site& site = sites_.back();
  if (!options_.is_stopped_by_site) {
    for (const auto& coordinator : coordinators_) coordinator->request_stop();
  } else if (!site.has_left && site.workers.trains) {
    site.is_asked_to_stop = true;  // a signal to its agent
  } else {
    return;  // as soon as it trains again
  }
  was_stopped_ = true;
}

const RoundMachine* LockstepRun::leading() const {
  for (const auto& coordinator : coordinators_) {
    if (coordinator->leads()) return coordinator->rounds();
  }
  return nullptr;
}

int64_t LockstepRun::num_refused() const {
  int64_t sum = 0;
  for (const auto& coordinator : coordinators_) sum += coordinator->num_refused();
  return sum;
}

uint64_t LockstepRun::trace() const {
  uint64_t trace = 0;
  for (const auto& coordinator : coordinators_) trace = Rng::mix(trace ^ coordinator->trace());
  return trace;
}

bool LockstepRun::all_have_left() const {
  return std::all_of(sites_.begin(), sites_.end(), [](const Site& site) { return site.has_left; });
}

void LockstepRun::run_once() {
  std::optional<double> failed_s;
  while (truth_.complaint().empty() && !all_have_left()) {
    clock_.advance(kTickS);
    const double now_s = clock_.now_s();
    while (!faults_.empty() && now_s >= faults_.back().at_s) {
      const Fault fault = faults_.back();
      faults_.pop_back();
      strike(fault);
    }
    if (!partitions_.empty()) flap();
    ask_stop();
    store_.turn(now_s);
    for (const auto& coordinator : coordinators_) coordinator->turn();
    for (Site& site : sites_) turn(site);
    if (now_s > options_.limit_s) complain("no progress");
    if (faults_.empty() && now_s > disturbed_s_ + kReactS) {
      network_.calm();
      lines_.calm();
    }
    const RoundMachine* rounds = leading();
    if (!failed_s && rounds != nullptr && rounds->failure()) {
      failed_s = now_s;
      end_failed(*rounds->failure());
    }
    if (failed_s && now_s > *failed_s + kLastWordS) return;
  }
}

void LockstepRun::end_failed(const std::string& why) {
  gave_up_ = true;
  ending_ = why;
  if (why.find("site ") == std::string::npos) complain("given up without naming a site: " + why);
  if (why.find("no good checkpoint") == 0) {
    std::map<std::string, std::vector<CheckpointOffer>> offers;
    for (const Site& site : sites_) offers[site.name] = site.offered;
    if (truth_.step_to_begin_at(offers) >= 0) complain("given up with a checkpoint: " + why);
    return;
  }
  // Lines lose packets until kReactS after the last fault: who was missed just then is missed on.
  const double explained_s = disturbed_s_ + kReactS + kAbsenceS + kLastWordS;
  const bool is_explained = !faults_.empty() || clock_.now_s() < explained_s;
  if (!is_explained) {
    complain(fmt::format("given up, with no fault since {:.2f} s: {}", disturbed_s_, why));
  }
}

// As a person would, once all is well again.
void LockstepRun::resume() {
  faults_.clear();
  partitions_.clear();
  network_.calm();
  lines_.calm();
  truth_.resume();
  options_.stop_after_s = 0;
  was_stopped_ = gave_up_ = false;
  for (Site& site : sites_) {
    crash(site, 0.5);
    site.is_asked_to_stop = site.has_left = false;
    site.restart_s = clock_.now_s() + 0.5;
  }
  std::map<std::string, std::vector<CheckpointOffer>> offers;
  for (Site& site : sites_) offers[site.name] = safe_offers(site);
  const bool can_resume = truth_.step_to_begin_at(offers) >= 0;
  for (const auto& coordinator : coordinators_) coordinator->start_over();
  options_.limit_s = clock_.now_s() + kResumeS;
  const double begun_s = clock_.now_s();
  while (truth_.complaint().empty() && !all_have_left()) {
    clock_.advance(kTickS);
    store_.turn(clock_.now_s());
    for (const auto& coordinator : coordinators_) coordinator->turn();
    for (Site& site : sites_) turn(site);
    const RoundMachine* rounds = leading();
    if (rounds != nullptr && rounds->failure()) {
      if (!can_resume) return;  // there is nothing to resume from, and that is said
      complain("cannot be resumed: " + *rounds->failure());
    }
    if (clock_.now_s() > begun_s + kResumeS) complain("no progress after the resumption");
  }
  truth_.check_ends();
}

std::string LockstepRun::run() {
  run_once();
  if (truth_.complaint().empty() && !gave_up_) {
    // All may have died between their end and the word that the run is over.
    const bool any_ended = std::any_of(
        sites_.begin(), sites_.end(), [](const Site& site) { return site.workers.has_finished; });
    if (any_ended) truth_.check_ends();
    if (!any_finished_ && !was_stopped_) complain("no site came to an end");
  }
  const bool gave_up = gave_up_, was_stopped = was_stopped_;
  if (truth_.complaint().empty()) resume();
  gave_up_ = gave_up;
  was_stopped_ = was_stopped;
  return truth_.complaint().empty() ? "" : truth_.complaint() + where();
}

void LockstepRun::complain(const std::string& what) {
  truth_.complain(fmt::format("at {:.2f} s: {}", clock_.now_s(), what));
}

std::string LockstepRun::where() const {
  const RoundMachine* rounds = leading();
  std::string text = fmt::format("; at {:.2f} s coordinator phase={} ended=\"{}\"",
                                 clock_.now_s(),
                                 rounds == nullptr ? -1 : static_cast<int>(rounds->phase()),
                                 ending_);
  for (const Site& site : sites_) {
    text += fmt::format("; {} left={} down={} start={} step={} trains={} finished={}",
                        site.name,
                        site.has_left,
                        !site.member,
                        site.workers.start_number,
                        site.workers.step,
                        site.workers.trains,
                        site.workers.has_finished);
  }
  text += "; faults at second, of kind, chosen site:" + struck_;
  for (const auto& coordinator : coordinators_) text += coordinator->story();
  return text;
}

}  // namespace pelago::sites
