#include "train/process/shared_weights.h"

#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "base/error.h"

namespace pelago::train {

namespace {

constexpr size_t kPageBytes = 4096;
constexpr size_t kBoardBytes = (sizeof(SiteBoard) + kPageBytes - 1) / kPageBytes * kPageBytes;

}  // namespace

SharedWeights SharedWeights::create(int64_t num_values) {
  const int descriptor = ::memfd_create("pelago-weights", MFD_CLOEXEC);
  if (descriptor < 0) fail("cannot make shared memory for weights: {}", std::strerror(errno));
  const auto num_bytes =
      static_cast<off_t>(kBoardBytes + kVectors * sizeof(float) * static_cast<size_t>(num_values));
  if (::ftruncate(descriptor, num_bytes) != 0) {
    const int reason = errno;
    ::close(descriptor);
    fail("cannot make {} bytes of shared memory for weights: {}", num_bytes, std::strerror(reason));
  }
  return attach(descriptor, num_values);
}

SharedWeights SharedWeights::attach(int descriptor, int64_t num_values) {
  const auto count = static_cast<size_t>(num_values);
  const size_t num_bytes = kBoardBytes + kVectors * count * sizeof(float);
  struct stat info {};
  if (::fstat(descriptor, &info) != 0 || static_cast<size_t>(info.st_size) != num_bytes) {
    fail("shared weights have {} bytes, the model needs {}: job.toml and plan.json disagree",
         info.st_size,
         num_bytes);
  }
  void* mapped = ::mmap(nullptr, num_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
  if (mapped == MAP_FAILED) fail("cannot map {} bytes: {}", num_bytes, std::strerror(errno));
  // Fresh memory is zero, which is what an empty board is.
  auto* const values = reinterpret_cast<float*>(static_cast<std::byte*>(mapped) + kBoardBytes);
  return SharedWeights(descriptor, static_cast<SiteBoard*>(mapped), values, count);
}

SharedWeights::SharedWeights(SharedWeights&& other) noexcept
    : descriptor_(std::exchange(other.descriptor_, -1)),
      board_(std::exchange(other.board_, nullptr)),
      values_(other.values_),
      num_values_(other.num_values_) {}

SharedWeights::~SharedWeights() {
  if (board_ != nullptr) ::munmap(board_, kBoardBytes + kVectors * num_values_ * sizeof(float));
  if (descriptor_ >= 0) ::close(descriptor_);
}

}  // namespace pelago::train
