// Is a site of two unlike chips worth more if one reads the prompts and the other writes the
// answers? Prompts of 2048 tokens, answers of 256, greedy, always so many clients; an emulated H20
// and an emulated 910B, each at the catalogue's pace times the slowdown, charged for a model of 7
// or 8 billion parameters while one of 100,000 is computed. Split: the 910B is a process of its
// own, pages come over UCX at the charged model's size and the line's pace. Each both: two engines
// side by side. Tokens a second are counted while the clients are well mixed, and all answers must
// be the same ones.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "base/clock.h"
#include "bench/report.h"
#include "bench/serve/engine_load.h"
#include "serve/runner/paced_runner.h"
#include "serve/split/prefill_side.h"
#include "serve/split/remote_reader.h"

namespace pelago::bench {
namespace {

constexpr int64_t kPromptTokens = 2048, kAnswerTokens = 256;
constexpr int64_t kStepTokens = 512, kPageTokens = 32, kSequencesMax = 64;
constexpr double kLinkBytesS = 25e9;  // 200 Gbit/s, as each 910B has
constexpr double kLateShareMax = 0.1;

struct Settings {
  double slowdown = 3;
  int num_clients = 96;
  double lives = 2.5;  // how many times a client's wait is measured
};

model::ModelConfig computed_model() {
  model::ModelConfig config;
  config.model_type = "llama";
  config.vocab_size = 512;
  config.hidden_size = 64;
  config.intermediate_size = 128;
  config.num_hidden_layers = 2;
  config.num_attention_heads = 4;
  config.num_key_value_heads = 2;
  config.head_dim = 16;
  config.max_position_embeddings = 4096;
  config.qk_norm = false;
  return config;
}

/// Llama 2 7B, where every head has keys and values of its own, and Llama 3 8B, where 4 share.
model::ModelConfig charged_model(const std::string& case_name) {
  model::ModelConfig config = computed_model();
  const bool is_grouped = case_name == "gqa-8b";
  config.vocab_size = is_grouped ? 128256 : 32000;
  config.hidden_size = 4096;
  config.intermediate_size = is_grouped ? 14336 : 11008;
  config.num_hidden_layers = 32;
  config.num_attention_heads = 32;
  config.num_key_value_heads = is_grouped ? 8 : 32;
  config.head_dim = 128;
  config.tie_word_embeddings = false;
  return config;
}

std::filesystem::path make_model() {
  const auto folder = std::filesystem::temp_directory_path() / "pelago-bench" / "prefill-decode";
  if (std::filesystem::exists(folder / "config.json")) return folder;
  PendingFolder pending(folder);
  at::manual_seed(1);
  const model::ModelConfig config = computed_model();
  const Tensor flat = at::empty({config.num_parameters()}, at::kFloat).normal_(0, 0.2);
  model::save_model_folder(pending.path(), config, flat, at::kFloat, {});
  pending.commit();
  return folder;
}

struct Site {
  Settings settings;
  model::ModelConfig charged;
  chips::Catalogue catalogue = chips::Catalogue::built_in();
  std::filesystem::path folder = {};  // of the computed model

  std::unique_ptr<serve::PacedRunner> runner(const char* chip_name, size_t core_idx) const {
    const chips::Chip& chip = catalogue.find(chip_name);
    const double left =
        chip.usable_memory_gib * 0x1p30 - 2 * static_cast<double>(charged.num_parameters());
    serve::RunnerOptions options;
    options.kv = serve::KvDtype::kF32;
    options.page_tokens = kPageTokens;
    options.num_pages =
        static_cast<int64_t>(left / plan::kv_bytes_token(charged) / double{kPageTokens});
    options.max_batch_tokens = kStepTokens + kSequencesMax + kPageTokens;
    const std::vector<int> cores = allowed_cores();
    options.cores = {cores[core_idx % cores.size()]};
    return std::make_unique<serve::PacedRunner>(open_cpu_runner(folder, options),
                                                serve::Pace{.model = plan::sizes_of(charged, 1),
                                                            .rates = plan::serving_rates(chip),
                                                            .slowdown = settings.slowdown});
  }
  std::unique_ptr<serve::LocalEngine> engine(
      std::unique_ptr<serve::ModelRunner> runner,
      std::unique_ptr<serve::PromptReader> reader = nullptr) const {
    serve::BatchOptions batch;
    // As for any accelerator: only full passes are worth reading the weights for.
    batch.scheduler = {
        .step_tokens = kStepTokens, .enough_tokens = kStepTokens, .sequences_max = kSequencesMax};
    batch.context_tokens_max = kPromptTokens + kAnswerTokens;
    return std::make_unique<serve::LocalEngine>(
        std::move(runner), bench_tokenizer(), batch, nullptr, std::move(reader));
  }
  serve::GenerateRequest request(size_t idx) const {
    std::vector<int32_t> prompt(kPromptTokens);
    Rng rng = Rng(11).fork("prompt", idx);
    for (int32_t& token : prompt) token = static_cast<int32_t>(rng.next_below(512));
    // The first answers have all lengths, or all clients would read, then write, in step.
    const bool is_first = idx < static_cast<size_t>(settings.num_clients);
    const auto num_new =
        is_first ? 1 + static_cast<int64_t>(rng.next_below(kAnswerTokens)) : kAnswerTokens;
    return greedy_request(std::move(prompt), num_new);
  }
};

/// Clients that ask again as soon as they are answered, and what they saw.
class Crowd {
 public:
  Crowd(const Site& site, double begin_s, double end_s)
      : site_(site), begin_s_(begin_s), end_s_(end_s) {}

  void ask(serve::LocalEngine& engine) {
    const size_t idx = next_.fetch_add(1);
    {
      const std::lock_guard lock(mutex_);
      ++num_open_;
    }
    const double asked_s = steady_now_s();
    const auto id =
        engine.submit(site_.request(idx), [this, idx, asked_s, &engine](const serve::Piece& piece) {
          take(idx, asked_s, engine, piece);
        });
    if (!id) fail("{}", id.error().message);
  }
  void wait() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return num_open_ == 0; });
  }
  /// Of the charged chips' time.
  double tokens_s() const {
    return static_cast<double>(num_tokens_) * site_.settings.slowdown / (end_s_ - begin_s_);
  }
  double first_token_s() { return median(first_s_) / site_.settings.slowdown; }
  const std::map<size_t, std::vector<int32_t>>& answers() const { return answers_; }

 private:
  // On the engine's thread.
  void take(size_t idx, double asked_s, serve::LocalEngine& engine, const serve::Piece& piece) {
    const double now_s = steady_now_s();
    if (!piece.error.empty()) fail("{}", piece.error);
    {
      const std::lock_guard lock(mutex_);
      std::vector<int32_t>& answer = answers_[idx];
      const bool is_counted = now_s >= begin_s_ && now_s < end_s_;
      if (is_counted) num_tokens_ += piece.tokens.size();
      if (is_counted && answer.empty()) first_s_.push_back(now_s - asked_s);
      answer.insert(answer.end(), piece.tokens.begin(), piece.tokens.end());
    }
    if (!piece.is_last) return;
    if (now_s < end_s_) ask(engine);
    const std::lock_guard lock(mutex_);
    --num_open_;
    changed_.notify_all();
  }

  const Site& site_;
  const double begin_s_, end_s_;
  std::atomic<size_t> next_{0};
  std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  size_t num_tokens_ = 0;
  int64_t num_open_ = 0;
  std::vector<double> first_s_;
  std::map<size_t, std::vector<int32_t>> answers_;
};

struct Outcome {
  double tokens_s = 0, first_token_s = 0, late_share = 0;
  std::map<size_t, std::vector<int32_t>> answers;
};

Outcome run_crowd(const Site& site,
                  double predicted_requests_s,
                  std::vector<serve::LocalEngine*> engines) {
  const double wait_s = site.settings.num_clients / predicted_requests_s * site.settings.slowdown;
  const double begin_s = steady_now_s() + wait_s;
  Crowd crowd(site, begin_s, begin_s + site.settings.lives * wait_s);
  for (int client = 0; client < site.settings.num_clients; ++client) {
    crowd.ask(*engines[static_cast<size_t>(client) % engines.size()]);
  }
  crowd.wait();
  return {crowd.tokens_s(), crowd.first_token_s(), 0, crowd.answers()};
}

double late_share(const serve::PaceStats& stats) { return stats.late_s / stats.charged_s; }

/// The process of the chip that reads prompts. It begins when the parent has made the model.
class PrefillProcess {
 public:
  explicit PrefillProcess(const Site& site, std::filesystem::path link_folder) {
    int go[2], told[2];
    if (::pipe(go) != 0 || ::pipe(told) != 0) fail("no pipe can be opened");
    pid_ = ::fork();
    if (pid_ < 0) fail("no process can be started");
    go_ = go[1];
    told_ = told[0];
    ::close(pid_ == 0 ? go[1] : go[0]);
    ::close(pid_ == 0 ? told[0] : told[1]);
    if (pid_ != 0) return;
    int exit_code = 0;
    try {
      char byte = 0;
      if (::read(go[0], &byte, 1) == 1) serve_prompts(site, link_folder, told[1]);
    } catch (const std::exception& error) {
      fmt::print(stderr, "prefill process: {}\n", error.what());
      exit_code = 1;
    }
    ::_exit(exit_code);
  }
  PrefillProcess(const PrefillProcess&) = delete;
  PrefillProcess& operator=(const PrefillProcess&) = delete;
  ~PrefillProcess() {
    ::close(go_);
    ::close(told_);
    ::waitpid(pid_, nullptr, 0);
  }
  void begin() {
    if (::write(go_, "g", 1) != 1) fail("the prefill process is gone");
  }
  /// After the link was closed.
  double late_share() {
    double share = 0;
    if (::read(told_, &share, sizeof share) != sizeof share) fail("the prefill process is gone");
    return share;
  }

 private:
  static void serve_prompts(const Site& site, const std::filesystem::path& link_folder, int told) {
    const auto runner = site.runner("910b", 1);
    const double scale = plan::kv_bytes_token(site.charged) * double{kPageTokens} /
                         static_cast<double>(runner->bytes_per_page());
    serve::PrefillSide side(
        *runner,
        chips::open_frame_link({.rank = 1,
                                .rendezvous_dir = link_folder,
                                .byte_s = site.settings.slowdown * scale / kLinkBytesS}),
        {.step_tokens = kStepTokens});
    side.run({});
    const double share = bench::late_share(runner->stats());
    if (::write(told, &share, sizeof share) != sizeof share) fail("the bench is gone");
  }

  pid_t pid_ = -1;
  int go_ = -1, told_ = -1;
};

Outcome run_split(const Site& site,
                  const plan::ServingPlan& plan,
                  PrefillProcess& prefill,
                  const std::filesystem::path& link_folder) {
  prefill.begin();
  auto runner = site.runner("h20", 0);
  const serve::PacedRunner& paced = *runner;
  auto reader = std::make_unique<serve::RemoteReader>(
      chips::open_frame_link({.rank = 0, .rendezvous_dir = link_folder}),
      serve::RemoteOptions{.local_share = plan.local_share(1)});
  const serve::RemoteReader& seen = *reader;
  auto engine = site.engine(std::move(runner), std::move(reader));
  Outcome outcome = run_crowd(site, plan.requests_s.lo, {engine.get()});
  if (!seen.lost().empty()) fail("the prefill process was lost: {}", seen.lost());
  // The last answer is told before its pages are given back.
  const double deadline_s = steady_now_s() + 10;
  while (engine->stats().num_pages_used > 0 && steady_now_s() < deadline_s) {
    sleep_until_s(steady_now_s() + 0.05);
  }
  const int64_t num_held = engine->stats().num_pages_used;
  if (num_held > 0) fail("{} pages stayed held", num_held);
  outcome.late_share = late_share(paced.stats());
  engine.reset();
  outcome.late_share = std::max(outcome.late_share, prefill.late_share());
  return outcome;
}

/// tokens_s of the two together, and of the better one.
Outcome run_each_both(const Site& site, const plan::ServingPlan& plan) {
  auto decoder = site.runner("h20", 0), prefiller = site.runner("910b", 1);
  const serve::PacedRunner &first = *decoder, &second = *prefiller;
  const auto one = site.engine(std::move(decoder)), other = site.engine(std::move(prefiller));
  Outcome outcome = run_crowd(site, plan.each_both_requests_s.lo, {one.get(), other.get()});
  outcome.late_share = std::max(late_share(first.stats()), late_share(second.stats()));
  return outcome;
}

void measure(Report& report, const Settings& settings) {
  Site site = {.settings = settings, .charged = charged_model(report.case_name)};
  std::string pattern = (std::filesystem::temp_directory_path() / "pelago-link-XXXXXX").string();
  if (::mkdtemp(pattern.data()) == nullptr) fail("{}: cannot be made", pattern);
  const std::filesystem::path link_folder = pattern;
  site.folder = std::filesystem::temp_directory_path() / "pelago-bench" / "prefill-decode";
  PrefillProcess prefill(site, link_folder);  // before this process has threads
  make_model();
  const std::vector<plan::ServingKind> kinds = {
      {.chip = &site.catalogue.find("910b"), .is_emulated = true},
      {.chip = &site.catalogue.find("h20"), .is_emulated = true}};
  const plan::ServingLoad load = {.prompt_tokens = double{kPromptTokens},
                                  .answer_tokens = double{kAnswerTokens},
                                  .step_tokens = double{kStepTokens},
                                  .sequences_max = double{kSequencesMax}};
  const plan::ServingPlan plan = plan_serving(site.charged, kinds, load, kLinkBytesS);
  for (const std::string& line : plan.describe(kinds)) fmt::print(stderr, "plan: {}\n", line);
  const Outcome split = run_split(site, plan, prefill, link_folder);
  std::filesystem::remove_all(link_folder);
  fmt::print(stderr, "split: {:.1f} tokens/s; now each doing both\n", split.tokens_s);
  const Outcome both = run_each_both(site, plan);
  size_t num_same = 0, num_compared = 0;
  for (const auto& [idx, answer] : split.answers) {
    const auto found = both.answers.find(idx);
    if (found == both.answers.end()) continue;
    ++num_compared;
    num_same += found->second == answer ? 1 : 0;
  }
  report.metrics["split_tok_s"] = split.tokens_s;
  report.metrics["each_both_tok_s"] = both.tokens_s;
  report.metrics["split_planned_tok_s"] = plan.requests_s.lo * double{kAnswerTokens};
  report.metrics["each_both_planned_tok_s"] = plan.each_both_requests_s.lo * double{kAnswerTokens};
  report.metrics["planned_ratio"] = plan.requests_s.lo / plan.each_both_requests_s.lo;
  report.metrics["split_ttft_p50_s"] = split.first_token_s;
  report.metrics["each_both_ttft_p50_s"] = both.first_token_s;
  report.metrics["answers_compared"] = static_cast<double>(num_compared);
  report.metrics["answers_same"] = static_cast<double>(num_same);
  report.metrics["host_late_share"] = std::max(split.late_share, both.late_share);
  report.ratio = split.tokens_s / both.tokens_s;
  report.target = 1.20;
  report.notes.emplace_back(
      "ratio: tokens/s of the split over the two chips each doing both, summed");
  report.notes.push_back(
      fmt::format("charged as {}, times are those of the chips", report.case_name));
  if (report.metrics["host_late_share"] > kLateShareMax) {
    fail("the host was late for {:.0f} % of the chips' time: raise --slowdown (is {})",
         100 * report.metrics["host_late_share"],
         settings.slowdown);
  }
  if (num_same < num_compared) {
    fail("{} of {} answers differ from those of one device", num_compared - num_same, num_compared);
  }
}

}  // namespace
}  // namespace pelago::bench

int main(int argc, char** argv) {
  pelago::bench::Settings settings;
  pelago::bench::Program program("prefill_decode",
                                 "Is it worth it to read prompts on one chip and write answers on "
                                 "another?",
                                 {"mha-7b", "gqa-8b"});
  program.options().add_option("--slowdown", settings.slowdown, "of the emulated chips");
  program.options().add_option("--clients", settings.num_clients, "at once");
  program.options().add_option("--lives", settings.lives, "requests of a client that are measured");
  return program.run(
      argc, argv, [&](pelago::bench::Report& report) { pelago::bench::measure(report, settings); });
}
