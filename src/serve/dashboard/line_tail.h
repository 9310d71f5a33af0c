// Follows a file of JSON lines that another process appends to. Each byte is read once: what came
// since the last look is handed over line by line, and a line that has no end yet waits for it. A
// file that is absent may come; one that became shorter or is another file now (a run begun anew)
// is read from its start, and the caller is told to forget what it knew. Opens for reading alone,
// keeps nothing open between looks and never waits, so it cannot disturb who writes.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <utility>

namespace pelago::serve {

class LineTail {
 public:
  explicit LineTail(std::filesystem::path path) : path_(std::move(path)) {}

  /// Whether the file has gone, shrunk or been replaced since the last read: the caller forgets
  /// what it read, calls rewind() and reads anew.
  bool was_replaced();
  void rewind();
  /// Hands over whole lines, without their ends, from at most bytes_max bytes. Lines of more than
  /// kLineBytesMax are left out. Returns whether there was anything new.
  bool read(int64_t bytes_max, const std::function<void(std::string_view)>& take);

  int64_t read_bytes() const { return offset_; }
  int64_t total_bytes() const { return total_bytes_; }  // when last looked
  double written_s() const { return written_s_; }       // unix seconds; 0: absent

  static constexpr size_t kLineBytesMax = 4 << 20;  // a step of 10,000 devices takes half of it

 private:
  /// Size, time and identity of the file; returns false if there is none.
  bool look(ino_t& inode, int64_t& num_bytes);

  std::filesystem::path path_;
  ino_t inode_ = 0;  // of the file that was read; 0: none yet
  int64_t offset_ = 0;
  int64_t total_bytes_ = 0;
  double written_s_ = 0;
  std::string partial_;              // a line without its end
  bool skips_to_next_line_ = false;  // in a line that is too long
};

}  // namespace pelago::serve
