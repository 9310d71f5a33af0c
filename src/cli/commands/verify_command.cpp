// pelago verify: do two devices make the same of one model, operator by operator and as a whole?
// Each device gets a process of its own, since one process drives one vendor.
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <memory>

#include "base/error.h"
#include "base/files.h"
#include "base/log.h"
#include "base/process/child.h"
#include "base/rng.h"
#include "base/text/json.h"
#include "chips/emulated/faults.h"
#include "cli/commands/commands.h"
#include "cli/terminal.h"
#include "model/transformer.h"
#include "model/verify/verification.h"

namespace pelago::cli {

namespace fs = std::filesystem;

namespace {

constexpr double kDeviceTimeoutS = 600;

struct VerifyArguments {
  std::vector<std::string> devices;
  std::string model_dir, preset, fault;
  model::BatchShape batch;
};

/// A folder of its own, removed with all it holds.
class TaskFolder {
 public:
  TaskFolder() {
    std::string name = (fs::temp_directory_path() / "pelago-verify-XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) {
      fail("{}: cannot make the folder: {}", name, std::strerror(errno));
    }
    path_ = name;
  }
  ~TaskFolder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  TaskFolder(const TaskFolder&) = delete;
  TaskFolder& operator=(const TaskFolder&) = delete;
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

model::VerificationTask task_of(const VerifyArguments& arguments) {
  if (!arguments.model_dir.empty()) {
    const model::LoadedModel loaded = model::load_model_folder(arguments.model_dir);
    return model::make_task(loaded.config, loaded.flat, arguments.batch);
  }
  const model::ModelConfig config = model::preset(arguments.preset);
  return model::make_task(
      config, model::initial_weights(config, Rng(arguments.batch.seed)), arguments.batch);
}

model::DeviceAnswers ask(const std::string& device,
                         const std::string& fault,
                         const fs::path& folder,
                         const std::string& as) {
  const fs::path answers = folder / (as + ".safetensors");
  const fs::path log = folder / (as + ".log");
  ChildOptions options;
  options.program = program_path();
  options.arguments = {
      "verify-device", "--task", folder.string(), "--device", device, "--out", answers.string()};
  if (!fault.empty() && device.starts_with("emulated:")) {
    options.arguments.insert(options.arguments.end(), {"--fault", fault});
  }
  options.log = log;
  options.ignore_interrupts = false;
  log_info("verifying device={}", device);
  ChildProcess child(options);
  if (!child.wait(kDeviceTimeoutS)) {
    fail("{}: no answer within {} s: take a smaller model or batch", device, kDeviceTimeoutS);
  }
  if (child.exit_code() != kExitDone) {
    std::string words = fs::exists(log) ? read_text_file(log) : "";
    while (!words.empty() && words.back() == '\n') words.pop_back();
    words = words.substr(words.rfind('\n') + 1);
    const int exit_code = child.exit_code() > 0 ? child.exit_code() : kExitFailed;
    const std::string prefix = "pelago: ";  // the child's last line says all that there is
    if (words.starts_with(prefix)) throw Failure(words.substr(prefix.size()), exit_code);
    throw Failure(fmt::format("{}: verifying it {}: {}", device, child.how_it_ended(), words),
                  exit_code);
  }
  return model::read_answers(answers);
}

void print_row(const model::VerificationRow& row) {
  constexpr const char* kWords[] = {"OK  ", "WARN", "FAIL"};
  constexpr Colour kColours[] = {Colour::kGreen, Colour::kYellow, Colour::kRed};
  const auto verdict = static_cast<size_t>(row.verdict);
  std::printf("%s  %-9s %-50s %-9s %9.2g %9.2g %9.2g\n",
              coloured(kWords[verdict], kColours[verdict], STDOUT_FILENO).c_str(),
              row.part.c_str(),
              row.name.c_str(),
              row.dtypes.c_str(),
              row.difference.largest,
              row.difference.rms,
              row.bound.fail.rms);
}

/// Rows of parameters that are of one part and dtype: the worst few that are not as they should be,
/// or else the worst.
void print_parameters(std::vector<const model::VerificationRow*> rows) {
  constexpr size_t kShown = 3;
  std::ranges::stable_sort(rows, std::greater(), [](const model::VerificationRow* row) {
    return std::pair(row->verdict, row->difference.rms);
  });
  size_t num_odd = 0;
  for (const model::VerificationRow* row : rows) {
    num_odd += row->verdict == chips::Verdict::kOk ? 0 : 1;
  }
  const size_t num_shown = std::clamp<size_t>(num_odd, 1, kShown);
  for (size_t i = 0; i < num_shown; ++i) print_row(*rows[i]);
  if (num_odd > num_shown) {
    std::printf("      %-9s and %zu more parameters\n", "", num_odd - num_shown);
  }
}

/// Every operator and the loss, and a few of the parameters.
void print_rows(const std::vector<model::VerificationRow>& rows) {
  std::printf("      %-9s %-50s %-9s %9s %9s %9s\n",
              "part",
              "name",
              "dtype",
              "largest",
              "rms",
              "rms limit");
  std::map<std::pair<std::string, std::string>, std::vector<const model::VerificationRow*>> others;
  for (const model::VerificationRow& row : rows) {
    if (row.part == "operator" || row.part == "loss") {
      print_row(row);
    } else {
      others[{row.part, row.dtypes}].push_back(&row);
    }
  }
  for (const auto& [kind, parameters] : others) print_parameters(parameters);
  std::printf(
      "largest: max |a - b| / max |b|; rms: of a - b over b; the worst gradients and steps\n");
}

nlohmann::json to_json(const model::VerificationRow& row) {
  constexpr const char* kVerdicts[] = {"ok", "warn", "fail"};
  const auto finite = [](double value) {
    return std::isfinite(value) ? nlohmann::json(value) : nlohmann::json(nullptr);
  };
  return {{"part", row.part},
          {"name", row.name},
          {"dtypes", row.dtypes},
          {"results", row.num_results},
          {"largest", finite(row.difference.largest)},
          {"rms", finite(row.difference.rms)},
          {"fail_largest", finite(row.bound.fail.largest)},
          {"fail_rms", finite(row.bound.fail.rms)},
          {"verdict", kVerdicts[static_cast<size_t>(row.verdict)]}};
}

void run_verify(const VerifyArguments& arguments, const Globals& globals) {
  if (arguments.devices.size() != 2) {
    fail_usage("verify compares two devices, not {}: write --device cpu --device emulated:a100",
               arguments.devices.size());
  }
  const TaskFolder folder;
  model::write_task(task_of(arguments), folder.path());
  const model::DeviceAnswers found = ask(arguments.devices[0], arguments.fault, folder.path(), "a");
  const model::DeviceAnswers wanted =
      ask(arguments.devices[1], arguments.fault, folder.path(), "b");
  const std::vector<model::VerificationRow> rows = model::compare(found, wanted);
  nlohmann::json json = nlohmann::json::array();
  std::string faults;
  for (const model::VerificationRow& row : rows) {
    json.push_back(to_json(row));
    if (row.verdict != chips::Verdict::kFail || row.part != "operator") continue;
    if (faults.find(row.name) == std::string::npos)
      faults += (faults.empty() ? "" : ", ") + row.name;
  }
  const bool failed = std::ranges::any_of(
      rows, [](const model::VerificationRow& row) { return row.verdict == chips::Verdict::kFail; });
  if (globals.json) {
    std::printf("%s\n", json.dump().c_str());
  } else {
    print_rows(rows);
  }
  if (failed) {
    fail("{} and {} disagree{}{}; `pelago doctor` tells whether one of them computes wrong",
         arguments.devices[0],
         arguments.devices[1],
         faults.empty() ? "" : " in ",
         faults);
  }
}

struct DeviceArguments {
  std::string task_dir, device, out, fault;
};

void run_device(const DeviceArguments& arguments) {
  const chips::Catalogue catalogue = chips::Catalogue::built_in();
  chips::EmulationOptions emulation{.slowdown = 1e-6};  // answers are wanted, not a pace
  if (!arguments.fault.empty()) emulation.faults = {chips::parse_fault(arguments.fault)};
  const auto device = chips::open_device(arguments.device, catalogue, emulation);
  model::write_answers(model::answer(*device, model::read_task(arguments.task_dir)), arguments.out);
}

void add_verify_device(CLI::App& app) {
  auto arguments = std::make_shared<DeviceArguments>();
  CLI::App* command = app.add_subcommand("verify-device", "one device's part of verify")->group("");
  command->add_option("--task", arguments->task_dir)->required();
  command->add_option("--device", arguments->device)->required();
  command->add_option("--out", arguments->out)->required();
  command->add_option("--fault", arguments->fault);
  command->callback([arguments] { run_device(*arguments); });
}

}  // namespace

void add_verify(CLI::App& app, Globals& globals) {
  auto arguments = std::make_shared<VerifyArguments>();
  CLI::App* command =
      add_command(app,
                  globals,
                  "verify",
                  "compare two devices on one model, operator by operator",
                  "  pelago verify --device cpu --device emulated:a100\n"
                  "  pelago verify --device npu:0 --device cpu --model runs/a/model\n"
                  "  pelago verify --device cuda:0 --device cpu --preset 10m --json\n");
  command->add_option("--device", arguments->devices, "cpu, cuda:N, npu:N, emulated:CHIP; twice")
      ->required()
      ->allow_extra_args(false);
  CLI::Option* const folder =
      command->add_option("--model", arguments->model_dir, "a model's folder");
  command->add_option("--preset", arguments->preset, "or fresh weights of this size")
      ->default_val("2m")
      ->excludes(folder);
  command->add_option("--sequences", arguments->batch.sequences, "in the batch")
      ->capture_default_str();
  command->add_option("--tokens", arguments->batch.tokens, "of each")->capture_default_str();
  command->add_option("--seed", arguments->batch.seed, "of weights and tokens")
      ->capture_default_str();
  command->add_option(
      "--fault", arguments->fault, "order a fault of the emulated device: wrong@p=0.01");
  command->callback([arguments, &globals] { run_verify(*arguments, globals); });
  add_verify_device(app);
}

}  // namespace pelago::cli
