#include "data/bpe/encoder.h"

#include <array>
#include <queue>
#include <tuple>

#include "base/error.h"

namespace pelago::data {

namespace {

constexpr size_t kShortBytesMax = 64;

}  // namespace

BpeEncoder::BpeEncoder(const TokenizerSpec& spec)
    : id_of_byte_(256, -1), steps_(spec.merges.size()) {
  for (size_t id = 0; id < spec.token_bytes.size(); ++id) {
    const std::string& bytes = spec.token_bytes[id];
    if (bytes.size() == 1) {
      id_of_byte_[static_cast<uint8_t>(bytes[0])] = static_cast<TokenId>(id);
    }
    if (spec.ignore_merges && !bytes.empty()) {
      whole_pieces_.emplace(bytes, static_cast<TokenId>(id));
    }
  }
  for (const TokenId id : id_of_byte_) PELAGO_ASSERT(id >= 0, "every byte has a token");
  uint32_t rank = 0;
  for (const Merge& merge : spec.merges) {
    steps_.insert(pair_key(merge.left, merge.right), {.rank = rank++, .result = merge.result});
  }
}

BpeEncoder::Step BpeEncoder::step_of(TokenId left, TokenId right) const {
  const Step* step = steps_.find(pair_key(left, right));
  return step == nullptr ? Step{} : *step;
}

void BpeEncoder::encode(std::string_view piece, std::vector<TokenId>& out) const {
  if (!whole_pieces_.empty()) {
    const auto found = whole_pieces_.find(piece);
    if (found != whole_pieces_.end()) {
      out.push_back(found->second);
      return;
    }
  }
  piece.size() <= kShortBytesMax ? encode_short(piece, out) : encode_long(piece, out);
}

void BpeEncoder::encode_short(std::string_view piece, std::vector<TokenId>& out) const {
  std::array<TokenId, kShortBytesMax> ids;
  std::array<Step, kShortBytesMax> steps;  // steps[i] merges ids[i] and ids[i + 1]
  size_t num_ids = piece.size();
  for (size_t i = 0; i < num_ids; ++i) ids[i] = id_of_byte_[static_cast<uint8_t>(piece[i])];
  for (size_t i = 0; i + 1 < num_ids; ++i) steps[i] = step_of(ids[i], ids[i + 1]);
  while (num_ids > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < num_ids; ++i) {
      if (steps[i].rank < steps[best].rank) best = i;
    }
    if (steps[best].rank == UINT32_MAX) break;
    ids[best] = steps[best].result;
    --num_ids;
    for (size_t i = best + 1; i < num_ids; ++i) ids[i] = ids[i + 1];
    for (size_t i = best; i + 1 < num_ids; ++i) steps[i] = steps[i + 1];
    if (best > 0) steps[best - 1] = step_of(ids[best - 1], ids[best]);
    if (best + 1 < num_ids) steps[best] = step_of(ids[best], ids[best + 1]);
  }
  out.insert(out.end(), ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(num_ids));
}

void BpeEncoder::encode_long(std::string_view piece, std::vector<TokenId>& out) const {
  struct Node {
    TokenId id;  // -1 once merged into the node before
    int32_t previous;
    int32_t next;
  };
  struct Candidate {
    uint32_t rank;
    int32_t node_idx;
    TokenId left;  // stale if the nodes no longer hold these
    TokenId right;
    TokenId result;
    bool operator>(const Candidate& other) const {
      return std::tie(rank, node_idx) > std::tie(other.rank, other.node_idx);
    }
  };
  const auto num_nodes = static_cast<int32_t>(piece.size());
  std::vector<Node> nodes(piece.size());
  const auto node = [&](int32_t idx) -> Node& { return nodes[static_cast<size_t>(idx)]; };
  for (int32_t i = 0; i < num_nodes; ++i) {
    const auto byte = static_cast<uint8_t>(piece[static_cast<size_t>(i)]);
    node(i) = {id_of_byte_[byte], i - 1, i + 1 < num_nodes ? i + 1 : -1};
  }
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> candidates;
  const auto consider = [&](int32_t idx) {
    if (idx < 0 || node(idx).next < 0) return;
    const TokenId left = node(idx).id;
    const TokenId right = node(node(idx).next).id;
    const Step step = step_of(left, right);
    if (step.rank != UINT32_MAX) candidates.push({step.rank, idx, left, right, step.result});
  };
  for (int32_t i = 0; i + 1 < num_nodes; ++i) consider(i);
  while (!candidates.empty()) {
    const Candidate best = candidates.top();
    candidates.pop();
    Node& left = node(best.node_idx);
    if (left.id != best.left || left.next < 0 || node(left.next).id != best.right) continue;
    Node& right = node(left.next);
    left.id = best.result;
    right.id = -1;
    left.next = right.next;
    if (right.next >= 0) node(right.next).previous = best.node_idx;
    consider(left.previous);
    consider(best.node_idx);
  }
  for (int32_t i = 0; i >= 0; i = node(i).next) out.push_back(node(i).id);
}

}  // namespace pelago::data
