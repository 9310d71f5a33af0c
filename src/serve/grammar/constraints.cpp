#include "serve/grammar/constraints.h"

#include <algorithm>
#include <functional>
#include <mutex>
#include <utility>

#include "serve/grammar/automaton.h"
#include "serve/grammar/readers/readers.h"
#include "serve/grammar/token_constraint.h"

namespace pelago::serve {

namespace {

constexpr size_t kSituationsMax = 30'000;     // some 10 MB; then those not in use are forgotten
constexpr size_t kMaskBytesMax = 64'000'000;  // of remembered masks
constexpr uint64_t kWorkMax = 20'000'000;     // for one mask: about a second

class PatternCursor;

/// One pattern over one vocabulary, with what has been worked out about it so far.
class PatternConstraint final : public TokenConstraint,
                                public std::enable_shared_from_this<PatternConstraint> {
 public:
  PatternConstraint(Vocabulary vocabulary, const Patterns& patterns, Patterns::Id root)
      : vocabulary_(std::move(vocabulary)), automaton_(patterns, root) {}

  std::unique_ptr<TokenCursor> start() const override;

 private:
  friend class PatternCursor;
  using Situation = Automaton::Situation;

  std::shared_ptr<const TokenMask> mask_of(Situation situation) const;
  void make_room() const;

  const Vocabulary vocabulary_;
  mutable std::mutex
      mutex_;  // guards all below: the cursors of one constraint share what they learn
  mutable Automaton automaton_;
  mutable std::unordered_map<Situation, std::shared_ptr<const TokenMask>> masks_;
  mutable std::vector<PatternCursor*> cursors_;
};

class PatternCursor final : public TokenCursor {
 public:
  explicit PatternCursor(std::shared_ptr<const PatternConstraint> constraint)
      : constraint_(std::move(constraint)) {
    const std::lock_guard lock(constraint_->mutex_);
    situation_ = constraint_->automaton_.start();
    constraint_->cursors_.push_back(this);
  }
  ~PatternCursor() override {
    const std::lock_guard lock(constraint_->mutex_);
    std::erase(constraint_->cursors_, this);
  }

  Result<const TokenMask*> allowed() override {
    if (mask_ == nullptr) {
      const std::lock_guard lock(constraint_->mutex_);
      constraint_->make_room();
      try {
        mask_ = constraint_->mask_of(situation_);
      } catch (const Failure& failure) {
        return Error{ErrorCode::kRefused, failure.what()};
      }
    }
    return mask_.get();
  }

  void advance(int32_t token) override {
    const std::lock_guard lock(constraint_->mutex_);
    for (const char c : constraint_->vocabulary_->bytes_of(token)) {
      situation_ = constraint_->automaton_.next(situation_, static_cast<uint8_t>(c));
      PELAGO_ASSERT(situation_ != Automaton::kDead, "only allowed tokens come");
    }
    mask_ = nullptr;
  }

  bool may_end() const override {
    const std::lock_guard lock(constraint_->mutex_);
    return constraint_->automaton_.is_whole(situation_);
  }

 private:
  friend class PatternConstraint;
  const std::shared_ptr<const PatternConstraint> constraint_;  // owners: cursors and requests
  Automaton::Situation situation_;
  std::shared_ptr<const TokenMask> mask_;  // of the situation, once asked for
};

std::unique_ptr<TokenCursor> PatternConstraint::start() const {
  return std::make_unique<PatternCursor>(shared_from_this());
}

void PatternConstraint::make_room() const {
  const size_t mask_bytes = masks_.size() * static_cast<size_t>(vocabulary_->vocab_size()) / 8;
  if (automaton_.num_situations() < kSituationsMax && mask_bytes < kMaskBytesMax) return;
  std::vector<Situation> kept;
  for (const PatternCursor* cursor : cursors_) kept.push_back(cursor->situation_);
  automaton_.compact(kept);
  for (size_t idx = 0; idx < kept.size(); ++idx) cursors_[idx]->situation_ = kept[idx];
  masks_.clear();
}

std::shared_ptr<const TokenMask> PatternConstraint::mask_of(Situation situation) const {
  const auto found = masks_.find(situation);
  if (found != masks_.end()) return found->second;
  auto mask = std::make_shared<TokenMask>(empty_mask(vocabulary_->vocab_size()));
  const uint64_t work_before = automaton_.work();
  const std::vector<TokenTrie::Node>& nodes = vocabulary_->nodes();
  std::vector<Situation> path(vocabulary_->depth_max() + 1);  // after so many bytes
  path[0] = situation;
  for (size_t idx = 0; idx < nodes.size();) {
    const TokenTrie::Node& node = nodes[idx];
    const Situation to = automaton_.next(path[node.depth], node.byte);
    if (to == Automaton::kDead) {
      idx = static_cast<size_t>(node.end);
      continue;
    }
    path[node.depth + size_t{1}] = to;
    for (int32_t at = node.first_token; at < node.last_token; ++at) {
      allow(*mask, vocabulary_->tokens()[static_cast<size_t>(at)]);
    }
    if (automaton_.work() - work_before > kWorkMax) {
      fail_usage("the pattern is too ambiguous: finding the next token took {} steps", kWorkMax);
    }
    ++idx;
  }
  return masks_.emplace(situation, std::move(mask)).first->second;
}

Result<Constraint> build(Vocabulary vocabulary,
                         const std::function<Patterns::Id(Patterns&)>& read) {
  try {
    Patterns patterns;
    const Patterns::Id root = read(patterns);
    return Constraint(std::make_shared<PatternConstraint>(std::move(vocabulary), patterns, root));
  } catch (const Failure& failure) {
    return Error{ErrorCode::kRefused, failure.what()};
  }
}

}  // namespace

TokenTrie::TokenTrie(const data::Tokenizer& tokenizer, int64_t vocab_size) {
  std::vector<std::pair<std::string_view, int32_t>> sorted;
  bytes_begin_.push_back(0);
  for (int32_t token = 0; token < vocab_size; ++token) {
    const std::string_view bytes =
        token < tokenizer.vocab_size() ? tokenizer.token_bytes(token) : std::string_view();
    bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
    bytes_begin_.push_back(bytes_.size());
  }
  for (int32_t token = 0; token < vocab_size; ++token) {
    if (!bytes_of(token).empty()) sorted.emplace_back(bytes_of(token), token);
  }
  std::ranges::sort(sorted);
  std::vector<int32_t> open;  // the path of nodes to the last token
  std::string_view last;
  for (const auto& [bytes, token] : sorted) {
    size_t num_same = 0;
    while (num_same < std::min(bytes.size(), last.size()) && bytes[num_same] == last[num_same]) {
      ++num_same;
    }
    while (open.size() > num_same) {
      nodes_[static_cast<size_t>(open.back())].end = static_cast<int32_t>(nodes_.size());
      open.pop_back();
    }
    for (size_t depth = num_same; depth < bytes.size(); ++depth) {
      open.push_back(static_cast<int32_t>(nodes_.size()));
      const auto first = static_cast<int32_t>(tokens_.size());
      nodes_.push_back({.byte = static_cast<uint8_t>(bytes[depth]),
                        .depth = static_cast<uint16_t>(depth),
                        .first_token = first,
                        .last_token = first});
    }
    tokens_.push_back(token);
    nodes_[static_cast<size_t>(open.back())].last_token = static_cast<int32_t>(tokens_.size());
    depth_max_ = std::max(depth_max_, bytes.size());
    last = bytes;
  }
  for (const int32_t node : open)
    nodes_[static_cast<size_t>(node)].end = static_cast<int32_t>(nodes_.size());
}

std::string_view TokenTrie::bytes_of(int32_t token) const {
  const auto idx = static_cast<size_t>(token);
  return std::string_view(bytes_.data(), bytes_.size())
      .substr(bytes_begin_[idx], bytes_begin_[idx + 1] - bytes_begin_[idx]);
}

Vocabulary make_vocabulary(const data::Tokenizer& tokenizer, int64_t vocab_size) {
  return std::make_shared<const TokenTrie>(tokenizer, vocab_size);
}

Result<Constraint> regex_constraint(Vocabulary vocabulary, std::string_view pattern) {
  return build(std::move(vocabulary),
               [&](Patterns& patterns) { return read_regex(pattern, {}, patterns); });
}
Result<Constraint> json_schema_constraint(Vocabulary vocabulary, std::string_view schema) {
  return build(std::move(vocabulary),
               [&](Patterns& patterns) { return read_json_schema(schema, patterns); });
}
Result<Constraint> json_object_constraint(Vocabulary vocabulary) {
  return build(std::move(vocabulary), any_json_object);
}
Result<Constraint> grammar_constraint(Vocabulary vocabulary, std::string_view grammar) {
  return build(std::move(vocabulary),
               [&](Patterns& patterns) { return read_grammar(grammar, patterns); });
}

}  // namespace pelago::serve
