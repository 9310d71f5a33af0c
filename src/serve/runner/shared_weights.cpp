#include "serve/runner/shared_weights.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/error.h"

namespace pelago::serve {

namespace {

constexpr size_t kPieceAlign = size_t{2} << 20;  // so that pieces may lie in large pages

/// At the file's begin; the pieces follow from kPieceAlign on.
struct PackedHead {
  uint64_t key = 0;
  uint64_t is_packed = 0;
};

/// Of the whole file, until the process ends or takes it off. False if the system cannot.
bool set_lock(int file, short kind) {
  struct flock lock {};
  lock.l_type = kind;
  lock.l_whence = SEEK_SET;
  while (::fcntl(file, F_SETLKW, &lock) != 0) {
    if (errno != EINTR) return false;
  }
  return true;
}

}  // namespace

SharedWeightsFile::SharedWeightsFile() : file_(::memfd_create("pelago-weights", MFD_CLOEXEC)) {
  if (file_ < 0) fail("memory for the workers' weights: {}", std::strerror(errno));
}

SharedWeightsFile::~SharedWeightsFile() { ::close(file_); }

std::string SharedWeightsFile::path() const {
  return fmt::format("/proc/{}/fd/{}", ::getpid(), file_);
}

std::unique_ptr<SharedWeights> SharedWeights::open(const std::string& path, uint64_t key) {
  const int file = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (file < 0) fail("{}: the workers' weights cannot be opened: {}", path, std::strerror(errno));
  std::unique_ptr<SharedWeights> weights(new SharedWeights(file, key));
  PackedHead head;
  if (!set_lock(file, F_WRLCK)) fail("{}: cannot be locked: {}", path, std::strerror(errno));
  const bool has_head = ::pread(file, &head, sizeof head, 0) == sizeof head;
  if (has_head && head.is_packed != 0) {
    set_lock(file, F_UNLCK);
    if (head.key != key) return nullptr;
    weights->is_packed_ = true;
    return weights;
  }
  // What another one that died has left is not zeros.
  if (::ftruncate(file, 0) != 0 || ::ftruncate(file, kPieceAlign) != 0) {
    fail("{}: cannot be made larger: {}", path, std::strerror(errno));
  }
  return weights;
}

SharedWeights::~SharedWeights() { ::close(file_); }

chips::packed::LargeMemory SharedWeights::take(size_t num_bytes) {
  const size_t begin = end_;
  end_ += (num_bytes + kPieceAlign - 1) / kPieceAlign * kPieceAlign;
  if (!is_packed_ && ::ftruncate(file_, static_cast<off_t>(end_)) != 0) {
    fail("memory for the workers' weights: {}", std::strerror(errno));
  }
  return {{.file = file_, .begin = begin, .is_read_only = is_packed_}, num_bytes};
}

void SharedWeights::finish() {
  if (is_packed_) return;
  const PackedHead head = {.key = key_, .is_packed = 1};
  if (::pwrite(file_, &head, sizeof head, 0) != sizeof head) {
    fail("memory for the workers' weights: {}", std::strerror(errno));
  }
  set_lock(file_, F_UNLCK);
}

}  // namespace pelago::serve
