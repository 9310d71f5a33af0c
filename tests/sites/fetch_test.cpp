// Fetching a state leaf by leaf: donors that die, lie and move on, and what need not travel.
#include <doctest/doctest.h>

#include <map>
#include <memory>

#include "base/rng.h"
#include "sites/fetch/fragment_fetcher.h"
#include "sites/fetch/leaf_shelf.h"

namespace pelago::sites {
namespace {

constexpr int64_t kNumValues = 1000, kLeaf = 32;
const std::vector<train::Fragment> kFragments = {{.begin = 0, .end = 500},
                                                 {.begin = 500, .end = 1000}};
constexpr int64_t kLeavesEach = 2 * 16;  // of a fragment: 500 values in leaves of 32, twice

std::vector<float> values(uint64_t seed, int64_t num_values = kNumValues) {
  Rng rng(seed);
  std::vector<float> drawn(static_cast<size_t>(num_values));
  for (float& value : drawn) value = static_cast<float>(rng.next_normal());
  return drawn;
}

/// Exchange 0 is of fragment 0, 1 of 1, 2 of 0 again.
void commit(GlobalState& state, int64_t exchange) {
  const int64_t fragment = exchange % 2;
  const std::vector<float> mean = values(100 + static_cast<uint64_t>(exchange), 500);
  state.apply(fragment, exchange, state.outer_step(fragment, mean, {}));
}

GlobalState state_after(int64_t num_exchanges) {
  GlobalState state(values(1), kFragments, kLeaf);
  for (int64_t exchange = 0; exchange < num_exchanges; ++exchange) commit(state, exchange);
  return state;
}

struct Donor {
  explicit Donor(int64_t num_exchanges) : state(state_after(num_exchanges)), shelf(state) {}
  GlobalState state;
  LeafShelf shelf;
  int64_t num_given = 0;
  int64_t dies_after = -1;  // leaves; -1: it does not
  bool lies = false;
  bool is_dead() const { return dies_after >= 0 && num_given >= dies_after; }
  void commit_next(int64_t exchange, double now_s) {
    shelf.before_change(exchange % 2, now_s);
    commit(state, exchange);
  }
};

struct Joiner {
  explicit Joiner(const FragmentFetcher::Voucher& voucher, uint64_t seed = 9)
      : state(values(seed), kFragments, kLeaf),
        fetcher({.site = "j", .address = "j:1", .heartbeat_s = 1, .in_flight_leaves = 3},
                state,
                voucher) {}
  GlobalState state;
  FragmentFetcher fetcher;
  std::vector<std::string> blamed;
};

/// Donors a, b, c that hold two exchanges, and messages that take no time.
class Fair {
 public:
  Fair() {
    for (const char* name : {"a", "b", "c"}) donors_.emplace(name, std::make_unique<Donor>(2));
    GlobalState course = state_after(0);
    for (int64_t exchange = 0; exchange < 4; ++exchange) {
      commit(course, exchange);
      committed_[exchange] = course.fragment_hash(exchange % 2);
    }
  }
  Donor& donor(const std::string& name) { return *donors_.at(name); }
  std::vector<SiteAddress> addresses() const {
    std::vector<SiteAddress> all;
    for (const auto& [name, donor] : donors_) all.push_back({.site = name, .address = name + ":1"});
    return all;
  }
  FragmentFetcher::Voucher voucher() const {
    return [this](int64_t exchange, const std::string& hash) {
      const auto known = committed_.find(exchange);
      if (known == committed_.end()) return Vouch::kNobody;
      return known->second == hash ? Vouch::kYes : Vouch::kNo;
    };
  }
  std::map<int64_t, std::string>& committed() { return committed_; }

  /// A tenth of a second. Returns whether the joiner still wants something.
  bool step(Joiner& joiner) {
    joiner.fetcher.advance(now_s_);
    for (const FetchRequest& request : joiner.fetcher.take_requests()) answer(joiner, request);
    for (const auto& [donor, what] : joiner.fetcher.take_refusals()) joiner.blamed.push_back(donor);
    for (const FetchedFragment& fetched : joiner.fetcher.take_fetched()) {
      joiner.state.apply(fetched.fragment, fetched.exchange, fetched.outcome);
    }
    now_s_ += 0.1;
    return !joiner.fetcher.is_idle();
  }
  void finish(Joiner& joiner) {
    for (int i = 0; i < 2000 && step(joiner); ++i) {
    }
    REQUIRE(joiner.fetcher.is_idle());
  }
  double now_s() const { return now_s_; }

 private:
  void answer(Joiner& joiner, const FetchRequest& request) {
    Donor& donor = *donors_.at(request.to.site);
    if (donor.is_dead()) return;
    if (const auto* fetch = std::get_if<Fetch>(&request.message)) {
      joiner.fetcher.take(
          request.to.site, donor.shelf.manifest(fetch->fragment, fetch->hash, now_s_), now_s_);
      return;
    }
    const auto& wanted = std::get<FetchLeaf>(request.message);
    auto given = donor.shelf.leaf(wanted, now_s_);
    if (!given) {
      joiner.fetcher.take(
          request.to.site, donor.shelf.manifest(wanted.fragment, "", now_s_), now_s_);
      return;
    }
    ++donor.num_given;
    if (donor.lies) given->leaf.payload[5] = static_cast<char>(given->leaf.payload[5] ^ 1);
    joiner.fetcher.take(request.to.site, given->leaf, now_s_);
  }

  std::map<std::string, std::unique_ptr<Donor>> donors_;
  std::map<int64_t, std::string> committed_;
  double now_s_ = 0;
};

void want_all(Joiner& joiner, const Fair& fair) {
  joiner.fetcher.want(0, 0, fair.addresses());
  joiner.fetcher.want(1, 1, fair.addresses());
}

TEST_CASE("leaves come from all donors at once, each leaf once") {
  Fair fair;
  Joiner joiner(fair.voucher());
  want_all(joiner, fair);
  fair.finish(joiner);
  CHECK(joiner.state.hash() == fair.donor("a").state.hash());
  CHECK(joiner.fetcher.counts().fetched == 2 * kLeavesEach);
  for (const char* name : {"a", "b", "c"}) CHECK(fair.donor(name).num_given > kLeavesEach / 3);
  CHECK(joiner.blamed.empty());
}

TEST_CASE("when donors die in the middle, the last one gives the rest, and no leaf comes twice") {
  Fair fair;
  fair.donor("a").dies_after = 2;
  fair.donor("c").dies_after = 5;
  Joiner joiner(fair.voucher());
  want_all(joiner, fair);
  fair.finish(joiner);
  CHECK(joiner.state.hash() == fair.donor("b").state.hash());
  CHECK(fair.donor("b").num_given == 2 * kLeavesEach - 2 - 5);
}

TEST_CASE("the first donor to answer is asked for two leaves, and for more as they come") {
  Fair fair;
  Joiner joiner(fair.voucher());
  joiner.fetcher.want(0, 0, fair.addresses());
  LeafShelf& shelf = fair.donor("a").shelf;
  const auto asked = [&] {
    joiner.fetcher.advance(0);
    std::vector<FetchLeaf> leaves;
    for (const FetchRequest& request : joiner.fetcher.take_requests()) {
      const auto* leaf = std::get_if<FetchLeaf>(&request.message);
      if (leaf == nullptr) continue;
      CHECK(request.to.site == "a");
      leaves.push_back(*leaf);
    }
    return leaves;
  };
  CHECK(asked().empty());
  joiner.fetcher.take("a", shelf.manifest(0, "", 0), 0);
  const std::vector<FetchLeaf> first = asked();
  REQUIRE(first.size() == 2);
  joiner.fetcher.take("a", shelf.leaf(first[0], 0)->leaf, 0);
  CHECK(asked().size() == 2);  // three are in flight, the most that may be
  joiner.fetcher.take("a", shelf.leaf(first[1], 0)->leaf, 0);
  CHECK(asked().size() == 1);
}

TEST_CASE("a donor whose connection broke is not waited for") {
  Fair fair;
  fair.donor("a").dies_after = fair.donor("b").dies_after = 1;
  Joiner joiner(fair.voucher());
  want_all(joiner, fair);
  fair.step(joiner);
  fair.step(joiner);
  for (const char* name : {"a", "b"}) joiner.fetcher.on_lost(name, fair.now_s());
  fair.finish(joiner);
  CHECK(fair.now_s() < 4);  // its silence alone would be noticed after 5 s
}

TEST_CASE("a donor that sends wrong bytes is named, and none of them are taken") {
  Fair fair;
  fair.donor("b").lies = true;
  Joiner joiner(fair.voucher());
  want_all(joiner, fair);
  fair.finish(joiner);
  CHECK(joiner.state.hash() == fair.donor("a").state.hash());
  REQUIRE_FALSE(joiner.blamed.empty());
  for (const std::string& name : joiner.blamed) CHECK(name == "b");
  CHECK(joiner.fetcher.counts().refused == static_cast<int64_t>(joiner.blamed.size()));
}

TEST_CASE("with nobody but a liar nothing is taken, and an honest donor that comes later helps") {
  Fair fair;
  fair.donor("b").lies = true;
  Joiner joiner(fair.voucher());
  joiner.fetcher.want(0, 0, {{.site = "b", .address = "b:1"}});
  for (int i = 0; i < 300; ++i) CHECK(fair.step(joiner));
  CHECK(joiner.blamed.size() < 25);  // it is asked more and more seldom
  joiner.fetcher.set_donors(0, fair.addresses());
  fair.finish(joiner);
  CHECK(joiner.state.fragment_hash(0) == fair.donor("a").state.fragment_hash(0));
}

TEST_CASE("what an older checkpoint still has does not travel") {
  Fair fair;
  Joiner joiner(fair.voucher());
  joiner.fetcher.set_older(std::make_unique<const GlobalState>(state_after(1)));
  want_all(joiner, fair);
  fair.finish(joiner);
  CHECK(joiner.state.hash() == fair.donor("a").state.hash());
  CHECK(joiner.fetcher.counts().fetched == kLeavesEach);  // exchange 1 came after it
  CHECK(joiner.fetcher.counts().kept == kLeavesEach);
}

TEST_CASE("a result that differs in one value is mended with one leaf") {
  Fair fair;
  Joiner joiner(fair.voucher());
  std::string own = fair.donor("a").state.to_bytes(1);
  own[700] = static_cast<char>(own[700] ^ 1);
  joiner.fetcher.want(1, 1, fair.addresses(), own);
  fair.finish(joiner);
  CHECK(joiner.state.fragment_hash(1) == fair.donor("a").state.fragment_hash(1));
  CHECK(joiner.fetcher.counts().fetched == 1);
}

TEST_CASE("two at once end with the state they began with, though the donors go on meanwhile") {
  Fair fair;
  Joiner one(fair.voucher()), other(fair.voucher(), 10);
  for (Joiner* joiner : {&one, &other}) joiner->fetcher.want(0, 0, fair.addresses());
  for (Joiner* joiner : {&one, &other}) fair.step(*joiner);
  for (const char* name : {"a", "b", "c"}) {
    fair.donor(name).commit_next(2, fair.now_s());
    CHECK(fair.donor(name).shelf.num_kept() == 1);
  }
  for (Joiner* joiner : {&one, &other}) {
    fair.finish(*joiner);
    CHECK(joiner->state.applied()[0] == 0);
    CHECK(joiner->state.fragment_hash(0) == fair.committed().at(0));
  }
  fair.donor("a").shelf.forget_idle(fair.now_s() + 61);
  CHECK(fair.donor("a").shelf.num_kept() == 0);
}

TEST_CASE("a donor that was silent and has moved on meanwhile still gives what was begun") {
  Fair fair;
  Joiner joiner(fair.voucher());
  joiner.fetcher.want(0, 0, {{.site = "a", .address = "a:1"}});
  fair.step(joiner);
  fair.step(joiner);
  Donor& donor = fair.donor("a");
  const int64_t given = donor.num_given;
  donor.dies_after = given;  // falls silent
  for (int i = 0; i < 60; ++i) fair.step(joiner);
  donor.commit_next(2, fair.now_s());
  donor.dies_after = -1;
  fair.finish(joiner);
  CHECK(joiner.state.applied()[0] == 0);
  CHECK(joiner.fetcher.counts().fetched == kLeavesEach);
}

TEST_CASE("when no donor has a state any more, the next one is fetched") {
  Fair fair;
  Joiner joiner(fair.voucher());
  joiner.fetcher.want(0, 0, fair.addresses());
  fair.step(joiner);
  for (const char* name : {"a", "b", "c"}) {  // started anew: their shelves are empty
    fair.donor(name).commit_next(2, fair.now_s());
    fair.donor(name).shelf.forget_idle(fair.now_s() + 1000);
  }
  fair.finish(joiner);
  CHECK(joiner.state.applied()[0] == 2);
  CHECK(joiner.state.fragment_hash(0) == fair.committed().at(2));
}

TEST_CASE(
    "a state that the commits do not vouch for is not begun, and whoever offers it is named") {
  Fair fair;
  fair.committed()[0] = "of another course";
  Joiner joiner(fair.voucher());
  joiner.fetcher.want(0, 0, fair.addresses());
  for (int i = 0; i < 20; ++i) fair.step(joiner);
  CHECK_FALSE(joiner.fetcher.is_idle());
  CHECK(joiner.fetcher.counts().fetched == 0);
  CHECK(joiner.blamed.size() >= 3);
}

TEST_CASE("a commit that is not yet known is waited for without blame") {
  Fair fair;
  bool is_known = false;
  const auto voucher = [&](int64_t exchange, const std::string& hash) {
    return is_known ? fair.voucher()(exchange, hash) : Vouch::kNotYet;
  };
  Joiner joiner(voucher);
  joiner.fetcher.want(0, 0, fair.addresses());
  for (int i = 0; i < 20; ++i) fair.step(joiner);
  CHECK(joiner.fetcher.counts().fetched == 0);
  CHECK(joiner.blamed.empty());
  is_known = true;
  fair.finish(joiner);
  CHECK(joiner.state.fragment_hash(0) == fair.committed().at(0));
}

TEST_CASE(
    "a state whose commit is never heard of is not waited for once the donors have the next") {
  Fair fair;
  const auto voucher = [&](int64_t exchange, const std::string& hash) {
    return exchange == 0 ? Vouch::kNotYet : fair.voucher()(exchange, hash);
  };
  Joiner joiner(voucher);
  joiner.fetcher.want(0, 0, fair.addresses());
  for (int i = 0; i < 20; ++i) fair.step(joiner);
  for (const char* name : {"a", "b", "c"}) fair.donor(name).commit_next(2, fair.now_s());
  fair.finish(joiner);
  CHECK(joiner.state.applied()[0] == 2);
  CHECK(joiner.blamed.empty());
}

TEST_CASE("where nobody vouches, most donors are right") {
  Fair fair;
  fair.committed().clear();  // all of it from before this coordinator's first commit
  fair.donor("a").state.apply(
      0, 0, fair.donor("a").state.outer_step(0, values(77, 500), {}));  // other weights
  Joiner joiner(fair.voucher());
  joiner.fetcher.want(0, -1, fair.addresses());
  fair.finish(joiner);
  CHECK(joiner.state.fragment_hash(0) == fair.donor("b").state.fragment_hash(0));
}

TEST_CASE("a manifest whose hashes do not make its root is refused, and so is one cut short") {
  Fair fair;
  Joiner joiner(fair.voucher());
  joiner.fetcher.want(0, 0, fair.addresses());
  joiner.fetcher.advance(0);
  FragmentManifest manifest = fair.donor("a").shelf.manifest(0, "", 0);
  manifest.payload[3] = manifest.payload[3] == '0' ? '1' : '0';
  joiner.fetcher.take("a", manifest, 0);
  manifest = fair.donor("b").shelf.manifest(0, "", 0);
  manifest.payload.resize(manifest.payload.size() - 32);
  joiner.fetcher.take("b", manifest, 0);
  CHECK(joiner.fetcher.take_refusals().size() == 2);
}

TEST_CASE("a leaf that is not there, or of a state that is not, is not given") {
  Fair fair;
  LeafShelf& shelf = fair.donor("a").shelf;
  const std::string hash = fair.committed().at(0);
  const auto given = [&](int64_t leaf, const std::string& root) {
    return shelf.leaf({.fragment = 0, .hash = root, .address = "j:1", .leaf = leaf}, 0).has_value();
  };
  CHECK(given(0, hash));
  CHECK(given(kLeavesEach - 1, hash));
  CHECK_FALSE(given(-1, hash));
  CHECK_FALSE(given(kLeavesEach, hash));
  CHECK_FALSE(given(int64_t{1} << 52, hash));
  CHECK_FALSE(given(0, "another"));
}

}  // namespace
}  // namespace pelago::sites
