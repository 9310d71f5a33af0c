// GBNF, the form in which llama.cpp takes grammars: rules `name ::= choices`, literals in quotes,
// sets in brackets, groups, * + ? {m,n}, comments from #. A rule goes on over lines as long as a
// group is open or until the next `name ::=`.
#include "serve/grammar/readers/readers.h"
#include "serve/grammar/readers/text_cursor.h"

namespace pelago::serve {

namespace {

constexpr int kGrammarDeepMax = 200;

bool is_name_char(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
         c == '_';
}

class GrammarReader {
 public:
  GrammarReader(std::string_view grammar, Patterns& patterns)
      : cursor_(grammar, "grammar"), patterns_(patterns) {}

  Patterns::Id read() {
    skip_space();
    while (!cursor_.is_at_end()) {
      const std::string name = read_name();
      skip_space();
      if (!cursor_.take("::=")) cursor_.refuse("a ::= is missing");
      if (patterns_.is_defined(name)) {
        cursor_.refuse(fmt::format("the rule \"{}\" is defined twice", name));
      }
      patterns_.define(name, read_choice(0));
      skip_space();
    }
    if (!patterns_.is_defined("root")) fail_usage("grammar: the rule \"root\" is missing");
    return patterns_.rule("root");
  }

 private:
  void skip_space() {
    while (!cursor_.is_at_end()) {
      const char c = cursor_.peek();
      if (c == '#') {
        while (!cursor_.is_at_end() && cursor_.peek() != '\n') cursor_.take(cursor_.peek());
      } else if (c == ' ' || c == '\t' || c == '\n' || c == '\r') {
        cursor_.take(c);
      } else {
        return;
      }
    }
  }

  std::string read_name() {
    std::string name;
    while (is_name_char(cursor_.peek())) {
      name += cursor_.peek();
      cursor_.take(cursor_.peek());
    }
    if (name.empty()) cursor_.refuse("a rule's name is missing");
    return name;
  }

  /// What follows is `name ::=`, the next rule.
  bool is_at_definition() const {
    size_t ahead = 0;
    while (is_name_char(cursor_.peek(ahead))) ++ahead;
    if (ahead == 0) return false;
    while (cursor_.peek(ahead) == ' ' || cursor_.peek(ahead) == '\t') ++ahead;
    return cursor_.peek(ahead) == ':' && cursor_.peek(ahead + 1) == ':';
  }

  Patterns::Id read_choice(int depth) {
    if (depth > kGrammarDeepMax) cursor_.refuse("groups nest too deep");
    std::vector<Patterns::Id> branches;
    do {
      std::vector<Patterns::Id> parts;
      skip_space();
      while (!cursor_.is_at_end() && cursor_.peek() != '|' && cursor_.peek() != ')' &&
             !is_at_definition()) {
        parts.push_back(read_repeats(read_atom(depth)));
        skip_space();
      }
      branches.push_back(patterns_.sequence(std::move(parts)));
    } while (cursor_.take('|'));
    return branches.size() == 1 ? branches.front() : patterns_.choice(std::move(branches));
  }

  Patterns::Id read_repeats(Patterns::Id atom) {
    constexpr int64_t kTimesMax = 100'000;
    while (true) {
      if (cursor_.take('*')) {
        atom = patterns_.repeat(atom, 0, -1);
      } else if (cursor_.take('+')) {
        atom = patterns_.repeat(atom, 1, -1);
      } else if (cursor_.take('?')) {
        atom = patterns_.repeat(atom, 0, 1);
      } else if (cursor_.take('{')) {
        const int64_t min = cursor_.read_number(kTimesMax);
        int64_t max = min;
        if (cursor_.take(',')) max = cursor_.peek() == '}' ? -1 : cursor_.read_number(kTimesMax);
        cursor_.expect('}');
        atom = patterns_.repeat(atom, min, max);
      } else {
        return atom;
      }
    }
  }

  Patterns::Id read_atom(int depth) {
    if (cursor_.take('(')) {
      const Patterns::Id group = read_choice(depth + 1);
      cursor_.expect(')');
      return group;
    }
    if (cursor_.take('"')) {
      std::string literal;
      while (!cursor_.take('"')) literal += utf8_of(read_character());
      return patterns_.bytes(literal);
    }
    if (cursor_.take('[')) return read_set();
    if (cursor_.take('.')) return patterns_.set(complement({}));
    return patterns_.rule(read_name());
  }

  uint32_t read_character() {
    if (!cursor_.take('\\')) return cursor_.read_code_point();
    if (cursor_.take('n')) return '\n';
    if (cursor_.take('t')) return '\t';
    if (cursor_.take('r')) return '\r';
    if (cursor_.take('x')) return cursor_.read_hex(2);
    if (cursor_.take('u')) return cursor_.read_hex(4);
    if (cursor_.take('U')) {
      const uint32_t point = cursor_.read_hex(8);
      if (point > kCodePointMax) cursor_.refuse("no code point");
      return point;
    }
    return cursor_.read_code_point();
  }

  Patterns::Id read_set() {
    const bool is_inverted = cursor_.take('^');
    CodePoints points;
    while (!cursor_.take(']')) {
      const uint32_t first = read_character();
      uint32_t last = first;
      if (cursor_.peek() == '-' && cursor_.peek(1) != ']') {
        cursor_.take('-');
        last = read_character();
      }
      if (last < first || last > kCodePointMax) cursor_.refuse("a range that runs backwards");
      points.emplace_back(first, last);
    }
    return patterns_.set(is_inverted ? complement(points) : complement(complement(points)));
  }

  TextCursor cursor_;
  Patterns& patterns_;
};

}  // namespace

Patterns::Id read_grammar(std::string_view grammar, Patterns& patterns) {
  return GrammarReader(grammar, patterns).read();
}

}  // namespace pelago::serve
