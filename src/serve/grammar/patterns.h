// What texts may look like, as small pieces put together: literals, sets of characters, sequences,
// choices, repetitions, and rules that may refer to one another. Regexes, JSON schemas and grammars
// are all read into this form; grammar/automaton.h runs it.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace pelago::serve {

/// Code points from the first to the second, both included.
using CodePoints = std::vector<std::pair<uint32_t, uint32_t>>;

inline constexpr uint32_t kCodePointMax = 0x10FFFF;

/// All code points that are in none of the ranges; surrogates are in no set.
CodePoints complement(CodePoints points);

/// A pattern by number, and the rules by name. Throws Failure (exit 2) if it grows past its bounds.
class Patterns {
 public:
  using Id = int32_t;
  enum class Kind : uint8_t { kBytes, kSet, kSequence, kChoice, kRepeat, kRule };
  struct Node {
    Kind kind = Kind::kSequence;
    std::string bytes = {};      // kBytes
    CodePoints points = {};      // kSet
    std::vector<Id> parts = {};  // kSequence, kChoice; of kRepeat the one that is repeated
    int64_t min = 0, max = -1;   // kRepeat; -1: any number
    int32_t rule = 0;            // kRule
  };

  Id bytes(std::string_view text);
  /// One character of the set, as UTF-8.
  Id set(CodePoints points);
  Id sequence(std::vector<Id> parts);
  Id choice(std::vector<Id> parts);
  Id repeat(Id part, int64_t min, int64_t max);
  Id optional(Id part) { return repeat(part, 0, 1); }
  /// Refers to a rule, which may be defined later.
  Id rule(const std::string& name);
  void define(const std::string& name, Id pattern);
  bool is_defined(const std::string& name) const;

  const Node& node(Id id) const { return nodes_[static_cast<size_t>(id)]; }
  int32_t num_rules() const { return static_cast<int32_t>(rules_.size()); }
  /// Throws Failure naming the rule if nobody defined it.
  Id definition(int32_t rule) const;
  const std::string& rule_name(int32_t rule) const {
    return rules_[static_cast<size_t>(rule)].name;
  }

 private:
  struct Rule {
    std::string name;
    Id pattern = -1;
  };
  Id add(Node node);
  int32_t rule_idx(const std::string& name);

  std::vector<Node> nodes_;
  std::vector<Rule> rules_;
  std::map<std::string, int32_t> idx_of_rule_;
};

/// UTF-8 of one code point.
std::string utf8_of(uint32_t code_point);

/// Bytes of a character, position by position, each from low to high.
struct ByteRanges {
  int num_bytes = 0;
  uint8_t low[4] = {}, high[4] = {};
};
/// The ranges of byte strings that are the UTF-8 of [first, last].
std::vector<ByteRanges> utf8_ranges(uint32_t first, uint32_t last);

}  // namespace pelago::serve
