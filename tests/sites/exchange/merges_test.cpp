// What a site's workers take in at a merge: one real Member, the others played by hand.
#include <doctest/doctest.h>

#include <memory>
#include <optional>

#include "sites/exchange/give_fragment.h"
#include "sites/protocol/member.h"

namespace pelago::sites {
namespace {

constexpr size_t kMergedValues = 512;
const std::vector<MemberShare> kAlone{{.site = "me", .address = "me", .tokens = 400}};
const std::vector<MemberShare> kOtherAlone{{.site = "other", .address = "other", .tokens = 400}};

struct LoneMember {
  explicit LoneMember(int bits, int64_t overlap_steps = 1)
      : state(std::vector<float>(kMergedValues, 1.0F), {{0, kMergedValues}}) {
    MemberOptions options;
    options.site = "me";
    options.schedule = {.inner_steps = 4,
                        .num_fragments = 1,
                        .overlap_steps = overlap_steps,
                        .num_steps = 8 + overlap_steps};
    options.exchange.bits = bits;
    options.outer = {.lr = 1, .momentum = 0};
    options.sequence_tokens = 100;
    options.hello.incarnation = 1;
    member = std::make_unique<Member>(options, state);
    hear(kCoordinatorName, Welcome{.incarnation = 1, .donors = {}});
    member->on_workers_ready(0);
    hear(kCoordinatorName, AllowTraining{.incarnation = 1});
  }

  void hear(const std::string& from, const Message& message) {
    note(member->on_message(from, message, 0));
  }
  void note(const MemberActions& actions) {
    for (const MemberAction& action : actions) {
      if (const auto* merged = std::get_if<GiveMerged>(&action)) given = merged->given;
    }
  }
  void begin(int64_t exchange, const std::vector<float>& local) {
    snapshot = local;
    note(member->on_snapshot(exchange, snapshot, 0));
    hear(kCoordinatorName, Begin{.exchange = exchange, .epoch = 1, .members = kAlone});
  }
  /// Alone in the exchange: its outcome is what is committed.
  void commit(int64_t exchange) {
    member->on_tick(0);
    const std::string hash = member->status().exchanges.at(0).hash;
    hear(kCoordinatorName,
         Commit{.exchange = exchange,
                .epoch = 1,
                .members = kAlone,
                .hash = hash,
                .donors = {},
                .taken_exchange = exchange,
                .taken_epoch = 1});
  }

  GlobalState state;
  std::unique_ptr<Member> member;
  std::vector<float> snapshot;
  std::optional<std::vector<float>> given;
};

/// One large change, many small ones: the thin form sends the large one.
std::vector<float> trained() {
  std::vector<float> local(kMergedValues, 1.0F);
  for (size_t i = 0; i < kMergedValues; ++i) local[i] += i % 37 == 0 ? 0.5F : 0.001F;
  return local;
}

TEST_CASE("an overlapped merge moves local weights by what the others add, and no step is lost") {
  LoneMember site(32);
  site.begin(0, trained());
  site.commit(0);
  REQUIRE(site.given);
  // Alone, the new global weights are the snapshot itself.
  for (const float value : *site.given) CHECK(value == 0.0F);
}

TEST_CASE("a merge that is waited for gives the global weights, bit for bit") {
  LoneMember site(32, /*overlap_steps=*/0);
  site.begin(0, trained());
  site.commit(0);
  REQUIRE(site.given);
  CHECK(hash_fragment(*site.given, {}) == hash_fragment(site.state.global(), {}));
}

TEST_CASE("what a thin delta leaves out stays in the local weights") {
  LoneMember site(2);
  site.begin(0, trained());
  site.commit(0);
  REQUIRE(site.given);
  CHECK(site.state.global()[37] == doctest::Approx(1.5).epsilon(0.05));  // sent
  CHECK(site.state.global()[38] == 1.0F);                                // not sent
  for (const float value : *site.given) REQUIRE(value == doctest::Approx(0.0).scale(1e-6));
  for (const float value : site.state.kept_error()) REQUIRE(value == 0.0F);
}

TEST_CASE("after the last step a thin site gives all it has, and takes the global weights whole") {
  LoneMember site(2);
  site.begin(2, trained());
  site.commit(2);
  REQUIRE(site.given);
  CHECK(hash_fragment(*site.given, {}) == hash_fragment(site.state.global(), {}));
  for (size_t i = 0; i < kMergedValues; ++i) {
    REQUIRE((*site.given)[i] == doctest::Approx(trained()[i]).epsilon(0.05));
  }
}

TEST_CASE("a site that an exchange left out keeps all it learned, and adds what the others did") {
  for (const int bits : {2, 4, 32}) {
    CAPTURE(bits);
    LoneMember site(bits);
    site.snapshot = trained();
    site.note(site.member->on_snapshot(0, site.snapshot, 0));
    GlobalState other(std::vector<float>(kMergedValues, 1.0F), {{0, kMergedValues}});
    other.apply(0, 0, other.outer_step(0, std::vector<float>(kMergedValues, 0.25F), {.lr = 1}));
    site.hear(kCoordinatorName,
              Commit{.exchange = 0,
                     .epoch = 1,
                     .members = kOtherAlone,
                     .hash = other.fragment_hash(0),
                     .donors = {{.site = "other", .address = "other"}}});
    give_fragment(other, 0, [&](const Message& message) { site.hear("other", message); });
    REQUIRE(site.given);
    const float moved = other.global()[0] - 1.0F;
    for (const float value : *site.given) REQUIRE(value == doctest::Approx(moved));
  }
}

TEST_CASE(
    "slices of no epoch and of no part are refused and counted, and so are requests for them") {
  LoneMember site(32);
  const auto refused = [&](const Message& message) {
    const int64_t before = site.member->status().num_refused;
    site.hear("other", message);
    return site.member->status().num_refused - before;
  };
  CHECK(refused(Slice{.exchange = 0, .epoch = -1, .payload = {}}) == 1);  // nothing has begun
  std::vector<float> local = trained();
  site.member->on_snapshot(0, local, 0);
  std::vector<MemberShare> both = kAlone;
  both.insert(both.end(), kOtherAlone.begin(), kOtherAlone.end());
  site.hear(kCoordinatorName, Begin{.exchange = 0, .epoch = 1, .members = both});
  for (const int64_t part : {int64_t{-1}, int64_t{1}, int64_t{1} << 62}) {
    CAPTURE(part);
    CHECK(refused(Slice{.exchange = 0, .epoch = 1, .part = part, .payload = {}}) == 1);
    CHECK(refused(Want{.exchange = 0, .epoch = 1, .part = part}) == 1);
  }
  CHECK(refused(Want{.exchange = 0, .epoch = 1, .part = 0}) == 0);
}

}  // namespace
}  // namespace pelago::sites
