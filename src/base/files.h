// Files that are whole or absent. A reader never sees half a file that pelago wrote: content goes
// to a temporary name, is forced to disk, takes its name, and the folder is forced to disk.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

#include "base/error.h"

namespace pelago {

/// A whole file mapped read-only. Moves, never copies.
class MappedFile {
 public:
  MappedFile() = default;
  /// Throws Failure naming the file and the reason if it cannot be opened or mapped.
  explicit MappedFile(const std::filesystem::path& path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  std::span<const std::byte> bytes() const { return {data_, num_bytes_}; }
  std::string_view text() const { return {reinterpret_cast<const char*>(data_), num_bytes_}; }

 private:
  const std::byte* data_ = nullptr;
  size_t num_bytes_ = 0;
};

/// The file's content. Throws Failure naming the file and the reason.
std::string read_text_file(const std::filesystem::path& path);

/// Replaces path by content, atomically. Returns kNoSpace if the disk is full, else kUnavailable
/// with the system's reason; the old file is then untouched.
Status try_write_file(const std::filesystem::path& path, std::string_view content);
/// The same; throws Failure.
void write_file(const std::filesystem::path& path, std::string_view content);

/// A folder that is filled beside its place, then takes its name whole, or vanishes.
class PendingFolder {
 public:
  /// out: the name it will take. Throws Failure if the folder beside it cannot be made.
  explicit PendingFolder(const std::filesystem::path& out);
  PendingFolder(const PendingFolder&) = delete;
  PendingFolder& operator=(const PendingFolder&) = delete;
  ~PendingFolder();

  /// Where to put the files until commit().
  const std::filesystem::path& path() const { return path_; }
  /// Forces the folder to disk and gives it its name; a folder that has the name gives way. Throws
  /// Failure.
  void commit();

 private:
  std::filesystem::path out_;
  std::filesystem::path path_;  // empty once it has its name
};

/// Forces a file or a folder's entries to disk. Throws Failure.
void sync_to_disk(const std::filesystem::path& path);

/// XXH3 of 128 bits as 32 hex digits. Finds damage, not malice.
std::string hash_hex(std::span<const std::byte> bytes);
std::string hash_hex(std::string_view text);
/// XXH3 of 64 bits.
uint64_t hash_u64(std::span<const std::byte> bytes);
uint64_t hash_u64(std::string_view text);

/// Where the running program lies: plug-ins and data files are looked for beside it.
std::filesystem::path program_path();

}  // namespace pelago
