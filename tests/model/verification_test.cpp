#include "model/verify/verification.h"

#include <doctest/doctest.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "base/error.h"
#include "base/rng.h"
#include "chips/emulated/faults.h"
#include "chips/torch.h"
#include "model/transformer.h"

namespace pelago::model {
namespace {

namespace fs = std::filesystem;

ModelConfig small_config() {
  ModelConfig config;
  config.vocab_size = 97;
  config.hidden_size = 64;
  config.intermediate_size = 96;
  config.num_hidden_layers = 2;
  config.num_attention_heads = 2;
  config.num_key_value_heads = 1;
  config.head_dim = 32;
  return config;
}

// libtorch's autograd counts devices at the first backward pass of a process: the plug-in must be
// loaded by then, before any test.
const bool kPluginIsLoaded = [] {
  const chips::Catalogue catalogue = chips::Catalogue::built_in();
  return chips::open_device("emulated:a100", catalogue) != nullptr;
}();

const VerificationTask& task() {
  static const VerificationTask the_task = make_task(small_config(),
                                                     initial_weights(small_config(), Rng(3)),
                                                     {.sequences = 2, .tokens = 16, .seed = 3});
  return the_task;
}

DeviceAnswers answers_of(const std::string& name,
                         const std::vector<chips::EmulatedFault>& faults = {}) {
  REQUIRE(kPluginIsLoaded);
  const chips::Catalogue catalogue = chips::Catalogue::built_in();
  const auto device = chips::open_device(name, catalogue, {.slowdown = 1e-6, .faults = faults});
  return answer(*device, task());
}

bool is_faulty(const VerificationRow& row) { return row.verdict == chips::Verdict::kFail; }

TEST_CASE("a model's run holds every operator that it needs, forward and backward") {
  std::set<std::string> found;
  for (const chips::OperatorCall& call : task().calls) {
    found.insert(call.op.starts_with("pelago::") ? call.op : call.op + " " + call.phase);
  }
  for (const std::string op : {"pelago::rms_norm",
                               "pelago::rms_norm_backward",
                               "pelago::add_rms_norm",
                               "pelago::rope",
                               "pelago::attention",
                               "pelago::attention_backward",
                               "pelago::swiglu",
                               "pelago::swiglu_backward",
                               "pelago::cross_entropy",
                               "pelago::accumulate_",
                               "pelago::sum_of_squares",
                               "pelago::adamw_",
                               "aten::mm forward",
                               "aten::mm backward",
                               "aten::embedding forward"}) {
    CAPTURE(op);
    CHECK(found.contains(op));
  }
}

TEST_CASE("what was recorded does not change when the run goes on") {
  // AdamW writes to its arguments: what is kept are those from before.
  for (const chips::OperatorCall& call : task().calls) {
    if (call.op != "pelago::adamw_") continue;
    CHECK(std::get<Tensor>(call.arguments[2]).abs().sum().item<double>() == 0);  // m
    CHECK(std::get<Tensor>(call.arguments[0]).equal(task().weights));
  }
}

TEST_CASE("a device agrees with itself to the last bit, another kind of chip within rounding") {
  const DeviceAnswers cpu = answers_of("cpu");
  for (const VerificationRow& row : compare(cpu, answers_of("cpu"))) {
    CAPTURE(row.name);
    CHECK(row.difference.largest == 0);
  }
  for (const char* chip : {"emulated:a100", "emulated:910a"}) {
    const std::vector<VerificationRow> rows = compare(answers_of(chip), cpu);
    CHECK(rows.size() > 40);
    for (const VerificationRow& row : rows) {
      CAPTURE(row.name);
      CAPTURE(row.dtypes);
      CAPTURE(row.difference.largest);
      CAPTURE(row.difference.rms);
      CHECK(row.verdict == chips::Verdict::kOk);
    }
  }
}

TEST_CASE("one wrong element in a matmul fails, and the operator is named") {
  const DeviceAnswers cpu = answers_of("cpu");
  const std::vector<VerificationRow> rows =
      compare(answers_of("emulated:a100", {chips::parse_fault("wrong@p=1,seed=5")}), cpu);
  int num_faulty_matmuls = 0;
  for (const VerificationRow& row : rows) {
    CAPTURE(row.name);
    const bool is_matmul = row.name.starts_with("aten::mm");
    if (row.part == "operator") CHECK(is_faulty(row) == is_matmul);
    num_faulty_matmuls += is_faulty(row) && is_matmul ? 1 : 0;
  }
  CHECK(num_faulty_matmuls == 4);  // forward and backward, in two dtypes
}

TEST_CASE("a value that is not finite is infinitely far from one that is") {
  DeviceAnswers cpu = answers_of("cpu");
  DeviceAnswers other = cpu;
  for (auto& [name, tensor] : other.tensors) {
    if (name == "f32/gradient/model.norm.weight") tensor = tensor * NAN;
  }
  for (const VerificationRow& row : compare(other, cpu)) {
    const bool is_changed =
        row.name == "model.norm.weight" && row.part == "gradient" && row.dtypes == "f32";
    CHECK(is_faulty(row) == is_changed);
  }
}

TEST_CASE("task and answers come back from their files as they were") {
  const fs::path folder =
      fs::temp_directory_path() / fmt::format("pelago-verification-{}", ::getpid());
  fs::create_directories(folder);
  write_task(task(), folder);
  const VerificationTask read = read_task(folder);
  CHECK(read.config == task().config);
  REQUIRE(read.calls.size() == task().calls.size());
  for (size_t i = 0; i < read.calls.size(); ++i) {
    CHECK(read.calls[i].op == task().calls[i].op);
    REQUIRE(read.calls[i].arguments.size() == task().calls[i].arguments.size());
    for (size_t k = 0; k < read.calls[i].arguments.size(); ++k) {
      const auto* const tensor = std::get_if<Tensor>(&read.calls[i].arguments[k]);
      if (tensor == nullptr) continue;
      CAPTURE(read.calls[i].op);
      CAPTURE(k);
      CHECK(tensor->equal(std::get<Tensor>(task().calls[i].arguments[k])));
      CHECK(tensor->strides() == std::get<Tensor>(task().calls[i].arguments[k]).strides());
    }
  }
  const DeviceAnswers answers = answers_of("cpu");
  write_answers(answers, folder / "a.safetensors");
  for (const VerificationRow& row : compare(answers, read_answers(folder / "a.safetensors"))) {
    CHECK(row.difference.largest == 0);
  }
  fs::remove_all(folder);
}

TEST_CASE("answers to different tasks are not compared") {
  DeviceAnswers cpu = answers_of("cpu");
  DeviceAnswers other = cpu;
  other.tensors.pop_back();
  CHECK_THROWS_AS(compare(cpu, other), Failure);
}

TEST_CASE("a batch longer than the model's context is wrong usage") {
  try {
    make_task(small_config(), initial_weights(small_config(), Rng(3)), {.tokens = 4096});
    CHECK(false);
  } catch (const Failure& failure) {
    CHECK(failure.exit_code() == kExitUsage);
  }
}

}  // namespace
}  // namespace pelago::model
