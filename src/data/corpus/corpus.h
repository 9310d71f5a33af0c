// The documents of a corpus. They are read twice, once to find duplicates and choose the split,
// once to make tokens, so that a corpus need not fit in memory; what is kept of each between is a
// few numbers.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/files.h"
#include "data/corpus/sources.h"

namespace pelago::data {

/// Where one document lies: a text file, a line of a JSONL file, or a part of either.
struct Document {
  uint32_t file_idx = 0;
  uint64_t line_begin = 0;  // JSONL: the line's place in its file
  uint64_t line_bytes = 0;
  uint64_t text_begin = 0;  // the part of the text that is meant
  uint64_t text_bytes = 0;
  uint64_t hash = 0;  // of that part
};

class Corpus {
 public:
  /// text_field: where a JSONL line keeps its text.
  Corpus(std::vector<SourceFile> files, std::string text_field);

  size_t num_files() const { return files_.size(); }
  const SourceFile& file(size_t file_idx) const { return files_[file_idx]; }

  /// The documents of one file, empty ones left out; a JSONL file is left once text_bytes_max is
  /// reached. Different files may be scanned by different threads. Throws Failure if the file
  /// cannot be read, and, naming file and line, if a JSONL line is not JSON or lacks the field.
  std::vector<Document> scan(size_t file_idx, int64_t text_bytes_max);

  /// The text of a document that scan() found. Throws Failure if it has changed since.
  std::string read(const Document& document) const;

 private:
  std::vector<Document> scan_jsonl(size_t file_idx, int64_t text_bytes_max);
  std::string whole_text(const Document& document) const;

  std::vector<SourceFile> files_;
  std::string text_field_;
  std::vector<MappedFile> jsonl_;  // by file; empty for text files
};

/// Cuts one document in two at the line break nearest before the last `ratio` of its text (at that
/// very byte if there is none). text: the document's.
std::pair<Document, Document> cut_document(const Document& document,
                                           std::string_view text,
                                           double ratio);

}  // namespace pelago::data
