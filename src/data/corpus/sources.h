// Which files a corpus is made of.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace pelago::data {

struct SourceFile {
  std::filesystem::path path;
  bool is_jsonl = false;   // by its name, *.jsonl: one document a line
  bool was_named = false;  // in --from, so that failing to read it is an error
  uint64_t name_hash = 0;  // of its path inside the folder of --from, wherever that lies
};

struct SourceList {
  std::vector<SourceFile> files;  // sorted by path, each once
  int64_t num_unreadable = 0;     // folders that could not be opened
};

/// "*.h,*.hpp" as {"*.h", "*.hpp"}.
std::vector<std::string> split_globs(std::string_view globs);

/// from: files, taken as they are, and folders, searched to the bottom for file names that match
/// one of globs. Hidden folders are passed over; links to folders are not followed. Throws Failure
/// (exit 2) naming what does not exist, is empty or has no match.
SourceList find_sources(const std::vector<std::filesystem::path>& from,
                        const std::vector<std::string>& globs);

}  // namespace pelago::data
