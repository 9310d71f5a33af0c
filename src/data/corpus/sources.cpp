#include "data/corpus/sources.h"

#include <fnmatch.h>

#include <algorithm>

#include "base/error.h"
#include "base/files.h"
#include "base/log.h"

namespace pelago::data {

namespace {

namespace fs = std::filesystem;

bool matches(const std::string& file_name, const std::vector<std::string>& globs) {
  return std::any_of(globs.begin(), globs.end(), [&](const std::string& glob) {
    return ::fnmatch(glob.c_str(), file_name.c_str(), 0) == 0;
  });
}

/// root: the folder of --from that holds it.
SourceFile source_of(const fs::path& path, const fs::path& root, bool was_named) {
  return {.path = path,
          .is_jsonl = path.extension() == ".jsonl",
          .was_named = was_named,
          .name_hash = hash_u64(path.lexically_relative(root).string())};
}

/// Searches one folder of --from.
class FolderSearch {
 public:
  FolderSearch(const fs::path& root, const std::vector<std::string>& globs, SourceList& found)
      : root_(root), globs_(globs), found_(found) {}

  void search() {
    const size_t num_before = found_.files.size();
    std::error_code error;
    if (fs::is_empty(root_, error))
      fail_usage("{}: empty folder; name one with text", root_.string());
    if (error) fail_usage("{}: cannot be read: {}", root_.string(), error.message());
    search_below(root_);
    if (found_.files.size() == num_before) {
      fail_usage("{}: no file in it matches {}; give other patterns with --glob",
                 root_.string(),
                 fmt::join(globs_, ","));
    }
  }

 private:
  void search_below(const fs::path& folder) {
    std::error_code error;
    fs::directory_iterator entries(folder, error);
    if (error) {
      log_warn("folder skipped path={} reason=\"{}\"", folder.string(), error.message());
      ++found_.num_unreadable;
      return;
    }
    for (; !error && entries != fs::directory_iterator(); entries.increment(error)) {
      const fs::path& path = entries->path();
      const std::string name = path.filename().string();
      std::error_code ignored;
      if (entries->is_directory(ignored)) {
        if (!entries->is_symlink(ignored) && !name.starts_with('.')) search_below(path);
      } else if (entries->exists(ignored) && !entries->is_regular_file(ignored)) {
        continue;  // a pipe or a device, which would never end
      } else if (matches(name, globs_)) {
        found_.files.push_back(source_of(path, root_, /*was_named=*/false));
      }
    }
  }

  const fs::path& root_;                   // outlives me
  const std::vector<std::string>& globs_;  // outlives me
  SourceList& found_;                      // outlives me
};

}  // namespace

std::vector<std::string> split_globs(std::string_view globs) {
  std::vector<std::string> parts;
  while (!globs.empty()) {
    const size_t comma = std::min(globs.find(','), globs.size());
    if (comma > 0) parts.emplace_back(globs.substr(0, comma));
    globs.remove_prefix(std::min(comma + 1, globs.size()));
  }
  return parts;
}

SourceList find_sources(const std::vector<fs::path>& from, const std::vector<std::string>& globs) {
  SourceList found;
  for (const fs::path& path : from) {
    std::error_code error;
    const fs::file_status status = fs::status(path, error);
    if (!fs::exists(status)) {
      fail_usage("{}: no such file or folder; name one that exists with --from", path.string());
    }
    if (fs::is_directory(status)) {
      FolderSearch(path, globs, found).search();
    } else if (!fs::is_regular_file(status)) {
      fail_usage("{}: not a regular file; pipe it into standard input", path.string());
    } else {
      found.files.push_back(source_of(path, path.parent_path(), /*was_named=*/true));
    }
  }
  std::stable_sort(found.files.begin(), found.files.end(), [](const auto& a, const auto& b) {
    // A named file sorts before its twin from a folder and is the one kept.
    return a.path != b.path ? a.path < b.path : a.was_named > b.was_named;
  });
  const auto last = std::unique(found.files.begin(),
                                found.files.end(),
                                [](const auto& a, const auto& b) { return a.path == b.path; });
  found.files.erase(last, found.files.end());
  return found;
}

}  // namespace pelago::data
