#include "cli/commands/web/run_dashboard.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/files.h"
#include "base/process/child.h"
#include "base/text/json.h"

namespace pelago::cli {

namespace {

constexpr double kStart_s = 20;  // loading the program's libraries from a cold disk

/// The first line that comes within the time, without its end; what there is if the writer ends.
std::string first_line_of(int descriptor, double timeout_s) {
  const double deadline_s = steady_now_s() + timeout_s;
  std::string line;
  for (double left_s = timeout_s; left_s > 0; left_s = deadline_s - steady_now_s()) {
    pollfd waiting{.fd = descriptor, .events = POLLIN, .revents = 0};
    if (::poll(&waiting, 1, static_cast<int>(1000 * left_s) + 1) < 0) continue;  // a signal
    char letter = 0;
    if (waiting.revents == 0 || ::read(descriptor, &letter, 1) != 1 || letter == '\n') return line;
    line += letter;
  }
  return line;
}

std::string words_of(const std::string& line) {
  const auto json = try_parse_json(line);
  if (json.is_object() && json.contains("url") && json["url"].is_string()) {
    return fmt::format("dashboard: {}", json["url"].get<std::string>());
  }
  return fmt::format("no dashboard ({}); the run goes on, and `pelago dashboard` shows it",
                     line.empty() ? "it did not start in time" : line);
}

}  // namespace

RunDashboard::RunDashboard(const std::filesystem::path& run_dir, int port) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) {
    words_ = words_of("no pipe");
    return;
  }
  try {
    child_ = std::make_unique<ChildProcess>(ChildOptions{
        .program = program_path(),
        .arguments = {"dashboard", run_dir.string(), "--port", std::to_string(port), "--json"},
        .environment = {},
        .descriptors = {{ends[1], 1}, {ends[1], 2}},
        .log = {}});
    ::close(std::exchange(ends[1], -1));  // the child's is the only one: its end is seen
    words_ = words_of(first_line_of(ends[0], kStart_s));
  } catch (const Failure& failure) {
    words_ = words_of(failure.what());
  }
  for (const int end : ends) {
    if (end >= 0) ::close(end);
  }
}

RunDashboard::~RunDashboard() = default;

}  // namespace pelago::cli
