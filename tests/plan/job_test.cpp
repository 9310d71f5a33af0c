#include "plan/job.h"

#include <cmath>

#include "plan/fixtures.h"

namespace pelago::plan {
namespace {

constexpr const char* kSmallest = "[data]\ndir = 'corpus'\n";

std::string refusal_with(const std::string& setting) {
  return refusal([&] { job_from(kSmallest, {setting}); });
}

TEST_CASE("a job of a data folder alone takes every default") {
  const JobConfig job = job_from(kSmallest);
  CHECK(job.name == "run");
  CHECK(job.model_preset == "10m");
  CHECK(job.model.hidden_size == model::preset("10m").hidden_size);
  CHECK(job.data.sequence_length == 256);
  CHECK(job.sites.delta_bits == 4);
}

TEST_CASE("a field beside the preset overrides it and leaves the others") {
  const JobConfig job =
      job_from("[model]\npreset = '2m'\nnum_hidden_layers = 3\n[data]\ndir='d'\n");
  CHECK(job.model.num_hidden_layers == 3);
  CHECK(job.model.hidden_size == model::preset("2m").hidden_size);
}

TEST_CASE("a config.json gives the model, and no preset is then named") {
  TempFolder folder;
  const auto config =
      folder.write("config.json", model::to_config_json(model::preset("1m"), "float32"));
  const JobConfig job =
      job_from(fmt::format("[model]\nconfig = '{}'\n[data]\ndir = 'd'\n", config.string()));
  CHECK(job.model.hidden_size == model::preset("1m").hidden_size);
  CHECK(job.model_preset.empty());
}

TEST_CASE("a preset and a config together are refused") {
  TempFolder folder;
  const auto config =
      folder.write("config.json", model::to_config_json(model::preset("1m"), "float32"));
  const std::string message = refusal([&] {
    job_from(
        fmt::format("[model]\npreset = '1m'\nconfig = '{}'\n[data]\ndir = 'd'\n", config.string()));
  });
  contains(message, "stands beside preset: keep one of the two");
}

TEST_CASE("the text that is kept reads back as the same job, overrides included") {
  const JobConfig job = job_from(kSmallest, {"train.lr=0.001", "name=again", "model.preset=1m"});
  const JobConfig again = job_from(job.source_toml);
  CHECK(again.train.lr == 0.001);
  CHECK(again.name == "again");
  CHECK(again.model.hidden_size == job.model.hidden_size);
  CHECK(again.source_toml == job.source_toml);
}

TEST_CASE("a missing data folder is refused with the command that makes one") {
  const std::string message = refusal([] { job_from("name = 'x'\n"); });
  contains(message, "job.toml: data: dir = \"\" must name the folder that `pelago data build");
}

TEST_CASE("a misspelt key is refused with the nearest one, even if its default is out of range") {
  const std::string message =
      refusal([] { job_from("[data]\ndir = 'd'\n[sites]\ninner_steps = 3\nfragmnets = 3\n"); });
  contains(message, "job.toml:5: unknown key sites.fragmnets; did you mean fragments?");
  contains(refusal([] { job_from("[trian]\nlr = 1\n"); }), "did you mean train?");
}

TEST_CASE("an unknown preset is refused with the file and the nearest one") {
  const std::string message = refusal_with("model.preset=10mm");
  contains(message, "job.toml: ");
  contains(message, "10mm");
  contains(message, "\"10m\"");
}

TEST_CASE("a model that cannot be is refused with the file and the field") {
  const std::string message = refusal_with("model.num_key_value_heads=5");
  contains(message, "job.toml: ");
  contains(message, "num_key_value_heads");
}

TEST_CASE("a sequence longer than the model's positions is refused with both numbers") {
  contains(refusal_with("data.sequence_length=4096"),
           "sequence_length = 4096 is longer than model.max_position_embeddings = 2048");
}

TEST_CASE("H that is no multiple of P is refused with one that is") {
  contains(refusal_with("sites.inner_steps=25"),
           "inner_steps = 25 must be a multiple of fragments = 4: take 28");
}

TEST_CASE("tau that reaches the next exchange is refused with an H that would do") {
  contains(refusal_with("sites.overlap_steps=6"),
           "overlap_steps = 6 must be less than inner_steps / fragments = 6");
  contains(refusal_with("sites.overlap_steps=6"), "raise inner_steps to at least 28");
  CHECK(refusal_with("sites.overlap_steps=5").empty());
}

TEST_CASE("bits other than 2, 4, 8 and 32 are refused") {
  for (const int bits : {0, 1, 5, 16, 64, -4}) {
    contains(refusal_with(fmt::format("sites.delta_bits={}", bits)),
             fmt::format("delta_bits = {} must be 2 (thin: the largest values alone), 4, 8", bits));
  }
  for (const int bits : {2, 4, 8, 32}) {
    CHECK(refusal_with(fmt::format("sites.delta_bits={}", bits)).empty());
  }
}

TEST_CASE("a method sets what its paper has, and a key of its own wins over it") {
  const auto sites_of = [](const std::vector<std::string>& overrides) {
    return job_from(kSmallest, overrides).sites;
  };
  const SitesConfig plain = sites_of({"sites.method=diloco"});
  CHECK(plain.fragments == 1);
  CHECK(plain.overlap_steps == 0);
  CHECK(plain.merge_alpha == 0);
  CHECK(plain.outer_lr == 0.7);
  const SitesConfig thin = sites_of({"sites.method=thin"});
  CHECK(thin.delta_bits == 2);
  CHECK(thin.fragments == SitesConfig{}.fragments);
  CHECK(thin.merge_alpha == 0);
  CHECK(thin.outer_lr == 1);
  CHECK(thin.outer_momentum == 0);
  const SitesConfig sync = sites_of({"sites.method=sync"});
  CHECK(sync.inner_steps == 1);
  CHECK(sync.delta_bits == 32);
  CHECK(sync.outer_lr == 1);
  CHECK(sync.outer_momentum == 0);
  const SitesConfig mixed = sites_of({"sites.method=diloco", "sites.outer_lr=0.5"});
  CHECK(mixed.outer_lr == 0.5);
  CHECK(mixed.merge_alpha == 0);
  CHECK(sites_of({}).fragments == 4);
}

TEST_CASE("a word outside its list is refused with the list and the nearest") {
  contains(refusal_with("train.schedule=cosin"),
           "train: schedule = \"cosin\" must be one of cosine, wsd; did you mean cosine?");
  contains(refusal_with("train.dtype=fp8"), "must be one of auto, f32, bf16");
}

TEST_CASE("every number out of its range is refused by name and value") {
  const std::vector<std::pair<std::string, std::string>> wrong = {
      {"train.steps=-1", "steps = -1 must be between 0"},
      {"train.minutes=0", "minutes = 0 must be greater than 0"},
      {"train.minutes=inf", "minutes = inf must be greater than 0"},
      {"train.batch_sequences=0", "batch_sequences = 0 must be between 1"},
      {"train.microbatch_sequences=0", "microbatch_sequences = 0 must be between 1"},
      {"train.lr=0", "lr = 0 must be greater than 0"},
      {"train.lr=-1", "lr = -1 must be greater than 0"},
      {"train.lr=nan", "lr = nan must be greater than 0"},
      {"train.min_lr_ratio=1.5", "min_lr_ratio = 1.5 must be between 0 and 1"},
      {"train.min_lr_ratio=nan", "min_lr_ratio = nan must be between 0 and 1"},
      {"train.warmup_steps=-2", "warmup_steps = -2 must be between 0"},
      {"train.wsd_decay_ratio=2", "wsd_decay_ratio = 2 must be between 0 and 1"},
      {"train.weight_decay=-0.1", "weight_decay = -0.1 must be between 0"},
      {"train.beta1=1", "beta1 = 1 must be at least 0 and less than 1"},
      {"train.beta2=-0.1", "beta2 = -0.1 must be at least 0"},
      {"train.eps=0", "eps = 0 must be greater than 0"},
      {"train.clip_norm=-1", "clip_norm = -1 must be between 0"},
      {"train.seed=-1", "seed = -1 must be between 0"},
      {"train.eval_every_steps=-1", "eval_every_steps = -1 must be"},
      {"train.eval_sequences=-1", "eval_sequences = -1 must be"},
      {"train.checkpoint_every_steps=-1", "checkpoint_every_steps = -1 must be"},
      {"train.keep_checkpoints=0", "keep_checkpoints = 0 must be between 1"},
      {"data.sequence_length=1", "sequence_length = 1 must be between 2"},
      {"sites.inner_steps=0", "inner_steps = 0 must be between 1"},
      {"sites.fragments=0", "fragments = 0 must be between 1"},
      {"sites.overlap_steps=-1", "overlap_steps = -1 must be between 0"},
      {"sites.method=federated",
       "method = \"federated\" must be one of streaming, thin, diloco, sync"},
      {"sites.combine=median", "combine = \"median\" must be one of mean, direction"},
      {"sites.error_decay=1.01", "error_decay = 1.01 must be between 0 and 1"},
      {"sites.merge_alpha=1.1", "merge_alpha = 1.1 must be between 0 and 1"},
      {"sites.outer_lr=0", "outer_lr = 0 must be greater than 0"},
      {"sites.outer_momentum=1", "outer_momentum = 1 must be at least 0"},
      {"sites.grace_s=0", "grace_s = 0 must be greater than 0"},
      {"sites.share_rounds=-1", "share_rounds = -1 must be between 0"},
      {"sites.heartbeat_s=-1", "heartbeat_s = -1 must be greater than 0"},
      {"runs_dir=''", "runs_dir = \"\" must name a folder"},
  };
  for (const auto& [setting, part] : wrong) {
    CAPTURE(setting);
    const std::string message = refusal_with(setting);
    contains(message, "job.toml");
    contains(message, part);
  }
}

TEST_CASE("a name that is no folder name is refused") {
  for (const char* name : {"../up", "a/b", "", ".hidden", "a b"}) {
    contains(refusal_with(fmt::format("name='{}'", name)), "must be 1 to 64 letters");
  }
}

TrainConfig schedule_of(const std::string& schedule) {
  TrainConfig train;
  train.schedule = schedule;
  train.lr = 2.0;
  train.warmup_steps = 10;
  return train;
}

TEST_CASE("the warm-up rises in equal steps to the peak") {
  const TrainConfig train = schedule_of("cosine");
  CHECK(train.learning_rate(0, 100) == doctest::Approx(0.2));
  CHECK(train.learning_rate(4, 100) == doctest::Approx(1.0));
  CHECK(train.learning_rate(9, 100) == doctest::Approx(2.0));
  CHECK(train.learning_rate(10, 100) == doctest::Approx(2.0));
}

TEST_CASE("the cosine never rises after the warm-up and ends at its floor") {
  const TrainConfig train = schedule_of("cosine");
  for (int64_t step = 11; step < 100; ++step) {
    CHECK(train.learning_rate(step, 100) <= train.learning_rate(step - 1, 100));
  }
  CHECK(train.learning_rate(99, 100) == doctest::Approx(0.2));
}

TEST_CASE("wsd stays at the peak until its last fifth and ends at its floor") {
  const TrainConfig train = schedule_of("wsd");
  CHECK(train.learning_rate(79, 100) == 2.0);
  CHECK(train.learning_rate(80, 100) == doctest::Approx(2.0));
  CHECK(train.learning_rate(81, 100) < 2.0);
  CHECK(train.learning_rate(99, 100) == doctest::Approx(0.2));
}

TEST_CASE("the rate of a run that ends within its warm-up, or after one step, is positive") {
  for (const char* schedule : {"cosine", "wsd"}) {
    TrainConfig train = schedule_of(schedule);
    for (const int64_t num_steps : {1, 2, 5, 10, 11}) {
      for (int64_t step = 0; step < num_steps; ++step) {
        CHECK(train.learning_rate(step, num_steps) > 0);
        CHECK(train.learning_rate(step, num_steps) <= 2.0);
      }
    }
    train.warmup_steps = 0;
    CHECK(train.learning_rate(0, 1) == 2.0);
  }
}

TEST_CASE("how a model is cut is the planner's choice unless the job says") {
  const JobConfig job = job_from(kSmallest);
  CHECK(job.train.pipeline == "auto");
  CHECK(job.train.recompute == "auto");
  CHECK(job.train.slice_optimizer == "auto");
  CHECK(job.train.tensor_parallel == 0);
  CHECK(job.train.stages == 0);
}

TEST_CASE("a cut that cannot be meant is refused with what is allowed") {
  contains(refusal_with("train.pipeline=allways"), "did you mean always?");
  contains(refusal_with("train.recompute=yes"), "must be one of auto, always, never");
  contains(refusal_with("train.slice_optimizer=2"), "slice_optimizer");
  contains(refusal_with("train.tensor_parallel=3"),
           "tensor_parallel = 3 must be 0 (the planner's choice) or a power of two");
  contains(refusal_with("train.stages=-1"), "stages = -1 must be between 0 and");
  contains(refusal([] {
             job_from(kSmallest, {"train.pipeline=never", "train.stages=2"});
           }),
           "stages = 2 contradicts pipeline = \"never\"");
  contains(refusal([] {
             job_from(kSmallest, {"train.pipeline=always", "train.stages=1"});
           }),
           "stages = 1 contradicts pipeline = \"always\"");
}

TEST_CASE("Muon leaves no cut of a matrix to the planner, and refuses one that is asked for") {
  CHECK(job_from(kSmallest).train.optimizer == "adamw");
  const JobConfig job = job_from(kSmallest, {"train.optimizer=muon"});
  CHECK(job.train.has_muon());
  CHECK(job.train.slice_optimizer == "never");
  CHECK(job.train.tensor_parallel == 1);
  CHECK(job_from(job.source_toml).train.has_muon());
  CHECK(
      refusal_with("train.optimizer=moun")
          .ends_with("train: optimizer = \"moun\" must be one of adamw, muon; did you mean muon?"));
  const auto with_muon = [](const char* setting) {
    return refusal([&] { job_from(kSmallest, {"train.optimizer=muon", setting}); });
  };
  CHECK(with_muon("train.slice_optimizer=never").empty());
  CHECK(with_muon("train.tensor_parallel=1").empty());
  contains(with_muon("train.slice_optimizer=always"),
           "slice_optimizer = \"always\" cuts matrices, which optimizer = \"muon\" needs whole: "
           "leave it out, or take optimizer = \"adamw\"");
  contains(with_muon("train.tensor_parallel=2"),
           "tensor_parallel = 2 cuts matrices, which optimizer = \"muon\" needs whole: leave it "
           "out, or take optimizer = \"adamw\"");
}

}  // namespace
}  // namespace pelago::plan
