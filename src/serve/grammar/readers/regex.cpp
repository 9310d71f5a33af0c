// The regexes that most dialects share: literals, sets, groups, choices, repetitions. What looks
// around or back is refused by name: a text that grows from left to right cannot keep it.
#include <algorithm>
#include <optional>

#include "base/error.h"
#include "serve/grammar/readers/readers.h"
#include "serve/grammar/readers/text_cursor.h"

namespace pelago::serve {

namespace {

constexpr int kGroupsDeepMax = 200;
constexpr int64_t kCountMax = 100'000;

const CodePoints kDigits = {{'0', '9'}};
const CodePoints kWord = {{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}};
const CodePoints kSpace = {
    {'\t', '\r'}, {' ', ' '}, {0xA0, 0xA0}, {0x2028, 0x2029}, {0xFEFF, 0xFEFF}};

class RegexReader {
 public:
  RegexReader(std::string_view regex, const RegexOptions& options, Patterns& patterns)
      : cursor_(regex, "regex"), options_(options), patterns_(patterns) {}

  Patterns::Id read() {
    const Patterns::Id pattern = read_choice(0);
    if (!cursor_.is_at_end()) cursor_.refuse("a ) that closes nothing");
    return pattern;
  }

 private:
  Patterns::Id read_choice(int depth) {
    if (depth > kGroupsDeepMax) cursor_.refuse("groups nest too deep");
    std::vector<Patterns::Id> branches;
    do {
      branches.push_back(read_branch(depth));
    } while (cursor_.take('|'));
    return branches.size() == 1 ? branches.front() : patterns_.choice(std::move(branches));
  }

  Patterns::Id read_branch(int depth) {
    std::vector<Patterns::Id> parts;
    const bool is_outermost = depth == 0;
    const bool is_bound = cursor_.take('^');
    if (is_bound && !is_outermost) cursor_.refuse("^ inside a group");
    if (options_.is_search && is_outermost && !is_bound) parts.push_back(anything());
    bool has_ended = false;
    while (!cursor_.is_at_end() && cursor_.peek() != '|' && cursor_.peek() != ')') {
      if (has_ended) cursor_.refuse("$ before the end");
      if (cursor_.take('$')) {
        if (!is_outermost) cursor_.refuse("$ inside a group");
        has_ended = true;
        continue;
      }
      parts.push_back(read_repeats(read_atom(depth)));
    }
    if (options_.is_search && is_outermost && !has_ended) parts.push_back(anything());
    return patterns_.sequence(std::move(parts));
  }

  Patterns::Id anything() { return patterns_.repeat(character({{0, kCodePointMax}}), 0, -1); }

  Patterns::Id read_repeats(Patterns::Id atom) {
    while (!cursor_.is_at_end()) {
      if (cursor_.take('*')) {
        atom = patterns_.repeat(atom, 0, -1);
      } else if (cursor_.take('+')) {
        atom = patterns_.repeat(atom, 1, -1);
      } else if (cursor_.take('?')) {
        atom = patterns_.repeat(atom, 0, 1);
      } else if (cursor_.peek() == '{' && cursor_.peek(1) >= '0' && cursor_.peek(1) <= '9') {
        cursor_.take('{');
        const int64_t min = cursor_.read_number(kCountMax);
        int64_t max = min;
        if (cursor_.take(',')) max = cursor_.peek() == '}' ? -1 : cursor_.read_number(kCountMax);
        cursor_.expect('}');
        atom = patterns_.repeat(atom, min, max);
      } else {
        return atom;
      }
      cursor_.take('?');  // lazy or not, the texts that match are the same
    }
    return atom;
  }

  Patterns::Id read_atom(int depth) {
    if (cursor_.take('(')) {
      if (cursor_.take('?') && !cursor_.take(':')) cursor_.refuse("(? is known as (?: only");
      const Patterns::Id group = read_choice(depth + 1);
      cursor_.expect(')');
      return group;
    }
    if (cursor_.take('[')) return character(read_set());
    if (cursor_.take('.')) return character(complement({{'\n', '\n'}}));
    if (cursor_.take('\\')) return character(read_escape());
    const char c = cursor_.peek();
    if (c == '*' || c == '+' || c == '?') cursor_.refuse("nothing to repeat");
    if (c == '^') cursor_.refuse("^ after the beginning");
    const uint32_t point = cursor_.read_code_point();
    return character({{point, point}});
  }

  CodePoints read_escape() {
    const char c = cursor_.peek();
    const auto one = [](uint32_t point) { return CodePoints{{point, point}}; };
    if (cursor_.is_at_end()) cursor_.refuse("a \\ at the end");
    if (c >= '1' && c <= '9') cursor_.refuse("a reference back to a group");
    if (c == 'b' || c == 'B' || c == 'A' || c == 'z' || c == 'Z' || c == 'p' || c == 'P' ||
        c == 'k') {
      cursor_.refuse(fmt::format("\\{}, which is not supported", c));
    }
    cursor_.take(c);
    switch (c) {
      case 'd':
        return kDigits;
      case 'D':
        return complement(kDigits);
      case 'w':
        return kWord;
      case 'W':
        return complement(kWord);
      case 's':
        return kSpace;
      case 'S':
        return complement(kSpace);
      case 'n':
        return one('\n');
      case 't':
        return one('\t');
      case 'r':
        return one('\r');
      case 'f':
        return one('\f');
      case 'v':
        return one('\v');
      case '0':
        return one(0);
      case 'x':
        return one(cursor_.read_hex(2));
      case 'u':
        return one(cursor_.read_hex(4));
      default:
        cursor_.step_back();
        const uint32_t point = cursor_.read_code_point();
        return one(point);
    }
  }

  CodePoints read_set() {
    const bool is_inverted = cursor_.take('^');
    CodePoints points;
    bool is_first = true;
    while (is_first || cursor_.peek() != ']') {
      is_first = false;
      if (cursor_.is_at_end()) cursor_.refuse("a [ without its ]");
      CodePoints item = read_set_item();
      if (item.size() == 1 && item[0].first == item[0].second && cursor_.peek() == '-' &&
          cursor_.peek(1) != ']') {
        cursor_.take('-');
        const CodePoints last = read_set_item();
        if (last.size() != 1 || last[0].first != last[0].second || last[0].first < item[0].first) {
          cursor_.refuse("a range that runs backwards");
        }
        item[0].second = last[0].first;
      }
      points.insert(points.end(), item.begin(), item.end());
    }
    cursor_.expect(']');
    return is_inverted ? complement(points) : complement(complement(points));
  }

  CodePoints read_set_item() {
    if (cursor_.take('\\')) {
      if (cursor_.take('b')) return {{'\b', '\b'}};
      return read_escape();
    }
    const uint32_t point = cursor_.read_code_point();
    return {{point, point}};
  }

  /// One character, escaped if the text stands inside a JSON string.
  Patterns::Id character(const CodePoints& points) {
    if (!options_.in_json) return patterns_.set(points);
    std::vector<Patterns::Id> ways;
    CodePoints plain = complement(points);
    plain.insert(plain.end(), {{0, 0x1F}, {'"', '"'}, {'\\', '\\'}});
    plain = complement(plain);
    if (!plain.empty()) ways.push_back(patterns_.set(plain));
    const auto holds = [&](uint32_t point) {
      return std::ranges::any_of(
          points, [&](const auto& range) { return point >= range.first && point <= range.second; });
    };
    const std::pair<uint32_t, const char*> kEscapes[] = {{'"', "\\\""},
                                                         {'\\', "\\\\"},
                                                         {'\b', "\\b"},
                                                         {'\f', "\\f"},
                                                         {'\n', "\\n"},
                                                         {'\r', "\\r"},
                                                         {'\t', "\\t"}};
    for (const auto& [point, escape] : kEscapes) {
      if (holds(point)) ways.push_back(patterns_.bytes(escape));
    }
    if (ways.empty()) cursor_.refuse("control characters only");
    return ways.size() == 1 ? ways.front() : patterns_.choice(std::move(ways));
  }

  TextCursor cursor_;
  const RegexOptions options_;
  Patterns& patterns_;
};

}  // namespace

Patterns::Id read_regex(std::string_view regex, const RegexOptions& options, Patterns& patterns) {
  return RegexReader(regex, options, patterns).read();
}

}  // namespace pelago::serve
