// Fetches fragments of the global state, leaf by leaf, from everybody who holds them: for a site
// that joins, one that missed a commit, or one whose own result has another hash. Pure: events and
// time in, messages out.
//   1. Every donor is asked what it holds. A manifest counts if its leaf hashes hash to the root,
//      and the coordinator's commit vouches for that root. What is older than all commits that this
//      coordinator knows has nobody to vouch for it: there, most donors are right.
//   2. Leaves that this site has (in its own state, an older checkpoint, a result that differs)
//      are taken from there. The others are asked of all donors that hold this root, a few at a
//      time of each, so that the faster one sends more.
//   3. A leaf with another hash is refused, its donor named and left alone for a while; so is one
//      that falls silent. What they were asked for goes to the next. No leaf is fetched twice.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "sites/exchange/global_state.h"
#include "sites/protocol/messages.h"

namespace pelago::sites {

/// What the commits say of a root hash of a fragment as of an exchange.
enum class Vouch { kYes, kNo, kNotYet, kNobody };

struct FetcherOptions {
  std::string site, address;     // of this site
  double heartbeat_s = 1;        // a donor is silent after five of these
  int64_t in_flight_leaves = 8;  // of each donor at most: 8 MiB, 0.6 s of 100 Mbit/s
};

struct FetchRequest {
  SiteAddress to;
  Message message;
};
struct FetchedFragment {
  int64_t fragment = 0;
  int64_t exchange = -1;
  FragmentOutcome outcome;
};
struct FetchCounts {
  int64_t fetched = 0;  // leaves that travelled
  int64_t kept = 0;     // that were here
  int64_t refused = 0;
  std::map<std::string, int64_t> by_donor;  // leaves that travelled
};

class FragmentFetcher {
 public:
  using Voucher = std::function<Vouch(int64_t exchange, const std::string& hash)>;

  /// state outlives the fetcher.
  FragmentFetcher(FetcherOptions options, const GlobalState& state, Voucher voucher);

  /// own: bytes of the fragment in which some leaves may be right; or empty.
  void want(int64_t fragment,
            int64_t exchange_min,
            const std::vector<SiteAddress>& donors,
            std::string own = {});
  bool wants(int64_t fragment) const { return wants_.contains(fragment); }
  bool is_idle() const { return wants_.empty(); }
  void set_donors(int64_t fragment, const std::vector<SiteAddress>& donors);
  void drop(int64_t fragment);
  /// The commits have changed: what they no longer vouch for is begun anew.
  void reconsider(int64_t fragment);
  /// A state of an earlier start: leaves may be taken from it.
  void set_older(std::unique_ptr<const GlobalState> older) { older_ = std::move(older); }
  const GlobalState* older() const { return older_.get(); }

  void take(const std::string& from, const FragmentManifest& manifest, double now_s);
  void take(const std::string& from, const FragmentLeaf& leaf, double now_s);
  /// The connection to a donor broke.
  void on_lost(const std::string& donor, double now_s);
  /// Whatever is due: asks, gives up on the silent, chooses. Call it after every event.
  void advance(double now_s);

  std::vector<FetchRequest> take_requests() { return std::exchange(requests_, {}); }
  /// Who sent what was wrong, and what it was.
  std::vector<std::pair<std::string, std::string>> take_refusals() {
    return std::exchange(refusals_, {});
  }
  std::vector<FetchedFragment> take_fetched() { return std::exchange(fetched_, {}); }
  const FetchCounts& counts() const { return counts_; }

 private:
  // So that the first donor to answer, which may have the thinnest line, is not asked for all.
  static constexpr int64_t kFirstWindow = 2;

  struct Donor {
    std::string address;
    int64_t num_in_flight = 0;
    int64_t window = kFirstWindow;  // leaves that may be in flight; grows with each that comes
    double heard_s = 0;             // since then it owes an answer
    double patience_s = 0;          // doubles with each silence: a thin line is no dead one
    double penalty_s = 0;           // doubles with each wrong answer
    double rests_until_s = -1;      // not asked before
  };
  /// The root that is being fetched.
  struct Target {
    int64_t exchange = -1;
    std::string hash;
    std::vector<std::string> leaf_hashes;
    std::string bytes;
    std::vector<bool> here;
    size_t num_missing = 0;
    std::map<int64_t, std::string> flights;  // leaf -> donor that was asked for it
  };
  struct Want {
    int64_t exchange_min = -1;
    std::vector<std::string> donors;
    std::string own;
    std::map<std::string, FragmentManifest> offers;  // by donor
    std::map<std::string, double> asked_s;           // by donor
    std::optional<double> first_asked_s;
    std::optional<Target> target;
  };

  bool rests(const std::string& donor) const;
  void blame(const std::string& donor, const std::string& what);
  void rest(const std::string& donor, double for_s);
  void free_flights(const std::string& donor, Want& want);
  void watch_silence();
  void ask_for_manifests(int64_t fragment, Want& want);
  void choose(int64_t fragment, Want& want);
  void begin(int64_t fragment, Want& want, const FragmentManifest& offer);
  void take_own(int64_t fragment, Want& want);
  void ask_for_leaves(int64_t fragment, Want& want);
  bool finish(int64_t fragment, Want& want);

  FetcherOptions options_;
  const GlobalState* state_;
  Voucher voucher_;
  std::unique_ptr<const GlobalState> older_;
  std::map<int64_t, Want> wants_;  // by fragment
  std::map<std::string, Donor> donors_;
  std::vector<FetchRequest> requests_;
  std::vector<std::pair<std::string, std::string>> refusals_;
  std::vector<FetchedFragment> fetched_;
  FetchCounts counts_;
  double now_s_ = 0;
};

}  // namespace pelago::sites
