#include "serve/dashboard/line_tail.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <vector>

namespace pelago::serve {

bool LineTail::look(ino_t& inode, int64_t& num_bytes) {
  struct stat about {};
  if (::stat(path_.c_str(), &about) != 0 || !S_ISREG(about.st_mode)) {
    inode = 0;
    num_bytes = 0;
    written_s_ = 0;
    total_bytes_ = 0;
    return false;
  }
  inode = about.st_ino;
  num_bytes = about.st_size;
  total_bytes_ = num_bytes;
  written_s_ =
      static_cast<double>(about.st_mtim.tv_sec) + 1e-9 * static_cast<double>(about.st_mtim.tv_nsec);
  return true;
}

bool LineTail::was_replaced() {
  ino_t inode = 0;
  int64_t num_bytes = 0;
  const bool is_there = look(inode, num_bytes);
  return inode_ != 0 && (!is_there || inode != inode_ || num_bytes < offset_);
}

void LineTail::rewind() {
  inode_ = 0;
  offset_ = 0;
  partial_.clear();
  skips_to_next_line_ = false;
}

bool LineTail::read(int64_t bytes_max, const std::function<void(std::string_view)>& take) {
  ino_t inode = 0;
  int64_t num_bytes = 0;
  if (!look(inode, num_bytes)) return false;
  inode_ = inode;
  const int64_t wanted = std::min(bytes_max, num_bytes - offset_);
  if (wanted <= 0) return false;
  // A pipe or a device in the file's place would block: it was a regular file a moment ago, and
  // O_NONBLOCK costs nothing.
  const int file = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file < 0) return false;
  std::vector<char> piece(static_cast<size_t>(std::min<int64_t>(wanted, 1 << 20)));
  int64_t left = wanted;
  while (left > 0) {
    const size_t count = static_cast<size_t>(std::min<int64_t>(left, std::ssize(piece)));
    const ssize_t got = ::pread(file, piece.data(), count, offset_);
    if (got <= 0) break;
    offset_ += got;
    left -= got;
    std::string_view rest(piece.data(), static_cast<size_t>(got));
    while (!rest.empty()) {
      const size_t end = rest.find('\n');
      if (!skips_to_next_line_) partial_.append(rest.substr(0, end));
      if (partial_.size() > kLineBytesMax) {
        partial_.clear();
        skips_to_next_line_ = true;
      }
      if (end == std::string_view::npos) break;
      if (!partial_.empty()) take(partial_);
      partial_.clear();
      skips_to_next_line_ = false;
      rest.remove_prefix(end + 1);
    }
  }
  ::close(file);
  return left < wanted;
}

}  // namespace pelago::serve
