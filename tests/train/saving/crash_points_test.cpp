// What is left of checkpoints when the machine stops at any moment. The system calls that save one
// are replaced in this program by ones that count, and at the n-th die, tear, or fail; each point
// is tried in a child process. A machine that loses power also loses what was not forced to disk:
// such files are cut in half afterwards.
#include <dirent.h>
#include <doctest/doctest.h>
#include <fcntl.h>
#include <linux/limits.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <functional>
#include <set>

#include "base/files.h"
#include "base/rng.h"
#include "train/checkpoint.h"
#include "train/single_site.h"

namespace {

enum class Fault { kDie, kTear, kFull, kNoSync };

/// In memory that the child shares with the test.
struct Seam {
  int64_t at_call = -1;  // -1: only count
  Fault fault = Fault::kDie;
  int64_t num_calls = 0;
  int64_t acknowledged_step = -1;
  bool has_fired = false;
  // Paths written and not forced to disk since.
  std::array<std::array<char, 256>, 64> unforced{};
};
Seam* seam = nullptr;  // set in a child alone: everywhere else the calls are as always

std::string path_of(int file) {
  std::array<char, PATH_MAX> path{};
  const std::string link = "/proc/self/fd/" + std::to_string(file);
  const ssize_t length = ::readlink(link.c_str(), path.data(), path.size() - 1);
  return length > 0 ? std::string(path.data(), static_cast<size_t>(length)) : "";
}

void mark(const std::string& path, bool is_unforced) {
  for (auto& entry : seam->unforced) {
    const bool is_it = path == entry.data();
    if (is_it && !is_unforced) entry[0] = '\0';
    if (is_it) return;
  }
  if (!is_unforced || path.size() >= seam->unforced[0].size()) return;
  for (auto& entry : seam->unforced) {
    if (entry[0] != '\0') continue;
    std::memcpy(entry.data(), path.c_str(), path.size() + 1);
    return;
  }
}

/// Counts the call; true if it is the one that goes wrong.
bool is_the_call() {
  const bool is_it = seam->num_calls++ == seam->at_call;
  if (is_it) seam->has_fired = true;
  if (is_it && seam->fault == Fault::kDie) ::raise(SIGKILL);
  return is_it;
}

bool is_full() { return seam->has_fired && seam->fault == Fault::kFull; }

}  // namespace

extern "C" {

ssize_t write(int file, const void* bytes, size_t num_bytes) {
  if (seam == nullptr) return ::syscall(SYS_write, file, bytes, num_bytes);
  mark(path_of(file), true);
  if (is_the_call() && seam->fault == Fault::kTear) {
    ::syscall(SYS_write, file, bytes, num_bytes / 2);
    ::raise(SIGKILL);
  }
  if (is_full()) {
    errno = ENOSPC;
    return -1;
  }
  return ::syscall(SYS_write, file, bytes, num_bytes);
}

int fsync(int file) {
  if (seam != nullptr) {
    if (is_the_call() && seam->fault == Fault::kNoSync) {
      errno = EIO;
      return -1;
    }
    mark(path_of(file), false);
  }
  return static_cast<int>(::syscall(SYS_fsync, file));
}

int rename(const char* from, const char* to) noexcept {
  if (seam != nullptr) {
    is_the_call();
    for (auto& entry : seam->unforced) {
      if (std::strcmp(entry.data(), from) != 0) continue;
      entry[0] = '\0';
      mark(to, true);
    }
  }
  return static_cast<int>(::syscall(SYS_rename, from, to));
}

int renameat2(int from_dir, const char* from, int to_dir, const char* to, unsigned flags) noexcept {
  if (seam != nullptr) is_the_call();
  return static_cast<int>(::syscall(SYS_renameat2, from_dir, from, to_dir, to, flags));
}

int unlinkat(int dir, const char* path, int flags) noexcept {
  if (seam != nullptr) is_the_call();
  return static_cast<int>(::syscall(SYS_unlinkat, dir, path, flags));
}

}  // extern "C"

namespace pelago::train {
namespace {

namespace fs = std::filesystem;

/// An empty folder in memory where there is one: hundreds of checkpoints are saved here, and what a
/// disk would do is played by the seam.
class Scratch {
 public:
  Scratch()
      : path_((fs::is_directory("/dev/shm") ? fs::path("/dev/shm") : fs::temp_directory_path()) /
              ("pelago-crash-" + std::to_string(::getpid()))) {
    fs::remove_all(path_);
    fs::create_directories(path_);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

std::string weights_of(int64_t step) {
  return "weights after step " + std::to_string(step) + std::string(3000, 'w');
}

TrainState state_of(int64_t step) {
  TrainState state;
  state.step = step;
  state.model_hash = "model";
  return state;
}

Status save(const fs::path& checkpoints, int64_t step, int64_t keep) {
  try {
    const fs::path dir = begin_checkpoint(checkpoints, step);
    for (const char* name : {"weights.safetensors", "optimizer.safetensors"}) {
      const Status written = try_write_file(dir / name, weights_of(step));
      if (!written) return written;
    }
    const Status state = try_write_file(dir / "state.json", to_json(state_of(step)));
    if (!state) return state;
  } catch (const Failure& failure) {
    return Error{ErrorCode::kUnavailable, failure.what()};
  }
  return finish_checkpoint(checkpoints, step, keep);
}

/// A good checkpoint holds exactly what was saved under its step.
bool holds_its_step(const fs::path& checkpoints, int64_t step) {
  const fs::path dir = checkpoint_path(checkpoints, step);
  return read_text_file(dir / "weights.safetensors") == weights_of(step) &&
         read_text_file(dir / "optimizer.safetensors") == weights_of(step) &&
         read_text_file(dir / "state.json") == to_json(state_of(step));
}

/// Memory that a child shares with this process.
class SharedSeam {
 public:
  SharedSeam()
      : seam_(new (::mmap(
            nullptr, sizeof(Seam), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0))
                  Seam) {}
  SharedSeam(const SharedSeam&) = delete;
  SharedSeam& operator=(const SharedSeam&) = delete;
  ~SharedSeam() { ::munmap(seam_, sizeof(Seam)); }
  Seam& operator*() const { return *seam_; }
  Seam* operator->() const { return seam_; }

 private:
  Seam* seam_;
};

/// Saves steps 20 and 30 in a child after this process has saved step 10; returns how it ended.
int save_in_child(const fs::path& checkpoints, int64_t keep, Seam& shared) {
  REQUIRE(save(checkpoints, 10, keep));
  shared.acknowledged_step = 10;
  const pid_t child = ::fork();
  if (child == 0) {
    seam = &shared;
    for (const int64_t step : {20, 30}) {
      if (save(checkpoints, step, keep)) shared.acknowledged_step = step;
    }
    seam = nullptr;
    ::_exit(0);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return status;
}

/// Nothing that was acknowledged is lost, and nothing that is believed is wrong.
void check_what_is_left(const fs::path& checkpoints, int64_t acknowledged) {
  const std::vector<int64_t> good = good_checkpoints(checkpoints);
  REQUIRE_FALSE(good.empty());
  CHECK(good.back() >= acknowledged);
  for (const int64_t step : good) CHECK(holds_its_step(checkpoints, step));
  const fs::path newest = newest_checkpoint(checkpoints.parent_path(), state_of(0));
  CHECK(newest == checkpoint_path(checkpoints, good.back()));
  // And the run can go on saving.
  REQUIRE(save(checkpoints, 40, 1));
  CHECK(good_checkpoints(checkpoints) == std::vector<int64_t>{40});
}

int64_t count_calls(int64_t keep) {
  const Scratch scratch;
  const SharedSeam shared;
  REQUIRE(save_in_child(scratch.path() / "checkpoints", keep, *shared) == 0);
  REQUIRE(shared->acknowledged_step == 30);
  return shared->num_calls;
}

void try_every_call(Fault fault, const std::function<void(const Seam&)>& afterwards) {
  for (const int64_t keep : {1, 3}) {
    const int64_t num_calls = count_calls(keep);
    REQUIRE(num_calls > 20);
    for (int64_t call = 0; call < num_calls; ++call) {
      CAPTURE(keep);
      CAPTURE(call);
      const Scratch scratch;
      const fs::path checkpoints = scratch.path() / "checkpoints";
      const SharedSeam shared;
      shared->at_call = call;
      shared->fault = fault;
      save_in_child(checkpoints, keep, *shared);
      CHECK(shared->has_fired);
      afterwards(*shared);
      check_what_is_left(checkpoints, shared->acknowledged_step);
    }
  }
}

TEST_CASE("killed at any write, sync, rename or delete, no acknowledged checkpoint is lost") {
  try_every_call(Fault::kDie, [](const Seam&) {});
}

TEST_CASE("without power at any call, what was not forced to disk is lost, and nothing else") {
  try_every_call(Fault::kDie, [](const Seam& shared) {
    for (const auto& entry : shared.unforced) {
      std::error_code gone;
      const fs::path path = entry.data();
      if (entry[0] == '\0' || !fs::is_regular_file(path, gone)) continue;
      fs::resize_file(path, fs::file_size(path) / 2, gone);
    }
  });
}

TEST_CASE("a write that tears leaves nothing that is believed") {
  try_every_call(Fault::kTear, [](const Seam&) {});
}

TEST_CASE("a disk that is full, or fails to sync, from any call on costs that checkpoint alone") {
  try_every_call(Fault::kFull, [](const Seam&) {});
  try_every_call(Fault::kNoSync, [](const Seam&) {});
}

TEST_CASE("of 10,000 flipped bytes none is believed, and a resumed run never starts afresh") {
  const Scratch scratch;
  const fs::path checkpoints = scratch.path() / "checkpoints";
  REQUIRE(save(checkpoints, 10, 3));
  REQUIRE(save(checkpoints, 20, 3));
  const fs::path newest = checkpoint_path(checkpoints, 20);
  std::vector<std::pair<fs::path, std::string>> files;
  for (const auto& entry : fs::directory_iterator(newest)) {
    files.emplace_back(entry.path(), read_text_file(entry.path()));
  }
  std::sort(files.begin(), files.end());
  REQUIRE(files.size() == 4);
  Rng rng = Rng(20).fork("flips");
  int num_found = 0;
  for (int flip = 0; flip < 10'000; ++flip) {
    const auto& [path, whole] = files[rng.next_below(files.size())];
    const uint64_t at = rng.next_below(whole.size());
    const char changed = static_cast<char>(whole[at] ^ static_cast<char>(1U << rng.next_below(8)));
    const auto put = [&, file = path](char byte) {
      const int opened = ::open(file.c_str(), O_WRONLY | O_CLOEXEC);
      REQUIRE(::pwrite(opened, &byte, 1, static_cast<off_t>(at)) == 1);
      ::close(opened);
    };
    put(changed);
    // A blank in the manifest may change into another blank: then nothing is damaged.
    if (verify_checkpoint(newest).empty()) {
      CHECK(path.filename() == "manifest.json");
      CHECK(holds_its_step(checkpoints, 20));
    } else {
      ++num_found;
    }
    put(whole[at]);
  }
  CHECK(num_found > 9'900);
  CHECK(verify_checkpoint(newest).empty());

  for (const int64_t step : {10, 20}) {
    write_file(checkpoint_path(checkpoints, step) / "weights.safetensors", "damaged");
  }
  CHECK_THROWS_WITH(newest_checkpoint(scratch.path(), state_of(0)),
                    doctest::Contains("no good checkpoint to resume from"));
}

}  // namespace
}  // namespace pelago::train
