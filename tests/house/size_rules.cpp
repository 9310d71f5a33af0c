#include <algorithm>
#include <map>
#include <regex>

#include "rules.h"

namespace pelago::house {
namespace {

constexpr size_t kHeaderLinesMax = 200;
constexpr size_t kSourceLinesMax = 600;
constexpr size_t kSourceLinesWarn = 400;
constexpr int kFunctionLinesMax = 60;
constexpr size_t kFolderFilesMax = 12;
constexpr size_t kBaseFilesMax = 10;

/// A -inl.h is a piece of source that several sources include.
bool counts_as_header(const SourceFile& file) {
  return file.is_header() && !file.path.ends_with("-inl.h");
}

size_t num_lines(const SourceFile& file) { return lines_of(file.text).size(); }

/// What a pair of braces holds, as far as function lengths care.
enum class Brace { kNamespace, kType, kFunction, kOther };

/// Text without what stands in round or square brackets: "int f(int x = 1)" becomes "int f".
std::string without_brackets(const std::string& text) {
  std::string rest;
  int depth = 0;
  for (const char c : text) {
    if (c == '(' || c == '[') ++depth;
    if (depth == 0) rest += c;
    if (c == ')' || c == ']') --depth;
  }
  return rest;
}

/// before: the code between the last ';', '{' or '}' and the brace.
Brace kind_of_brace(const std::string& before) {
  static const std::regex name_space(R"(\bnamespace\b|extern\s*"\s*")");
  static const std::regex type(R"(\b(class|struct|union|enum)\b)");
  static const std::regex assignment(R"((^|[^=!<>+*/-])=($|[^=]))");
  const bool is_call_like = before.find('(') != std::string::npos;
  const std::string bare = without_brackets(before);
  if (std::regex_search(before, name_space)) return Brace::kNamespace;
  if (std::regex_search(bare, type) && !is_call_like) return Brace::kType;
  const bool is_operator = bare.find("operator") != std::string::npos;
  if (std::regex_search(bare, assignment) && !is_operator) return Brace::kOther;
  return Brace::kFunction;  // also the body after an initialiser list that ends in a brace
}

/// Code without preprocessor lines, whose braces need not pair.
std::string without_directives(const std::string& code) {
  std::string rest;
  bool in_directive = false;
  for (std::string line : lines_of(code)) {
    const size_t first = line.find_first_not_of(" \t");
    if (first != std::string::npos && line[first] == '#') in_directive = true;
    const bool continues = line.ends_with('\\');
    if (in_directive) line.clear();
    in_directive = in_directive && continues;
    rest += line + '\n';
  }
  return rest;
}

}  // namespace

std::vector<Violation> check_file_size(const SourceFile& file) {
  const size_t lines_max = counts_as_header(file) ? kHeaderLinesMax : kSourceLinesMax;
  if (num_lines(file) <= lines_max) return {};
  return {{file.path,
           0,
           std::to_string(num_lines(file)) + " lines, more than " + std::to_string(lines_max) +
               ": find the second idea in it"}};
}

std::vector<Violation> warn_file_size(const SourceFile& file) {
  if (counts_as_header(file) || num_lines(file) <= kSourceLinesWarn) return {};
  return {{file.path, 0, std::to_string(num_lines(file)) + " lines, more than 400"}};
}

std::vector<Violation> check_function_size(const SourceFile& file) {
  std::vector<Violation> violations;
  const std::string code = without_directives(file.code);
  std::vector<std::pair<Brace, int>> open;  // what, and the line of its brace
  int function_depth = 0;                   // braces that stand inside a function
  size_t statement = 0;
  int line = 1;
  for (size_t i = 0; i < code.size(); ++i) {
    const char c = code[i];
    if (c == '\n') ++line;
    if (c == '{') {
      const Brace kind =
          function_depth > 0 ? Brace::kOther : kind_of_brace(code.substr(statement, i - statement));
      if (function_depth > 0 || kind == Brace::kFunction) ++function_depth;
      open.emplace_back(kind, line);
    } else if (c == '}' && !open.empty()) {
      const auto [kind, first_line] = open.back();
      open.pop_back();
      if (function_depth > 0) --function_depth;
      if (kind == Brace::kFunction && line - first_line - 1 > kFunctionLinesMax) {
        violations.push_back({file.path,
                              first_line,
                              "a function of " + std::to_string(line - first_line - 1) +
                                  " lines, more than " + std::to_string(kFunctionLinesMax)});
      }
    }
    if (c == '{' || c == '}' || c == ';') statement = i + 1;
  }
  return violations;
}

std::vector<Violation> check_folder_sizes(const std::vector<SourceFile>& files) {
  std::map<std::string, size_t> num_files;
  for (const SourceFile& file : files) ++num_files[file.path.substr(0, file.path.rfind('/'))];
  std::vector<Violation> violations;
  for (const auto& [folder, count] : num_files) {
    if (folder == "src/cli") continue;
    const size_t count_max = folder == "src/base" ? kBaseFilesMax : kFolderFilesMax;
    if (count > count_max) {
      violations.push_back({folder,
                            0,
                            std::to_string(count) + " files, more than " +
                                std::to_string(count_max) + ": make a folder by idea"});
    }
  }
  return violations;
}

}  // namespace pelago::house
