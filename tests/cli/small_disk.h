// A disk of a few hundred kilobytes that a test may fill.
#pragma once

#include <sys/mount.h>

#include <fstream>
#include <string>

#include "cli/program.h"

namespace pelago::testing {

/// A tmpfs over a folder, gone with this. Only root may mount; ask is_here() and skip without it.
class SmallDisk {
 public:
  SmallDisk(fs::path folder, int64_t num_kib) : folder_(std::move(folder)) {
    fs::create_directories(folder_);
    is_here_ = ::mount("none",
                       folder_.c_str(),
                       "tmpfs",
                       MS_NOSUID | MS_NODEV,
                       fmt::format("size={}k", num_kib).c_str()) == 0;
  }
  SmallDisk(const SmallDisk&) = delete;
  SmallDisk& operator=(const SmallDisk&) = delete;
  ~SmallDisk() {
    if (is_here_) ::umount2(folder_.c_str(), MNT_DETACH);
  }

  bool is_here() const { return is_here_; }
  const fs::path& folder() const { return folder_; }

  void fill() {
    std::ofstream ballast(folder_ / "ballast", std::ios::binary | std::ios::app);
    const std::string block(4096, '.');
    while (ballast.write(block.data(), static_cast<std::streamsize>(block.size())).flush()) {
    }
  }
  void free_again() { fs::remove(folder_ / "ballast"); }

 private:
  fs::path folder_;
  bool is_here_ = false;
};

constexpr const char* kNeedsRoot =
    "skipped: only root may mount the small disk that this test fills";

}  // namespace pelago::testing
