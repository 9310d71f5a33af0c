#include <algorithm>
#include <cctype>
#include <regex>
#include <set>

#include "rules.h"

namespace pelago::house {
namespace {

/// Files that may read the environment, and why.
const std::set<std::string>& environment_readers() {
  static const std::set<std::string> paths = {
      "src/chips/ucx/session.cpp",      // a cluster's own UCX_TLS must win over our default
      "src/chips/vendor/search.cpp",    // vendors' installers leave their folders there and nowhere
                                        // else
      "src/sites/copies/s3_place.cpp",  // AWS_*: where every tool for such stores looks for the
                                        // account, so that no secret stands in a file
  };
  return paths;
}

/// "HTTPServer_max2" is http, server, max2: the words a name is made of, in lower case.
std::vector<std::string> words_of(const std::string& name) {
  std::vector<std::string> words(1);
  for (size_t i = 0; i < name.size(); ++i) {
    const auto is_upper = [&](size_t at) {
      return at < name.size() && std::isupper(static_cast<unsigned char>(name[at])) != 0;
    };
    const bool starts_word =
        is_upper(i) && i > 0 && (!is_upper(i - 1) || (i + 1 < name.size() && !is_upper(i + 1)));
    if (name[i] == '_' || starts_word) words.emplace_back();
    if (name[i] != '_') words.back() += static_cast<char>(std::tolower(name[i]));
  }
  std::erase(words, "");
  return words;
}

/// Code without its #include lines: other people's folders are theirs to name.
std::string without_includes(const std::string& code) {
  static const std::regex pattern(R"(#\s*include[^\n]*)");
  return std::regex_replace(code, pattern, "");
}

/// Calls visit(name, line) for every identifier.
template <typename Visit>
void for_each_name(const std::string& code, Visit visit) {
  static const std::regex pattern(R"([A-Za-z_]\w*)");
  for (auto it = std::sregex_iterator(code.begin(), code.end(), pattern);
       it != std::sregex_iterator();
       ++it) {
    visit(it->str(), line_at(code, static_cast<size_t>(it->position())));
  }
}

/// What makes a name bad, or nothing.
std::string fault_of(const std::string& name) {
  static const std::set<std::string> banned = {"manager", "helper", "helpers", "util", "utils"};
  for (const std::string& word : words_of(name)) {
    if (banned.contains(word)) return word;
  }
  if (name.starts_with("do_")) return "do_";
  if (name.find("Common") != std::string::npos) return "Common";
  return "";
}

}  // namespace

std::vector<Violation> check_names(const SourceFile& file) {
  std::vector<Violation> violations;
  const std::string stem = file.name().substr(0, file.name().rfind('.'));
  if (!fault_of(stem).empty() || stem == "common") {
    violations.push_back({file.path, 0, "the file's name says nothing"});
  }
  static const std::regex qualified(R"(::\s*\w+)");
  const std::string code = std::regex_replace(without_includes(file.code), qualified, "");
  for_each_name(code, [&](const std::string& name, int line) {
    const std::string fault = fault_of(name);
    if (!fault.empty()) {
      violations.push_back({file.path, line, name + ": '" + fault + "' says nothing"});
    }
  });
  return violations;
}

std::vector<Violation> check_marks(const SourceFile& file) {
  static const std::regex open_end(R"(\bTODO\b(?!\(#\d+\))|\bFIXME\b|\bXXX\b)");
  static const std::regex excuse(R"(\bhack(s|y|ed)?\b)", std::regex::icase);
  static const std::regex dead_code(R"(^\s*#\s*if\s+0\b)");
  std::vector<Violation> violations;
  const std::vector<std::string> lines = lines_of(file.comments);
  for (size_t i = 0; i < lines.size(); ++i) {
    for (const std::regex* pattern : {&open_end, &excuse, &dead_code}) {
      std::smatch match;
      if (std::regex_search(lines[i], match, *pattern)) {
        violations.push_back({file.path, static_cast<int>(i) + 1, match.str()});
      }
    }
  }
  return violations;
}

std::vector<Violation> check_vendor_names(const SourceFile& file) {
  static const std::set<std::string> vendors = {
      "nvidia",    "cuda",  "nccl", "ascend", "huawei",   "hccl",    "npu",  "cambricon",
      "mlu",       "cncl",  "musa", "mccl",   "mthreads", "enflame", "gcu",  "kunlun",
      "kunlunxin", "hygon", "rocm", "rccl",   "iluvatar", "metax",   "biren"};
  std::vector<Violation> violations;
  const std::string room = file.room();
  if (room.empty() || room == "chips") return violations;
  // Texts of the command line show examples; everywhere else a string is a decision.
  const std::string& searched = room == "cli" ? file.code : file.text;
  std::string text = searched;
  for (size_t i = 0; i < text.size(); ++i) {
    const bool is_in_comment = file.comments[i] != file.code[i];
    if (is_in_comment) text[i] = ' ';
  }
  for_each_name(text, [&](const std::string& name, int line) {
    for (const std::string& word : words_of(name)) {
      if (vendors.contains(word)) {
        violations.push_back({file.path, line, name + ": vendors stand only in src/chips"});
      }
    }
  });
  return violations;
}

std::vector<Violation> check_pragma_once(const SourceFile& file) {
  // A -inl.h is included once a processor kind, on purpose, and guards itself.
  if (!file.is_header() || file.path.ends_with("-inl.h")) return {};
  const std::vector<std::string> lines = lines_of(file.code);
  const auto first = std::ranges::find_if(
      lines, [](const std::string& line) { return line.find_first_not_of(" \t") != line.npos; });
  if (first != lines.end() && *first == "#pragma once") return {};
  return {{file.path, 1, "#pragma once must follow the opening comment"}};
}

std::vector<Violation> check_using_namespace(const SourceFile& file) {
  // It fills libtorch's namespace in the way that libtorch does.
  if (file.path == "src/chips/torch.h") return {};
  // Inside a function it is indented; at file scope and in namespaces nothing is.
  static const std::regex pattern(R"(^using\s+namespace\b)");
  std::vector<Violation> violations;
  const std::vector<std::string> lines = lines_of(file.code);
  for (size_t i = 0; i < lines.size(); ++i) {
    if (std::regex_search(lines[i], pattern)) {
      violations.push_back({file.path, static_cast<int>(i) + 1, lines[i]});
    }
  }
  return violations;
}

std::vector<Violation> check_environment(const SourceFile& file) {
  static const std::set<std::string> readers = {"getenv", "secure_getenv"};
  std::vector<Violation> violations;
  if (file.room().empty() || environment_readers().contains(file.path)) return violations;
  for_each_name(file.code, [&](const std::string& name, int line) {
    if (readers.contains(name)) violations.push_back({file.path, line, name});
  });
  return violations;
}

std::vector<Violation> check_local_paths(const std::string& path, const std::string& text) {
  static const std::regex pattern(R"((^|[^\w.$}~-])/(home|root|Users|mnt)/\w)");
  std::vector<Violation> violations;
  const std::vector<std::string> lines = lines_of(text);
  for (size_t i = 0; i < lines.size(); ++i) {
    std::smatch match;
    if (std::regex_search(lines[i], match, pattern)) {
      violations.push_back({path, static_cast<int>(i) + 1, "a path of one machine: " + lines[i]});
    }
  }
  return violations;
}

}  // namespace pelago::house
