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

#include "base/clock.h"
#include "base/files.h"
#include "base/log.h"

namespace pelago::serve {

namespace {

namespace fs = std::filesystem;

constexpr int kPrefillSocket = 3;  // its number in the child

// As the router has them of its workers.
constexpr double kBeat_s = 0.1;
constexpr double kSilenceMax_s = 10;  // 100 beats: then it hangs
constexpr double kStartMax_s = 120;   // to its first word: loading libraries from a cold disk
constexpr double kAbsent_s = 1;       // since the last look: then this process itself stood still
constexpr double kLook_s = 0.1;
constexpr double kEnd_s = 1;  // that it gets to end by itself once its socket is shut

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

}  // namespace

PrefillProcess::PrefillProcess(const fs::path& folder,
                               EngineOptions options,
                               const std::vector<int>& cores)
    : scratch_(make_meeting_place()), heard_s_(steady_now_s()) {
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
      heard_s_ = steady_now_s();
      has_spoken_ = true;
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

/// Until is_there(), asked with the mutex held, or it has ended or hangs, which is ended here.
/// False: stopped first.
bool PrefillProcess::wait_for(const std::stop_token& stop, const std::function<bool()>& is_there) {
  std::unique_lock lock(mutex_);
  double looked_s = steady_now_s();
  while (true) {
    changed_.wait_for(lock, stop, std::chrono::duration<double>(kLook_s), [&] {
      return is_there() || has_ended_;
    });
    if (stop.stop_requested()) return false;
    if (is_there() || has_ended_) return true;
    const double now_s = steady_now_s();
    if (now_s - looked_s > kAbsent_s) heard_s_ = now_s;  // whoever stood still has heard nobody
    looked_s = now_s;
    const double silence_max_s = has_spoken_ ? kSilenceMax_s : kStartMax_s;
    if (now_s - heard_s_ <= silence_max_s) continue;
    lost_ = LostMessage{.why = fmt::format("it said nothing for {} s", silence_max_s)};
    has_ended_ = true;
    child_->kill();
    return true;
  }
}

/// Once it has ended.
std::string PrefillProcess::how_it_ended() {
  {
    const std::lock_guard lock(mutex_);
    if (lost_) return lost_->why;
  }
  child_->wait(kEnd_s);
  return fmt::format("its process {} {}", child_->pid(), child_->how_it_ended());
}

std::unique_ptr<chips::FrameLink> PrefillProcess::connect(const std::stop_token& stop) {
  if (!wait_for(stop, [this] { return is_open_; })) return nullptr;
  const auto has_gone = [this] {
    const std::lock_guard lock(mutex_);
    return has_ended_;
  };
  const auto give_up = [this] {
    const std::string how = how_it_ended();
    const std::lock_guard lock(mutex_);
    throw Failure("--prefill: " + how, lost_ ? lost_->exit_code : kExitFailed);
  };
  if (has_gone()) give_up();
  try {
    // It has opened its model and is on its way: what takes longer has ended.
    return chips::open_frame_link(
        {.rank = 0, .rendezvous_dir = scratch_, .connect_s = 60, .gives_up = [&] {
           return stop.stop_requested() || has_gone();
         }});
  } catch (const Failure&) {
    if (stop.stop_requested()) return nullptr;
    if (has_gone()) give_up();
    throw;
  }
}

std::string PrefillProcess::wait(const std::stop_token& stop) {
  return wait_for(stop, [] { return false; }) ? how_it_ended() : "";
}

std::string PrefillProcess::end() {
  link_->shut();
  if (!child_->wait(kEnd_s)) child_->kill();
  child_->wait(kEnd_s);
  return child_->how_it_ended();
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
  const std::jthread beats([&](const std::stop_token& over) {
    std::mutex mutex;
    std::condition_variable_any never;
    std::unique_lock lock(mutex);
    while (!over.stop_requested() && link.send(BeatMessage{})) {
      never.wait_for(lock, over, std::chrono::duration<double>(kBeat_s), [] { return false; });
    }
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
