#include "serve/grammar/automaton.h"

#include <algorithm>
#include <functional>
#include <set>
#include <utility>

#include "base/error.h"

namespace pelago::serve {

namespace {

constexpr size_t kStatesMax = 300'000;
constexpr size_t kPlacesMax = 10'000;
constexpr int32_t kDepthMax = 256;
constexpr int kRulesDeepMax = 10'000;
constexpr int kNestingMax = 1000;  // of a pattern: the builder calls itself

}  // namespace

/// Turns patterns into states and edges (Thompson's construction).
class Automaton::Builder {
 public:
  Builder(const Patterns& patterns, Automaton& automaton)
      : patterns_(patterns), automaton_(automaton) {}

  int32_t new_state() {
    if (automaton_.edges_.size() >= kStatesMax) {
      fail_usage("the pattern takes more than {} states: use fewer or smaller repetitions",
                 kStatesMax);
    }
    automaton_.edges_.emplace_back();
    return static_cast<int32_t>(automaton_.edges_.size() - 1);
  }

  /// Adds what leads from one state to another through a match.
  void add(Patterns::Id id, int32_t from, int32_t to, int nesting) {
    if (nesting > kNestingMax) fail_usage("the pattern nests more than {} deep", kNestingMax);
    const Patterns::Node& node = patterns_.node(id);
    switch (node.kind) {
      case Patterns::Kind::kBytes:
        return add_bytes(node.bytes, from, to);
      case Patterns::Kind::kSet:
        return add_set(node.points, from, to);
      case Patterns::Kind::kSequence:
        for (const Patterns::Id part : node.parts) {
          const int32_t middle = new_state();
          add(part, from, middle, nesting + 1);
          from = middle;
        }
        return edge(from, {.kind = EdgeKind::kNothing, .low = 0, .high = 0, .rule = 0, .to = to});
      case Patterns::Kind::kChoice:
        for (const Patterns::Id part : node.parts) add(part, from, to, nesting + 1);
        return;
      case Patterns::Kind::kRepeat:
        return add_repeat(node, from, to, nesting);
      case Patterns::Kind::kRule:
        return edge(from,
                    {.kind = EdgeKind::kCall, .low = 0, .high = 0, .rule = node.rule, .to = to});
    }
  }

  void nothing(int32_t from, int32_t to) {
    edge(from, {.kind = EdgeKind::kNothing, .low = 0, .high = 0, .rule = 0, .to = to});
  }

 private:
  void edge(int32_t from, const Edge& edge) {
    automaton_.edges_[static_cast<size_t>(from)].push_back(edge);
  }
  void range(int32_t from, uint8_t low, uint8_t high, int32_t to) {
    edge(from, {.kind = EdgeKind::kBytes, .low = low, .high = high, .rule = 0, .to = to});
  }
  void add_bytes(const std::string& bytes, int32_t from, int32_t to) {
    for (const char c : bytes) {
      const int32_t middle = new_state();
      range(from, static_cast<uint8_t>(c), static_cast<uint8_t>(c), middle);
      from = middle;
    }
    nothing(from, to);
  }
  void add_set(const CodePoints& points, int32_t from, int32_t to) {
    for (const auto& [first, last] : points) {
      for (const ByteRanges& bytes : utf8_ranges(first, last)) {
        int32_t at = from;
        for (int idx = 0; idx < bytes.num_bytes; ++idx) {
          const int32_t then = idx + 1 == bytes.num_bytes ? to : new_state();
          range(at, bytes.low[idx], bytes.high[idx], then);
          at = then;
        }
      }
    }
  }
  void add_repeat(const Patterns::Node& node, int32_t from, int32_t to, int nesting) {
    const auto again = [&] {
      const int32_t middle = new_state();
      add(node.parts.front(), from, middle, nesting + 1);
      from = middle;
    };
    for (int64_t count = 0; count < node.min; ++count) again();
    if (node.max < 0) {
      const int32_t loop = new_state();
      nothing(from, loop);
      add(node.parts.front(), loop, loop, nesting + 1);
      return nothing(loop, to);
    }
    for (int64_t count = node.min; count < node.max; ++count) {
      nothing(from, to);
      again();
    }
    nothing(from, to);
  }

  const Patterns& patterns_;
  Automaton& automaton_;
};

Automaton::Automaton(const Patterns& patterns, Patterns::Id root) {
  Builder builder(patterns, *this);
  for (int32_t rule = 0; rule < patterns.num_rules(); ++rule) {
    first_state_.push_back(builder.new_state());
    last_state_.push_back(builder.new_state());
  }
  for (int32_t rule = 0; rule < patterns.num_rules(); ++rule) {
    const auto idx = static_cast<size_t>(rule);
    builder.add(patterns.definition(rule), first_state_[idx], last_state_[idx], 0);
  }
  const int32_t root_start = builder.new_state();
  root_end_ = builder.new_state();
  builder.add(root, root_start, root_end_, 0);
  check_left_recursion(patterns);
  make_classes();
  start_ = intern({{.state = root_start, .stack = kNoStack}});
  if (start_ == kDead) fail_usage("no text at all matches the pattern");
}

void Automaton::check_left_recursion(const Patterns& patterns) const {
  const size_t num_rules = first_state_.size();
  std::vector<bool> may_be_empty(num_rules, false);
  // Rules that a rule may call before it has read a byte.
  std::vector<std::set<int32_t>> called_first(num_rules);
  for (bool has_changed = true; has_changed;) {
    has_changed = false;
    for (size_t rule = 0; rule < num_rules; ++rule) {
      std::set<int32_t> seen = {first_state_[rule]};
      std::vector<int32_t> open = {first_state_[rule]};
      const auto visit = [&](int32_t state) {
        if (seen.insert(state).second) open.push_back(state);
      };
      while (!open.empty()) {
        const int32_t state = open.back();
        open.pop_back();
        for (const Edge& edge : edges_[static_cast<size_t>(state)]) {
          if (edge.kind == EdgeKind::kNothing) visit(edge.to);
          if (edge.kind != EdgeKind::kCall) continue;
          called_first[rule].insert(edge.rule);
          if (may_be_empty[static_cast<size_t>(edge.rule)]) visit(edge.to);
        }
      }
      if (!may_be_empty[rule] && seen.contains(last_state_[rule])) {
        may_be_empty[rule] = has_changed = true;
      }
    }
  }
  std::vector<int> colour(num_rules, 0);  // 1: on the path, 2: done
  const std::function<void(size_t, int)> walk = [&](size_t rule, int depth) {
    if (colour[rule] == 1 || depth > kRulesDeepMax) {
      fail_usage("the rule \"{}\" begins with itself: put what must come first before it",
                 patterns.rule_name(static_cast<int32_t>(rule)));
    }
    if (colour[rule] == 2) return;
    colour[rule] = 1;
    for (const int32_t other : called_first[rule]) walk(static_cast<size_t>(other), depth + 1);
    colour[rule] = 2;
  };
  for (size_t rule = 0; rule < num_rules; ++rule) walk(rule, 0);
}

void Automaton::make_classes() {
  std::array<bool, 257> begins{};
  begins[0] = true;
  for (const auto& edges : edges_) {
    for (const Edge& edge : edges) {
      if (edge.kind != EdgeKind::kBytes) continue;
      begins[edge.low] = true;
      begins[static_cast<size_t>(edge.high) + 1] = true;
    }
  }
  for (size_t byte = 0; byte < 256; ++byte) {
    if (begins[byte]) byte_of_class_.push_back(static_cast<uint8_t>(byte));
    class_of_[byte] = static_cast<uint8_t>(byte_of_class_.size() - 1);
  }
  num_classes_ = byte_of_class_.size();
}

int32_t Automaton::push(int32_t return_to, int32_t below) {
  const auto [found, is_new] =
      idx_of_stack_.emplace(std::pair(return_to, below), static_cast<int32_t>(stacks_.size()));
  if (is_new) {
    const int32_t depth = below == kNoStack ? 1 : stacks_[static_cast<size_t>(below)].depth + 1;
    stacks_.push_back({.return_to = return_to, .below = below, .depth = depth});
  }
  return found->second;
}

bool Automaton::leads_to_end(int32_t state) const {
  while (true) {
    const auto& edges = edges_[static_cast<size_t>(state)];
    if (edges.empty()) return state != root_end_;
    if (edges.size() > 1 || edges.front().kind != EdgeKind::kNothing) return false;
    state = edges.front().to;
  }
}

// Follows everything that reads no byte. What is left are places that read one, or the root's end.
void Automaton::close(Places& places) {
  std::set<Place> seen(places.begin(), places.end());
  Places open = std::exchange(places, {});
  const auto visit = [&](int32_t state, int32_t stack) {
    if (seen.insert({.state = state, .stack = stack}).second) {
      open.push_back({.state = state, .stack = stack});
    }
    if (seen.size() > kPlacesMax) {
      fail_usage("a text may be read in more than {} ways: the pattern is too ambiguous",
                 kPlacesMax);
    }
  };
  while (!open.empty()) {
    const Place place = open.back();
    open.pop_back();
    const auto& edges = edges_[static_cast<size_t>(place.state)];
    bool reads = place.state == root_end_;
    for (const Edge& edge : edges) {
      reads = reads || edge.kind == EdgeKind::kBytes;
      if (edge.kind == EdgeKind::kNothing) visit(edge.to, place.stack);
      if (edge.kind != EdgeKind::kCall) continue;
      const int32_t rule_start = first_state_[static_cast<size_t>(edge.rule)];
      // A call in last place leaves nothing to come back to: lists may be as long as they like.
      const bool is_last = leads_to_end(edge.to);
      if (is_last && place.stack != kNoStack) {
        visit(rule_start, place.stack);
      } else if (place.stack == kNoStack ||
                 stacks_[static_cast<size_t>(place.stack)].depth < kDepthMax) {
        visit(rule_start, push(edge.to, place.stack));
      }
    }
    if (edges.empty() && place.state != root_end_ && place.stack != kNoStack) {
      const Stack stack = stacks_[static_cast<size_t>(place.stack)];
      visit(stack.return_to, stack.below);
    }
    if (reads) places.push_back(place);
  }
  std::ranges::sort(places);
}

Automaton::Situation Automaton::intern(Places places) {
  close(places);
  if (places.empty()) return kDead;
  const auto [found, is_new] =
      idx_of_places_.emplace(std::move(places), static_cast<Situation>(is_whole_.size()));
  if (is_new) {
    const auto ends = [&](const Place& place) { return place.state == root_end_; };
    is_whole_.push_back(std::ranges::any_of(found->first, ends) ? 1 : 0);
    places_.push_back(found->first);
    next_.resize(next_.size() + num_classes_, kUnknown);
  }
  return found->second;
}

Automaton::Situation Automaton::step(Situation situation, size_t class_idx) {
  const uint8_t byte = byte_of_class_[class_idx];
  Places places;
  for (const Place& place : places_[static_cast<size_t>(situation)]) {
    for (const Edge& edge : edges_[static_cast<size_t>(place.state)]) {
      if (edge.kind == EdgeKind::kBytes && byte >= edge.low && byte <= edge.high) {
        places.push_back({.state = edge.to, .stack = place.stack});
      }
    }
  }
  work_ += 1 + places.size();
  const Situation to = intern(std::move(places));
  next_[static_cast<size_t>(situation) * num_classes_ + class_idx] = to;
  return to;
}

void Automaton::compact(std::vector<Situation>& kept) {
  const std::vector<Stack> old_stacks = std::exchange(stacks_, {});
  std::vector<Places> old_places = std::exchange(places_, {});
  idx_of_stack_.clear();
  idx_of_places_.clear();
  is_whole_.clear();
  next_.clear();
  const std::function<int32_t(int32_t)> move_stack = [&](int32_t stack) -> int32_t {
    if (stack == kNoStack) return kNoStack;
    const Stack& old = old_stacks[static_cast<size_t>(stack)];
    return push(old.return_to, move_stack(old.below));
  };
  const auto move = [&](Situation situation) {
    Places places = old_places[static_cast<size_t>(situation)];
    for (Place& place : places) place.stack = move_stack(place.stack);
    return intern(std::move(places));
  };
  start_ = move(start_);
  for (Situation& situation : kept) situation = move(situation);
}

}  // namespace pelago::serve
