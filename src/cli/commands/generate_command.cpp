// pelago generate: continues a text with a model folder, a run or a checkpoint; streamed as it
// comes.
#include <unistd.h>

#include <cstdio>
#include <iostream>
#include <iterator>
#include <memory>

#include "base/clock.h"
#include "base/error.h"
#include "base/text/json.h"
#include "chips/torch.h"
#include "cli/commands/commands.h"
#include "data/tokenizer.h"
#include "model/generation/sampler.h"
#include "model/safetensors.h"
#include "model/transformer.h"
#include "train/run_folder.h"
#include "train/single_site.h"

namespace pelago::cli {

namespace {

namespace fs = std::filesystem;

struct GenerateArguments {
  std::string model, prompt, dtype = "bf16";
  std::vector<std::string> stops;
  model::SamplingOptions sampling;
};

struct Source {
  model::ModelConfig config;
  Tensor flat;  // [N] f32
  fs::path tokenizer;
};

// model may be a Hugging Face folder, a run folder, or a checkpoint of a run
// (runs/NAME/sites/SITE/checkpoints/step-N).
Source open_source(const fs::path& path) {
  if (fs::exists(path / "config.json")) {
    model::LoadedModel loaded = model::load_model_folder(path);
    return {loaded.config, loaded.flat, path / "tokenizer.json"};
  }
  const bool is_checkpoint = fs::exists(path / "weights.safetensors");
  const fs::path run =
      is_checkpoint ? fs::absolute(path).parent_path().parent_path().parent_path().parent_path()
                    : path;
  if (!fs::exists(run / "job.toml")) {
    fail_usage(
        "{}: neither a model folder (config.json), a run (job.toml) nor a checkpoint "
        "(weights.safetensors)",
        path.string());
  }
  const plan::JobConfig job = train::read_run_job(run);
  fs::path checkpoint = path;
  if (!is_checkpoint) {
    const plan::Plan plan = train::read_run_plan(run);
    checkpoint = train::newest_checkpoint(
        train::RunFolder::at(run).site_dir(plan.sites.front().name), train::identity_of(job));
  } else if (const std::string problem = train::verify_checkpoint(path); !problem.empty()) {
    fail("{}", problem);
  }
  Tensor flat = model::SafetensorsFile(checkpoint / "weights.safetensors").tensor("master").clone();
  return {job.model, std::move(flat), fs::path(job.data.dir) / "tokenizer.json"};
}

// Text that may still turn into a stop string is held back until it cannot.
class Printer {
 public:
  Printer(const std::vector<std::string>& stops, bool streamed)
      : stops_(stops), streamed_(streamed) {}

  /// Returns false once a stop string has come.
  bool add(std::string_view text) {
    pending_ += text;
    for (const std::string& stop : stops_) {
      const size_t at = pending_.find(stop);
      if (at == std::string::npos) continue;
      emit(at);
      pending_.clear();
      return false;
    }
    emit(pending_.size() - held_back());
    return true;
  }
  void finish() { emit(pending_.size()); }
  const std::string& text() const { return text_; }

 private:
  size_t held_back() const {
    size_t most = 0;
    for (const std::string& stop : stops_) {
      for (size_t length = std::min(stop.size() - 1, pending_.size()); length > most; --length) {
        if (pending_.compare(pending_.size() - length, length, stop, 0, length) == 0) most = length;
      }
    }
    return most;
  }
  void emit(size_t length) {
    if (streamed_) {
      std::fwrite(pending_.data(), 1, length, stdout);
      std::fflush(stdout);
    }
    text_.append(pending_, 0, length);
    pending_.erase(0, length);
  }

  const std::vector<std::string>& stops_;
  const bool streamed_;
  std::string pending_, text_;
};

std::string read_prompt(const GenerateArguments& arguments) {
  if (arguments.prompt != "-") return arguments.prompt;
  return std::string(std::istreambuf_iterator<char>(std::cin), {});
}

void run_generate(const GenerateArguments& arguments, const Globals& globals) {
  arguments.sampling.validate();
  if (arguments.dtype != "bf16" && arguments.dtype != "f32")
    fail_usage("--dtype {}: must be bf16 or f32", arguments.dtype);
  const Source source = open_source(arguments.model);
  const auto tokenizer = data::Tokenizer::read(source.tokenizer);
  const std::string prompt_text = read_prompt(arguments);
  std::vector<int64_t> prompt;
  for (const data::TokenId token : tokenizer.encode(prompt_text)) prompt.push_back(token);
  if (prompt.empty() && tokenizer.end_of_text() >= 0) prompt.push_back(tokenizer.end_of_text());
  if (prompt.empty())
    fail_usage("--prompt is empty and the tokenizer has no end-of-text token to begin with");

  torch::NoGradGuard no_grad;
  const auto dtype = arguments.dtype == "f32" ? torch::kFloat32 : torch::kBFloat16;
  const model::Parameters parameters(source.config, source.flat.to(dtype));
  const model::Transformer transformer(source.config, parameters);
  if (!globals.json) std::fwrite(prompt_text.data(), 1, prompt_text.size(), stdout);
  Printer printer(arguments.stops, !globals.json);
  const double start_s = steady_now_s();
  const auto tokens = model::generate(transformer, prompt, arguments.sampling, [&](int64_t token) {
    return printer.add(tokenizer.token_bytes(static_cast<data::TokenId>(token)));
  });
  printer.finish();
  const double seconds = steady_now_s() - start_s;
  if (globals.json) {
    const nlohmann::json json = {{"prompt", prompt_text},
                                 {"text", printer.text()},
                                 {"prompt_tokens", prompt.size()},
                                 {"tokens", tokens.size()},
                                 {"tokens_s", static_cast<double>(tokens.size()) / seconds}};
    std::printf("%s\n",
                json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
    return;
  }
  std::printf("\n");
  if (::isatty(STDERR_FILENO)) {
    std::fprintf(stderr,
                 "[%zu tokens, %.0f tokens/s]\n",
                 tokens.size(),
                 static_cast<double>(tokens.size()) / seconds);
  }
}

}  // namespace

void add_generate(CLI::App& app, Globals& globals) {
  auto arguments = std::make_shared<GenerateArguments>();
  CLI::App* command = add_command(
      app,
      globals,
      "generate",
      "continue a text with a trained model",
      "  pelago generate runs/two-sites/model --prompt '#include <vector>'\n"
      "  pelago generate runs/two-sites --prompt 'int main(' --temperature 0 --stop '}'\n"
      "  echo 'class Foo' | pelago generate model --prompt - --seed 7\n");
  model::SamplingOptions& sampling = arguments->sampling;
  command
      ->add_option("model", arguments->model, "a Hugging Face folder, a run folder or a checkpoint")
      ->required();
  command->add_option("--prompt", arguments->prompt, "text to continue; - reads standard input")
      ->required();
  command->add_option("--max-tokens", sampling.max_tokens, "tokens generated at most")
      ->capture_default_str();
  command->add_option("--temperature", sampling.temperature, "0: always the likeliest token")
      ->capture_default_str();
  command->add_option("--top-p", sampling.top_p, "the fewest tokens with this probability")
      ->capture_default_str();
  command->add_option("--top-k", sampling.top_k, "the likeliest tokens considered; 0: all")
      ->capture_default_str();
  command->add_option("--seed", sampling.seed, "the same seed gives the same text")
      ->capture_default_str();
  command->add_option("--stop", arguments->stops, "end before this text; may be given again");
  command->add_option("--dtype", arguments->dtype, "compute in bf16 or f32")->capture_default_str();
  command->callback([arguments, &globals] { run_generate(*arguments, globals); });
}

}  // namespace pelago::cli
