// One site of a run in step: the real Member, and how it dies and returns.
#include <utility>

#include "base/text/json.h"
#include "sites/simulation/lockstep/lockstep_run.h"

namespace pelago::sites {

void LockstepRun::start(Site& site) {
  site.incarnation = ++num_starts_;
  site.restart_s = site.frozen_s = -1;
  site.actions_left = -1;
  site.transport = network_.open(site.name);
  lines_.end(site.name);
  site.member.reset();
  site.state = std::make_unique<GlobalState>(std::vector<float>(), std::vector<train::Fragment>());
  site.order = RelayOrder();
  site.peers.clear();
  site.fetch.reset();
  std::map<std::string, uint64_t> sent = std::move(site.workers.sent);
  if (!faulty_.keeps_workers) site.workers = Workers{};
  if (faulty_.counts_frames_on) site.workers.sent = std::move(sent);
  MemberOptions member;
  member.site = site.name;
  member.schedule = schedule_;
  member.lane = site.idx;
  member.shares.assign(sites_.size(), 1);
  member.sequence_tokens = 1;
  member.heartbeat_s = 0.5;
  member.coordinator_silence_s = 30;  // as 60 to heartbeats of a second
  member.hello.incarnation = site.incarnation;
  member.hello.address = network_.address(site.name);
  member.hello.plan_hash = "plan";
  // What its last start had not made safe may turn out to be, and is offered by the next one.
  member.hello.checkpoints = site.offered = safe_offers(site);
  if (coordinators_.size() > 1) {
    for (const auto& coordinator : coordinators_) {
      member.coordinators.push_back(network_.address(coordinator->endpoint()));
    }
  }
  site.transport->set_address(kCoordinatorName, network_.address(kCoordinatorName));
  site.member = std::make_unique<Member>(member, *site.state);
}

// Its workers die with it. What was not yet safe is there, torn or gone.
void LockstepRun::crash(Site& site, double restart_s) {
  if (site.has_left || !site.member) return;
  site.member.reset();
  site.fetch.reset();
  site.transport.reset();
  site.disk.crash(clock_.now_s(), rng_);
  network_.cut(site.name);
  lines_.end(site.name);
  site.workers = Workers{};
  site.is_asked_to_stop = false;
  site.restart_s = clock_.now_s() + restart_s;
  disturb_until(site.restart_s);
  ++num_restarts_;
}

void LockstepRun::turn(Site& site) {
  const double now_s = clock_.now_s();
  if (site.has_left || now_s < site.frozen_s) return;
  if (!site.member) {
    if (now_s >= site.restart_s) start(site);
    return;
  }
  while (site.member) {
    const std::optional<Arrival> arrival = site.transport->receive(0);
    if (!arrival) break;
    if (arrival->frame) {
      hear(site, arrival->peer, *arrival->frame);
    } else {
      carry_out(site, site.member->on_lost(arrival->peer, now_s));
    }
    if (site.has_left) return;
  }
  if (site.member) hear_lines(site);
  if (!site.member) return;
  if (now_s - site.heartbeat_s >= 0.5) {
    site.heartbeat_s = now_s;
    site.transport->send(kCoordinatorName, encode(site.name, Heartbeat{site.incarnation}));
  }
  if (site.is_asked_to_stop) carry_out(site, site.member->ask_stop(now_s));
  if (site.member && !site.has_left) carry_out(site, site.member->on_tick(now_s));
  if (site.member && !site.has_left) go_on_fetching(site);
  if (site.member && !site.has_left) train(site);
  if (site.member && site.actions_left == 0) crash(site, options_.restart_s);
}

void LockstepRun::hear(Site& site, const std::string& peer, const Frame& frame) {
  Result<Message> message = decode(frame);
  if (!message) return complain(message.error().message);
  if (faulty_.code.site_hears && !faulty_.code.site_hears(site.name, peer, *message)) return;
  if (hear_of_fetch(site, peer, *message)) return;
  carry_out(site, site.member->on_message(peer, *message, clock_.now_s()));
}

// A site that is to die does so between two of these.
void LockstepRun::carry_out(Site& site, MemberActions actions) {
  const uint64_t incarnation = site.incarnation;
  for (MemberAction& action : actions) {
    // What a start that has ended was about to do dies with it.
    if (!site.member || site.has_left || site.incarnation != incarnation) return;
    if (site.actions_left == 0) return crash(site, options_.restart_s);
    if (site.actions_left > 0) --site.actions_left;
    act(site, action);
  }
}

void LockstepRun::act(Site& site, MemberAction& action) {
  if (const auto* known = std::get_if<KnowAddress>(&action)) {
    site.transport->set_address(known->site, known->address);
    site.peers[known->site] = known->address;
  } else if (auto* send = std::get_if<SendMessage>(&action)) {
    if (faulty_.code.site_says && !faulty_.code.site_says(site.name, send->to, send->message)) {
      return;
    }
    site.transport->send(send->to, encode(site.name, std::move(send->message)));
  } else if (const auto* begin = std::get_if<StartWorkers>(&action)) {
    if (!begin_fetch(site, *begin)) start_workers(site, *begin);
  } else if (std::holds_alternative<LetTrain>(action)) {
    site.workers.trains = true;
    site.workers.heard_s = clock_.now_s();
  } else if (const auto* stop = std::get_if<StopTraining>(&action)) {
    site.workers.stop_step = stop->step;
  } else if (const auto* ends = std::get_if<Leave>(&action)) {
    leave(site, *ends);
  }
}

void LockstepRun::leave(Site& site, const Leave& ends) {
  if (ends.exit_code == kExitTryAgain && ends.is_to_return && !site.is_asked_to_stop) {
    // The same process begins anew: what its workers were writing has no name yet.
    site.disk.crash(clock_.now_s(), rng_);
    ++num_restarts_;
    return start(site);
  }
  if (ends.exit_code == kExitTryAgain) return crash(site, options_.restart_s);
  if (ends.exit_code != kExitDone && !gave_up_) {
    const RoundMachine* rounds = leading();
    if (rounds == nullptr || !rounds->failure()) complain(site.name + " left: " + ends.reason);
  }
  const Workers& workers = site.workers;
  if (workers.has_finished) {
    truth_.on_end(site.name, workers.step, workers.hash, workers.tokens, was_stopped_);
  }
  site.has_left = true;
  site.member.reset();
  site.transport.reset();
  lines_.end(site.name);
}

// As an agent whose worker is lost: its last words, and the end of its process.
void LockstepRun::fail_workers(Site& site, const std::string& why) {
  const nlohmann::json words{{"message", why}};
  site.transport->send(kCoordinatorName,
                       encode(site.name, Report{.name = "site_failed", .json = words.dump()}));
  // network_.cut() would take the words back: the process lives until they have left.
  site.member.reset();
  site.fetch.reset();
  site.workers = Workers{};
  site.disk.crash(clock_.now_s(), rng_);
  lines_.end(site.name);
  site.restart_s = clock_.now_s() + options_.restart_s;
  disturb_until(site.restart_s);
  ++num_restarts_;
}

}  // namespace pelago::sites
