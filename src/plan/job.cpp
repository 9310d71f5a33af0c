#include "plan/job.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>

#include "base/error.h"
#include "plan/job/section.h"
#include "plan/job/sites_section.h"

namespace pelago::plan {

namespace {

/// The model's room names field and value; the file is ours to name.
template <typename Action>
void naming_file(const std::string& file, Action action) {
  try {
    action();
  } catch (const Failure& failure) {
    fail_usage("{}: {}", file, failure.what());
  }
}

void read_model(const Section& section, const std::string& file, JobConfig& job) {
  std::string config_path;
  const bool has_preset = section.table().has("preset");
  section.take("preset", job.model_preset);
  section.take("config", config_path);
  if (!config_path.empty()) {
    if (has_preset) {
      section.refuse("config", config_path, "stands beside preset: keep one of the two");
    }
    job.model_preset.clear();
    naming_file(file, [&] { job.model = model::read_model_config(config_path); });
  } else {
    naming_file(file, [&] { job.model = model::preset(job.model_preset); });
  }
  model::ModelConfig& config = job.model;
  section.take_word("model_type", config.model_type, {"llama", "qwen2", "qwen3"});
  section.take("vocab_size", config.vocab_size);
  section.take("hidden_size", config.hidden_size);
  section.take("intermediate_size", config.intermediate_size);
  section.take("num_hidden_layers", config.num_hidden_layers);
  section.take("num_attention_heads", config.num_attention_heads);
  section.take("num_key_value_heads", config.num_key_value_heads);
  section.take("head_dim", config.head_dim);
  section.take("max_position_embeddings", config.max_position_embeddings);
  section.take_positive("rms_norm_eps", config.rms_norm_eps);
  section.take_positive("rope_theta", config.rope_theta);
  section.take("tie_word_embeddings", config.tie_word_embeddings);
  section.take("attention_bias", config.attention_bias);
  section.take("qk_norm", config.qk_norm);
  section.take_positive("initializer_range", config.initializer_range);
  section.take("bos_token_id", config.bos_token_id);
  section.take("eos_token_id", config.eos_token_id);
  if (section.checks()) naming_file(file, [&] { config.validate(); });
}

void read_data(const Section& section, const model::ModelConfig& model, DataConfig& data) {
  section.take("dir", data.dir);
  if (data.dir.empty()) {
    section.refuse("dir", data.dir, "must name the folder that `pelago data build --out` made");
  }
  section.take_between("sequence_length", data.sequence_length, 2, kCountMax);
  if (data.sequence_length > model.max_position_embeddings) {
    section.refuse("sequence_length",
                   data.sequence_length,
                   fmt::format("is longer than model.max_position_embeddings = {}: shorten the "
                               "one or raise the other",
                               model.max_position_embeddings));
  }
}

void check_cuts(const Section& section, const TrainConfig& train) {
  const int64_t width = train.tensor_parallel;
  if ((width & (width - 1)) != 0) {
    section.refuse("tensor_parallel", width, "must be 0 (the planner's choice) or a power of two");
  }
  if (train.pipeline == "never" && train.stages > 1) {
    section.refuse("stages", train.stages, "contradicts pipeline = \"never\": drop one of the two");
  }
  if (train.pipeline == "always" && train.stages == 1) {
    section.refuse(
        "stages", train.stages, "contradicts pipeline = \"always\": drop one of the two");
  }
}

/// Muon makes a step of a whole matrix, and these two cut matrices: what is left to the planner is
/// settled here, for all who read the job.
void settle_whole_matrices(const Section& section, TrainConfig& train) {
  if (!train.has_muon()) return;
  if (train.slice_optimizer == "always") {
    section.refuse("slice_optimizer",
                   train.slice_optimizer,
                   "cuts matrices, which optimizer = \"muon\" needs whole: leave it out, or take "
                   "optimizer = \"adamw\"");
  }
  if (train.tensor_parallel > 1) {
    section.refuse("tensor_parallel",
                   train.tensor_parallel,
                   "cuts matrices, which optimizer = \"muon\" needs whole: leave it out, or take "
                   "optimizer = \"adamw\"");
  }
  train.slice_optimizer = "never";
  train.tensor_parallel = 1;
}

void read_train(const Section& section, TrainConfig& train) {
  section.take_between("steps", train.steps, 0, kCountMax);
  section.take_positive("minutes", train.minutes);
  section.take_between("batch_sequences", train.batch_sequences, 1, kCountMax);
  section.take("exact_batch", train.exact_batch);
  section.take_between("microbatch_sequences", train.microbatch_sequences, 1, kCountMax);
  section.take("exact_microbatch", train.exact_microbatch);
  section.take_positive("lr", train.lr);
  section.take_between("min_lr_ratio", train.min_lr_ratio, 0, 1);
  section.take_between("warmup_steps", train.warmup_steps, 0, kCountMax);
  section.take_word("schedule", train.schedule, {"cosine", "wsd"});
  section.take_between("wsd_decay_ratio", train.wsd_decay_ratio, 0, 1);
  section.take_word("optimizer", train.optimizer, {"adamw", "muon"});
  section.take_between("weight_decay", train.weight_decay, 0, 1e3);
  section.take_below_one("beta1", train.beta1);
  section.take_below_one("beta2", train.beta2);
  section.take_positive("eps", train.eps);
  section.take_between("clip_norm", train.clip_norm, 0, 1e9);
  section.take_word("dtype", train.dtype, {"auto", "f32", "bf16"});
  section.take_word("pipeline", train.pipeline, {"auto", "never", "always"});
  section.take_word("recompute", train.recompute, {"auto", "always", "never"});
  section.take_word("slice_optimizer", train.slice_optimizer, {"auto", "always", "never"});
  section.take_between("tensor_parallel", train.tensor_parallel, 0, 64);
  section.take_between("memory_reserve", train.memory_reserve, 0, 0.5);
  section.take_between("stages", train.stages, 0, 10'000);
  section.take_counts("blocks_by_stage", train.blocks_by_stage);
  check_cuts(section, train);
  settle_whole_matrices(section, train);
  section.take_between("seed", train.seed, 0, INT64_MAX);
  section.take_between("eval_every_steps", train.eval_every_steps, 0, kCountMax);
  section.take_between("eval_sequences", train.eval_sequences, 0, kCountMax);
  section.take_between("checkpoint_every_steps", train.checkpoint_every_steps, 0, kCountMax);
  section.take_between("keep_checkpoints", train.keep_checkpoints, 1, kCountMax);
  section.take_between("snapshot_every_steps", train.snapshot_every_steps, 0, kCountMax);
  section.take_between("audit_every_steps", train.audit_every_steps, 0, kCountMax);
  section.take("known_answer", train.known_answer);
  section.take("spare_workers", train.spare_workers);
}

// The name becomes a folder, and runs_dir/.. or a name with a slash would put it somewhere else.
bool is_folder_name(const std::string& name) {
  const auto allowed = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
           c == '_' || c == '.';
  };
  return !name.empty() && name.size() <= 64 && name.front() != '.' &&
         std::all_of(name.begin(), name.end(), allowed);
}

void read_checkpoint(const Section& section, CheckpointConfig& checkpoint) {
  section.take("copy_to", checkpoint.copy_to);
  if (!checkpoint.copy_to.empty() && !checkpoint.copy_to.starts_with("s3://")) {
    section.refuse("copy_to", checkpoint.copy_to, "must be s3://BUCKET/PREFIX");
  }
}

/// Experts stand in [model] beside the dense fields, as in config.json.
void read_experts(const Section& section, ExpertsConfig& experts) {
  section.take_between("num_experts", experts.num_experts, 0, 100'000);
  section.take_between("num_experts_per_tok", experts.num_experts_per_tok, 0, 100'000);
  section.take_between("moe_intermediate_size", experts.moe_intermediate_size, 0, kCountMax);
  if (experts.is_dense()) return;
  if (experts.num_experts_per_tok < 1 || experts.num_experts_per_tok > experts.num_experts) {
    section.refuse("num_experts_per_tok",
                   experts.num_experts_per_tok,
                   fmt::format("must be between 1 and num_experts = {}", experts.num_experts));
  }
  if (experts.moe_intermediate_size < 1) {
    section.refuse("moe_intermediate_size",
                   experts.moe_intermediate_size,
                   "must be 1 or more beside num_experts: the width of one expert");
  }
}

void check_blocks_by_stage(const Section& section, const JobConfig& job) {
  const std::vector<int64_t>& blocks = job.train.blocks_by_stage;
  if (blocks.empty()) return;
  const std::string shown = fmt::format("[{}]", fmt::join(blocks, ", "));
  const int64_t sum = std::accumulate(blocks.begin(), blocks.end(), int64_t{0});
  if (sum != job.model.num_hidden_layers) {
    section.refuse(
        "blocks_by_stage",
        shown,
        fmt::format(
            "adds up to {}, and the model has {} blocks", sum, job.model.num_hidden_layers));
  }
  const auto num_stages = static_cast<int64_t>(blocks.size());
  if (job.train.stages != 0 && job.train.stages != num_stages) {
    section.refuse("blocks_by_stage",
                   shown,
                   fmt::format("contradicts stages = {}: drop one of the two", job.train.stages));
  }
}

void read_aim(const Section& section, const TrainConfig& train, AimConfig& aim) {
  section.take_word("objective", aim.objective, {"tokens/s", "tokens/joule", "tokens/price"});
  section.take_between("max_watts", aim.max_watts, 0, 1e12);
  section.take_between("deadline_hours", aim.deadline_hours, 0, 1e6);
  if (aim.deadline_hours > 0 && train.steps == 0) {
    section.refuse("deadline_hours",
                   aim.deadline_hours,
                   "needs train.steps, the work that is to be done by then");
  }
  section.take("keep_free", aim.keep_free);
  for (const std::string& one : aim.keep_free) {
    const size_t equals = one.find('=');
    const std::string count = equals == std::string::npos ? "" : one.substr(equals + 1);
    const bool is_count = !count.empty() && count.size() <= 7 &&
                          std::ranges::all_of(count, [](char c) { return c >= '0' && c <= '9'; });
    if (equals == 0 || !is_count) {
      section.refuse("keep_free", one, "must be CHIP=NUMBER, as in \"a100=2\"");
    }
  }
}

void read_all(const ConfigTable& table, Pass pass, JobConfig& job) {
  const Section root(table, pass);
  root.take("name", job.name);
  root.take("runs_dir", job.runs_dir);
  if (!is_folder_name(job.name)) {
    root.refuse("name",
                job.name,
                "must be 1 to 64 letters, digits, '-', '_' or '.', and not start with '.'");
  }
  if (job.runs_dir.empty()) root.refuse("runs_dir", job.runs_dir, "must name a folder");
  read_model(Section(table.table("model"), pass), table.where(), job);
  read_experts(Section(table.table("model"), pass), job.experts);
  read_data(Section(table.table("data"), pass), job.model, job.data);
  read_train(Section(table.table("train"), pass), job.train);
  if (pass == Pass::kCheck) {
    check_blocks_by_stage(Section(table.table("train"), pass), job);
    if (!job.train.blocks_by_stage.empty()) {
      job.train.stages = static_cast<int64_t>(job.train.blocks_by_stage.size());
    }
  }
  read_aim(Section(table.table("plan"), pass), job.train, job.aim);
  read_sites(Section(table.table("sites"), pass), job.sites);
  read_checkpoint(Section(table.table("checkpoint"), pass), job.checkpoint);
}

}  // namespace

int64_t num_parameters(const JobConfig& job) {
  const int64_t dense = job.model.num_parameters();
  if (job.experts.is_dense()) return dense;
  const int64_t hidden = job.model.hidden_size;
  const int64_t feed_forward = 3 * hidden * job.model.intermediate_size;
  const int64_t experts =
      job.experts.num_experts * hidden * (3 * job.experts.moe_intermediate_size + 1);
  return dense + job.model.num_hidden_layers * (experts - feed_forward);
}

double delta_bytes(double values, int bits) {
  if (bits == 32) return 4 * values;
  // Of normally distributed values: what the entropy coder leaves of them, measured.
  const double bits_a_value = bits == 2 ? 0.236 : bits == 4 ? 3.36 : 7.5;
  return values * bits_a_value / 8;
}

double TrainConfig::learning_rate(int64_t step, int64_t num_steps) const {
  if (step < warmup_steps) {
    return lr * static_cast<double>(step + 1) / static_cast<double>(warmup_steps);
  }
  // Progress through the falling part: 0 at its first step, 1 at the last step of the run.
  const auto progress_from = [&](double first) {
    const double last = static_cast<double>(num_steps - 1);
    if (last <= first) return static_cast<double>(step) >= last && last > 0 ? 1.0 : 0.0;
    return std::clamp((static_cast<double>(step) - first) / (last - first), 0.0, 1.0);
  };
  if (schedule == "wsd") {
    const double decay_steps = wsd_decay_ratio * static_cast<double>(num_steps);
    const double first =
        std::max(static_cast<double>(warmup_steps), static_cast<double>(num_steps) - decay_steps);
    if (static_cast<double>(step) < first) return lr;
    return lr * (1 - (1 - min_lr_ratio) * progress_from(first));
  }
  const double progress = progress_from(static_cast<double>(warmup_steps));
  const double height = 0.5 * (1 + std::cos(std::numbers::pi * progress));
  return lr * (min_lr_ratio + (1 - min_lr_ratio) * height);
}

JobConfig read_job(const std::filesystem::path& path, const std::vector<std::string>& overrides) {
  ConfigTable table = ConfigTable::read_file(path);
  for (const std::string& assignment : overrides) table.set(assignment);
  JobConfig job;
  read_all(table, Pass::kLearnKeys, job);
  table.refuse_unknown();
  read_all(table, Pass::kCheck, job);
  job.source_toml = table.to_toml();
  return job;
}

}  // namespace pelago::plan
