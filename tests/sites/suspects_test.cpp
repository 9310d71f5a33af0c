// The protocol against a site whose deltas are wrong: members and coordinator as they are, a
// network that loses nothing, workers replaced by arithmetic.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <deque>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/rng.h"
#include "sites/protocol/member.h"
#include "sites/protocol/round_machine.h"

namespace pelago::sites {
namespace {

constexpr int64_t kValues = 3072;
constexpr int64_t kFragments = 3;
constexpr train::ExchangeSchedule kSchedule{
    .inner_steps = 6, .num_fragments = kFragments, .overlap_steps = 1, .num_steps = 400};

using Spoil = std::function<void(std::vector<float>& delta)>;

class Partners {
 public:
  explicit Partners(size_t num_sites) : rng_(Rng(11).fork("partners")) {
    RoundOptions rounds;
    rounds.schedule = kSchedule;
    std::vector<train::Fragment> fragments;
    for (int64_t i = 0; i < kFragments; ++i) {
      fragments.push_back(
          {.begin = kValues / kFragments * i, .end = kValues / kFragments * (i + 1)});
    }
    for (size_t i = 0; i < num_sites; ++i) rounds.sites.push_back(fmt::format("site{}", i));
    coordinator_ = std::make_unique<RoundMachine>(rounds);
    for (const std::string& name : rounds.sites) {
      Site& site = sites_.emplace_back();
      site.name = name;
      site.state = std::make_unique<GlobalState>(std::vector<float>(kValues, 0.5F), fragments);
      MemberOptions member;
      member.site = name;
      member.schedule = kSchedule;
      member.exchange.bits = 8;
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
    for (int i = 0; i < 3; ++i) turn();
    std::vector<std::string> members;
    REQUIRE(last_commit_.exchange == idx);
    for (const MemberShare& member : last_commit_.members) members.push_back(member.site);
    for (const Site& site : sites_) CHECK(site.state->hash() == sites_.front().state->hash());
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
  struct Letter {
    std::string from, to;
    Message message;
  };

  void turn() {
    now_s_ += 0.3;
    for (Site& site : sites_) carry_out(site, site.member->on_tick(now_s_));
    take(coordinator_->on_tick(now_s_));
    deliver();
  }

  void take(RoundOutput output) {
    for (const Commit& commit : output.commits) last_commit_ = commit;
    for (auto& event : output.events) events_.push_back(std::move(event));
    for (auto& [to, message] : output.messages) {
      letters_.push_back({.from = kCoordinatorName, .to = to, .message = std::move(message)});
    }
  }

  void carry_out(Site& site, MemberActions actions) {
    for (MemberAction& action : actions) {
      if (auto* send = std::get_if<SendMessage>(&action)) {
        letters_.push_back(
            {.from = site.name, .to = send->to, .message = std::move(send->message)});
      } else if (std::holds_alternative<StartWorkers>(action)) {
        carry_out(site, site.member->on_workers_ready(now_s_));
      }
    }
  }

  void deliver() {
    while (!letters_.empty()) {
      const Letter letter = std::move(letters_.front());
      letters_.pop_front();
      // As on the line: what cannot be encoded and read again does not arrive.
      const auto message = decode(encode(letter.from, letter.message));
      REQUIRE(message);
      if (letter.to == kCoordinatorName) {
        take(coordinator_->on_message(letter.from, *message, now_s_));
        continue;
      }
      for (Site& site : sites_) {
        if (site.name == letter.to) {
          carry_out(site, site.member->on_message(letter.from, *message, now_s_));
        }
      }
    }
  }

  Rng rng_;
  double now_s_ = 100;
  int64_t next_ = 0;
  std::unique_ptr<RoundMachine> coordinator_;
  std::deque<Site> sites_;
  std::deque<Letter> letters_;
  std::vector<std::pair<std::string, std::string>> events_;
  Commit last_commit_;
};

void negate(std::vector<float>& delta) {
  for (float& value : delta) value = -value;
}
void enlarge(std::vector<float>& delta) {
  for (float& value : delta) value *= 100;
}
// What rounding still owed goes out all the same, so that it is not zero, but far too small.
void stand_still(std::vector<float>& delta) { std::fill(delta.begin(), delta.end(), 0.0F); }

TEST_CASE("honest partners are never suspected") {
  Partners partners(3);
  for (int i = 0; i < 60; ++i) CHECK(partners.exchange().size() == 3);
  CHECK(partners.events("site_suspect").empty());
}

TEST_CASE("a site that sends a wrong delta sits the round out, is named, and returns when clean") {
  struct Attack {
    const char* fault;
    Spoil spoil;
  };
  for (const Attack& attack :
       {Attack{"direction", negate}, Attack{"norm", enlarge}, Attack{"norm", stand_still}}) {
    CAPTURE(attack.fault);
    Partners partners(3);
    for (int i = 0; i < 15; ++i) CHECK(partners.exchange().size() == 3);
    const std::vector<std::string> others = {"site0", "site2"};
    CHECK(partners.exchange(1, attack.spoil) == others);
    const auto suspects = partners.events("site_suspect");
    REQUIRE(suspects.size() == 1);
    CHECK(suspects[0]["site"] == "site1");
    CHECK(suspects[0]["fault"] == attack.fault);
    // The rest of the round without it, whatever it sends.
    for (int64_t i = 1; i < kFragments; ++i) CHECK(partners.exchange(1, attack.spoil) == others);
    CHECK(partners.events("site_suspect").size() == 1);
    CHECK(partners.exchange().size() == 3);  // back
    for (int64_t i = 1; i < 2 * kFragments; ++i) CHECK(partners.exchange().size() == 3);
    CHECK(partners.events("site_cleared").size() == 1);
  }
}

TEST_CASE("a site that goes on sending wrong deltas is out longer each time") {
  Partners partners(4);
  for (int i = 0; i < 15; ++i) partners.exchange();
  int num_with = 0;
  for (int i = 0; i < 30; ++i) num_with += partners.exchange(3, enlarge).size() == 4 ? 1 : 0;
  CHECK(num_with == 0);  // nothing of it ever counted
  CHECK(partners.events("site_suspect").size() <= 4);
}

TEST_CASE("of two sites, the one that changed its habit is left out, and the other goes on") {
  Partners partners(2);
  for (int i = 0; i < 15; ++i) CHECK(partners.exchange().size() == 2);
  CHECK(partners.exchange(0, enlarge) == std::vector<std::string>{"site1"});
  REQUIRE(partners.events("site_suspect").size() == 1);
  CHECK(partners.events("site_suspect")[0]["site"] == "site0");
}

}  // namespace
}  // namespace pelago::sites
