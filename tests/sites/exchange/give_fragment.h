// A donor played by hand: gives all of a fragment to a site that wants it.
#pragma once

#include <string>

#include "sites/fetch/leaf_shelf.h"

namespace pelago::sites {

/// hear: takes each message as the site that wants the fragment would from the donor.
template <typename Hear>
void give_fragment(const GlobalState& state, int64_t fragment, const Hear& hear) {
  LeafShelf shelf(state);
  const std::string hash = state.fragment_hash(fragment);
  hear(shelf.manifest(fragment, hash, 0));
  for (int64_t leaf = 0; leaf < state.leaf_layout(fragment).num_leaves(); ++leaf) {
    const FetchLeaf wanted{.fragment = fragment, .hash = hash, .address = "me", .leaf = leaf};
    hear(shelf.leaf(wanted, 0)->leaf);
  }
}

}  // namespace pelago::sites
