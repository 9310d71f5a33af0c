// What sites tell each other when one fetches a part of the state (fragment_fetcher.h) and others
// give it away (leaf_shelf.h).
#pragma once

#include <cstdint>
#include <string>

namespace pelago::sites {

/// "Tell me what you hold of this fragment, as of this exchange or a later one."
struct Fetch {
  int64_t fragment = 0;
  int64_t exchange_min = -1;
  std::string hash;     // rather than the newest, this one, if it is still here; or empty
  std::string address;  // where the answer goes: a site that has started anew is found elsewhere
};
/// What the sender holds of a fragment, leaf by leaf (fetch/leaves.h).
struct FragmentManifest {
  int64_t fragment = 0, exchange = -1;
  std::string hash;     // the root over the leaf hashes
  std::string payload;  // leaf hashes, 32 hex digits each, one after another
};
/// "Give me this leaf of the fragment with this hash." Else a manifest.
struct FetchLeaf {
  int64_t fragment = 0;
  std::string hash, address;
  int64_t leaf = 0;
};
struct FragmentLeaf {
  int64_t fragment = 0;
  std::string hash;
  int64_t leaf = 0;
  std::string payload;  // f32
};

}  // namespace pelago::sites
