// Runs a pattern byte by byte. Each rule becomes a small automaton with edges of three kinds: a
// range of bytes, nothing, or a call of another rule. A place is a state of one of them and a stack
// of where to go on when it ends; a situation is the set of places that a text may have led to.
// Stacks are numbered so that equal ones have one number, and situations likewise; where a byte
// leads from a situation is worked out once and remembered. So a pattern, however deep it nests,
// runs like a table.
//
// What may explode has a bound: states of the automata, places in a situation, the depth of stacks
// (deeper nesting is then simply not allowed), and work done for one question.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <unordered_map>
#include <vector>

#include "serve/grammar/patterns.h"

namespace pelago::serve {

/// Belongs to one thread at a time. Throws Failure (exit 2) where a bound is reached.
class Automaton {
 public:
  using Situation = int32_t;
  static constexpr Situation kDead = -1;

  /// Texts that are whole matches of root. Throws Failure (exit 2) naming the rule if one is
  /// missing or begins with itself, or if the automata take too many states.
  Automaton(const Patterns& patterns, Patterns::Id root);

  Situation start() const { return start_; }
  /// Where a byte leads; kDead if no text goes on like that.
  Situation next(Situation situation, uint8_t byte) {
    const size_t idx = static_cast<size_t>(situation) * num_classes_ + class_of_[byte];
    return next_[idx] != kUnknown ? next_[idx] : step(situation, class_of_[byte]);
  }
  bool is_whole(Situation situation) const {
    return is_whole_[static_cast<size_t>(situation)] != 0;
  }

  /// Situations known by now; they stay until compact().
  size_t num_situations() const { return is_whole_.size(); }
  /// Forgets all situations but these, which get new numbers, and stacks that nobody needs.
  void compact(std::vector<Situation>& kept);
  /// Work done since the start: bytes looked up that were not known yet, times places.
  uint64_t work() const { return work_; }

 private:
  static constexpr Situation kUnknown = -2;
  static constexpr int32_t kNoStack = -1;
  enum class EdgeKind : uint8_t { kBytes, kNothing, kCall };
  struct Edge {
    EdgeKind kind;
    uint8_t low, high;  // kBytes
    int32_t rule;       // kCall
    int32_t to;
  };
  struct Stack {
    int32_t return_to, below, depth;
  };
  struct Place {
    int32_t state, stack;
    auto operator<=>(const Place&) const = default;
  };
  using Places = std::vector<Place>;
  class Builder;

  void check_left_recursion(const Patterns& patterns) const;
  void make_classes();
  Situation step(Situation situation, size_t class_idx);
  Situation intern(Places places);
  bool leads_to_end(int32_t state) const;
  void close(Places& places);
  int32_t push(int32_t return_to, int32_t below);

  std::vector<std::vector<Edge>> edges_;           // of each state
  std::vector<int32_t> first_state_, last_state_;  // of each rule; the last one has no edges
  std::array<uint8_t, 256> class_of_{};            // bytes that no edge tells apart share a class
  std::vector<uint8_t> byte_of_class_;
  size_t num_classes_ = 0;
  int32_t root_end_ = 0;

  std::vector<Stack> stacks_;
  std::map<std::pair<int32_t, int32_t>, int32_t> idx_of_stack_;
  std::vector<Places> places_;  // of each situation
  std::map<Places, Situation> idx_of_places_;
  std::vector<uint8_t> is_whole_;
  std::vector<Situation> next_;  // [situations, classes]
  Situation start_ = 0;
  uint64_t work_ = 0;
};

}  // namespace pelago::serve
