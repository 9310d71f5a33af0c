#include "chaos/run/live_run.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <sstream>

#include "base/error.h"
#include "cli/small_model.h"
#include "free_ports.h"

namespace pelago::chaos {

namespace fs = std::filesystem;

namespace {

constexpr double kStartAgainS = 0.1;  // what systemd waits unless told otherwise
constexpr const char* kCgroups = "/sys/fs/cgroup/cpu";
constexpr std::array<const char*, 8> kNames{
    "lingang", "guizhou", "hohhot", "zhongwei", "qingyang", "wuhu", "yuzhong", "shaoguan"};

std::string tail_of(const fs::path& file, size_t bytes_max) {
  std::ifstream in(file, std::ios::binary);
  std::stringstream text;
  text << in.rdbuf();
  const std::string words = text.str();
  return words.size() > bytes_max ? words.substr(words.size() - bytes_max) : words;
}

void write(const fs::path& file, const std::string& text) {
  fs::create_directories(file.parent_path());
  std::ofstream(file, std::ios::binary) << text;
}

}  // namespace

LiveRun::LiveRun(fs::path folder,
                 const fs::path& data,
                 std::string program,
                 const LiveRunOptions& options)
    : folder_(std::move(folder)),
      program_(std::move(program)),
      options_(options),
      records_(folder_ / "runs" / "chaos") {
  for (int idx = 0; idx < options_.num_sites; ++idx) {
    const auto place = static_cast<size_t>(idx);
    sites_.push_back(place < kNames.size() ? kNames[place] : fmt::format("site{}", idx));
  }
  if (options_.has_packets) {
    // One place more than there are sites: the coordinator stands by itself.
    line_ = std::make_unique<wan::PacketLine>(
        wan::PacketLineOptions{.num_sites = options_.num_sites + 1,
                               .rate_mbit = fmt::format("{}", options_.rate_mbit_s),
                               .rtt_ms = options_.rtt_ms,
                               .loss_percent = "0"});
  }
  coordinator_address_ = options_.has_packets
                             ? address_of(kCoordinator) + ":4800"
                             : fmt::format("127.0.0.1:{}", testing::free_ports(1)[0]);
  write_job(data);
  write(folder_ / "fleet.toml", fleet());
  Service& coordinator = services_[kCoordinator];
  coordinator.folder = folder_;
  coordinator.words = at(kCoordinator);
  for (const char* word : {"coordinator", "job.toml", "--fleet", "fleet.toml", "--listen"}) {
    coordinator.words.push_back(word);
  }
  coordinator.words.push_back(coordinator_address_);
  coordinator.words_again = coordinator.words;
  coordinator.words_again.push_back("--resume");
  for (const std::string& site : sites_) {
    Service& agent = services_[site];
    agent.folder = folder_ / site;
    fs::create_directories(agent.folder);
    agent.words = at(site);
    const fs::path token = run_dir() / "tokens" / (site + ".token");
    for (const std::string& word : std::vector<std::string>{"agent",
                                                            "--join",
                                                            coordinator_address_,
                                                            "--token",
                                                            token,
                                                            "--run-dir",
                                                            "run",
                                                            "--data",
                                                            data}) {
      agent.words.push_back(word);
    }
    agent.words_again = agent.words;
    if (!options_.shares_processors) continue;
    agent.cgroup = fs::path(kCgroups) / fmt::format("pelago-chaos-{}-{}", ::getpid(), site);
    fs::create_directories(agent.cgroup);
  }
}

LiveRun::~LiveRun() {
  for (auto& [who, service] : services_) {
    std::vector<pid_t> children;
    if (service.process) children = children_of(service.process->pid());
    service.process.reset();
    reach_state(children, '-', 5);
    std::error_code ignored;
    if (!service.cgroup.empty()) fs::remove(service.cgroup, ignored);
  }
}

void LiveRun::write_job(const fs::path& data) const {
  const int64_t batch = options_.site_sequences * options_.num_sites;
  write(folder_ / "job.toml",
        fmt::format(R"(name = "chaos"
{}[data]
dir = "{}"
sequence_length = 32
[train]
steps = 1000000
batch_sequences = {}
microbatch_sequences = {}
lr = 1e-3
warmup_steps = 20
eval_every_steps = {}
eval_sequences = 32
checkpoint_every_steps = {}
snapshot_every_steps = {}
known_answer = {}
audit_every_steps = {}
{}[sites]
{}inner_steps = {}
fragments = {}
overlap_steps = {}
grace_s = {}
behind_s = {}
heartbeat_s = {}
)",
                    testing::kSmallModel,
                    data.string(),
                    batch,
                    options_.microbatch_sequences,
                    options_.eval_every_steps,
                    options_.checkpoint_every_steps,
                    options_.snapshot_every_steps,
                    options_.is_examined,
                    options_.is_examined ? 50 : 0,
                    options_.in_step ? "pipeline = \"always\"\nexact_batch = true\n" : "",
                    options_.in_step ? "across = \"pipeline\"\n" : "",
                    options_.inner_steps,
                    options_.fragments,
                    options_.overlap_steps,
                    options_.grace_s,
                    options_.behind_s,
                    options_.heartbeat_s));
}

std::string LiveRun::fleet() const {
  std::string text = fmt::format("[emulation]\nslowdown = {}\n", options_.slowdown);
  for (size_t idx = 0; idx < sites_.size(); ++idx) {
    text += fmt::format("[[site]]\nname = \"{}\"\n", sites_[idx]);
    if (options_.has_packets) text += fmt::format("listen = \"{}\"\n", address_of(sites_[idx]));
    const int num_devices = idx == 0 && options_.first_has_two ? 2 : 1;
    text += fmt::format("[[site.device]]\ndevice = \"emulated:a100\"\ncount = {}\n", num_devices);
  }
  for (size_t one = 0; one < sites_.size(); ++one) {
    for (size_t other = one + 1; other < sites_.size(); ++other) {
      text += fmt::format(
          "[[link]]\nbetween = [\"{}\", \"{}\"]\nbandwidth_mbit_s = {}\nrtt_ms = {}\n"
          "emulate = {}\n",
          sites_[one],
          sites_[other],
          options_.rate_mbit_s,
          options_.rtt_ms,
          !options_.has_packets);
    }
  }
  return text;
}

int LiveRun::place_of(const std::string& who) const {
  const auto site = std::find(sites_.begin(), sites_.end(), who);
  return static_cast<int>(site - sites_.begin());  // the coordinator's is behind the sites'
}

std::string LiveRun::space_of(const std::string& who) const { return line_->space(place_of(who)); }

std::string LiveRun::address_of(const std::string& who) const {
  return line_->address(place_of(who));
}

std::vector<std::string> LiveRun::at(const std::string& who) const {
  if (!line_) return {program_};
  return {"ip", "netns", "exec", space_of(who), program_};
}

void LiveRun::start_service(const std::string& who) {
  Service& service = services_.at(who);
  service.process = std::make_unique<LiveProcess>(
      LiveOptions{.folder = service.folder,
                  .words = service.num_starts == 0 ? service.words : service.words_again,
                  .log = log_of(who),
                  .cgroup = service.cgroup});
  ++service.num_starts;
}

void LiveRun::start(int64_t steps, double timeout_s) {
  start_service(kCoordinator);
  const auto has_token = [&](const std::string& site) {
    std::error_code ignored;
    const fs::path token = run_dir() / "tokens" / (site + ".token");
    return fs::file_size(token, ignored) > 0 && !ignored;
  };
  const auto have_tokens = [&] { return std::all_of(sites_.begin(), sites_.end(), has_token); };
  if (!wait_until(have_tokens, timeout_s)) {
    fail("the run did not begin: {}", last_words());
  }
  for (const std::string& site : sites_) start_service(site);
  const auto train = [&] {
    return !problem_.empty() || std::all_of(sites_.begin(), sites_.end(), [&](const auto& site) {
      return records_.last_step(site) >= steps;
    });
  };
  if (!wait_until(train, timeout_s) || !problem_.empty()) {
    fail("the sites did not begin to train: {}", last_words());
  }
}

std::string LiveRun::last_words() const {
  std::string words = problem_;
  for (const auto& [who, service] : services_) {
    words += fmt::format("\n  {}: {}", who, tail_of(log_of(who), 400));
  }
  return words;
}

void LiveRun::look_after() {
  for (auto& [who, service] : services_) {
    if (!service.process || service.is_over) continue;
    const std::optional<int> code = service.process->exit_code();
    if (!code) continue;
    if (*code == kExitDone) {
      service.is_over = true;
    } else if (*code == kExitUsage) {
      service.is_over = true;
      problem_ += fmt::format("{} will not start again: {}", who, tail_of(log_of(who), 300));
    } else if (!held_down_.contains(who) &&
               steady_s() - service.process->started_s() > kStartAgainS) {
      start_service(who);
    }
  }
}

bool LiveRun::wait_until(const std::function<bool()>& ready, double timeout_s, double every_s) {
  const double deadline_s = steady_s() + timeout_s;
  for (;;) {
    records_.read_on();
    look_after();
    if (ready()) return true;
    if (steady_s() > deadline_s) return false;
    pause_s(every_s);
  }
}

double LiveRun::stop(double timeout_s) {
  const double begin_s = steady_s();
  services_.at(kCoordinator).process->signal(SIGTERM);
  const auto are_over = [&] {
    return std::all_of(services_.begin(), services_.end(), [&](const auto& entry) {
      return entry.second.is_over || held_down_.contains(entry.first);
    });
  };
  if (!wait_until(are_over, timeout_s)) {
    fail("the run did not stop: {}", last_words());
  }
  return steady_s() - begin_s;
}

pid_t LiveRun::coordinator() const { return services_.at(kCoordinator).process->pid(); }

pid_t LiveRun::agent(const std::string& site) const {
  const Service& service = services_.at(site);
  if (!service.process || is_gone(service.process->pid())) return -1;
  return service.process->pid();
}

std::vector<pid_t> LiveRun::workers(const std::string& site) const {
  std::map<std::string, pid_t> by_rank;
  const pid_t owner = agent(site);
  if (owner < 0) return {};
  for (const pid_t child : children_of(owner)) {
    if (name_of(child) != "pelago-worker") continue;  // a spare
    const std::string command = command_of(child);
    const size_t rank = command.find("--rank ");
    if (command.find(" worker ") != std::string::npos && rank != std::string::npos) {
      by_rank[command.substr(rank)] = child;
    }
  }
  std::vector<pid_t> pids;
  for (const auto& [rank, pid] : by_rank) pids.push_back(pid);
  return pids;
}

std::vector<pid_t> LiveRun::site_pids(const std::string& site) const {
  std::vector<pid_t> pids = workers(site);
  if (agent(site) > 0) pids.push_back(agent(site));
  return pids;
}

int LiveRun::num_restarts(const std::string& who) const { return services_.at(who).num_starts - 1; }

}  // namespace pelago::chaos
