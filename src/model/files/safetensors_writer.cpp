// The writer streams: the header, then each tensor from where it lies, to a temporary name that is
// forced to disk and renamed. Tensors with wider elements come first, in the given order otherwise,
// as the reference implementation has it: without gaps, that keeps every tensor aligned.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <set>
#include <string_view>

#include "base/error.h"
#include "base/text/json.h"
#include "chips/torch.h"
#include "model/files/safetensors_dtype.h"
#include "model/safetensors.h"

namespace pelago::model {

namespace {

using NamedTensor = std::pair<std::string, Tensor>;

/// A file under a temporary name that vanishes unless it is committed.
class PendingFile {
 public:
  explicit PendingFile(const std::filesystem::path& path)
      : path_(path), temporary_(path.string() + fmt::format(".{}.tmp", ::getpid())) {
    fd_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  }
  PendingFile(const PendingFile&) = delete;
  PendingFile& operator=(const PendingFile&) = delete;
  ~PendingFile() {
    if (fd_ < 0) return;
    ::close(fd_);
    if (!committed_) ::unlink(temporary_.c_str());
  }

  Status opened() const { return fd_ < 0 ? Status(error("write")) : ok(); }

  Status append(const void* data, size_t num_bytes) {
    const char* next = static_cast<const char*>(data);
    while (num_bytes > 0) {
      const ssize_t put = ::write(fd_, next, num_bytes);
      if (put < 0 && errno == EINTR) continue;
      if (put < 0) return error("write");
      next += put;
      num_bytes -= static_cast<size_t>(put);
    }
    return ok();
  }

  Status commit() {
    if (::fsync(fd_) != 0) return error("force to disk");
    if (::rename(temporary_.c_str(), path_.c_str()) != 0) return error("rename");
    committed_ = true;
    try {
      sync_to_disk(path_.has_parent_path() ? path_.parent_path() : ".");
    } catch (const Failure& failure) {
      return Error{ErrorCode::kUnavailable, failure.what()};
    }
    return ok();
  }

 private:
  Error error(const char* what) const {
    const int reason = errno;
    // A limit on file size (ulimit -f) asks for the same reaction as a full disk.
    const bool no_space = reason == ENOSPC || reason == EDQUOT || reason == EFBIG;
    return Error{no_space ? ErrorCode::kNoSpace : ErrorCode::kUnavailable,
                 fmt::format("{}: cannot {}: {}", path_.string(), what, std::strerror(reason))};
  }

  std::filesystem::path path_;
  std::filesystem::path temporary_;
  int fd_ = -1;
  bool committed_ = false;
};

void check_tensors(const std::vector<NamedTensor>& tensors) {
  std::set<std::string_view> names;
  for (const auto& [name, tensor] : tensors) {
    PELAGO_ASSERT(names.insert(name).second && name != "__metadata__",
                  "tensor names are unique and not the metadata's");
    PELAGO_ASSERT(tensor.device().is_cpu(), "the caller copies tensors to the host");
    PELAGO_ASSERT(name_of_dtype(tensor.scalar_type()).has_value(), "the format has the dtype");
  }
}

std::string make_header(const std::vector<NamedTensor>& tensors,
                        const std::map<std::string, std::string>& metadata) {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  size_t begin = 0;
  for (const auto& [name, tensor] : tensors) {
    const size_t end = begin + tensor.nbytes();
    header[name] = {{"dtype", *name_of_dtype(tensor.scalar_type())},
                    {"shape", tensor.sizes().vec()},
                    {"data_offsets", {begin, end}}};
    begin = end;
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  return text;
}

}  // namespace

Status try_write_safetensors(const std::filesystem::path& path,
                             const std::vector<std::pair<std::string, Tensor>>& tensors,
                             const std::map<std::string, std::string>& metadata) {
  check_tensors(tensors);
  std::vector<NamedTensor> in_file_order = tensors;
  std::stable_sort(in_file_order.begin(), in_file_order.end(), [](const auto& a, const auto& b) {
    return a.second.element_size() > b.second.element_size();
  });
  const std::string header = make_header(in_file_order, metadata);
  const uint64_t header_bytes = header.size();

  PendingFile file(path);
  Status status = file.opened();
  if (status) status = file.append(&header_bytes, sizeof header_bytes);
  if (status) status = file.append(header.data(), header.size());
  for (const auto& [name, tensor] : in_file_order) {
    if (!status) return status;
    const Tensor contiguous = tensor.contiguous();
    status = file.append(contiguous.data_ptr(), contiguous.nbytes());
  }
  return status ? file.commit() : status;
}

}  // namespace pelago::model
