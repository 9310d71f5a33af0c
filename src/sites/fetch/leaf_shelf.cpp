#include "sites/fetch/leaf_shelf.h"

#include <algorithm>

namespace pelago::sites {

namespace {

// Several times the longest pause of a site that fetches (fragment_fetcher.cpp).
constexpr double kIdleS = 60;

size_t at(int64_t index) { return static_cast<size_t>(index); }

}  // namespace

LeafShelf::Version& LeafShelf::current(int64_t fragment) {
  std::optional<Version>& version = now_held_[at(fragment)];
  if (!version) {
    version.emplace();
    version->exchange = state_->applied()[at(fragment)];
    version->leaf_hashes = state_->leaf_hashes(fragment);
    version->hash = root_of(version->leaf_hashes);
  }
  return *version;
}

LeafShelf::Version* LeafShelf::find(int64_t fragment, const std::string& hash) {
  Version& now = current(fragment);
  if (now.hash == hash) return &now;
  std::optional<Version>& kept = kept_[at(fragment)];
  return kept && kept->hash == hash ? &*kept : nullptr;
}

FragmentManifest LeafShelf::manifest(int64_t fragment, const std::string& hash, double now_s) {
  Version* wanted = find(fragment, hash);
  Version& version = wanted != nullptr ? *wanted : current(fragment);
  version.asked_s = now_s;
  FragmentManifest manifest{
      .fragment = fragment, .exchange = version.exchange, .hash = version.hash, .payload = {}};
  for (const std::string& leaf_hash : version.leaf_hashes) manifest.payload += leaf_hash;
  return manifest;
}

std::string LeafShelf::bytes_of(const Version& version, int64_t fragment, int64_t leaf_idx) const {
  if (version.bytes.empty()) return state_->leaf(fragment, leaf_idx);
  const train::Fragment range = state_->leaf_layout(fragment).bytes(leaf_idx);
  return version.bytes.substr(at(range.begin), at(range.end - range.begin));
}

std::optional<LeafShelf::Answer> LeafShelf::leaf(const FetchLeaf& wanted, double now_s) {
  if (wanted.leaf < 0 || wanted.leaf >= state_->leaf_layout(wanted.fragment).num_leaves()) {
    return std::nullopt;
  }
  Version* version = find(wanted.fragment, wanted.hash);
  if (version == nullptr) return std::nullopt;
  version->asked_s = now_s;
  return Answer{.leaf = {.fragment = wanted.fragment,
                         .hash = wanted.hash,
                         .leaf = wanted.leaf,
                         .payload = bytes_of(*version, wanted.fragment, wanted.leaf)},
                .again = !version->given.emplace(wanted.address, wanted.leaf).second};
}

void LeafShelf::before_change(int64_t fragment, double now_s) {
  std::optional<Version>& held = now_held_[at(fragment)];
  if (!held) return;
  std::optional<Version>& kept = kept_[at(fragment)];
  const bool is_wanted = now_s - held->asked_s < kIdleS;
  // Of two versions that somebody still fetches the older one stays: it has got farther.
  const bool has_older = kept && now_s - kept->asked_s < kIdleS;
  if (is_wanted && !has_older) {
    held->bytes = state_->to_bytes(fragment);
    kept = std::move(held);
  }
  held.reset();
}

void LeafShelf::forget_idle(double now_s) {
  for (std::optional<Version>& kept : kept_) {
    if (kept && now_s - kept->asked_s >= kIdleS) kept.reset();
  }
}

int64_t LeafShelf::num_kept() const {
  return std::count_if(kept_.begin(), kept_.end(), [](const auto& kept) { return kept; });
}

}  // namespace pelago::sites
