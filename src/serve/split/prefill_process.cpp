#include "serve/split/prefill_process.h"

#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <future>
#include <string_view>
#include <utility>

#include "base/files.h"
#include "base/log.h"

namespace pelago::serve {

namespace {

namespace fs = std::filesystem;

constexpr int kPrefillSocket = 3;  // its number in the child

constexpr std::string_view kPlacePrefix = "pelago-split-";

/// What processes that were killed could not take away: their folders have their numbers.
void clear_up_after_the_dead() {
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(fs::temp_directory_path(), ignored)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with(kPlacePrefix)) continue;
    const int pid = std::atoi(name.c_str() + kPlacePrefix.size());
    if (pid > 0 && ::kill(pid, 0) != 0 && errno == ESRCH) fs::remove_all(entry.path(), ignored);
  }
}

fs::path make_meeting_place() {
  clear_up_after_the_dead();
  std::string name =
      (fs::temp_directory_path() / fmt::format("{}{}-XXXXXX", kPlacePrefix, ::getpid())).string();
  if (::mkdtemp(name.data()) == nullptr) {
    fail("{}: cannot make the folder: {}", name, std::strerror(errno));
  }
  return name;
}

/// A link whose other side ends with it.
class OwnedLink final : public chips::FrameLink {
 public:
  OwnedLink(std::unique_ptr<PrefillProcess> process, std::unique_ptr<chips::FrameLink> link)
      : process_(std::move(process)), link_(std::move(link)) {}
  void start(Listener listener) override { link_->start(std::move(listener)); }
  void send(Fill fill) override { link_->send(std::move(fill)); }
  size_t frame_bytes() const override { return link_->frame_bytes(); }

 private:
  std::unique_ptr<PrefillProcess> process_;
  std::unique_ptr<chips::FrameLink> link_;  // last: it closes before the process is ended
};

}  // namespace

PrefillProcess::PrefillProcess(const fs::path& folder,
                               EngineOptions options,
                               const std::vector<int>& cores)
    : scratch_(make_meeting_place()) {
  const auto [ours, theirs] = make_link_sockets();
  link_ = std::make_unique<Link>(ours);
  ChildOptions child;
  child.program = program_path();
  child.arguments = {"serve-prefill", "--socket", std::to_string(kPrefillSocket)};
  child.descriptors = {{theirs, kPrefillSocket}};
  child.cores = cores;
  try {
    child_ = std::make_unique<ChildProcess>(child);
  } catch (...) {
    ::close(theirs);
    fs::remove_all(scratch_);
    throw;
  }
  ::close(theirs);
  options.device = std::exchange(options.prefill_device, "");
  options.prefill_link = scratch_;
  options.draft_folder.clear();
  options.num_threads = 0;
  link_->send(OpenMessage{.folder = fs::absolute(folder).string(), .engine = std::move(options)});
  reader_ = std::jthread([this] {
    link_->read([this](Message message) {
      const std::lock_guard lock(mutex_);
      is_open_ = is_open_ || std::holds_alternative<ReadyMessage>(message);
      if (auto* lost = std::get_if<LostMessage>(&message)) lost_ = std::move(*lost);
      changed_.notify_all();
    });
    const std::lock_guard lock(mutex_);
    has_ended_ = true;
    changed_.notify_all();
  });
}

PrefillProcess::~PrefillProcess() {
  link_->shut();
  reader_ = {};
  child_.reset();
  std::error_code ignored;
  fs::remove_all(scratch_, ignored);
}

void PrefillProcess::wait_until_open() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return is_open_ || has_ended_; });
  if (is_open_) return;
  if (lost_) throw Failure("--prefill: " + lost_->why, lost_->exit_code);
  constexpr double kEnd_s = 5;
  child_->wait(kEnd_s);
  fail("--prefill: the process that was to read prompts {}", child_->how_it_ended());
}

std::unique_ptr<chips::FrameLink> PrefillProcess::connect(std::unique_ptr<PrefillProcess> process) {
  process->wait_until_open();
  // It has opened its model and is on its way: what takes longer has ended.
  auto link =
      chips::open_frame_link({.rank = 0, .rendezvous_dir = process->scratch_, .connect_s = 60});
  return std::make_unique<OwnedLink>(std::move(process), std::move(link));
}

int run_prefill_process(int socket) {
  Link link(socket);
  std::stop_source stop;
  std::promise<std::optional<OpenMessage>> opening;
  const std::jthread reader([&] {
    bool is_told = false;
    link.read([&](Message message) {
      auto* open = std::get_if<OpenMessage>(&message);
      if (open != nullptr && !std::exchange(is_told, true)) opening.set_value(std::move(*open));
    });
    if (!is_told) opening.set_value(std::nullopt);
    stop.request_stop();
  });
  int exit_code = kExitDone;
  const auto lose = [&](const std::string& why, int code) {
    exit_code = code;
    link.send(LostMessage{.why = why.substr(0, why.find('\n')), .exit_code = code});
  };
  try {
    if (const auto asked = opening.get_future().get()) {
      const std::string why = serve_prompts(
          asked->folder, asked->engine, stop.get_token(), [&] { link.send(ReadyMessage{}); });
      if (!why.empty()) log_info("prefill side ends why=\"{}\"", why);
    }
  } catch (const Failure& failure) {
    lose(failure.what(), failure.exit_code());
  } catch (const std::exception& error) {
    lose(error.what(), kExitFailed);
  }
  link.shut();
  return exit_code;
}

}  // namespace pelago::serve
