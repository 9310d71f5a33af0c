#include "data/corpus/corpus.h"

#include <simdjson.h>

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace pelago::data {

namespace {

bool is_blank(std::string_view line) {
  return line.find_first_not_of(" \t\r\n") == std::string_view::npos;
}

std::string keys_of(simdjson::dom::object object) {
  std::string keys;
  for (const auto& [key, value] : object) {
    if (!keys.empty()) keys += ", ";
    keys += key;
  }
  return keys.empty() ? "none" : keys;
}

/// The text of one JSONL line. where: "corpus.jsonl:17".
std::string_view text_of_line(simdjson::dom::parser& parser,
                              std::string_view line,
                              const std::string& text_field,
                              const std::string& where) {
  simdjson::dom::element root;
  if (const auto error = parser.parse(line.data(), line.size()).get(root)) {
    fail("{}: not valid JSON: {}", where, simdjson::error_message(error));
  }
  simdjson::dom::object object;
  if (root.get(object) != simdjson::SUCCESS) fail("{}: not a JSON object", where);
  simdjson::dom::element field;
  if (object.at_key(text_field).get(field) != simdjson::SUCCESS) {
    fail("{}: no field {}; its fields are {} (choose one with --text-field)",
         where,
         text_field,
         keys_of(object));
  }
  std::string_view text;
  if (field.get(text) != simdjson::SUCCESS) fail("{}: field {} is not text", where, text_field);
  return text;
}

}  // namespace

Corpus::Corpus(std::vector<SourceFile> files, std::string text_field)
    : files_(std::move(files)), text_field_(std::move(text_field)), jsonl_(files_.size()) {}

std::vector<Document> Corpus::scan(size_t file_idx, int64_t text_bytes_max) {
  if (files_[file_idx].is_jsonl) return scan_jsonl(file_idx, text_bytes_max);
  const std::string text = read_text_file(files_[file_idx].path);
  if (text.empty()) return {};
  return {{.file_idx = static_cast<uint32_t>(file_idx),
           .line_begin = 0,
           .line_bytes = 0,
           .text_begin = 0,
           .text_bytes = text.size(),
           .hash = hash_u64(text)}};
}

std::vector<Document> Corpus::scan_jsonl(size_t file_idx, int64_t text_bytes_max) {
  jsonl_[file_idx] = MappedFile(files_[file_idx].path);
  const std::string_view content = jsonl_[file_idx].text();
  simdjson::dom::parser parser;
  std::vector<Document> documents;
  int64_t num_text_bytes = 0;
  size_t line_idx = 0;
  for (size_t begin = 0; begin < content.size() && num_text_bytes < text_bytes_max;) {
    const size_t end = std::min(content.find('\n', begin), content.size());
    const std::string_view line = content.substr(begin, end - begin);
    ++line_idx;
    if (!is_blank(line)) {
      const std::string where = fmt::format("{}:{}", files_[file_idx].path.string(), line_idx);
      const std::string_view text = text_of_line(parser, line, text_field_, where);
      num_text_bytes += static_cast<int64_t>(text.size());
      if (!text.empty()) {
        documents.push_back({.file_idx = static_cast<uint32_t>(file_idx),
                             .line_begin = begin,
                             .line_bytes = line.size(),
                             .text_begin = 0,
                             .text_bytes = text.size(),
                             .hash = hash_u64(text)});
      }
    }
    begin = end + 1;
  }
  return documents;
}

std::string Corpus::whole_text(const Document& document) const {
  const SourceFile& file = files_[document.file_idx];
  if (!file.is_jsonl) return read_text_file(file.path);
  const std::string_view content = jsonl_[document.file_idx].text();
  const std::string_view line = content.substr(document.line_begin, document.line_bytes);
  simdjson::dom::parser parser;
  const std::string where = fmt::format("{}: byte {}", file.path.string(), document.line_begin);
  return std::string(text_of_line(parser, line, text_field_, where));
}

std::string Corpus::read(const Document& document) const {
  std::string text = whole_text(document);
  const bool is_whole = document.text_begin == 0 && document.text_bytes == text.size();
  if (!is_whole) {
    text = text.substr(std::min<size_t>(text.size(), document.text_begin), document.text_bytes);
  }
  if (text.size() != document.text_bytes || hash_u64(text) != document.hash) {
    fail("{}: changed while the dataset was being built; build again",
         files_[document.file_idx].path.string());
  }
  return text;
}

std::pair<Document, Document> cut_document(const Document& document,
                                           std::string_view text,
                                           double ratio) {
  auto cut = static_cast<size_t>(static_cast<double>(text.size()) * (1.0 - ratio));
  cut = std::clamp<size_t>(cut, 1, text.size() - 1);
  const size_t newline = text.rfind('\n', cut - 1);
  if (newline != std::string_view::npos) cut = newline + 1;
  std::pair<Document, Document> parts(document, document);
  parts.first.text_bytes = cut;
  parts.first.hash = hash_u64(text.substr(0, cut));
  parts.second.text_begin = document.text_begin + cut;
  parts.second.text_bytes = text.size() - cut;
  parts.second.hash = hash_u64(text.substr(cut));
  return parts;
}

}  // namespace pelago::data
