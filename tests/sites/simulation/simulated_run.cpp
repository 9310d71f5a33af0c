// The world of a simulated run: time, faults, and the judgement at the end.
#include "sites/simulation/simulated_run.h"

#include <algorithm>
#include <cmath>

namespace pelago::sites {

namespace {

constexpr double kTickS = 0.0125;
constexpr int64_t kShare = 4;  // sequences of each site, at the start

std::string endpoint_of(int64_t coordinator_idx) {
  return coordinator_idx == 0 ? kCoordinatorName
                              : fmt::format("{}-{}", kCoordinatorName, coordinator_idx + 1);
}

}  // namespace

SimulatedRunOptions any_run(uint64_t seed) {
  Rng rng = Rng(seed).fork("any run");
  const auto maybe = [&](double share, uint64_t most) {
    return rng.next_uniform() < share ? static_cast<int64_t>(1 + rng.next_below(most)) : 0;
  };
  SimulatedRunOptions options;
  options.num_sites = static_cast<int64_t>(2 + rng.next_below(3));
  options.num_values = 200;
  options.num_crashes = maybe(0.6, 4);
  options.num_ghosts = maybe(0.4, 2);
  options.num_partitions = maybe(0.5, 4);
  options.num_coordinator_crashes = maybe(0.5, 3);
  options.has_zombie = rng.next_uniform() < 0.2;
  options.has_frozen_coordinator = rng.next_uniform() < 0.2;
  if (rng.next_uniform() < 0.3) options.lies = 0.3 * rng.next_uniform();
  options.restart_s = 0.3 + 4 * rng.next_uniform();
  if (rng.next_uniform() < 0.2) options.stop_after_s = 1 + 18 * rng.next_uniform();
  if (rng.next_uniform() < 0.4) options.disk_s = 0.6 * rng.next_uniform();
  options.network = {.loss = rng.next_uniform() < 0.5 ? 0.15 * rng.next_uniform() : 0,
                     .doubling = rng.next_uniform() < 0.5 ? 0.15 * rng.next_uniform() : 0,
                     .jitter_s = rng.next_uniform() < 0.7 ? 0.4 * rng.next_uniform() : 0,
                     .seed = seed};
  // Of a generator of their own: what came before them stays the same for a seed.
  Rng more = Rng(seed).fork("several coordinators");
  if (more.next_uniform() < 0.4) {
    options.num_coordinators = static_cast<int64_t>(2 + more.next_below(2));
    options.num_store_outages = static_cast<int64_t>(more.next_below(3));
    options.num_store_cuts = static_cast<int64_t>(more.next_below(3));
    options.num_coordinator_crashes += static_cast<int64_t>(more.next_below(3));
    options.disk_s = 0.01 + 0.3 * more.next_uniform();
  }
  options.site_disk_s = more.next_uniform() < 0.5 ? 3 * more.next_uniform() : 0;
  options.has_power_cut = more.next_uniform() < 0.15;
  Rng drift = Rng(seed).fork("drift");
  if (drift.next_uniform() < 0.4) options.slower_at_s = 0.1 + 8 * drift.next_uniform();
  options.loses_disk = Rng(seed).fork("lost disk").next_uniform() < 0.4;
  Rng parts = Rng(seed).fork("parts");
  if (parts.next_uniform() < 0.3) {
    options.num_values = 1500;
    options.part_values = 128;
  }
  return options;
}

int64_t SimulatedRun::sum(int64_t (SimulatedCoordinator::*count)() const) const {
  int64_t total = 0;
  for (const auto& coordinator : coordinators_) total += ((*coordinator).*count)();
  return total;
}

const RoundMachine* SimulatedRun::leading() const {
  for (const auto& coordinator : coordinators_) {
    if (coordinator->leads()) return coordinator->rounds();
  }
  return nullptr;
}

uint64_t SimulatedRun::trace() const {
  uint64_t trace = 0;
  for (const auto& coordinator : coordinators_) trace = Rng::mix(trace ^ coordinator->trace());
  return trace;
}

// Most often the one that leads: that is where it hurts.
SimulatedCoordinator& SimulatedRun::any_coordinator() {
  const size_t any = coordinators_.size() == 1 ? 0 : rng_.next_below(coordinators_.size());
  if (coordinators_.size() > 1 && rng_.next_uniform() < 0.7) {
    for (const auto& coordinator : coordinators_) {
      if (coordinator->leads()) return *coordinator;
    }
  }
  return *coordinators_[any];
}

SimulatedRun::SimulatedRun(const SimulatedRunOptions& options)
    : options_(options),
      rng_(Rng(options.network.seed).fork("run")),
      network_(options.network, clock_),
      truth_(options.schedule, kSequenceTokens),
      store_({.is_shared = options.num_coordinators > 1, .delay_s = options.disk_s}, truth_, rng_) {
  if (options.bug != nullptr) options.bug->plant(faulty_);
  store_.leave_out(faulty_.store_forgets_seats, faulty_.store_forgets_numbers);
  RoundOptions rounds;
  rounds.schedule = options.schedule;
  rounds.grace_s = 6;
  rounds.heartbeat_s = 0.5;
  rounds.exchange_s = 20;
  rounds.absence_s = 20;
  rounds.share_watch = {.gain_min = 0.05, .rounds = 1};  // a short run is to see several changes
  sites_.resize(static_cast<size_t>(options.num_sites));
  shares_.assign(sites_.size(), kShare);
  rounds.shares = shares_;
  for (size_t i = 0; i < sites_.size(); ++i) {
    sites_[i].name = fmt::format("site{}", i);
    sites_[i].sequence_s = (0.4 + 0.2 * rng_.next_uniform()) / kShare;
    rounds.sites.push_back(sites_[i].name);
  }
  const int64_t num_fragments = options.schedule.num_fragments;
  for (int64_t i = 0; i < num_fragments; ++i) {
    fragments_.push_back({.begin = options.num_values * i / num_fragments,
                          .end = options.num_values * (i + 1) / num_fragments});
  }
  for (int64_t i = 0; i < options.num_coordinators; ++i) {
    coordinators_.push_back(std::make_unique<SimulatedCoordinator>(
        rounds, endpoint_of(i), store_, network_, clock_, faulty_, rng_));
  }
  for (Site& site : sites_) start(site);
  plan_faults();
}

void SimulatedRun::plan_faults() {
  const auto add = [&](Fault::Kind kind, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      faults_.push_back({.at_s = rng_.next_uniform() * options_.faults_until_s, .kind = kind});
    }
  };
  add(Fault::Kind::kCrash, options_.num_crashes);
  add(Fault::Kind::kGhost, options_.num_ghosts);
  add(Fault::Kind::kPartition, options_.num_partitions);
  add(Fault::Kind::kCoordinator, options_.num_coordinator_crashes);
  add(Fault::Kind::kFreeze, options_.has_zombie ? 1 : 0);
  add(Fault::Kind::kFreezeCoordinator, options_.has_frozen_coordinator ? 1 : 0);
  add(Fault::Kind::kStoreAway, options_.num_store_outages);
  add(Fault::Kind::kStoreCut, options_.num_store_cuts);
  add(Fault::Kind::kPowerCut, options_.has_power_cut ? 1 : 0);
  std::stable_sort(faults_.begin(), faults_.end(), [](const Fault& a, const Fault& b) {
    return a.at_s > b.at_s;
  });
}

// One site must stay: without any there is nobody to fetch from.
bool SimulatedRun::can_spare(const Site& site) const {
  if (!site.member || site.has_left || site.actions_left >= 0) return false;
  const RoundMachine* known = leading();
  const bool has_begun = known == nullptr || known->phase() == RoundMachine::RunPhase::kTraining ||
                         std::any_of(sites_.begin(), sites_.end(), [](const Site& each) {
                           return each.workers.trains;
                         });
  const auto stays = [&](const Site& each) {
    // Whose disk was lost has nothing until it has joined.
    const bool can_begin = num_lost_disks_ == 0 || each.disk.newest() != nullptr;
    return &each != &site && each.member && !each.has_left && each.actions_left < 0 &&
           (each.workers.trains || (!has_begun && can_begin));
  };
  return std::any_of(sites_.begin(), sites_.end(), stays);
}

// All sites have a checkpoint of one step that no crash takes away, and none has ended.
bool SimulatedRun::can_go_back() const {
  const double now_s = clock_.now_s();
  const auto is_done = [](const Site& site) {
    return site.has_left || site.workers.completed_steps == 0 || site.workers.has_finished;
  };
  const RoundMachine* rounds = leading();
  const bool trains = rounds != nullptr && rounds->phase() == RoundMachine::RunPhase::kTraining &&
                      !rounds->was_stopped();
  if (!trains || std::any_of(sites_.begin(), sites_.end(), is_done)) return false;
  const std::vector<SimulatedCheckpoint>& kept = sites_.front().disk.kept();
  return std::any_of(kept.begin(), kept.end(), [&](const SimulatedCheckpoint& each) {
    return std::all_of(sites_.begin(), sites_.end(), [&](const Site& site) {
      return site.disk.holds_safely(each, now_s);
    });
  });
}

void SimulatedRun::cut_power() {
  ++num_power_cuts_;
  ghosts_.clear();
  truth_.go_back();
  furthest_step_ = 0;
  for (const auto& coordinator : coordinators_) coordinator->lose_power(0.2 + rng_.next_uniform());
  for (Site& site : sites_) crash(site);
  if (!options_.loses_disk) return;
  ++num_lost_disks_;
  Site& site = sites_[rng_.next_below(sites_.size())];
  site.disk = SimulatedDisk();
  truth_.lose_disk(site.name);
}

void SimulatedRun::strike(const Fault& fault) {
  const double now_s = clock_.now_s();
  Site& site = sites_[rng_.next_below(sites_.size())];
  struck_ += fmt::format(" {:.2f}:{}:{}", now_s, static_cast<int>(fault.kind), site.name);
  switch (fault.kind) {
    case Fault::Kind::kCrash:
      if (can_spare(site)) site.actions_left = static_cast<int64_t>(rng_.next_below(8));
      break;
    case Fault::Kind::kGhost:
      if (can_spare(site)) haunt(site);
      break;
    case Fault::Kind::kFreeze:
      if (site.member) site.frozen_s = now_s + 1 + 7 * rng_.next_uniform();
      break;
    case Fault::Kind::kCoordinator:
      any_coordinator().crash_after(static_cast<int64_t>(rng_.next_below(6)),
                                    0.2 + 4 * rng_.next_uniform());
      break;
    case Fault::Kind::kFreezeCoordinator:
      any_coordinator().freeze_until(now_s + 1 + 6 * rng_.next_uniform());
      break;
    case Fault::Kind::kStoreAway:
      store_.lose_quorum(now_s, now_s + 0.5 + 6 * rng_.next_uniform());
      break;
    case Fault::Kind::kStoreCut:
      any_coordinator().cut_from_store_until(now_s + 0.5 + 6 * rng_.next_uniform());
      break;
    case Fault::Kind::kPowerCut:
      if (can_go_back()) cut_power();
      break;
    case Fault::Kind::kPartition: {
      const size_t other = rng_.next_below(sites_.size() + 1);
      const std::string peer =
          other == sites_.size() ? any_coordinator().endpoint() : sites_[other].name;
      const double end_s = now_s + 0.5 + 8 * rng_.next_uniform();
      const double flap_s = rng_.next_uniform() < 0.3 ? 0.3 + rng_.next_uniform() : 0;
      const uint64_t way = rng_.next_below(3);
      if (way != 0) partitions_.push_back({site.name, peer, end_s, flap_s});
      if (way != 1) partitions_.push_back({peer, site.name, end_s, flap_s});
      break;
    }
  }
}

void SimulatedRun::flap() {
  const double now_s = clock_.now_s();
  for (const Partition& partition : partitions_) {
    const bool is_off =
        partition.flap_s > 0 && std::fmod(now_s, 2 * partition.flap_s) >= partition.flap_s;
    network_.set_blocked(partition.from, partition.to, now_s < partition.end_s && !is_off);
  }
  std::erase_if(partitions_, [&](const Partition& each) { return now_s >= each.end_s; });
}

std::string SimulatedRun::run() {
  bool was_stopped = false;
  while (truth_.complaint().empty()) {
    clock_.advance(kTickS);
    const double now_s = clock_.now_s();
    while (!faults_.empty() && now_s >= faults_.back().at_s) {
      const Fault fault = faults_.back();
      faults_.pop_back();
      strike(fault);
    }
    if (!partitions_.empty()) flap();
    if (options_.stop_after_s > 0 && now_s > options_.stop_after_s && !was_stopped) {
      was_stopped = true;
      for (const auto& coordinator : coordinators_) coordinator->request_stop();
    }
    store_.turn(now_s);
    for (const auto& coordinator : coordinators_) coordinator->turn();
    for (Site& site : sites_) turn(site);
    for (const auto& ghost : ghosts_) turn(*ghost);
    std::erase_if(ghosts_, [&](const auto& ghost) {
      return ghost->has_left || now_s >= ghost->ghost_ends_s;
    });
    if (std::all_of(sites_.begin(), sites_.end(), [](const Site& site) { return site.has_left; })) {
      check_end();
      break;
    }
    if (now_s > options_.limit_s) complain("no progress");
    if (now_s > options_.faults_until_s + 60) network_.calm();
    const RoundMachine* rounds = leading();
    if (rounds != nullptr && rounds->failure()) complain(*rounds->failure());
  }
  return truth_.complaint().empty() ? "" : truth_.complaint() + where();
}

void SimulatedRun::check_end() {
  for (int i = 0; i < 4000 && leading() == nullptr; ++i) {
    clock_.advance(kTickS);
    store_.turn(clock_.now_s());
    for (const auto& coordinator : coordinators_) coordinator->turn();
  }
  if (leading() == nullptr) return complain("no coordinator leads");
  for (const Site& site : sites_) truth_.check_account(site.name, rounds().account(site.name));
  const auto differs =
      std::adjacent_find(last_hashes_.begin(), last_hashes_.end(), std::not_equal_to<>());
  if (differs != last_hashes_.end()) complain("sites end with different weights");
  if (finished_.empty() && options_.stop_after_s == 0) complain("no site reached the end");
}

void SimulatedRun::complain(const std::string& what) {
  truth_.complain(fmt::format("at {:.2f} s: {}", clock_.now_s(), what));
}

int64_t SimulatedRun::num_share_changes() const {
  return static_cast<int64_t>(rounds().shares().changes().size());
}

std::string SimulatedRun::where() const {
  const RoundMachine* rounds = leading();
  std::string text = fmt::format("; at {:.2f} s coordinator phase={} commits={}",
                                 clock_.now_s(),
                                 rounds == nullptr ? -1 : static_cast<int>(rounds->phase()),
                                 truth_.num_commits());
  for (const Site& site : sites_) {
    text += fmt::format("; {} left={} down={}", site.name, site.has_left, !site.member);
    if (!site.member) continue;
    const SiteStatus& status = site.member->status();
    text += fmt::format(" phase={} steps={} waits={} applied={}",
                        static_cast<int>(status.phase),
                        site.workers.completed_steps,
                        site.workers.waits_for.value_or(-1),
                        fmt::join(status.applied, ","));
    for (const ReadyExchange& held : status.exchanges) {
      text += fmt::format(" [{} epoch={} whole={} missing={}]",
                          held.exchange,
                          held.begun_epoch,
                          !held.hash.empty(),
                          fmt::join(held.missing, ","));
    }
  }
  text += "; faults at second, of kind, chosen site:" + struck_;
  for (const auto& coordinator : coordinators_) text += coordinator->story();
  return text;
}

}  // namespace pelago::sites
