#include "sites/simulated_run.h"

#include <algorithm>

namespace pelago::sites {

namespace {

constexpr double kTickS = 0.05;

}  // namespace

SimulatedRun::SimulatedRun(const SimulatedRunOptions& options)
    : options_(options),
      rng_(Rng(options.network.seed).fork("run")),
      network_(options.network, clock_) {
  RoundOptions rounds;
  rounds.schedule = options.schedule;
  rounds.grace_s = 6;
  rounds.heartbeat_s = 0.5;
  rounds.exchange_s = 20;
  sites_.resize(static_cast<size_t>(options.num_sites));
  for (size_t i = 0; i < sites_.size(); ++i) {
    sites_[i].name = fmt::format("site{}", i);
    sites_[i].step_s = 0.4 + 0.2 * rng_.next_uniform();
    rounds.sites.push_back(sites_[i].name);
  }
  const int64_t num_fragments = options.schedule.num_fragments;
  for (int64_t i = 0; i < num_fragments; ++i) {
    fragments_.push_back({.begin = options.num_values * i / num_fragments,
                          .end = options.num_values * (i + 1) / num_fragments});
  }
  rounds_ = std::make_unique<RoundMachine>(rounds);
  coordinator_ = network_.open(kCoordinatorName);
  for (Site& site : sites_) start(site);
}

void SimulatedRun::start(Site& site) {
  ++site.num_starts;
  site.restart_s = site.workers_ready_s = -1;
  site.transport = network_.open(site.name);
  std::vector<float> initial(static_cast<size_t>(options_.num_values));
  Rng weights = Rng(3).fork("initial");
  for (float& value : initial) value = static_cast<float>(weights.next_normal());
  site.state = std::make_unique<GlobalState>(std::move(initial), fragments_);
  MemberOptions member;
  member.site = site.name;
  member.schedule = options_.schedule;
  member.exchange.bits = options_.bits;
  member.tokens_per_step = 100 * (1 + (site.name.back() - '0'));
  member.heartbeat_s = 0.5;
  member.hello.incarnation = static_cast<uint64_t>(site.num_starts);
  member.hello.address = network_.address(site.name);
  site.transport->set_address(kCoordinatorName, network_.address(kCoordinatorName));
  site.member = std::make_unique<Member>(member, *site.state);
  site.workers = SimulatedWorkers{};
}

void SimulatedRun::crash(Site& site) {
  if (site.has_left || site.restart_s >= 0) return;
  network_.cut(site.name);
  num_refused_ += site.member->status().num_refused;
  site.member.reset();
  site.transport.reset();
  site.frozen_s = -1;
  site.restart_s = clock_.now_s() + options_.restart_s;
  ++num_restarts_;
}

void SimulatedRun::complain(const std::string& what) {
  if (complaint_.empty()) complaint_ = fmt::format("at {:.2f} s: {}", clock_.now_s(), what);
}

std::string SimulatedRun::run() {
  std::vector<std::pair<double, size_t>> crashes;
  for (int64_t i = 0; i < options_.num_crashes; ++i) {
    crashes.emplace_back(rng_.next_uniform() * 30, rng_.next_below(sites_.size()));
  }
  const double freeze_s = options_.has_zombie ? 2 + rng_.next_uniform() * 15 : 1e18;
  const size_t frozen = rng_.next_below(sites_.size());
  bool was_frozen = false, was_stopped = false;
  while (complaint_.empty()) {
    clock_.advance(kTickS / 4);
    const double now_s = clock_.now_s();
    for (auto& [at_s, idx] : crashes) {
      if (now_s < at_s) continue;
      at_s = 1e18;
      // One site must stay: without any there is nobody to fetch from.
      const auto num_here = std::count_if(sites_.begin(), sites_.end(), [](const Site& site) {
        return site.member && !site.has_left && site.workers.trains;
      });
      const bool is_joined = rounds_->phase() != RoundMachine::RunPhase::kTraining || num_here > 1;
      if (is_joined) crash(sites_[idx]);
    }
    if (now_s >= freeze_s && !was_frozen) {
      was_frozen = true;
      if (sites_[frozen].member) sites_[frozen].frozen_s = now_s + 4 + 4 * rng_.next_uniform();
    }
    if (options_.stop_after_s > 0 && now_s > options_.stop_after_s && !was_stopped) {
      was_stopped = true;
      for (auto& [to, message] : rounds_->request_stop(now_s).messages) {
        coordinator_->send(to, encode(kCoordinatorName, message));
      }
    }
    turn_coordinator();
    for (Site& site : sites_) turn(site);
    if (std::all_of(sites_.begin(), sites_.end(), [](const Site& site) { return site.has_left; })) {
      break;
    }
    if (now_s > options_.limit_s) complain("no progress");
    if (now_s > options_.limit_s / 2) network_.calm();
    if (rounds_->failure()) complain(*rounds_->failure());
  }
  return complaint_.empty() ? "" : complaint_ + where();
}

std::string SimulatedRun::where() const {
  std::string text = fmt::format("; coordinator phase={} commits={}",
                                 static_cast<int>(rounds_->phase()),
                                 rounds_->num_commits());
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
  return text;
}

void SimulatedRun::turn_coordinator() {
  const auto deliver = [&](const RoundOutput& output) {
    for (const auto& [name, fields] : output.events) {
      if (name != "commit_lost") continue;
      committed_.erase(std::stoll(fields.substr(fields.find(':') + 1)));
      ++num_lost_commits_;
    }
    for (const Commit& commit : output.commits) check_commit(commit);
    for (const auto& [to, message] : output.messages) {
      coordinator_->send(to, encode(kCoordinatorName, message));
    }
  };
  while (auto arrival = coordinator_->receive(0)) {
    if (!arrival->frame) {
      deliver(rounds_->on_lost(arrival->peer, clock_.now_s()));
      continue;
    }
    const Result<Message> message = decode(*arrival->frame);
    if (!message) return complain(message.error().message);
    if (const auto* hello = std::get_if<Hello>(&*message)) {
      coordinator_->set_address(arrival->peer, hello->address);
    }
    deliver(rounds_->on_message(arrival->peer, *message, clock_.now_s()));
  }
  deliver(rounds_->on_tick(clock_.now_s()));
}

void SimulatedRun::check_commit(const Commit& commit) {
  if (!committed_.emplace(commit.exchange, commit.hash).second) {
    complain(fmt::format("exchange {} is committed twice", commit.exchange));
  }
  if (commit.donors.size() != commit.members.size()) {
    complain(fmt::format("exchange {}: results differ", commit.exchange));
  }
}

void SimulatedRun::check_applied(const Site& site) {
  for (size_t fragment = 0; fragment < fragments_.size(); ++fragment) {
    const int64_t exchange = site.state->applied()[fragment];
    if (exchange < 0) continue;
    const auto committed = committed_.find(exchange);
    if (committed == committed_.end()) {
      return complain(fmt::format("{} applied {} before its commit", site.name, exchange));
    }
    if (site.state->fragment_hash(static_cast<int64_t>(fragment)) != committed->second) {
      complain(fmt::format("{} holds other weights than were committed", site.name));
    }
  }
}

void SimulatedRun::turn(Site& site) {
  const double now_s = clock_.now_s();
  if (site.has_left || now_s < site.frozen_s) return;
  if (site.restart_s >= 0) {
    if (now_s >= site.restart_s) start(site);
    return;
  }
  while (auto arrival = site.transport->receive(0)) {
    if (!arrival->frame) continue;
    const Result<Message> message = decode(*arrival->frame);
    if (!message) return complain(message.error().message);
    carry_out(site, site.member->on_message(arrival->peer, *message, now_s));
    if (site.has_left) return;
  }
  if (now_s - site.heartbeat_s >= 0.5) {
    site.heartbeat_s = now_s;
    site.transport->send(kCoordinatorName,
                         encode(site.name, Heartbeat{static_cast<uint64_t>(site.num_starts)}));
  }
  carry_out(site, site.member->on_tick(now_s));
  if (site.has_left) return;
  if (site.workers_ready_s >= 0 && now_s >= site.workers_ready_s) {
    site.workers_ready_s = -1;
    carry_out(site, site.member->on_workers_ready(now_s));
  }
  train(site);
}

void SimulatedRun::carry_out(Site& site, MemberActions actions) {
  SimulatedWorkers& workers = site.workers;
  for (MemberAction& action : actions) {
    if (const auto* known = std::get_if<KnowAddress>(&action)) {
      site.transport->set_address(known->site, known->address);
    } else if (auto* send = std::get_if<SendMessage>(&action)) {
      site.transport->send(send->to, encode(site.name, std::move(send->message)));
    } else if (const auto* begin = std::get_if<StartWorkers>(&action)) {
      workers.completed_steps = begin->step;
      workers.local.assign(site.state->global().begin(), site.state->global().end());
      workers.snapshot = workers.local;
      site.workers_ready_s = clock_.now_s() + 0.5 + rng_.next_uniform();
    } else if (std::holds_alternative<LetTrain>(action)) {
      workers.trains = true;
      workers.next_step_s = clock_.now_s() + site.step_s;
    } else if (const auto* merged = std::get_if<GiveMerged>(&action)) {
      check_applied(site);
      take_merge(site, merged->exchange, merged->fragment);
    } else if (const auto* stop = std::get_if<StopTraining>(&action)) {
      // A site that waits for the merge of its last step has not yet left that step.
      const bool can_stop = stop->step > workers.completed_steps ||
                            (stop->step == workers.completed_steps && workers.waits_for);
      if (!can_stop) complain(site.name + " is told to stop too late");
      workers.stop_step = stop->step;
    } else if (const auto* leave = std::get_if<Leave>(&action)) {
      if (leave->exit_code != 0) return complain(site.name + " left: " + leave->reason);
      site.has_left = true;
      num_refused_ += site.member->status().num_refused;
      if (workers.has_finished) {
        last_steps_.push_back(workers.completed_steps);
        last_hashes_.push_back(site.state->hash());
      }
    }
  }
}

void SimulatedRun::take_snapshot(Site& site, int64_t exchange) {
  SimulatedWorkers& workers = site.workers;
  const int64_t num_regular = options_.schedule.num_regular();
  const int64_t fragment =
      exchange < num_regular ? exchange % options_.schedule.num_fragments : exchange - num_regular;
  const train::Fragment& range = fragments_[static_cast<size_t>(fragment)];
  std::copy(workers.local.begin() + range.begin,
            workers.local.begin() + range.end,
            workers.snapshot.begin() + range.begin);
  carry_out(site,
            site.member->on_snapshot(exchange,
                                     std::span<const float>(workers.snapshot)
                                         .subspan(static_cast<size_t>(range.begin),
                                                  static_cast<size_t>(range.end - range.begin)),
                                     clock_.now_s()));
}

void SimulatedRun::take_merge(Site& site, int64_t exchange, int64_t fragment) {
  SimulatedWorkers& workers = site.workers;
  const train::Fragment& range = fragments_[static_cast<size_t>(fragment)];
  const float alpha = exchange < options_.schedule.num_regular() ? 0.5F : 0.0F;
  for (int64_t i = range.begin; i < range.end; ++i) {
    const auto at = static_cast<size_t>(i);
    workers.local[at] = alpha * workers.local[at] + (1 - alpha) * site.state->global()[at];
  }
  if (workers.waits_for == exchange) workers.waits_for.reset();
}

void SimulatedRun::train(Site& site) {
  SimulatedWorkers& workers = site.workers;
  if (!workers.trains || workers.has_finished || workers.waits_for) return;
  const bool is_last = workers.completed_steps >= options_.schedule.num_steps;
  if (workers.stop_step == workers.completed_steps && !is_last) {
    workers.has_finished = true;
    return carry_out(site, site.member->on_finished(clock_.now_s()));
  }
  if (is_last) {
    if (++workers.final_fragment == options_.schedule.num_fragments) {
      workers.has_finished = true;
      return carry_out(site, site.member->on_finished(clock_.now_s()));
    }
    const int64_t exchange = options_.schedule.num_regular() + workers.final_fragment;
    workers.waits_for = exchange;
    return take_snapshot(site, exchange);
  }
  if (clock_.now_s() < workers.next_step_s) return;
  workers.next_step_s = clock_.now_s() + site.step_s;
  ++workers.completed_steps;
  Rng noise = Rng(static_cast<uint64_t>(workers.completed_steps)).fork(site.name);
  for (float& value : workers.local) value += static_cast<float>(0.01 * noise.next_normal());
  site.member->on_step(workers.completed_steps);
  const int64_t coming = options_.schedule.merge_after(workers.completed_steps);
  const int64_t leaving = options_.schedule.snapshot_after(workers.completed_steps);
  if (leaving >= 0) take_snapshot(site, leaving);
  const auto& open = site.member->status().exchanges;
  const bool is_open = std::any_of(
      open.begin(), open.end(), [&](const ReadyExchange& held) { return held.exchange == coming; });
  if (coming >= 0 && is_open) workers.waits_for = coming;
}

}  // namespace pelago::sites
