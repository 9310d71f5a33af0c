// Do plans take the time and the memory that they foretell? Plans of emulated fleets like those of
// the other benchmarks are carried out for a few steps (`pelago plan --compare`): data parallel
// over unlike chips, pipelines, sliced optimizers and recomputing, blocks cut over chips, and
// several sites, by rounds and in step. The headline figure is the worst of three ratios: the mean
// error of a step over 4 %, the worst over 10 %, the mean error of a rank's memory over 5 %. A run
// whose chips were late for their clock measured the host: it is repeated, and left out if it is
// late again.

#include <cmath>

#include "bench/fleet_run.h"
#include "bench/report.h"

namespace pelago::bench {
namespace {

struct Settings {
  double slowdown = 1000;  // a chip then keeps a twentieth of a processor busy
  int64_t steps = 3;       // of each plan, two more go before
  std::string only;        // plans whose name has this in it
};

/// Words for a site's devices: "a100*2 h20".
struct Case {
  std::string name, group;
  std::vector<std::string> sites;
  std::string more = {};  // overrides
  std::string link = {};  // of each two sites
};

// The model has unlike widths wherever a formula could mistake one for another, and heads that two
// chips can share.
constexpr int kVocabSize = 1024;
constexpr const char* kJob = R"(
name = "predicted"
[model]
preset = "2m"
num_hidden_layers = 6
num_key_value_heads = 2
[data]
dir = "data"
sequence_length = 128
[train]
batch_sequences = 48
microbatch_sequences = 4
eval_sequences = 1
eval_every_steps = 0
checkpoint_every_steps = 0
snapshot_every_steps = 0
audit_every_steps = 0
)";

constexpr const char* kEveryKind = "a100 h20 910b 910a mlu590";
const std::string kRounds =
    "--set sites.across=rounds --set sites.inner_steps=4 "
    "--set sites.fragments=2 ";
const std::string kInStep = "--set sites.across=pipeline ";

const std::vector<Case> kCases = {
    {"one chip", "parallel", {"h20"}},
    {"two alike", "parallel", {"a100*2"}},
    {"two unlike", "parallel", {"a100 h20"}},
    {"three brands", "parallel", {"a100 h20 910b"}},
    {"four kinds", "parallel", {"a100 h20 910b mlu590"}},
    {"fp16 beside bf16", "parallel", {"a100 910a"}},
    {"pairs", "parallel", {"h20*2 910b*2"}},
    {"two stages alike", "pipelines", {"a100*2"}, "--set train.pipeline=always"},
    {"two stages unlike", "pipelines", {"a100 910b"}, "--set train.pipeline=always"},
    {"three stages", "pipelines", {"a100 h20 910b"}, "--set train.pipeline=always"},
    {"four stages",
     "pipelines",
     {"a100*2 h20*2"},
     "--set train.pipeline=always --set train.stages=4"},
    {"two by two",
     "pipelines",
     {"a100*2 h20*2"},
     "--set train.pipeline=always --set train.stages=2"},
    {"few microbatches",
     "pipelines",
     {"a100 h20 910b"},
     "--set train.pipeline=always --set train.batch_sequences=16"},
    {"stages recomputing",
     "pipelines",
     {"a100 h20"},
     "--set train.pipeline=always --set train.recompute=always"},
    {"recomputing", "memory", {"a100 910b"}, "--set train.recompute=always"},
    {"sliced", "memory", {"a100 h20 910b"}, "--set train.slice_optimizer=always"},
    {"sliced, recomputing",
     "memory",
     {"a100*2"},
     "--set train.slice_optimizer=always --set train.recompute=always"},
    {"short of memory", "memory", {"a100*2:0.030 h20*2:0.030"}},
    {"blocks over two", "tensor", {"a100*2"}, "--set train.tensor_parallel=2"},
    {"stages of two",
     "tensor",
     {"a100*2 h20*2"},
     "--set train.tensor_parallel=2 --set train.pipeline=always"},
    {"pairs beside", "tensor", {"a100*2 h20*2"}, "--set train.tensor_parallel=2"},
    {"two sites", "sites", {"a100 h20", "910b"}, kRounds, "100 30"},
    {"two sites, thin line", "sites", {"a100", "910b"}, kRounds, "2 60"},
    {"two sites, waiting",
     "sites",
     {"a100", "h20"},
     kRounds + "--set sites.overlap_steps=0",
     "4 60"},
    {"three sites", "sites", {"a100", "h20", "910b"}, kRounds, "20 60"},
    {"two sites in step", "sites", {"a100", "910b"}, kInStep, "200 20"},
    {"three sites in step", "sites", {"a100", "h20", "910b"}, kInStep, "200 20"},
};

/// "a100*2:0.024" is two A100 of 0.024 GiB.
std::string devices_of(const std::string& words, size_t& core) {
  std::string toml;
  std::istringstream stream(words);
  for (std::string word; stream >> word;) {
    const size_t colon = word.find(':'), star = word.find('*');
    const std::string memory = colon == std::string::npos ? "" : word.substr(colon + 1);
    word = word.substr(0, colon);
    const int count = star == std::string::npos ? 1 : std::stoi(word.substr(star + 1));
    for (int i = 0; i < count; ++i) {
      toml += fmt::format("[[site.device]]\ndevice = \"emulated:{}\"\ncores = [{}]\n",
                          word.substr(0, star),
                          core++ % allowed_cores().size());
      if (!memory.empty()) toml += fmt::format("memory_gib = {}\n", memory);
    }
  }
  return toml;
}

std::string fleet_of(const Case& one) {
  std::string toml = "[emulation]\nslowdown = 1000\n";
  size_t core = 0;
  for (size_t i = 0; i < one.sites.size(); ++i) {
    toml += fmt::format("[[site]]\nname = \"site{}\"\n", i) + devices_of(one.sites[i], core);
  }
  for (size_t i = 0; i < one.sites.size(); ++i) {
    for (size_t k = i + 1; k < one.sites.size(); ++k) {
      const size_t space = one.link.find(' ');
      toml += fmt::format(
          "[[link]]\nbetween = [\"site{}\", \"site{}\"]\nbandwidth_mbit_s = {}\nrtt_ms = {}\n"
          "emulate = true\n",
          i,
          k,
          one.link.substr(0, space),
          one.link.substr(space + 1));
    }
  }
  return toml;
}

struct Errors {
  std::vector<double> steps, memory;  // in percent, with their signs
  int num_disturbed = 0;
};

double mean_size(const std::vector<double>& errors) {
  double sum = 0;
  for (const double error : errors) sum += std::abs(error);
  return errors.empty() ? 0 : sum / static_cast<double>(errors.size());
}

double worst_size(const std::vector<double>& errors) {
  double worst = 0;
  for (const double error : errors) worst = std::max(worst, std::abs(error));
  return worst;
}

/// "forward +0.3, bubble -1.2": parts that are off by half a percent of the step or more.
std::string words_for_parts(const nlohmann::json& comparison) {
  std::string words;
  const double step_s = comparison["step"]["measured_s"];
  for (const auto& [name, part] : comparison["parts"].items()) {
    const double off =
        100 * (part["predicted_s"].get<double>() - part["measured_s"].get<double>()) / step_s;
    if (std::abs(off) < 0.5) continue;
    words += fmt::format("{}{} {:+.1f}", words.empty() ? "" : ", ", name, off);
  }
  return words.empty() ? "-" : words;
}

void measure_plan(const FleetBench& bench,
                  const Case& one,
                  double slowdown,
                  const Settings& settings,
                  Errors& errors) {
  bench.write_fleet("fleet.toml", fleet_of(one));
  for (int attempt = 0; attempt < 2; ++attempt) {
    const auto answer = nlohmann::json::parse(bench.call(
        fmt::format("plan job.toml --fleet fleet.toml --probe probe.json --compare --steps {} "
                    "--json --quiet --set emulation.slowdown={:.1f} {}",
                    settings.steps,
                    slowdown,
                    one.more)));
    const nlohmann::json& comparison = answer["comparison"];
    const bool is_trusted = comparison["is_trusted"];
    const double off = comparison["step"]["off_percent"];
    std::vector<double> memory;
    for (const auto& rank : comparison["ranks"]) memory.push_back(rank["memory"]["off_percent"]);
    std::fprintf(stderr,
                 "%-22s step %7.3f s predicted, %7.3f s measured: %+5.1f %%; memory %4.1f %%; of "
                 "the step: %s%s\n",
                 one.name.c_str(),
                 comparison["step"]["predicted_s"].get<double>(),
                 comparison["step"]["measured_s"].get<double>(),
                 off,
                 worst_size(memory),
                 words_for_parts(comparison).c_str(),
                 is_trusted ? "" : "; late for its clock, thrown away");
    if (!is_trusted) continue;
    errors.steps.push_back(off);
    errors.memory.insert(errors.memory.end(), memory.begin(), memory.end());
    return;
  }
  ++errors.num_disturbed;
}

void measure(const Settings& settings, Report& report) {
  const FleetBench bench(kJob, kVocabSize);
  // One probe for all: it holds for a model and a slowdown, whatever the fleet.
  bench.write_fleet("every.toml", fleet_of({.name = "", .group = "", .sites = {kEveryKind}}));
  const double slowdown = settings.slowdown;
  bench.call(fmt::format(
      "probe job.toml --quiet --fleet every.toml --set emulation.slowdown={:.1f}", slowdown));
  Errors errors;
  for (const Case& one : kCases) {
    if (report.case_name != "all" && report.case_name != one.group) continue;
    if (one.name.find(settings.only) == std::string::npos) continue;
    measure_plan(bench, one, slowdown, settings, errors);
  }
  if (errors.steps.empty()) fail("no plan was measured without disturbance: the host is too busy");
  report.metrics["plans"] = static_cast<double>(errors.steps.size());
  report.metrics["plans_thrown_away"] = errors.num_disturbed;
  report.metrics["step_mean_error_percent"] = mean_size(errors.steps);
  report.metrics["step_worst_error_percent"] = worst_size(errors.steps);
  report.metrics["memory_mean_error_percent"] = mean_size(errors.memory);
  report.metrics["memory_worst_error_percent"] = worst_size(errors.memory);
  report.metrics["slowdown"] = slowdown;
  report.ratio = std::max(
      {mean_size(errors.steps) / 4, worst_size(errors.steps) / 10, mean_size(errors.memory) / 5});
  report.target = 1.0;
  report.is_cost = true;
}

}  // namespace
}  // namespace pelago::bench

int main(int argc, char** argv) {
  using namespace pelago::bench;
  Program program("predicted",
                  "Do plans take the time and the memory that they foretell?",
                  {"all", "parallel", "pipelines", "memory", "tensor", "sites"});
  Settings settings;
  program.options().add_option("--steps", settings.steps, "to measure of each plan");
  program.options().add_option("--only", settings.only, "plans with this in their name");
  program.options()
      .add_option("--slowdown", settings.slowdown, "of the chips; more where the host is busy")
      ->capture_default_str();
  return program.run(argc, argv, [&](Report& report) { measure(settings, report); });
}
