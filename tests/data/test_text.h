// Text and folders for the tests of this room.
#pragma once

#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include "base/rng.h"
#include "data/bpe_trainer.h"
#include "data/tokenizer.h"

namespace pelago::data {

/// A folder of the test's own, empty at the start and gone at the end.
class TestFolder {
 public:
  explicit TestFolder(const std::string& name)
      : path_(std::filesystem::temp_directory_path() / ("pelago-data-test-" + name)) {
    std::filesystem::remove_all(path_);
    std::filesystem::create_directories(path_);
  }
  TestFolder(const TestFolder&) = delete;
  TestFolder& operator=(const TestFolder&) = delete;
  ~TestFolder() { std::filesystem::remove_all(path_); }
  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

/// Without forcing it to disk, which a test need not wait for.
inline void write_plainly(const std::filesystem::path& path, std::string_view content) {
  std::ofstream(path, std::ios::binary) << content;
}

/// Lines that look like code, num_bytes or a little more of them.
inline std::string code_like_text(uint64_t seed, size_t num_bytes) {
  static constexpr std::string_view kWords[] = {
      "int",         "return", "const", "struct",   "value", "index",
      "buffer_size", "for",    "if",    "\t",       "    ",  " ",
      "\n",          "\r\n",   "(",     ");",       "{\n",   "}\n\n",
      "it's",        "0x1F",   "12345", "// ",      "/*",    "*/",
      "->next",      "é",      "变量",  "≤",        "ſ",     " ",
      "'ll",         "'ſ",     "K",     "\"text\"", "next",  "__attribute__"};
  Rng rng = Rng(seed).fork("text");
  std::string text;
  while (text.size() < num_bytes) {
    text += kWords[rng.next_below(std::size(kWords))];
    if (rng.next_below(2) == 0) text += ' ';
  }
  return text;
}

inline Tokenizer small_tokenizer(int64_t vocab_size = 400) {
  const std::string text = code_like_text(/*seed=*/1, /*num_bytes=*/20000);
  const std::vector<std::string_view> documents = {text};
  return Tokenizer::from_spec(train_bpe(documents, {.vocab_size = vocab_size}));
}

}  // namespace pelago::data
