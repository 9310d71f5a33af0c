// safetensors: 8 bytes header length (little endian), JSON header, data. Reader maps the file and
// checks every field before anything is believed; writer is atomic. Format:
// huggingface/safetensors.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "base/files.h"
#include "chips/tensor.h"

namespace pelago::model {

class SafetensorsFile {
 public:
  /// Throws Failure naming the file and what is wrong: truncated, overlapping or gappy offsets,
  /// unknown dtype, shape that does not match the bytes, header over 100 MB, duplicate names.
  explicit SafetensorsFile(const std::filesystem::path& path);
  std::vector<std::string> names() const;
  bool has(const std::string& name) const;
  /// A view of the mapped file (read only; clone before writing). Lives as long as this object.
  Tensor tensor(const std::string& name) const;
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

 private:
  /// Throws Failure unless the entries cover [0, data_bytes) without gap or overlap.
  void check_coverage(uint64_t data_bytes) const;

  struct Entry {
    c10::ScalarType dtype;
    std::vector<int64_t> shape;
    size_t begin, end;  // bytes within the data part
  };
  std::filesystem::path path_;
  MappedFile file_;
  size_t data_begin_ = 0;
  std::map<std::string, Entry> entries_;
  std::map<std::string, std::string> metadata_;
};

/// Writes CPU tensors of any dtype the format has, data aligned to 8 bytes, header padded with
/// spaces, atomically and without a second copy in memory. Returns kNoSpace if the disk is full;
/// the old file is then untouched.
Status try_write_safetensors(const std::filesystem::path& path,
                             const std::vector<std::pair<std::string, Tensor>>& tensors,
                             const std::map<std::string, std::string>& metadata = {});

}  // namespace pelago::model
