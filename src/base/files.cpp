#include "base/files.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include <cerrno>
#include <cstring>
#include <utility>

namespace pelago {

namespace {

/// A file descriptor, closed when it goes.
struct Descriptor {
  int fd;
  ~Descriptor() {
    if (fd >= 0) ::close(fd);
  }
};

Error system_error(const std::filesystem::path& path, const char* what) {
  const int reason = errno;
  const bool is_full = reason == ENOSPC || reason == EDQUOT;
  return Error{is_full ? ErrorCode::kNoSpace : ErrorCode::kUnavailable,
               fmt::format("{}: cannot {}: {}{}",
                           path.string(),
                           what,
                           std::strerror(reason),
                           is_full ? "; free some space on that disk" : "")};
}

}  // namespace

MappedFile::MappedFile(const std::filesystem::path& path) {
  const Descriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  struct stat info {};
  if (file.fd < 0 || ::fstat(file.fd, &info) != 0)
    throw Failure(system_error(path, "open").message);
  if (!S_ISREG(info.st_mode)) fail("{}: not a regular file", path.string());
  num_bytes_ = static_cast<size_t>(info.st_size);
  if (num_bytes_ == 0) return;
  void* mapped = ::mmap(nullptr, num_bytes_, PROT_READ, MAP_PRIVATE, file.fd, 0);
  if (mapped == MAP_FAILED) throw Failure(system_error(path, "map").message);
  data_ = static_cast<const std::byte*>(mapped);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), num_bytes_(std::exchange(other.num_bytes_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(num_bytes_, other.num_bytes_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), num_bytes_);
}

std::string read_text_file(const std::filesystem::path& path) {
  const Descriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  if (file.fd < 0) throw Failure(system_error(path, "open").message);
  std::string content;
  char buffer[1 << 16];
  while (true) {
    const ssize_t got = ::read(file.fd, buffer, sizeof buffer);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw Failure(system_error(path, "read").message);
    if (got == 0) return content;
    content.append(buffer, static_cast<size_t>(got));
  }
}

Status try_write_file(const std::filesystem::path& path, std::string_view content) {
  const std::filesystem::path temporary = path.string() + fmt::format(".{}.tmp", ::getpid());
  const auto give_up = [&](const char* what) {
    Error error = system_error(path, what);
    ::unlink(temporary.c_str());
    return error;
  };
  {
    const Descriptor file{
        ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644)};
    if (file.fd < 0) return give_up("write");
    size_t written = 0;
    while (written < content.size()) {
      const ssize_t put = ::write(file.fd, content.data() + written, content.size() - written);
      if (put < 0 && errno == EINTR) continue;
      if (put < 0) return give_up("write");
      written += static_cast<size_t>(put);
    }
    if (::fsync(file.fd) != 0) return give_up("force to disk");
  }
  if (::rename(temporary.c_str(), path.c_str()) != 0) return give_up("rename");
  const std::filesystem::path folder = path.has_parent_path() ? path.parent_path() : ".";
  const Descriptor directory{::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
  if (directory.fd < 0 || ::fsync(directory.fd) != 0) return system_error(folder, "force to disk");
  return ok();
}

void write_file(const std::filesystem::path& path, std::string_view content) {
  const Status status = try_write_file(path, content);
  if (!status) throw Failure(status.error().message);
}

PendingFolder::PendingFolder(const std::filesystem::path& out)
    : out_(std::filesystem::absolute(out).lexically_normal()) {
  if (!out_.has_filename()) out_ = out_.parent_path();  // "corpus/"
  path_ = out_.string() + fmt::format(".{}.tmp", ::getpid());
  std::error_code error;
  std::filesystem::remove_all(path_, error);
  std::filesystem::create_directories(path_, error);
  if (error) fail("{}: cannot be made: {}", path_.string(), error.message());
}

PendingFolder::~PendingFolder() {
  std::error_code ignored;
  if (!path_.empty()) std::filesystem::remove_all(path_, ignored);
}

void PendingFolder::commit() {
  sync_to_disk(path_);
  const std::filesystem::path old = out_.string() + fmt::format(".{}.old.tmp", ::getpid());
  std::error_code error;
  const bool replaces = std::filesystem::exists(out_);
  if (replaces) std::filesystem::rename(out_, old, error);
  if (!error) std::filesystem::rename(path_, out_, error);
  if (error) {
    std::error_code ignored;
    if (replaces && !std::filesystem::exists(out_)) std::filesystem::rename(old, out_, ignored);
    fail("{}: cannot take its name: {}", out_.string(), error.message());
  }
  path_.clear();
  sync_to_disk(out_.parent_path());
  if (replaces) std::filesystem::remove_all(old, error);
}

void sync_to_disk(const std::filesystem::path& path) {
  const Descriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  if (file.fd < 0 || ::fsync(file.fd) != 0)
    throw Failure(system_error(path, "force to disk").message);
}

std::string hash_hex(std::span<const std::byte> bytes) {
  const XXH128_hash_t hash = XXH3_128bits(bytes.data(), bytes.size());
  XXH128_canonical_t digits;  // most significant first
  XXH128_canonicalFromHash(&digits, hash);
  std::string hex;
  hex.reserve(2 * sizeof(digits.digest));
  for (const unsigned char byte : digits.digest) {
    constexpr std::string_view kHex = "0123456789abcdef";
    hex += kHex[byte >> 4];
    hex += kHex[byte & 15];
  }
  return hex;
}

std::string hash_hex(std::string_view text) { return hash_hex(std::as_bytes(std::span(text))); }

uint64_t hash_u64(std::span<const std::byte> bytes) {
  return XXH3_64bits(bytes.data(), bytes.size());
}

uint64_t hash_u64(std::string_view text) { return hash_u64(std::as_bytes(std::span(text))); }

std::filesystem::path program_path() { return std::filesystem::read_symlink("/proc/self/exe"); }

}  // namespace pelago
