// The workers of a site in step: the first site's decide whether a step is done, each gives its
// part of it to all others, and with all parts the state goes on. Real ones give up after two
// minutes of silence: here nothing may come to that, since whoever lost something has said so.
#include <algorithm>
#include <utility>

#include "sites/simulation/lockstep/lockstep_run.h"

namespace pelago::sites {

namespace {

constexpr double kSilenceS = 120;

}  // namespace

void LockstepRun::start_workers(Site& site, const StartWorkers& begin) {
  Workers& workers = site.workers;
  const bool goes_on = faulty_.keeps_workers && workers.start_number >= 0;
  workers.start_number = begin.start_number;
  if (begin.mode == StartMode::kResume && !goes_on) {
    const SimulatedCheckpoint* checkpoint = site.disk.find(begin.step);
    if (checkpoint == nullptr || checkpoint->is_torn) {
      return complain(site.name + " is to go on from a checkpoint that it has not");
    }
    workers.step = workers.saved_step = begin.step;
    workers.hash = site.saved[begin.step].hash;
    workers.tokens = faulty_.counts_tokens_on ? std::max(site.saved[-1].tokens, begin.step)
                                              : site.saved[begin.step].tokens;
  }
  workers.ready_s = clock_.now_s() + 0.3 + 0.7 * rng_.next_uniform();
  truth_.on_begin(site.name, begin.start_number, workers.step, workers.hash);
  for (const RelayPart& part : site.order.start(begin.start_number)) take(site, part);
}

void LockstepRun::give(Site& site, int64_t step, bool is_order, uint64_t value) {
  for (const Site& other : sites_) {
    if (other.name == site.name) continue;
    RelayHead head{.start_number = site.workers.start_number,
                   .sequence = site.workers.sent[other.name]++,
                   .header = {}};
    head.header.from_rank = static_cast<int32_t>(site.idx);
    head.header.to_rank = static_cast<int32_t>(other.idx);
    head.header.channel =
        is_order ? train::BridgeChannel::kControl : train::BridgeChannel::kActivations;
    head.header.tag = static_cast<uint32_t>(step);
    lines_.send(other.name,
                options_.has_fixed_ports ? other.name : site.peers[other.name],
                relay_frame(site.name, head, std::to_string(value)),
                clock_.now_s());
  }
}

std::string LockstepRun::line_address(const Site& site) const {
  return options_.has_fixed_ports ? site.name : network_.address(site.name);
}

void LockstepRun::hear_lines(Site& site) {
  for (const auto& [to, num_lost] : lines_.give_up(site.name, clock_.now_s())) {
    if (faulty_.hides_lost_lines || !site.member) continue;
    const std::string lost = fmt::format("the line to {} lost {} messages", to, num_lost);
    carry_out(site, site.member->on_line_lost(lost, clock_.now_s()));
  }
  if (!site.member) return;
  for (Frame& frame : lines_.take(site.name, line_address(site), clock_.now_s())) {
    RelayHead head;
    if (!read_relay_head(frame, head)) return complain("a relay's frame has no head");
    if (faulty_.takes_frames_of_any_start) {
      take(site, {.header = head.header, .bytes = frame.payload});
      continue;
    }
    for (const RelayPart& part : site.order.take(std::move(frame))) take(site, part);
  }
  if (site.order.failure().empty() || faulty_.hides_lost_lines) return;
  carry_out(site, site.member->on_line_lost(site.order.failure(), clock_.now_s()));
}

void LockstepRun::look_at_silence(const Site& site) {
  const double silent_s = clock_.now_s() - site.workers.heard_s;
  if (silent_s > kSilenceS) complain(site.name + "'s workers have waited for two minutes");
}

void LockstepRun::take(Site& site, const RelayPart& part) {
  const std::string& from = sites_[static_cast<size_t>(part.header.from_rank)].name;
  const auto step = static_cast<int64_t>(part.header.tag);
  site.workers.heard_s = clock_.now_s();
  if (part.header.channel == train::BridgeChannel::kControl) {
    if (faulty_.stops_alone) return;
    site.workers.orders[step] = part.bytes == "1";
  } else {
    site.workers.parts[step][from] = std::stoull(part.bytes);
  }
}

bool LockstepRun::is_to_stop(Site& site) {
  const Workers& workers = site.workers;
  const bool is_there =
      workers.stop_step && (workers.step >= *workers.stop_step || faulty_.stops_alone);
  return is_there && workers.step < schedule_.num_steps;
}

void LockstepRun::save(Site& site) {
  Workers& workers = site.workers;
  workers.saved_step = workers.step;
  workers.saved_s = clock_.now_s() + options_.site_disk_s * rng_.next_uniform();
  site.saved[workers.step] = {.tokens = workers.tokens, .hash = workers.hash};
  note_saved(site);
  site.disk.save({.incarnation = site.incarnation,
                  .step = workers.step,
                  .data_step = workers.step,
                  .state = *site.state,
                  .local = {},
                  .synced_s = *workers.saved_s,
                  .is_torn = false});
}

/// The agent hears from the one that writes when a checkpoint is safe.
void LockstepRun::note_saved(Site& site) {
  std::optional<double>& saved_s = site.workers.saved_s;
  if (saved_s && clock_.now_s() >= *saved_s) site.member->on_saved(site.workers.saved_step);
}

void LockstepRun::train(Site& site) {
  Workers& workers = site.workers;
  const double now_s = clock_.now_s();
  note_saved(site);
  if (workers.ready_s && now_s >= *workers.ready_s) {
    workers.ready_s.reset();
    carry_out(site, site.member->on_workers_ready(now_s));
    if (!site.member || site.has_left) return;
  }
  if (!workers.trains || workers.has_finished) return;
  const bool is_last = workers.step >= schedule_.num_steps;
  if (is_last || workers.stops) {
    if (workers.saved_step != workers.step) save(site);
    if (workers.saved_s && now_s < *workers.saved_s) return;
    note_saved(site);
    workers.has_finished = any_finished_ = true;
    return carry_out(site, site.member->on_finished(now_s));
  }
  const bool is_due = workers.step > 0 && workers.step % options_.checkpoint_every_steps == 0;
  if (is_due && workers.saved_step != workers.step) save(site);
  const bool decides = site.idx == 0 || faulty_.stops_alone;
  if (decides && !workers.orders.contains(workers.step)) {
    workers.orders[workers.step] = is_to_stop(site);
    give(site, workers.step, true, workers.orders[workers.step] ? 1 : 0);
  }
  if (!workers.orders.contains(workers.step)) {
    return look_at_silence(site);
  }
  if (workers.orders[workers.step]) {
    workers.stops = true;
    return truth_.on_stop(site.name, workers.start_number, workers.step);
  }
  finish_step(site);
}

void LockstepRun::finish_step(Site& site) {
  Workers& workers = site.workers;
  const double now_s = clock_.now_s();
  auto& parts = workers.parts[workers.step];
  if (!parts.contains(site.name)) {
    if (!workers.computed_s) {
      workers.computed_s = now_s + site.step_s * (0.8 + 0.4 * rng_.next_uniform());
    }
    if (now_s < *workers.computed_s) return;
    workers.computed_s.reset();
    parts[site.name] = Rng::mix(workers.hash ^ Rng::mix(site.idx + 1));
    give(site, workers.step, false, parts[site.name]);
    truth_.on_given(site.name, workers.start_number, workers.step + 1);
  }
  if (parts.size() < sites_.size()) {
    return look_at_silence(site);
  }
  uint64_t hash = workers.hash;
  for (const auto& [from, value] : parts) hash = Rng::mix(hash ^ value);
  workers.hash = hash;
  workers.parts.erase(workers.step);
  workers.orders.erase(workers.step);
  ++workers.step;
  ++workers.tokens;
  site.saved[-1].tokens = std::max(site.saved[-1].tokens, workers.tokens);
  truth_.on_step(site.name, workers.start_number, workers.step, workers.hash);
  site.member->on_step(workers.step, site.step_s);
}

}  // namespace pelago::sites
