// What a donor gives to sites that fetch: manifests of its fragments, and their leaves. A fetch may
// take longer than the time to the fragment's next commit. So whatever somebody is fetching is
// kept as it was when the commit changes it, until nobody has asked for it for a minute; a site on
// a thin line then ends with an older state, but it ends. Nothing is copied while nobody fetches.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "sites/exchange/global_state.h"
#include "sites/protocol/messages.h"

namespace pelago::sites {

class LeafShelf {
 public:
  /// state outlives the shelf.
  explicit LeafShelf(const GlobalState& state)
      : state_(&state), now_held_(state.fragments().size()), kept_(state.fragments().size()) {}

  struct Answer {
    FragmentLeaf leaf;
    bool again = false;  // this site was sent this leaf before: it may still be on its way
  };

  /// The fragment with this hash if it is still here, else as it is now.
  FragmentManifest manifest(int64_t fragment, const std::string& hash, double now_s);
  /// Nothing if that state of the fragment is not here any more, or there is no such leaf.
  std::optional<Answer> leaf(const FetchLeaf& wanted, double now_s);
  /// Call it before the fragment's state changes.
  void before_change(int64_t fragment, double now_s);
  /// Lets go of what nobody has asked for lately.
  void forget_idle(double now_s);
  int64_t num_kept() const;

 private:
  struct Version {
    int64_t exchange = -1;
    std::string hash;
    std::vector<std::string> leaf_hashes;
    std::string bytes;  // empty: as it is in the state
    double asked_s = -1e9;
    std::set<std::pair<std::string, int64_t>> given;  // address, leaf
  };
  Version& current(int64_t fragment);
  Version* find(int64_t fragment, const std::string& hash);
  std::string bytes_of(const Version& version, int64_t fragment, int64_t leaf_idx) const;

  const GlobalState* state_;
  std::vector<std::optional<Version>> now_held_;  // by fragment; absent: nobody has asked
  std::vector<std::optional<Version>> kept_;      // by fragment: the one before, with its bytes
};

}  // namespace pelago::sites
