// A header includes what it names of the standard library, itself or through headers of ours. The
// compiler does not prove this: most headers of the standard library bring others along, which its
// next release need not do, and house_headers compiles our headers behind std_headers.h.
#include <cctype>
#include <map>
#include <set>
#include <sstream>

#include "rules.h"

namespace pelago::house {
namespace {

using Names = std::map<std::string, std::set<std::string>>;

/// Which headers declare a name; without std::, and "fmt::" for the whole of that namespace.
const Names& declaring_headers() {
  static const Names by_name = [] {
    const std::vector<std::pair<std::string, std::string>> by_header = {
        {"algorithm", "min max clamp sort nth_element any_of all_of none_of find_if"},
        {"array", "array"},
        {"atomic", "atomic memory_order_relaxed memory_order_acquire memory_order_release"},
        {"chrono", "chrono"},
        {"cmath", "sqrt isfinite isnan ceil floor log exp pow"},
        {"condition_variable", "condition_variable condition_variable_any"},
        {"cstddef", "byte ptrdiff_t"},
        {"cstdint", "int8_t int16_t int32_t int64_t uint8_t uint16_t uint32_t uint64_t"},
        {"stdint.h", "int8_t int16_t int32_t int64_t uint8_t uint16_t uint32_t uint64_t"},
        {"deque", "deque"},
        {"filesystem", "filesystem"},
        {"fmt/format.h", "fmt::"},
        {"functional", "function less equal_to greater"},
        {"map", "map multimap"},
        {"memory", "unique_ptr shared_ptr weak_ptr make_unique make_shared"},
        {"memory", "make_unique_for_overwrite enable_shared_from_this"},
        {"mutex", "mutex lock_guard unique_lock scoped_lock"},
        {"optional", "optional nullopt nullopt_t"},
        {"set", "set multiset"},
        {"span", "span"},
        {"stdexcept", "runtime_error logic_error invalid_argument"},
        {"stop_token", "stop_token stop_source stop_callback"},
        {"string", "string to_string string_view stoi stod getline"},
        {"string_view", "string_view"},
        {"thread", "thread jthread this_thread stop_token stop_source"},
        {"unordered_map", "unordered_map"},
        {"utility", "pair move exchange forward"},
        {"variant", "variant monostate visit get_if holds_alternative"},
        {"vector", "vector"},
    };
    Names names;
    for (const auto& [header, declared] : by_header) {
      std::istringstream words(declared);
      for (std::string name; words >> name;) names[name].insert(header);
    }
    return names;
  }();
  return by_name;
}

bool is_in_word(char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_'; }

/// Names of declaring_headers() in code, each with where it first stands.
std::map<std::string, size_t> names_in(const std::string& code) {
  std::map<std::string, size_t> found;
  for (size_t begin = 0; begin < code.size(); ++begin) {
    if (!is_in_word(code[begin])) continue;
    size_t end = begin;
    while (end < code.size() && is_in_word(code[end])) ++end;
    std::string word = code.substr(begin, end - begin);
    const bool is_std = begin >= 5 && code.compare(begin - 5, 5, "std::") == 0;
    const bool is_integer = word.ends_with("_t") && word.find("int") != std::string::npos;
    if (word == "fmt" && code.compare(end, 2, "::") == 0) word += "::";
    if ((is_std || is_integer || word == "fmt::") && declaring_headers().contains(word)) {
      found.emplace(word, begin);
    }
    begin = end;
  }
  return found;
}

/// What a file includes, as it stands between the brackets or quotes.
std::vector<std::string> included_by(const SourceFile& file) {
  std::vector<std::string> targets;
  for (const std::string& line : lines_of(file.text)) {
    if (!line.starts_with("#include ") || line.size() < 11) continue;
    const size_t end = line.find_first_of(">\"", 10);
    if (end != std::string::npos) targets.push_back(line.substr(10, end - 10));
  }
  return targets;
}

void reach(const std::string& target,
           const std::map<std::string, std::vector<std::string>>& includes,
           std::set<std::string>& reached) {
  const auto ours = includes.find("src/" + target);
  if (!reached.insert(target).second || ours == includes.end()) return;
  for (const std::string& next : ours->second) reach(next, includes, reached);
}

}  // namespace

std::vector<Violation> check_standard_headers(const std::vector<SourceFile>& files) {
  std::map<std::string, std::vector<std::string>> includes;
  for (const SourceFile& file : files) includes[file.path] = included_by(file);
  std::vector<Violation> violations;
  for (const SourceFile& file : files) {
    if (!file.is_header() || file.room().empty() || file.path.ends_with("-inl.h")) continue;
    std::set<std::string> reached;
    for (const std::string& target : includes[file.path]) reach(target, includes, reached);
    // Its own headers bring most of the standard library, and are precompiled anyway.
    if (reached.contains("chips/tensor.h") || reached.contains("chips/torch.h")) continue;
    for (const auto& [name, position] : names_in(file.code)) {
      const std::set<std::string>& headers = declaring_headers().at(name);
      bool is_declared = false;
      for (const std::string& header : headers) is_declared |= reached.contains(header);
      if (is_declared) continue;
      violations.push_back({file.path,
                            line_at(file.text, position),
                            "names " + name + " and includes no <" + *headers.begin() + ">"});
    }
  }
  return violations;
}

std::vector<Violation> check_precompiled_headers(const SourceFile& file) {
  std::set<std::string> known;
  for (const auto& [name, headers] : declaring_headers())
    known.insert(headers.begin(), headers.end());
  std::vector<Violation> violations;
  for (const std::string& target : included_by(file)) {
    if (known.contains(target)) continue;
    violations.push_back(
        {file.path, 0, "std_rules.cpp does not know what <" + target + "> declares"});
  }
  return violations;
}

}  // namespace pelago::house
