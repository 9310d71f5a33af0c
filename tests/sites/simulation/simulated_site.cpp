// One site of a simulated run: the real Member, workers made of arithmetic, and how it dies.
#include <algorithm>
#include <numeric>
#include <utility>

#include "base/text/json.h"
#include "sites/simulation/simulated_run.h"

namespace pelago::sites {

namespace {

constexpr int64_t kSmallLeaf = 16;  // values: a fragment has several leaves

}  // namespace

void SimulatedRun::start(Site& site) {
  site.incarnation = ++num_starts_;
  site.restart_s = site.workers_ready_s = site.frozen_s = -1;
  site.actions_left = -1;
  site.transport = network_.open(site.name);
  std::vector<float> initial(static_cast<size_t>(options_.num_values));
  Rng weights = Rng(3).fork("initial");
  for (float& value : initial) value = static_cast<float>(weights.next_normal());
  site.member.reset();
  site.state = std::make_unique<GlobalState>(std::move(initial), fragments_, kSmallLeaf);
  MemberOptions member;
  member.site = site.name;
  member.schedule = options_.schedule;
  member.exchange.bits = options_.bits;
  member.exchange.part_values = options_.part_values;
  member.lane = static_cast<size_t>(site.name.back() - '0');
  member.shares = shares_;
  member.sequence_tokens = kSequenceTokens;
  member.heartbeat_s = 0.5;
  member.recall = [&site] {
    const SimulatedCheckpoint* newest = site.disk.newest();
    return newest != nullptr ? std::make_unique<const GlobalState>(newest->state) : nullptr;
  };
  member.hello.incarnation = site.incarnation;
  member.hello.address = network_.address(site.name);
  member.hello.checkpoints = site.disk.offers();
  // Told of all coordinators when it first came up, and of none in vain for ever.
  if (coordinators_.size() > 1) {
    for (const auto& coordinator : coordinators_) {
      member.coordinators.push_back(network_.address(coordinator->endpoint()));
    }
  }
  site.transport->set_address(kCoordinatorName, network_.address(kCoordinatorName));
  site.member = std::make_unique<Member>(member, *site.state);
  site.workers = SimulatedWorkers{};
}

void SimulatedRun::crash(Site& site) {
  if (site.has_left || !site.member) return;
  if (site.workers.has_finished) finished_.insert(site.name);
  num_refused_ += site.member->status().num_refused;
  site.member.reset();
  site.transport.reset();
  if (site.is_ghost) {
    site.has_left = true;
    return;
  }
  site.disk.crash(clock_.now_s(), rng_);
  network_.cut(site.name);
  site.restart_s = clock_.now_s() + options_.restart_s;
  ++num_restarts_;
}

// The process hangs and is given up, a new one starts at once, and then the old one goes on.
void SimulatedRun::haunt(Site& site) {
  if (site.workers.has_finished) finished_.insert(site.name);
  auto ghost = std::make_unique<Site>();
  ghost->name = site.name;
  ghost->incarnation = site.incarnation;
  ghost->sequence_s = site.sequence_s;
  while (auto arrival = site.transport->receive(0)) {
    if (arrival->frame) ghost->heard_before.push_back(*arrival->frame);
  }
  ghost->transport = std::move(site.transport);
  ghost->state = std::move(site.state);
  ghost->member = std::move(site.member);
  ghost->workers = std::move(site.workers);
  ghost->workers_ready_s = site.workers_ready_s;
  ghost->is_ghost = true;
  ghost->frozen_s = clock_.now_s() + 0.2 + 8 * rng_.next_uniform();
  ghost->ghost_ends_s = ghost->frozen_s + 4;
  ghosts_.push_back(std::move(ghost));
  ++num_restarts_;
  start(site);
}

void SimulatedRun::turn(Site& site) {
  const double now_s = clock_.now_s();
  if (site.has_left || now_s < site.frozen_s) return;
  if (!site.member) {
    if (now_s >= site.restart_s) start(site);
    return;
  }
  for (const Frame& frame : std::exchange(site.heard_before, {})) {
    if (site.member) hear(site, frame.from, frame);
  }
  while (site.member && !site.is_ghost) {
    const std::optional<Arrival> arrival = site.transport->receive(0);
    if (!arrival) break;
    if (arrival->frame) {
      hear(site, arrival->peer, *arrival->frame);
    } else {
      carry_out(site, site.member->on_lost(arrival->peer, clock_.now_s()));
    }
    if (site.has_left) return;
  }
  if (!site.member || site.has_left) return;
  if (now_s - site.heartbeat_s >= 0.5) {
    site.heartbeat_s = now_s;
    site.transport->send(kCoordinatorName,
                         encode(site.name,
                                Heartbeat{.incarnation = site.incarnation,
                                          .completed_steps = site.workers.completed_steps}));
  }
  carry_out(site, site.member->on_tick(now_s));
  if (site.member && !site.has_left && site.member->has_work()) {
    carry_out(site, site.member->work(now_s));
  }
  if (site.member && !site.has_left && site.workers_ready_s >= 0 && now_s >= site.workers_ready_s) {
    site.workers_ready_s = -1;
    carry_out(site, site.member->on_workers_ready(now_s));
  }
  if (site.member && !site.has_left) train(site);
  if (site.member && is_to_die(site)) crash(site);
}

void SimulatedRun::hear(Site& site, const std::string& peer, const Frame& frame) {
  Result<Message> message = decode(frame);
  if (!message) return complain(message.error().message);
  if (faulty_.site_hears && !faulty_.site_hears(site.name, peer, *message)) return;
  carry_out(site, site.member->on_message(peer, *message, clock_.now_s()));
}

// It could be spared when the fault struck; by now it may be the last that holds a commit.
bool SimulatedRun::is_to_die(Site& site) {
  if (site.actions_left != 0) return false;
  site.actions_left = -1;
  return truth_.num_commits() == 0 || can_spare(site);
}

// A site that is to die does so between two of these.
void SimulatedRun::carry_out(Site& site, MemberActions actions) {
  for (MemberAction& action : actions) {
    if (!site.member || site.has_left) return;
    if (is_to_die(site)) return crash(site);
    if (site.actions_left > 0) --site.actions_left;
    act(site, action);
  }
}

void SimulatedRun::act(Site& site, MemberAction& action) {
  SimulatedWorkers& workers = site.workers;
  if (const auto* known = std::get_if<KnowAddress>(&action)) {
    site.transport->set_address(known->site, known->address);
  } else if (auto* send = std::get_if<SendMessage>(&action)) {
    say(site, *send);
  } else if (const auto* begin = std::get_if<StartWorkers>(&action)) {
    start_workers(site, *begin);
  } else if (std::holds_alternative<LetTrain>(action)) {
    workers.trains = true;
    workers.next_step_s = clock_.now_s() + step_s(site);
  } else if (const auto* taken = std::get_if<TakeShares>(&action)) {
    if (taken->data_step < workers.completed_steps + workers.data_shift && workers.trains) {
      complain(site.name + " is told of new shares too late");
    }
    workers.shares[taken->data_step] = taken->sequences;
  } else if (const auto* others = std::get_if<CatchUp>(&action)) {
    workers.others_step = std::max(workers.others_step, others->step);
  } else if (const auto* merged = std::get_if<GiveMerged>(&action)) {
    check_held(site);
    take_merge(site, *merged);
  } else if (const auto* stop = std::get_if<StopTraining>(&action)) {
    // A site that waits for the merge of its last step has not yet left that step.
    const bool can_stop = stop->step > workers.completed_steps ||
                          (stop->step == workers.completed_steps && workers.waits_for);
    if (!can_stop) complain(site.name + " is told to stop too late");
    workers.stop_step = stop->step;
  } else if (const auto* ends = std::get_if<Leave>(&action)) {
    leave(site, *ends);
  }
}

void SimulatedRun::say(Site& site, SendMessage& send) {
  if (faulty_.site_says && !faulty_.site_says(site.name, send.to, send.message)) return;
  auto* leaf = std::get_if<FragmentLeaf>(&send.message);
  if (leaf != nullptr && site.name == "site0" && rng_.next_uniform() < options_.lies) {
    char& byte = leaf->payload[rng_.next_below(leaf->payload.size())];
    byte = static_cast<char>(byte ^ 1);
    ++num_lies_;
  }
  if (const auto* report = std::get_if<Report>(&send.message)) note(*report);
  site.transport->send(send.to, encode(site.name, std::move(send.message)));
}

void SimulatedRun::note(const Report& report) {
  const auto fields = parse_json(report.json);
  if (report.name == "caught_up") {
    num_leaves_fetched_ += fields.at("leaves_fetched").get<int64_t>();
    num_leaves_kept_ += fields.at("leaves_kept").get<int64_t>();
  }
  if (report.name != "donor_refused") return;
  const bool is_of_bytes = fields.at("reason").get<std::string>().rfind("wrong bytes", 0) == 0;
  if (is_of_bytes && fields.at("donor") != "site0") complain("an honest donor is called a liar");
}

void SimulatedRun::start_workers(Site& site, const StartWorkers& begin) {
  SimulatedWorkers& workers = site.workers;
  if (begin.mode == StartMode::kResume) {
    const SimulatedCheckpoint* checkpoint = site.disk.find(begin.step);
    if (checkpoint == nullptr || checkpoint->is_torn || checkpoint->data_step != begin.data_step) {
      return complain(site.name + " is to go on from a checkpoint that it has not");
    }
    *site.state = checkpoint->state;
  }
  workers.completed_steps = workers.saved_step = begin.step;
  workers.first_exchange = begin.first_exchange;
  workers.data_shift = begin.data_step + faulty_.data_ahead - begin.step;
  workers.local.assign(site.state->global().begin(), site.state->global().end());
  if (begin.mode == StartMode::kResume) workers.local = site.disk.find(begin.step)->local;
  workers.snapshot = workers.local;
  site.workers_ready_s = clock_.now_s() + 0.5 + rng_.next_uniform();
  if (begin.mode == StartMode::kResume) {
    truth_.on_resume(site.name,
                     site.incarnation,
                     site.disk.find(begin.step)->incarnation,
                     {.step = begin.step, .data = begin.data_step});
  } else {
    truth_.on_start(site.name, site.incarnation, begin.step, begin.step + workers.data_shift);
  }
  check_held(site);
}

void SimulatedRun::check_held(const Site& site) {
  if (site.is_ghost) return;
  truth_.check_held(site.name, site.incarnation, *site.state, site.workers.completed_steps);
}

void SimulatedRun::leave(Site& site, const Leave& ends) {
  if (site.is_ghost || ends.exit_code == kExitTryAgain) return crash(site);
  if (ends.exit_code != 0) return complain(site.name + " left: " + ends.reason);
  site.has_left = true;
  num_refused_ += site.member->status().num_refused;
  if (!site.workers.has_finished) return;
  finished_.insert(site.name);
  last_steps_.push_back(site.workers.completed_steps);
  last_hashes_.push_back(site.state->hash());
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

void SimulatedRun::take_merge(Site& site, const GiveMerged& merged) {
  SimulatedWorkers& workers = site.workers;
  const train::Fragment& range = fragments_[static_cast<size_t>(merged.fragment)];
  const bool is_overlapped = merged.exchange < options_.schedule.num_regular();
  for (int64_t i = range.begin; i < range.end; ++i) {
    float& local = workers.local[static_cast<size_t>(i)];
    const float given = merged.given[static_cast<size_t>(i - range.begin)];
    local = is_overlapped ? local + 0.5F * given : given;
  }
  if (workers.waits_for == merged.exchange) workers.waits_for.reset();
}

// What lies in memory at a quiet step is written behind training.
void SimulatedRun::save_checkpoint(Site& site) {
  SimulatedWorkers& workers = site.workers;
  workers.saved_step = workers.completed_steps;
  site.disk.save({.incarnation = site.incarnation,
                  .step = workers.completed_steps,
                  .data_step = workers.completed_steps + workers.data_shift,
                  .state = *site.state,
                  .local = workers.local,
                  .synced_s = clock_.now_s() + options_.site_disk_s * rng_.next_uniform(),
                  .is_torn = false});
}

/// The samples of the next step.
StepRange SimulatedRun::lane_of(const Site& site) const {
  const SimulatedWorkers& workers = site.workers;
  const int64_t data_step = workers.completed_steps + workers.data_shift;
  const auto later = workers.shares.upper_bound(data_step);
  const std::vector<int64_t>& shares =
      later == workers.shares.begin() ? shares_ : std::prev(later)->second;
  const auto lane = static_cast<size_t>(site.name.back() - '0');
  const int64_t batch = std::accumulate(shares.begin(), shares.end(), int64_t{0});
  const int64_t begin =
      data_step * batch + std::accumulate(shares.begin(),
                                          shares.begin() + static_cast<std::ptrdiff_t>(lane),
                                          int64_t{0});
  return {.begin = begin, .end = begin + shares[lane]};
}

double SimulatedRun::step_s(const Site& site) const {
  const StepRange lane = lane_of(site);
  const bool is_slower = options_.slower_at_s > 0 && clock_.now_s() >= options_.slower_at_s &&
                         site.name == sites_.front().name;
  return static_cast<double>(lane.end - lane.begin) * site.sequence_s * (is_slower ? 3 : 1);
}

void SimulatedRun::train(Site& site) {
  SimulatedWorkers& workers = site.workers;
  if (!workers.trains || workers.has_finished || workers.waits_for) return;
  const bool is_checkpoint_step = options_.schedule.is_checkpoint_step(
      workers.completed_steps, options_.checkpoint_every_steps);
  if (is_checkpoint_step && workers.saved_step != workers.completed_steps && !site.is_ghost) {
    save_checkpoint(site);
  }
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
  if (workers.completed_steps < workers.others_step) return leave_out(site);
  if (clock_.now_s() < workers.next_step_s) return;
  if (!site.is_ghost) {
    truth_.on_read(site.name, workers.completed_steps + workers.data_shift, lane_of(site));
  }
  const double took_s = step_s(site);
  ++workers.completed_steps;
  workers.next_step_s = clock_.now_s() + step_s(site);
  Rng noise = Rng(static_cast<uint64_t>(workers.completed_steps)).fork(site.name);
  for (float& value : workers.local)
    value += static_cast<float>(0.03 * (noise.next_uniform() - 0.5));
  furthest_step_ = std::max(furthest_step_, workers.completed_steps);
  site.member->on_step(workers.completed_steps, took_s);
  exchange_after_step(site);
}

// Takes no time, and leaves its samples to the next step.
void SimulatedRun::leave_out(Site& site) {
  SimulatedWorkers& workers = site.workers;
  ++workers.completed_steps;
  workers.data_shift -= faulty_.skips_data ? 0 : 1;
  workers.next_step_s = clock_.now_s() + step_s(site);
  ++num_left_out_;
  truth_.on_left_out(site.name, site.incarnation, workers.completed_steps);
  if (workers.completed_steps > furthest_step_) {
    complain(fmt::format(
        "{} leaves out step {}, which nobody has come to", site.name, workers.completed_steps));
  }
  site.member->on_left_out(workers.completed_steps);
  exchange_after_step(site);
}

void SimulatedRun::exchange_after_step(Site& site) {
  SimulatedWorkers& workers = site.workers;
  const int64_t coming = options_.schedule.merge_after(workers.completed_steps);
  const int64_t leaving = options_.schedule.snapshot_after(workers.completed_steps);
  if (leaving >= 0) take_snapshot(site, leaving);
  if (!site.member || site.has_left) return;
  const auto& open = site.member->status().exchanges;
  const bool is_open = std::any_of(
      open.begin(), open.end(), [&](const ReadyExchange& held) { return held.exchange == coming; });
  if (coming >= workers.first_exchange && is_open) workers.waits_for = coming;
}

}  // namespace pelago::sites
