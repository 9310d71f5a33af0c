// pelago compress quantize: a model folder in 8 or 4 bits.
#include <unistd.h>

#include <cstdio>
#include <memory>
#include <mutex>

#include "base/error.h"
#include "base/files.h"
#include "chips/torch.h"
#include "cli/commands/commands.h"
#include "cli/interrupts.h"
#include "compress/quantise.h"
#include "model/config.h"

namespace pelago::cli {

namespace {

struct QuantizeArguments {
  std::string folder, out, dtype = "int8", method, calibrate, evaluate;
  int64_t group = 64, sequences = 128, tokens = 512;
};

compress::QuantiseOptions options_of(const QuantizeArguments& arguments) {
  compress::QuantiseOptions options;
  if (arguments.dtype != "int8" && arguments.dtype != "int4") {
    fail_usage("--dtype {}: must be int8 or int4", arguments.dtype);
  }
  const int64_t group = arguments.group;
  if (group != 32 && group != 64 && group != 128 && group != 256) {
    fail_usage("--group {}: must be 32, 64, 128 or 256", group);
  }
  options.format = {.bits = arguments.dtype == "int8" ? 8 : 4, .group_size = group};
  const std::string method = !arguments.method.empty()     ? arguments.method
                             : arguments.calibrate.empty() ? "rtn"
                                                           : "gptq";
  if (method != "rtn" && method != "gptq") fail_usage("--method {}: must be rtn or gptq", method);
  if (method == "gptq" && arguments.calibrate.empty()) {
    fail_usage(
        "--method gptq: it needs --calibrate DATASET, a folder that pelago data build wrote");
  }
  if (method == "gptq") options.method = compress::Method::kGptq;
  return options;
}

void print_report(const QuantizeArguments& arguments,
                  const compress::QuantiseReport& report,
                  const Globals& globals) {
  const bool has_losses = !arguments.evaluate.empty();
  if (globals.json) {
    std::printf(
        "{\"model\": \"%s\", \"matrices\": %lld, \"bytes_before\": %lld, "
        "\"bytes_after\": %lld, \"relative_error\": %.6g",
        arguments.out.c_str(),
        static_cast<long long>(report.num_matrices),
        static_cast<long long>(report.bytes_before),
        static_cast<long long>(report.bytes_after),
        report.relative_error);
    if (has_losses) {
      std::printf(
          ", \"loss_before\": %.6f, \"loss_after\": %.6f", report.loss_before, report.loss_after);
    }
    std::printf("}\n");
    return;
  }
  std::printf(
      "%s: %lld matrices in %s, groups of %lld; %.1f MB of weights were %.1f MB; weights off "
      "by %.2f %%\n",
      arguments.out.c_str(),
      static_cast<long long>(report.num_matrices),
      arguments.dtype.c_str(),
      static_cast<long long>(arguments.group),
      static_cast<double>(report.bytes_after) / 1e6,
      static_cast<double>(report.bytes_before) / 1e6,
      100 * report.relative_error);
  if (!has_losses) return;
  std::printf("held-out loss %.4f, was %.4f nat a token: %+.2f %%\n",
              report.loss_after,
              report.loss_before,
              100 * (report.loss_after / report.loss_before - 1));
}

void run_quantize(const QuantizeArguments& arguments, const Globals& globals) {
  const compress::QuantiseOptions options = options_of(arguments);
  if (std::filesystem::exists(arguments.out) && !std::filesystem::is_empty(arguments.out)) {
    fail_usage("--out {}: the folder is not empty; name a new one", arguments.out);
  }
  const model::ModelConfig config =
      model::read_model_config(std::filesystem::path(arguments.folder) / "config.json");
  const int64_t num_tokens = std::min(arguments.tokens, config.max_position_embeddings);
  if (num_tokens < 2 || arguments.sequences < 1) {
    fail_usage(
        "--tokens {} --sequences {}: at least 2 and 1", arguments.tokens, arguments.sequences);
  }
  const auto windows = [&](const std::string& dataset, const char* split) {
    if (dataset.empty()) return Tensor();
    return compress::read_windows(
        dataset, split, config.vocab_size, arguments.sequences, num_tokens);
  };
  const Tensor calibration = windows(arguments.calibrate, "train");
  const Tensor evaluation = windows(arguments.evaluate, "heldout");
  // Ctrl-C ends it where it is: the folder changes its name first, so that nothing can come into it
  // any more, and it takes its final name under the same lock.
  std::mutex changing;
  PendingFolder pending(arguments.out);
  bool is_whole = false;
  Interrupts interrupts([&] {
    const std::lock_guard lock(changing);
    if (is_whole) return;
    const std::filesystem::path doomed = pending.path().string() + ".tmp";
    std::error_code ignored;
    std::filesystem::rename(pending.path(), doomed, ignored);
    std::filesystem::remove_all(doomed, ignored);
    leave_interrupted("stopped before the model was whole; nothing was written");
  });
  const bool is_terminal = ::isatty(STDERR_FILENO) == 1 && !globals.quiet;
  const compress::QuantiseReport report =
      compress::quantise_folder(arguments.folder,
                                pending.path(),
                                options,
                                calibration,
                                evaluation,
                                [&](int64_t done, int64_t all) {
                                  if (!is_terminal) return;
                                  std::fprintf(stderr,
                                               "\rblock %lld of %lld%s",
                                               static_cast<long long>(done),
                                               static_cast<long long>(all),
                                               done == all ? "\n" : "");
                                });
  {
    const std::lock_guard lock(changing);
    pending.commit();
    is_whole = true;
  }
  interrupts.ignore_from_now();
  print_report(arguments, report, globals);
}

}  // namespace

void add_compress(CLI::App& app, Globals& globals) {
  CLI::App* compress = add_command(
      app,
      globals,
      "compress",
      "make a model smaller",
      "  pelago compress quantize model --out model-int8\n"
      "  pelago compress quantize model --out model-int4 --dtype int4 --calibrate corpus\n");
  compress->require_subcommand(1);
  auto arguments = std::make_shared<QuantizeArguments>();
  CLI::App* quantize =
      add_command(*compress,
                  globals,
                  "quantize",
                  "write a model folder in 8 or 4 bits, as pelago serve and vLLM read it",
                  "  pelago compress quantize model --out model-int8\n"
                  "  pelago compress quantize model --out model-int4 --dtype int4 --group 64 \\\n"
                  "    --calibrate corpus --evaluate corpus\n");
  quantize->add_option("folder", arguments->folder, "the model folder")->required();
  quantize->add_option("--out", arguments->out, "the folder to write")->required();
  quantize->add_option("--dtype", arguments->dtype, "int8 or int4")->capture_default_str();
  quantize->add_option("--group", arguments->group, "weights that share a scale: 32 to 256")
      ->capture_default_str();
  quantize->add_option("--method", arguments->method, "rtn, or gptq: the default with --calibrate");
  quantize->add_option("--calibrate", arguments->calibrate, "a dataset for gptq");
  quantize->add_option(
      "--evaluate", arguments->evaluate, "a dataset whose held-out loss is told before and after");
  quantize->add_option("--sequences", arguments->sequences, "of either dataset")
      ->capture_default_str();
  quantize->add_option("--tokens", arguments->tokens, "of a sequence")->capture_default_str();
  quantize->callback([arguments, &globals] { run_quantize(*arguments, globals); });
}

}  // namespace pelago::cli
