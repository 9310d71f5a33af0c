#include "sites/simulation/lockstep/lockstep_truth.h"

#include <algorithm>

#include "base/text/json.h"

namespace pelago::sites {

int64_t newest_common(const std::map<std::string, std::vector<CheckpointOffer>>& offers) {
  int64_t newest = -1;
  for (const CheckpointOffer& offer : offers.begin()->second) {
    const bool is_common = std::all_of(offers.begin(), offers.end(), [&](const auto& site) {
      return std::any_of(site.second.begin(), site.second.end(), [&](const CheckpointOffer& other) {
        return other.step == offer.step && other.hash == offer.hash;
      });
    });
    if (is_common) newest = std::max(newest, offer.step);
  }
  return newest;
}

void LockstepTruth::on_writes(const std::vector<StateWrite>& writes) {
  for (const StateWrite& write : writes) {
    if (write.key == "run") on_run(write.value);
    if (write.key.rfind("site/", 0) != 0) continue;
    const std::string site = write.key.substr(5);
    on_site(site, write.value);
    const auto kept = parse_json(write.value);
    if (!kept.contains("welcome")) continue;
    const auto message_of = [&](auto like, const char* key) {
      const Result<Message> message = decode({.from = "",
                                              .kind = static_cast<uint32_t>(Message(like).index()),
                                              .head = kept.at(key).dump(),
                                              .payload = {}});
      return message ? std::get<decltype(like)>(*message) : like;
    };
    const auto welcome = message_of(Welcome{}, "welcome");
    Start& start = starts_[welcome.start_number];
    start.offers[site] = message_of(Hello{}, "hello").checkpoints;
    start.told[site] = welcome.mode == StartMode::kResume ? welcome.start_step : -1;
    if (start.told.size() == sites_.size()) check_choice(welcome.start_number, start);
  }
}

void LockstepTruth::on_run(const std::string& value) {
  const auto kept = parse_json(value);
  constexpr int kStarting = 1;
  if (kept.at("phase").get<int>() == kStarting) saved_before_ = saved_;
  saved_ = kept.value("saved_step", int64_t{-1});
}

int64_t LockstepTruth::step_to_begin_at(
    const std::map<std::string, std::vector<CheckpointOffer>>& offers, int64_t saved) {
  int64_t newest = newest_common(offers);
  for (const auto& [site, own] : offers) {
    for (const CheckpointOffer& offer : own) {
      if (saved < 0 || offer.step <= saved) newest = std::max(newest, offer.step);
    }
  }
  return newest;
}

void LockstepTruth::check_choice(int64_t number, const Start& start) {
  const int64_t newest = step_to_begin_at(start.offers, saved_before_);
  if (newest < 0 && saved_before_ > 0) {
    complain(fmt::format("start {} begins afresh after a checkpoint of {}", number, saved_before_));
  }
  for (const auto& [site, step] : start.told) {
    if (step == newest) continue;
    complain(fmt::format(
        "start {} tells {} to begin at {}, all could begin at {}", number, site, step, newest));
  }
}

void LockstepTruth::on_begin(const std::string& site,
                             int64_t start_number,
                             int64_t step,
                             uint64_t hash) {
  const auto newest = newest_.try_emplace(site, -1).first;
  if (start_number <= newest->second) {
    complain(fmt::format("{} begins start {} after {}", site, start_number, newest->second));
  }
  newest->second = start_number;
  Start& start = starts_[start_number];
  start.begun[site] = {step, hash};
  start.done[site] = step;
  for (const auto& [other, where] : start.begun) {
    if (where != start.begun[site]) {
      complain(fmt::format("start {}: {} begins at step {}, {} at {}, or with other weights",
                           start_number,
                           site,
                           step,
                           other,
                           where.first));
    }
  }
  const auto reached = results_.empty() ? step : results_.rbegin()->first;
  if (start.begun.size() == 1) num_repeated_ += std::max<int64_t>(reached - step, 0);
}

void LockstepTruth::on_given(const std::string& site, int64_t start_number, int64_t step) {
  Start& start = starts_[start_number];
  start.given[site] = step;
  if (start.stopped && step > *start.stopped) {
    complain(fmt::format("{} goes on to step {}, others stop at {}", site, step, *start.stopped));
  }
}

void LockstepTruth::on_stop(const std::string& site, int64_t start_number, int64_t step) {
  Start& start = starts_[start_number];
  start.stopped = step;
  for (const auto& [other, given] : start.given) {
    if (given <= step) continue;
    complain(fmt::format("{} stops at step {}, {} has gone on to {}", site, step, other, given));
  }
}

void LockstepTruth::on_step(const std::string& site,
                            int64_t start_number,
                            int64_t step,
                            uint64_t hash) {
  Start& start = starts_[start_number];
  if (step != start.done[site] + 1) {
    complain(fmt::format("{} does step {} after {}", site, step, start.done[site]));
  }
  start.done[site] = step;
  for (const std::string& other : sites_) {
    const auto given = start.given.find(other);
    if (given == start.given.end() || given->second < step) {
      complain(fmt::format("{} has done step {} without {}", site, step, other));
    }
  }
  const auto known = results_.try_emplace(step, hash).first;
  if (known->second != hash) {
    complain(fmt::format("step {} of {} in start {} has another result", step, site, start_number));
  }
}

void LockstepTruth::on_end(
    const std::string& site, int64_t step, uint64_t hash, int64_t tokens, bool may_be_early) {
  ends_[site] = {step, hash};
  if (tokens != step) complain(fmt::format("{} ends with {} steps' tokens", site, tokens));
  if (step != num_steps_ && !may_be_early) complain(site + " ends before the last step");
}

void LockstepTruth::check_ends() {
  if (ends_.empty()) return complain("no site came to an end");
  for (const auto& [site, end] : ends_) {
    if (end != ends_.begin()->second) complain(site + " ends elsewhere than the others");
  }
}

}  // namespace pelago::sites
