// What sites tell each other when one fetches a part of the state (fragment_fetcher.h) and others
// give it away (leaf_shelf.h), or, in step, a checkpoint (across/checkpoint_fetcher.h).
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
/// "Give me what lies there in this file of your checkpoint." An answer that does not come is
/// asked for again.
struct FetchPiece {
  int64_t step = 0;
  std::string hash;  // of the checkpoint, as in its offer
  std::string file;
  int64_t offset = 0;  // bytes
};
struct CheckpointPiece {
  int64_t step = 0;
  std::string hash, file;
  int64_t offset = 0;
  std::string payload;  // empty: the sender has no such piece
};

}  // namespace pelago::sites
