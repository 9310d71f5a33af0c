#include "sites/agent.h"

#include <malloc.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <future>
#include <memory>
#include <utility>

#include "base/clock.h"
#include "base/error.h"
#include "base/files.h"
#include "base/log.h"
#include "base/text/json.h"
#include "chips/torch.h"
#include "model/transformer.h"
#include "plan/across/joint.h"
#include "sites/across/relay.h"
#include "sites/copies/run_copies.h"
#include "sites/grpc_transport.h"
#include "sites/join/tls_probe.h"
#include "sites/process/line_emulation.h"
#include "sites/process/plan_facts.h"
#include "sites/process/site_agent.h"
#include "sites/process/site_checkpoint.h"
#include "sites/tls.h"
#include "train/run_folder.h"
#include "train/site_runner.h"

namespace pelago::sites {

namespace fs = std::filesystem;

namespace {

// A signal handler can reach nothing else; run_agent() is the process's main function.
std::atomic<bool> stop_requested{false};

void listen_to_signals() {
  struct sigaction stop {};
  stop.sa_handler = [](int) { stop_requested = true; };
  stop.sa_flags = SA_RESTART;
  ::sigaction(SIGTERM, &stop, nullptr);
  // The terminal sends SIGINT to everyone; the command that started the sites decides.
  ::signal(SIGINT, SIG_IGN);
  ::signal(SIGPIPE, SIG_IGN);
}

// glibc hands a large block back to the system as soon as it is freed, and each exchange would take
// its tens of megabytes anew: the page faults cost more than the arithmetic does. 32 MB is the most
// that glibc takes.
void keep_freed_memory() {
  ::mallopt(M_MMAP_THRESHOLD, 32 << 20);
  ::mallopt(M_TRIM_THRESHOLD, 1 << 30);
}

int site_index(const plan::Plan& plan, const std::string& site) {
  for (size_t idx = 0; idx < plan.sites.size(); ++idx) {
    if (plan.sites[idx].name == site) return static_cast<int>(idx);
  }
  fail_usage("site {}: not in plan.json; start it under one of the plan's names", site);
}

// "10.0.0.7" or "10.0.0.7:4000"; without a port any free one is taken.
std::string address_to_listen_on(const std::string& listen) {
  const size_t colon = listen.rfind(':');
  const bool has_port =
      colon != std::string::npos && colon + 1 < listen.size() &&
      listen.find_first_not_of("0123456789", colon + 1) == std::string::npos &&
      (listen.find(':') == colon || listen[colon - 1] == ']');  // else an IPv6 address
  return has_port ? listen : listen + ":0";
}

/// Of sites in step none of them holds all of the model.
GlobalState fresh_state(const plan::JobConfig& job, const plan::Plan& plan) {
  if (plan::is_joint(plan)) return GlobalState({}, {});
  const Tensor initial =
      model::initial_weights(job.model, Rng(static_cast<uint64_t>(job.train.seed)));  // [N]
  const float* values = initial.data_ptr<float>();
  return GlobalState(std::vector<float>(values, values + initial.numel()),
                     train::cut_fragments(job.model, plan.exchange.fragments));
}

Hello hello_of(const AgentOptions& options,
               const plan::JobConfig& job,
               const plan::Plan& plan,
               const GlobalState& state,
               const std::string& address,
               const std::optional<CopierOptions>& copies,
               std::vector<std::string>& problems) {
  const train::TrainState identity = train::identity_of(job);
  Hello hello;
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  hello.incarnation =
      Rng::mix(static_cast<uint64_t>(now.count())) ^ Rng::mix(static_cast<uint64_t>(::getpid()));
  hello.plan_hash = plan_hash(options.run_dir, identity);
  hello.plan_facts = plan_facts(read_text_file(options.run_dir / "plan.json"));
  hello.tokenizer_hash = identity.tokenizer_hash;
  hello.dataset_hash = identity.dataset_hash;
  hello.weights_hash = hash_hex(std::as_bytes(state.global()));
  hello.address = address;
  const fs::path checkpoints = options.run_dir / "sites" / options.site / "checkpoints";
  hello.checkpoints = plan::is_joint(plan) ? offer_joint_checkpoints(checkpoints, problems)
                                           : offer_checkpoints(checkpoints, problems);
  if (copies && hello.checkpoints.empty()) hello.checkpoints = offer_copies(*copies, problems);
  if (options.resume_step) {
    std::erase_if(hello.checkpoints,
                  [&](const CheckpointOffer& offer) { return offer.step != *options.resume_step; });
  }
  return hello;
}

/// A line that does not come about gives no reason: whoever has the wrong certificate hears it from
/// a probe beside it.
class IdentityCheck {
 public:
  explicit IdentityCheck(const AgentOptions& options) {
    const std::string problem = problem_of_identity(options.certs_dir, options.site);
    if (!problem.empty()) fail_usage("{}", problem);
    line_ = std::async(std::launch::async, [options] {
      return probe_line({.address = options.coordinator,
                         .peer = kCoordinatorName,
                         .authority = read_text_file(options.certs_dir / "ca.pem"),
                         .certs_dir = options.certs_dir,
                         .name = options.site});
    });
  }
  /// Throws Failure (exit 2) once it is known that the coordinator refuses the site's certificate.
  void look() {
    if (!line_.valid() || line_.wait_for(std::chrono::seconds(0)) != std::future_status::ready) {
      return;
    }
    const Status line = line_.get();
    if (!line && line.error().code == ErrorCode::kRefused) fail_usage("{}", line.error().message);
  }

 private:
  std::future<Status> line_;  // its destructor waits for the probe, which ends in seconds
};

int64_t frame_bytes_max(const GlobalState& state) {
  if (state.fragments().empty()) return 2 * static_cast<int64_t>(train::kBridgePartBytes);
  int64_t largest = 0;
  for (const train::Fragment& fragment : state.fragments()) {
    largest = std::max(largest, fragment.end - fragment.begin);
  }
  // The largest frame is a slice of a delta of 32 bits, a leaf of the state, or, between sites in
  // step, a piece of it.
  return (2 * largest + kLeafValues) * static_cast<int64_t>(sizeof(float)) + (1 << 20);
}

}  // namespace

std::string plan_hash(const fs::path& run_dir, const train::TrainState& identity) {
  return hash_hex(read_text_file(run_dir / "plan.json") + identity.model_hash);
}

namespace {

/// options and plan outlive the line.
GrpcTransportOptions line_of(const AgentOptions& options,
                             const plan::Plan& plan,
                             const plan::SitePlan& site,
                             const GlobalState& state) {
  GrpcTransportOptions line;
  line.name = options.site;
  line.certs_dir = options.certs_dir;
  line.listen = address_to_listen_on(site.listen);
  line.frame_bytes_max = frame_bytes_max(state);
  line.emulated_line = [&](const std::string& peer) {
    return emulated_line(plan, options.site, peer);
  };
  line.bandwidth_mbit_s = [&](const std::string& peer) {
    return real_bandwidth_mbit_s(plan, options.site, peer);
  };
  return line;
}

train::SitePlace place_of(const AgentOptions& options, const plan::Plan& plan) {
  return {.run_dir = options.run_dir,
          .site_dir = options.run_dir / "sites" / options.site,
          .site_idx = site_index(plan, options.site)};
}

/// One start of the site, from its greeting to its end. Throws Failure as run_agent() does, but for
/// a site that is to return.
Leave run_once(const AgentOptions& options,
               const plan::Plan& plan,
               IdentityCheck& identity,
               std::unique_ptr<train::SiteRunner> runner) {
  const plan::JobConfig job = train::read_run_job(options.run_dir);
  const int site_idx = site_index(plan, options.site);
  schedule_of(plan);
  GlobalState state = fresh_state(job, plan);
  const plan::SitePlan& site = plan.sites[static_cast<size_t>(site_idx)];
  std::optional<Relay> relay;  // before the transport, whose threads call it
  GrpcTransportOptions line = line_of(options, plan, site, state);
  if (plan::is_joint(plan)) {
    relay.emplace(plan, static_cast<size_t>(site_idx));
    line.fast_kind_min = kRelayKind;
    line.on_fast_frame = [&relay](Frame frame) { return relay->take(std::move(frame)); };
  }
  GrpcTransport transport(line);
  transport.set_address(kCoordinatorName, options.coordinator);
  const SystemClock clock;
  std::optional<Failure> failure;
  Leave leave;
  const auto tell = [&](const char* event, const std::string& message) {
    const nlohmann::json words{{"message", message}};
    transport.send(kCoordinatorName,
                   encode(options.site, Report{.name = event, .json = words.dump()}));
  };
  std::vector<std::string> problems;
  const std::optional<CopierOptions> copies = copier_options(job, options.run_dir, options.site);
  const Hello hello = hello_of(options, job, plan, state, transport.address(), copies, problems);
  for (const std::string& problem : problems) tell("warning", problem);
  {
    SiteAgent agent({.run_dir = options.run_dir,
                     .site_idx = site_idx,
                     .plan = plan,
                     .hello = hello,
                     .relay = relay ? &*relay : nullptr,
                     .keep_checkpoints = job.train.keep_checkpoints,
                     .coordinators = options.coordinators,
                     .copies = copies},
                    std::move(runner),
                    transport,
                    state,
                    clock);
    try {
      leave = agent.run(stop_requested, [&identity] { identity.look(); });
      log_info("leaving reason=\"{}\"", leave.reason);
      const bool returns = leave.is_to_return && plan::is_joint(plan) && !stop_requested;
      if (leave.exit_code != kExitDone && !returns) {
        failure.emplace(leave.reason, leave.exit_code);
      }
    } catch (const Failure& thrown) {
      failure = thrown;
      tell("site_failed", thrown.what());
    }
  }
  transport.flush(1);
  if (failure) throw Failure(*failure);
  return leave;
}

}  // namespace

int run_agent(const AgentOptions& options) {
  listen_to_signals();
  keep_freed_memory();
  const plan::Plan plan = train::read_run_plan(options.run_dir);
  const train::SitePlace place = place_of(options, plan);
  auto runner = std::make_unique<train::SiteRunner>(place);
  runner->prepare();  // while this process finds the others
  IdentityCheck identity(options);
  // Sites in step start again together whenever one of them is lost: with new workers, from the
  // newest checkpoint.
  while (run_once(options, plan, identity, std::move(runner)).exit_code != kExitDone) {
    runner = std::make_unique<train::SiteRunner>(place);
  }
  return kExitDone;
}

}  // namespace pelago::sites
