#include "source_file.h"

#include <algorithm>
#include <cctype>
#include <fstream>
#include <sstream>

namespace pelago::house {
namespace {

/// Walks over C++ text and blanks what is not code.
class Stripper {
 public:
  explicit Stripper(SourceFile& file) : file_(file), text_(file.text) {}

  void run() {
    while (at_ < text_.size()) {
      if (starts("//")) {
        blank_until(end_of_line_comment(), /*is_comment=*/true);
      } else if (starts("/*")) {
        blank_until(after("*/", at_ + 2), /*is_comment=*/true);
      } else if (starts("R\"") && !follows_word()) {
        const size_t open = text_.find('(', at_);
        const std::string end = ")" + text_.substr(at_ + 2, open - at_ - 2) + "\"";
        blank_until(after(end, at_ + 2), /*is_comment=*/false);
      } else if (text_[at_] == '"') {
        blank_quoted();
      } else if (text_[at_] == '\'' && !follows_word()) {  // not the quote of 1'000
        blank_quoted();
      } else {
        ++at_;
      }
    }
  }

 private:
  bool starts(std::string_view what) const { return text_.compare(at_, what.size(), what) == 0; }
  bool follows_word() const {
    return at_ > 0 && (std::isalnum(static_cast<unsigned char>(text_[at_ - 1])) != 0);
  }
  size_t after(const std::string& what, size_t from) const {
    const size_t found = text_.find(what, from);
    return found == std::string::npos ? text_.size() : found + what.size();
  }
  size_t end_of_line_comment() const { return std::min(text_.find('\n', at_), text_.size()); }

  void blank_quoted() {
    const char quote = text_[at_];
    size_t end = at_ + 1;
    while (end < text_.size() && text_[end] != quote && text_[end] != '\n') {
      end += text_[end] == '\\' ? 2 : 1;
    }
    ++at_;  // the quotes stay, so that a call still looks like a call
    blank_until(std::min(end, text_.size()), /*is_comment=*/false);
    if (at_ < text_.size()) ++at_;
  }

  void blank_until(size_t end, bool is_comment) {
    for (; at_ < end; ++at_) {
      if (text_[at_] == '\n') continue;
      file_.code[at_] = ' ';
      if (!is_comment) file_.comments[at_] = ' ';
    }
  }

  SourceFile& file_;         // outlives me
  const std::string& text_;  // of file_
  size_t at_ = 0;
};

}  // namespace

std::string SourceFile::room() const {
  if (!path.starts_with("src/")) return "";
  const size_t end = path.find('/', 4);
  return end == std::string::npos ? "" : path.substr(4, end - 4);
}

SourceFile make_source_file(std::string path, std::string text) {
  SourceFile file;
  file.path = std::move(path);
  file.text = std::move(text);
  file.code = file.text;
  file.comments = file.text;
  Stripper(file).run();
  return file;
}

std::vector<SourceFile> read_sources(const std::filesystem::path& root, const std::string& folder) {
  std::vector<SourceFile> files;
  if (!std::filesystem::exists(root / folder)) return files;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(root / folder)) {
    const std::string extension = entry.path().extension().string();
    if (!entry.is_regular_file() || (extension != ".h" && extension != ".cpp")) continue;
    std::ostringstream text;
    text << std::ifstream(entry.path(), std::ios::binary).rdbuf();
    files.push_back(make_source_file(std::filesystem::relative(entry.path(), root).generic_string(),
                                     text.str()));
  }
  std::ranges::sort(files, {}, &SourceFile::path);
  return files;
}

int line_at(std::string_view text, size_t position) {
  return 1 + static_cast<int>(std::ranges::count(text.substr(0, position), '\n'));
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

}  // namespace pelago::house
