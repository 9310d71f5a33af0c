#include <algorithm>
#include <map>
#include <regex>
#include <set>
#include <sstream>

#include "rules.h"

namespace pelago::house {
namespace {

/// What each room may include beside itself: a room, or one header of a room.
const std::map<std::string, std::set<std::string>>& rooms_below() {
  static const std::map<std::string, std::set<std::string>> table = {
      {"base", {}},
      {"chips", {"base"}},
      {"data", {"base"}},
      {"model", {"base", "chips"}},
      {"plan", {"base", "chips/catalogue.h", "chips/links.h", "model/config.h"}},
      {"train", {"base", "chips", "data", "model", "plan"}},
      {"serve", {"base", "chips", "data", "model", "plan"}},
      {"sites", {"base", "chips", "model", "plan", "train"}},
      {"compress", {"base", "chips", "data", "model", "train"}},
      {"cli", {"base", "chips", "data", "model", "plan", "train", "serve", "sites", "compress"}},
  };
  return table;
}

/// A library by the start of its includes, and the files of src/ that may name it.
struct LibraryRule {
  std::string named;
  std::string include;  // regex on what stands between the brackets or quotes
  std::string allowed;  // regex on the path
};

const std::vector<LibraryRule>& library_rules() {
  static const std::vector<LibraryRule> rules = {
      {"libtorch", "(torch|ATen|c10)/.*", "src/(chips|model|train|serve|sites|compress|cli)/.*"},
      {"libtorch", "(torch|ATen|c10)/.*", "(?!src/(model/config|chips/catalogue)\\.h).*"},
      {"gRPC and protobuf",
       "(grpc|grpcpp|google/protobuf)/.*|.*\\.pb\\.h",
       "src/sites/(.*/)?grpc_[^/]*\\.cpp"},
      {"OpenSSL", "openssl/.*", "src/sites/(.*/)?(tls[^/]*|grpc_[^/]*)\\.cpp"},
      {"SQLite", "sqlite3.*", "src/sites/(.*/)?journal\\.cpp"},
      {"libcurl", "curl/.*", "src/sites/(.*/)?http_client\\.cpp"},
      {"toml++", "toml\\+\\+/.*|toml\\.hpp", "src/base/config\\.cpp"},
      {"CLI11", "CLI/.*", "src/cli/.*"},
      {"PCRE2", "pcre2.*", "src/data/.*"},
      {"simdjson", "simdjson.*", "src/data/.*"},
      {"UCX", "(ucp|uct|ucs)/.*", "src/chips/.*"},
      {"Highway", "hwy/.*", "src/chips/.*"},
      {"oneDNN", "(oneapi/)?dnnl.*", "src/chips/.*"},
      {"spdlog", "spdlog/.*", "src/base/.*"},
      {"Boost", "boost/.*", "src/serve/(.*/)?http_(server\\.cpp|connection\\.cpp|core\\.h)"},
  };
  return rules;
}

struct Include {
  int line = 0;
  bool is_quoted = false;
  std::string target;
};

std::vector<Include> includes_of(const SourceFile& file) {
  static const std::regex pattern(R"(^\s*#\s*include\s*([<"])([^>"]+)[>"])");
  std::vector<Include> includes;
  const std::vector<std::string> lines = lines_of(file.text);
  for (size_t i = 0; i < lines.size(); ++i) {
    std::smatch match;
    if (std::regex_search(lines[i], match, pattern)) {
      includes.push_back({static_cast<int>(i) + 1, match[1] == "\"", match[2]});
    }
  }
  return includes;
}

}  // namespace

std::vector<Violation> check_rooms(const SourceFile& file) {
  std::vector<Violation> violations;
  const std::string room = file.room();
  if (room.empty()) return violations;
  const auto below = rooms_below().find(room);
  if (below == rooms_below().end()) {
    return {{file.path, 0, "room " + room + " is not in the include table"}};
  }
  for (const Include& include : includes_of(file)) {
    if (!include.is_quoted || include.target.ends_with(".pb.h")) continue;
    const std::string target_room = include.target.substr(0, include.target.find('/'));
    if (!rooms_below().contains(target_room)) {
      violations.push_back({file.path,
                            include.line,
                            "\"" + include.target + "\" does not start with a room of src/"});
    } else if (target_room != room && !below->second.contains(target_room) &&
               !below->second.contains(include.target)) {
      violations.push_back({file.path, include.line, room + " may not include " + include.target});
    }
  }
  return violations;
}

std::vector<Violation> check_libraries(const SourceFile& file) {
  std::vector<Violation> violations;
  if (file.room().empty()) return violations;
  for (const Include& include : includes_of(file)) {
    for (const LibraryRule& rule : library_rules()) {
      if (std::regex_match(include.target, std::regex(rule.include)) &&
          !std::regex_match(file.path, std::regex(rule.allowed))) {
        violations.push_back(
            {file.path, include.line, rule.named + " may not be named here: " + include.target});
        break;
      }
    }
  }
  return violations;
}

std::vector<Violation> check_heavy_headers(const SourceFile& file) {
  std::vector<Violation> violations;
  if (file.room().empty()) return violations;
  const bool may_be_heavy = !file.is_header() || file.room() == "model";
  for (const Include& include : includes_of(file)) {
    if (include.target == "torch/torch.h") {
      violations.push_back({file.path, include.line, "take chips/torch.h, which is precompiled"});
    } else if (include.target == "chips/torch.h" && !may_be_heavy) {
      violations.push_back({file.path, include.line, "headers take chips/tensor.h, not torch.h"});
    }
  }
  return violations;
}

std::vector<Violation> check_cmake_rooms(const std::string& cmake) {
  static const std::regex pattern(R"(pelago_room\((\w+)([^)]*)\))");
  std::vector<Violation> violations;
  for (auto it = std::sregex_iterator(cmake.begin(), cmake.end(), pattern);
       it != std::sregex_iterator();
       ++it) {
    const std::string room = (*it)[1];
    const int line = line_at(cmake, static_cast<size_t>(it->position()));
    std::istringstream words((*it)[2]);
    std::set<std::string> used;
    bool in_uses = false;
    for (std::string word; words >> word;) {
      if (word == "USES" || word == "LIBS" || word == "TORCH") {
        in_uses = word == "USES";
      } else if (in_uses) {
        used.insert(word);
      }
    }
    if (!rooms_below().contains(room)) {
      violations.push_back({"CMakeLists.txt", line, room + " is not in the include table"});
      continue;
    }
    for (const std::string& other : used) {
      const auto names_it = [&](const std::string& allowed) {
        return allowed == other || allowed.starts_with(other + "/");
      };
      if (std::ranges::none_of(rooms_below().at(room), names_it)) {
        violations.push_back({"CMakeLists.txt", line, room + " may not use " + other});
      }
    }
  }
  return violations;
}

}  // namespace pelago::house
