// Sites that exchange with each other: members and coordinator as they are, workers replaced by
// arithmetic. One of them may send what it likes. Letters lose nothing on their way.
#pragma once

#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <deque>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/rng.h"
#include "sites/hostile/post.h"
#include "sites/protocol/member.h"
#include "sites/protocol/round_machine.h"

namespace pelago::sites {

using Spoil = std::function<void(std::vector<float>& delta)>;
using SpoilBytes = std::function<void(std::string& payload)>;

struct PartnersOptions {
  size_t num_sites = 3;
  int bits = 8;
  Lines lines = {};  // empty: letters are handed over at once
};

class Partners {
 public:
  static constexpr int64_t kValues = 3072, kFragments = 3;
  static constexpr train::ExchangeSchedule kSchedule{
      .inner_steps = 6, .num_fragments = kFragments, .overlap_steps = 1, .num_steps = 400};

  explicit Partners(PartnersOptions options)
      : options_(std::move(options)), post_(options_.lines), rng_(Rng(11).fork("partners")) {
    RoundOptions rounds;
    rounds.schedule = kSchedule;
    std::vector<train::Fragment> fragments;
    for (int64_t i = 0; i < kFragments; ++i) {
      fragments.push_back(
          {.begin = kValues / kFragments * i, .end = kValues / kFragments * (i + 1)});
    }
    for (size_t i = 0; i < options_.num_sites; ++i)
      rounds.sites.push_back(fmt::format("site{}", i));
    coordinator_ = std::make_unique<RoundMachine>(rounds);
    for (const std::string& name : rounds.sites) {
      Site& site = sites_.emplace_back();
      site.name = name;
      site.state = std::make_unique<GlobalState>(std::vector<float>(kValues, 0.5F), fragments);
      MemberOptions member;
      member.site = name;
      member.schedule = kSchedule;
      member.exchange.bits = options_.bits;
      member.sequence_tokens = 100;
      member.hello.incarnation = 1;
      member.hello.address = name;
      site.member = std::make_unique<Member>(member, *site.state);
    }
    for (int i = 0; i < 4; ++i) turn();
  }

  /// One exchange; spoil changes what one site sends. Returns the members of its commit.
  std::vector<std::string> exchange(size_t bad = 0, const Spoil& spoil = {}) {
    const int64_t idx = next_++;
    const int64_t num_values = kValues / kFragments;
    const auto begin = static_cast<size_t>(num_values * (idx % kFragments));
    std::vector<double> common(static_cast<size_t>(num_values));
    for (double& value : common) value = rng_.next_normal();
    for (Site& site : sites_) {
      std::vector<float> delta;
      for (const double value : common) {
        delta.push_back(static_cast<float>(1e-3 * (value + 0.7 * rng_.next_normal())));
      }
      if (spoil && &site == &sites_[bad]) spoil(delta);
      site.local.assign(delta.size(), 0);
      for (size_t i = 0; i < delta.size(); ++i) {
        site.local[i] = site.state->global()[begin + i] - delta[i];
      }
      carry_out(site, site.member->on_snapshot(idx, site.local, now_s_));
    }
    deliver();
    for (int i = 0; i < 40 && last_commit_.exchange != idx; ++i) turn();
    for (int i = 0; i < 3 || (i < 20 && !all_hold_the_same()); ++i) turn();
    std::vector<std::string> members;
    REQUIRE(last_commit_.exchange == idx);
    for (const MemberShare& member : last_commit_.members) members.push_back(member.site);
    CHECK(all_hold_the_same());
    return members;
  }

  /// The same with slices whose bytes one site changes after it has encoded them.
  std::vector<std::string> exchange_bytes(size_t bad, const SpoilBytes& spoil) {
    spoil_bytes_ = spoil;
    bad_ = bad;
    std::vector<std::string> members = exchange();
    spoil_bytes_ = {};
    return members;
  }

  /// Events of this name so far, as their JSON fields.
  std::vector<nlohmann::json> events(const std::string& name) const {
    std::vector<nlohmann::json> found;
    for (const auto& [event, fields] : events_) {
      if (event == name) found.push_back(nlohmann::json::parse(fields));
    }
    return found;
  }

 private:
  struct Site {
    std::string name;
    std::unique_ptr<GlobalState> state;
    std::unique_ptr<Member> member;
    std::vector<float> local;
  };

  bool all_hold_the_same() const {
    return std::all_of(sites_.begin(), sites_.end(), [&](const Site& site) {
      return site.state->hash() == sites_.front().state->hash();
    });
  }

  void turn() {
    now_s_ += 0.3;
    for (Site& site : sites_) carry_out(site, site.member->on_tick(now_s_));
    take(coordinator_->on_tick(now_s_));
    deliver();
  }

  void take(RoundOutput output) {
    for (const Commit& commit : output.commits) last_commit_ = commit;
    for (auto& event : output.events) events_.push_back(std::move(event));
    for (auto& [to, message] : output.messages)
      post_.send(kCoordinatorName, to, std::move(message));
  }

  void carry_out(Site& site, MemberActions actions) {
    for (MemberAction& action : actions) {
      if (auto* letter = std::get_if<SendMessage>(&action)) {
        auto* slice = std::get_if<Slice>(&letter->message);
        const bool is_bad = spoil_bytes_ && &site == &sites_[bad_];
        if (is_bad && slice != nullptr && !slice->of_mean) spoil_bytes_(slice->payload);
        post_.send(site.name, letter->to, std::move(letter->message));
      } else if (std::holds_alternative<StartWorkers>(action)) {
        carry_out(site, site.member->on_workers_ready(now_s_));
      }
    }
  }

  void deliver() {
    post_.deliver([&](const std::string& from, const std::string& to, const Message& message) {
      if (to == kCoordinatorName) return take(coordinator_->on_message(from, message, now_s_));
      for (Site& site : sites_) {
        if (site.name == to) carry_out(site, site.member->on_message(from, message, now_s_));
      }
    });
  }

  PartnersOptions options_;
  Post post_;
  Rng rng_;
  double now_s_ = 100;
  int64_t next_ = 0;
  std::unique_ptr<RoundMachine> coordinator_;
  std::deque<Site> sites_;
  SpoilBytes spoil_bytes_;
  size_t bad_ = 0;
  std::vector<std::pair<std::string, std::string>> events_;
  Commit last_commit_;
};

inline void negate(std::vector<float>& delta) {
  for (float& value : delta) value = -value;
}
inline void enlarge(std::vector<float>& delta) {
  for (float& value : delta) value *= 100;
}
// What rounding still owed goes out all the same, so that it is not zero, but far too small.
inline void stand_still(std::vector<float>& delta) { std::fill(delta.begin(), delta.end(), 0.0F); }

}  // namespace pelago::sites
