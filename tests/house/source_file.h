// A source file as the house rules see it: the text, and the same text without what a rule must not
// trip over. Lines keep their numbers in every view.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace pelago::house {

struct SourceFile {
  std::string path;      // from the repository's root, with '/': "src/base/clock.h"
  std::string text;      // as written
  std::string code;      // comments and the insides of strings are blanks
  std::string comments;  // the insides of strings are blanks

  bool is_header() const { return path.ends_with(".h"); }
  /// "base" for "src/base/clock.h"; empty outside src/.
  std::string room() const;
  /// "clock.h" for "src/base/clock.h".
  std::string name() const { return path.substr(path.rfind('/') + 1); }
};

/// Takes C++ apart into its views: comments, strings, raw strings, characters, 1'000 with its
/// quote.
SourceFile make_source_file(std::string path, std::string text);

/// Every .h and .cpp below root/folder, in order of path.
std::vector<SourceFile> read_sources(const std::filesystem::path& root, const std::string& folder);

/// One broken rule, printed as "src/a.cpp:12: what".
struct Violation {
  std::string path;
  int line = 0;  // 0: the file as a whole
  std::string what;
};

/// 1 for the first line.
int line_at(std::string_view text, size_t position);

/// The lines of text without their ends.
std::vector<std::string> lines_of(const std::string& text);

}  // namespace pelago::house
