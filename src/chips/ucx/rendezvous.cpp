#include "chips/ucx/rendezvous.h"

#include <fcntl.h>
#include <unistd.h>

#include <charconv>
#include <chrono>
#include <thread>

#include "base/clock.h"
#include "base/error.h"
#include "base/files.h"

namespace pelago::chips {
namespace {

std::filesystem::path path_of(const RendezvousOptions& options, int rank, const std::string& kind) {
  return options.folder / fmt::format("rank-{}.{}", rank, kind);
}

void wait_for_file(const RendezvousOptions& options,
                   const std::filesystem::path& path,
                   double deadline_s) {
  // A shared folder over a network shows a new file after milliseconds, so naps may be long.
  constexpr auto kNap = std::chrono::milliseconds(1);
  while (!std::filesystem::exists(path) && steady_now_s() < deadline_s) {
    if (options.gives_up && options.gives_up()) return;
    std::this_thread::sleep_for(kNap);
  }
}

}  // namespace

std::vector<std::string> exchange_files(const RendezvousOptions& options,
                                        const std::string& kind,
                                        const std::string& content) {
  std::error_code error;
  std::filesystem::create_directories(options.folder, error);
  if (error) fail("{}: cannot create: {}", options.folder.string(), error.message());
  write_file(path_of(options, options.rank, kind), content);

  const double deadline_s = steady_now_s() + options.timeout_s;
  std::vector<std::string> contents;
  for (int rank = 0; rank < options.num_ranks; ++rank) {
    const std::filesystem::path path = path_of(options, rank, kind);
    wait_for_file(options, path, deadline_s);
    if (!std::filesystem::exists(path)) {
      fail(
          "rank {} of {} did not come to {} within {} s: see that worker's log for why it did not "
          "start",
          rank,
          options.num_ranks,
          options.folder.string(),
          options.timeout_s);
    }
    contents.push_back(read_text_file(path));
  }
  return contents;
}

int note_lost_rank(const std::filesystem::path& folder, int lost_rank) {
  const std::filesystem::path path = folder / "lost-rank";
  // link() gives the file its name only if nobody has it yet, and whole or not at all.
  const std::filesystem::path own = folder / fmt::format("lost-rank.{}", ::getpid());
  std::error_code ignored;
  if (try_write_file(own, std::to_string(lost_rank))) {
    std::filesystem::create_hard_link(own, path, ignored);
    std::filesystem::remove(own, ignored);
  }
  if (!std::filesystem::exists(path, ignored)) return lost_rank;  // the folder is gone or full
  const std::string text = read_text_file(path);
  int noted_rank = lost_rank;
  std::from_chars(text.data(), text.data() + text.size(), noted_rank);
  return noted_rank;
}

}  // namespace pelago::chips
