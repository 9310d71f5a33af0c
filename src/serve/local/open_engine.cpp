// Puts an engine together: which runner, how many pages, which tokens end a text.
#include <algorithm>
#include <fstream>
#include <iterator>
#include <limits>
#include <random>

#include "base/files.h"
#include "base/text/json.h"
#include "base/threads.h"
#include "model/config.h"
#include "plan/fleet.h"
#include "serve/local/devices.h"
#include "serve/local/local_engine.h"
#include "serve/runner/paced_runner.h"
#include "serve/runner/transformer_runner.h"
#include "serve/speculation/model_drafter.h"
#include "serve/split/prefill_keeper.h"
#include "serve/split/prefill_process.h"
#include "serve/split/prefill_side.h"
#include "serve/split/remote_reader.h"

namespace pelago::serve {

namespace {

namespace fs = std::filesystem;

/// Whatever the folder says in one place or another: chat models end a turn with one token and a
/// text with another.
std::vector<int32_t> end_tokens_of(const fs::path& folder,
                                   const model::ModelConfig& config,
                                   const data::Tokenizer& tokenizer) {
  std::vector<int32_t> tokens;
  const auto add = [&](int64_t token) {
    const auto id = static_cast<int32_t>(token);
    if (token < 0 || token >= config.vocab_size) return;
    if (std::ranges::find(tokens, id) == tokens.end()) tokens.push_back(id);
  };
  add(config.eos_token_id);
  add(tokenizer.end_of_text());
  const fs::path path = folder / "generation_config.json";
  if (!fs::exists(path)) return tokens;
  const nlohmann::json json = nlohmann::json::parse(read_text_file(path), nullptr, false);
  if (!json.is_object()) fail("{}: not a JSON object", path.string());
  if (!json.contains("eos_token_id")) return tokens;
  const nlohmann::json& ends = json["eos_token_id"];
  for (const nlohmann::json& token : ends.is_array() ? ends : nlohmann::json::array({ends})) {
    if (token.is_number_integer()) add(token.get<int64_t>());
  }
  return tokens;
}

int64_t num_pages_for(const EngineOptions& options, const model::ModelConfig& config) {
  const int64_t value_bytes = options.kv_dtype == "f32" ? 4 : options.kv_dtype == "int8" ? 1 : 2;
  const double page_bytes =
      static_cast<double>(2 * config.num_hidden_layers * config.num_key_value_heads *
                          config.head_dim * value_bytes * options.page_tokens);
  const auto affordable = static_cast<int64_t>(options.kv_memory_gb * 1e9 / page_bytes);
  // Beyond twice what all sequences can hold, pages would only ever be remembered.
  const int64_t useful = 2 * options.scheduler.sequences_max *
                         (config.max_position_embeddings / options.page_tokens + 1);
  const int64_t num_pages =
      std::min({affordable, useful, int64_t{std::numeric_limits<int32_t>::max()}});
  if (num_pages < 2) {
    fail_usage("kv_memory_gb is {}: two pages of this model take {:.3g} GB",
               options.kv_memory_gb,
               2 * page_bytes / 1e9);
  }
  return num_pages;
}

int64_t batch_tokens_for(const EngineOptions& options) {
  return options.scheduler.step_tokens + options.scheduler.rows_max() +
         options.speculation.rows_max + options.page_tokens;
}

WeightDtype weight_dtype(const std::string& dtype) {
  if (dtype.empty()) return WeightDtype::kAsStored;
  if (dtype == "f32") return WeightDtype::kF32;
  if (dtype == "bf16") return WeightDtype::kBf16;
  return dtype == "int8" ? WeightDtype::kInt8 : WeightDtype::kInt4;
}

KvDtype kv_dtype(const std::string& dtype) {
  if (dtype == "f32") return KvDtype::kF32;
  return dtype == "int8" ? KvDtype::kInt8 : KvDtype::kBf16;
}

/// Tells weights apart without reading them all: two checkpoints of one run differ in their ends.
uint64_t model_key_of(const fs::path& folder, const EngineOptions& options) {
  constexpr std::streamoff kEndBytes = 64 * 1024;
  std::string text = read_text_file(folder / "config.json");
  // Pages of processors and of accelerators lie differently.
  text += fmt::format(
      "{} {} {}", options.dtype, options.group_size, plan::runs_on_host(options.device));
  std::vector<fs::path> files;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    if (entry.path().extension() == ".safetensors") files.push_back(entry.path());
  }
  std::ranges::sort(files);
  for (const fs::path& path : files) {
    const auto num_bytes = static_cast<std::streamoff>(fs::file_size(path));
    std::ifstream file(path, std::ios::binary);
    file.seekg(std::max<std::streamoff>(0, num_bytes - kEndBytes));
    text += fmt::format("{} {} ", path.filename().string(), num_bytes);
    text.append(std::istreambuf_iterator<char>(file), {});
  }
  return hash_u64(text);
}

std::unique_ptr<ModelRunner> at_pace_of(std::unique_ptr<ModelRunner> runner,
                                        const EngineOptions& options,
                                        const model::ModelConfig& config) {
  const auto catalogue = chips::Catalogue::built_in();
  const chips::Chip& chip = catalogue.find(options.device.substr(options.device.find(':') + 1));
  return std::make_unique<PacedRunner>(std::move(runner),
                                       Pace{.model = plan::sizes_of(config, 1),
                                            .rates = plan::serving_rates(chip),
                                            .slowdown = options.slowdown});
}

std::unique_ptr<ModelRunner> open_runner(const fs::path& folder,
                                         const EngineOptions& asked,
                                         const model::ModelConfig& config) {
  EngineOptions options = asked;
  const bool is_emulated = plan::is_emulated(options.device);
  if (is_emulated) {
    options.kv_memory_gb =
        std::min(options.kv_memory_gb, emulated_memory_left_gb(options.device, config));
  }
  const int64_t num_pages = num_pages_for(options, config);
  if (!plan::runs_on_host(options.device)) {
    return open_transformer_runner(folder,
                                   {.device = options.device,
                                    .dtype = options.dtype.empty() ? "bf16" : options.dtype,
                                    .page_tokens = options.page_tokens,
                                    .num_pages = num_pages,
                                    .max_batch_tokens = batch_tokens_for(options)});
  }
  RunnerOptions runner;
  runner.weights = weight_dtype(options.dtype);
  runner.group_size = options.group_size;
  runner.kv = kv_dtype(options.kv_dtype);
  runner.page_tokens = options.page_tokens;
  runner.num_pages = num_pages;
  runner.max_batch_tokens = batch_tokens_for(options);
  runner.cores = allowed_cores();
  runner.num_threads =
      options.num_threads > 0 ? options.num_threads : static_cast<int>(runner.cores.size());
  runner.shared_weights = options.shared_weights;
  if (!options.shared_weights.empty()) runner.weights_key = model_key_of(folder, options);
  auto opened = open_cpu_runner(folder, runner);
  return is_emulated ? at_pace_of(std::move(opened), options, config) : std::move(opened);
}

/// Processors of a prefill process beside this engine: the second half, and options leave this
/// engine the first; where there is one alone, both have it.
std::vector<int> give_cores(EngineOptions& options) {
  std::vector<int> cores = allowed_cores();
  if (!plan::runs_on_host(options.device) || cores.size() < 2) return cores;
  const size_t num_own = options.num_threads > 0
                             ? std::min(static_cast<size_t>(options.num_threads), cores.size() - 1)
                             : (cores.size() + 1) / 2;
  options.num_threads = static_cast<int>(num_own);
  cores.erase(cores.begin(), cores.begin() + static_cast<std::ptrdiff_t>(num_own));
  return cores;
}

std::unique_ptr<PromptReader> open_reader(const fs::path& folder,
                                          const EngineOptions& options,
                                          std::unique_ptr<PrefillKeeper> keeper) {
  if (options.prefill_link.empty() && keeper == nullptr) return nullptr;
  auto link = keeper != nullptr
                  ? keeper->first_link()
                  : chips::open_frame_link({.rank = 0, .rendezvous_dir = options.prefill_link});
  return std::make_unique<RemoteReader>(std::move(link),
                                        RemoteOptions{.local_share = options.prefill_local_share,
                                                      .model_key = model_key_of(folder, options)},
                                        std::move(keeper));
}

model::ModelConfig read_config(const fs::path& folder) {
  if (!fs::exists(folder / "config.json")) {
    fail_usage("{}: not a model folder, it has no config.json", folder.string());
  }
  return model::read_model_config(folder / "config.json");
}

std::unique_ptr<Drafter> open_drafter(const EngineOptions& options, int64_t vocab_size) {
  if (options.speculation.draft_max == 0 || options.draft_folder.empty()) {
    return repeated_text_drafter(options.speculation);
  }
  const model::ModelConfig config = model::read_model_config(options.draft_folder / "config.json");
  if (config.vocab_size != vocab_size) {
    fail_usage("draft_folder {}: a vocabulary of {}, the model has one of {}: they must be one",
               options.draft_folder.string(),
               config.vocab_size,
               vocab_size);
  }
  EngineOptions own = options;
  own.shared_weights.clear();  // they are the large model's
  return std::make_unique<ModelDrafter>(open_runner(options.draft_folder, own, config));
}

}  // namespace

void EngineOptions::validate() const {
  const auto check = [](const char* field, auto value, bool is_good, const char* allowed) {
    if (!is_good) fail_usage("{} is {}: it must be {}", field, value, allowed);
  };
  const auto is_one_of = [](const std::string& word, std::initializer_list<const char*> words) {
    return std::ranges::find(words, word) != words.end();
  };
  const bool is_cpu = device == "cpu", is_host = plan::runs_on_host(device);
  if (plan::is_emulated(device)) check_device(device);
  check("slowdown", slowdown, slowdown > 0 && slowdown <= 1e9, "above 0 and at most 1e9");
  if (!prefill_device.empty()) {
    check_split(prefill_device, device);
    if (!prefill_link.empty()) fail_usage("prefill_device and prefill_link exclude each other");
  }
  check("dtype",
        dtype,
        dtype.empty() || is_one_of(dtype, {"f32", "bf16"}) ||
            (is_cpu && is_one_of(dtype, {"int8", "int4"})),
        is_cpu ? "f32, bf16, int8 or int4" : "f32 or bf16");
  check("kv_dtype",
        kv_dtype,
        is_host ? is_one_of(kv_dtype, {"f32", "bf16", "int8"}) : kv_dtype == "bf16",
        is_host ? "f32, bf16 or int8" : "bf16: on this device they have the dtype of the weights");
  const auto num_cores = static_cast<int>(allowed_cores().size());
  if (num_threads < 0 || num_threads > num_cores) {
    fail_usage("num_threads is {}: it must be 0 (one a core) to {}", num_threads, num_cores);
  }
  check("kv_memory_gb", kv_memory_gb, kv_memory_gb > 0 && kv_memory_gb < 1e6, "above 0, in GB");
  check("page_tokens",
        page_tokens,
        page_tokens >= 16 && page_tokens <= 1024 && page_tokens % 16 == 0,
        "a multiple of 16 up to 1024");
  check(
      "context_tokens_max", context_tokens_max, context_tokens_max >= 0, "0 (the model's) or more");
  check("sequences_max",
        scheduler.sequences_max,
        scheduler.sequences_max >= 0 && scheduler.sequences_max <= 4096,
        "0 (as many as this device gains by) to 4096");
  check("step_tokens",
        scheduler.step_tokens,
        scheduler.step_tokens >= 16 && scheduler.step_tokens <= 65536,
        "between 16 and 65536");
  check("draft_max",
        speculation.draft_max,
        speculation.draft_max >= 0 && speculation.draft_max <= 64,
        "between 0 (no guessing) and 64");
  check("rows_max",
        speculation.rows_max,
        speculation.rows_max >= 1 && speculation.rows_max <= 4096,
        "between 1 and 4096");
  check("ngram_tokens",
        speculation.ngram_tokens,
        speculation.ngram_tokens >= 1 && speculation.ngram_tokens <= 64,
        "between 1 and 64");
  check("prefill_local_share",
        prefill_local_share,
        prefill_local_share >= 0 && prefill_local_share <= 1,
        "between 0 and 1");
  check("waiting_max", waiting_max, waiting_max >= 1 && waiting_max <= 1'000'000, "1 to 1000000");
}

SchedulerLimits EngineOptions::scheduler_limits() const {
  SchedulerLimits limits = scheduler;
  if (limits.sequences_max == 0) limits.sequences_max = device == "cpu" ? 16 : 64;
  // Where arithmetic is plenty, only full passes are worth reading the weights for.
  if (device != "cpu") limits.enough_tokens = limits.step_tokens;
  return limits;
}

std::unique_ptr<Engine> open_engine(const fs::path& folder, const EngineOptions& asked) {
  asked.validate();
  EngineOptions options = asked;
  options.scheduler = asked.scheduler_limits();
  const model::ModelConfig config = read_config(folder);
  // It opens its model while this engine opens its own.
  std::unique_ptr<PrefillKeeper> prefill;
  if (!options.prefill_device.empty()) {
    const EngineOptions given = options;
    prefill = std::make_unique<PrefillKeeper>([folder, given, cores = give_cores(options)] {
      return std::make_unique<PrefillProcess>(folder, given, cores);
    });
  }
  data::Tokenizer tokenizer = data::Tokenizer::read(folder / "tokenizer.json");
  BatchOptions batch;
  batch.scheduler = options.scheduler;
  batch.speculation = options.speculation;
  batch.context_tokens_max = options.context_tokens_max;
  batch.waiting_max = options.waiting_max;
  batch.end_tokens = end_tokens_of(folder, config, tokenizer);
  batch.seed = options.seed ? *options.seed : std::random_device()();
  auto runner = open_runner(folder, options, config);
  auto drafter = open_drafter(options, config.vocab_size);
  auto reader = open_reader(folder, options, std::move(prefill));
  return std::make_unique<LocalEngine>(
      std::move(runner), std::move(tokenizer), batch, std::move(drafter), std::move(reader));
}

std::string serve_prompts(const fs::path& folder,
                          const EngineOptions& asked,
                          const std::stop_token& stop,
                          const std::function<void()>& on_open) {
  asked.validate();
  EngineOptions options = asked;
  options.scheduler = asked.scheduler_limits();
  if (options.prefill_link.empty()) fail_usage("prefill_link is empty: name the engine's folder");
  const auto runner = open_runner(folder, options, read_config(folder));
  if (on_open) on_open();
  PrefillSide side(
      *runner,
      chips::open_frame_link({.rank = 1, .rendezvous_dir = options.prefill_link}),
      {.step_tokens = options.scheduler.step_tokens, .model_key = model_key_of(folder, options)});
  return side.run(stop);
}

}  // namespace pelago::serve
