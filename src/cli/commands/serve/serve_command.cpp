// pelago serve: a model behind OpenAI's API and a chat page, until Ctrl-C.
#include <cstdio>
#include <memory>
#include <string>

#include "base/log.h"
#include "base/text/json.h"
#include "base/threads.h"
#include "cli/commands/commands.h"
#include "cli/commands/serve/split_plan.h"
#include "cli/interrupts.h"
#include "serve/server/model_server.h"

namespace pelago::cli {

namespace {

enum class Event { kEnd, kReload };

struct ServeArguments {
  serve::ServeOptions options;
  std::string plan;  // chips to plan for, in place of serving
  double link_gbit_s = 200;
  bool watches = false;
};

void tell(const serve::ModelServer& server,
          const serve::ServeOptions& options,
          const Globals& globals) {
  if (globals.json) {
    nlohmann::json json = {{"url", server.url()},
                           {"model", server.model_name()},
                           {"context_tokens", server.context_length()},
                           {"workers", options.num_workers}};
    if (!options.prefill.empty()) {
      json["prefill"] = options.prefill;
      json["decode"] = options.decode;
    }
    std::printf("%s\n", json.dump().c_str());
  } else {
    std::printf("%s, context of %lld tokens\n  API   %s/v1\n",
                server.model_name().c_str(),
                static_cast<long long>(server.context_length()),
                server.url().c_str());
    if (!options.prefill.empty()) {
      std::printf("  %s reads prompts for %s\n", options.prefill.c_str(), options.decode.c_str());
    } else if (options.num_workers > 0) {
      std::printf("  %d workers\n", options.num_workers);
    }
    if (options.has_page) std::printf("  chat  %s\n", server.url().c_str());
    std::printf(
        "Ctrl-C ends it once answers under way are complete (%.0f s at most); again: at once\n",
        options.drain_s);
  }
  std::fflush(stdout);
}

void run_serve(const ServeArguments& arguments, const Globals& globals) {
  if (!arguments.plan.empty()) {
    return print_split_plan({.folder = serve::model_folder(arguments.options.folder),
                             .chips = arguments.plan,
                             .load = arguments.options.load,
                             .link_gbit_s = arguments.link_gbit_s},
                            globals);
  }
  BoundedQueue<Event> events(16);
  int num_interrupts = 0;
  const Interrupts interrupts(
      [&] {
        if (++num_interrupts > 1) leave_interrupted("stopped at once; answers under way were cut");
        events.push(Event::kEnd);
      },
      [&] { events.push(Event::kReload); });
  const serve::ServeOptions options = arguments.options.resolved();
  serve::ModelServer server(arguments.options);
  tell(server, options, globals);
  while (true) {
    // Twice a second is often enough to see a new checkpoint and to let go of an old one.
    const auto event = events.pop_for(0.5);
    if (event == Event::kEnd) break;
    if (event == Event::kReload || (arguments.watches && server.has_changed())) server.reload();
    server.tidy();
  }
  if (!server.drain()) log_warn("answers were cut after_s={}", arguments.options.drain_s);
}

void add_door_options(CLI::App& command, serve::ServeOptions& options) {
  command
      .add_option(
          "model", options.folder, "a Hugging Face folder, or a run with an export in model/")
      ->required();
  command.add_option(
      "--name", options.name, "what clients call the model; default: the folder's name");
  command
      .add_option(
          "--host",
          options.host,
          "address to listen on; others than this machine's own need --api-keys or --insecure")
      ->capture_default_str();
  command.add_option("--port", options.port, "where to listen; 0: any free port")
      ->check(CLI::Range(0, 65535))
      ->capture_default_str();
  command.add_option(
      "--api-keys", options.keys_path, "TOML file of keys and their limits (docs/SERVING.md)");
  command.add_flag("--insecure", options.is_insecure, "everybody who reaches the port may use it");
  command.add_option("--tls-cert", options.certificate_path, "certificate chain, PEM: serve https");
  command.add_option("--tls-key", options.key_path, "its private key, PEM");
  command.add_option("--cors-origin",
                     options.cors_origins,
                     "a site whose pages may ask, such as https://app.example; may be given again");
  command.add_option("--max-connections", options.num_connections_max, "clients at once")
      ->capture_default_str();
  command
      .add_option("--drain",
                  options.drain_s,
                  "seconds that answers get to end in when the server is to stop")
      ->capture_default_str();
  command.add_flag("!--no-page", options.has_page, "the API only, no chat page");
}

void add_engine_options(CLI::App& command, serve::EngineOptions& options) {
  command
      .add_option("--device",
                  options.device,
                  "the chip that computes; of several workers one each in turn: cuda:0,cuda:1")
      ->capture_default_str();
  command.add_option("--dtype",
                     options.dtype,
                     "weights in f32, bf16, int8 or int4; default: as stored, f32 as bf16");
  command.add_option("--kv-dtype", options.kv_dtype, "keys and values in f32, bf16 or int8")
      ->capture_default_str();
  command
      .add_option("--kv-memory-gb",
                  options.kv_memory_gb,
                  "memory for keys and values, of all workers together")
      ->capture_default_str();
  command
      .add_option("--context",
                  options.context_tokens_max,
                  "tokens of a prompt and its answer; 0: what the model was made for")
      ->capture_default_str();
  command
      .add_option("--max-sequences",
                  options.scheduler.sequences_max,
                  "answers computed at once, by each worker; 0: 16 on a CPU, 64 elsewhere")
      ->capture_default_str();
  command
      .add_option("--step-tokens",
                  options.scheduler.step_tokens,
                  "tokens of a pass: fewer let answers under way wait less for a long prompt")
      ->capture_default_str();
  command
      .add_option("--max-waiting",
                  options.waiting_max,
                  "requests that may wait; more are told to come later")
      ->capture_default_str();
}

void add_split_options(CLI::App& command, ServeArguments& arguments) {
  serve::ServeOptions& options = arguments.options;
  command.add_option("--prefill",
                     options.prefill,
                     "devices that read prompts for those of --decode, by commas, as many");
  command.add_option(
      "--decode", options.decode, "devices that write the answers, each a process of its own");
  command
      .add_option("--slowdown",
                  options.engine.slowdown,
                  "of emulated chips (emulated:h20): so many times slower than the catalogue says")
      ->capture_default_str();
  command.add_option(
      "--plan",
      arguments.plan,
      "CHIP=NUMBER,...: do not serve, say which kind had better read prompts for which");
  command
      .add_option("--prompt-tokens", options.load.prompt_tokens, "expected, of a request's prompt")
      ->check(CLI::Range(1.0, 1e7))
      ->capture_default_str();
  command
      .add_option("--answer-tokens", options.load.answer_tokens, "expected, of a request's answer")
      ->check(CLI::Range(1.0, 1e7))
      ->capture_default_str();
  command
      .add_option(
          "--link-gbit", arguments.link_gbit_s, "of --plan: all lines between the kinds together")
      ->check(CLI::Range(0.0, 1e9))
      ->capture_default_str();
}

}  // namespace

void add_serve(CLI::App& app, Globals& globals) {
  auto arguments = std::make_shared<ServeArguments>();
  serve::ServeOptions& options = arguments->options;
  CLI::App* command = add_command(
      app,
      globals,
      "serve",
      "answer requests with a model: OpenAI's API and a chat page",
      "  pelago serve runs/two-sites                    http://127.0.0.1:8000, for this machine "
      "only\n"
      "  pelago serve model --port 0 --json             any free port; prints it\n"
      "  pelago serve model --host 0.0.0.0 --api-keys keys.toml --tls-cert cert.pem --tls-key "
      "key.pem\n"
      "  pelago serve runs/two-sites --watch            takes each new export as it comes\n"
      "  pelago serve model --workers 2                 two processes; one that dies is replaced\n"
      "  pelago serve model --plan 910b=8,h20=8         which chip should read prompts for which?\n"
      "  pelago serve model --prefill cuda:0 --decode cuda:1\n"
      "\n  curl http://127.0.0.1:8000/v1/completions -H 'Content-Type: application/json' \\\n"
      "    -d '{\"prompt\": \"int main(\", \"max_tokens\": 20}'\n"
      "\nSIGTERM or Ctrl-C: answers under way are completed first. SIGHUP: the model is read "
      "again.\n");
  add_door_options(*command, options);
  command
      ->add_option("--workers",
                   options.num_workers,
                   "processes that compute, each on its share of the cores; 0: this one does")
      ->capture_default_str();
  command->add_flag("--share-weights",
                    options.shares_weights,
                    "workers on processors have one packed copy of the weights, not one each");
  add_engine_options(*command, options.engine);
  add_split_options(*command, *arguments);
  command->add_flag(
      "--watch", arguments->watches, "read the model again when its files have changed");
  command->callback([arguments, &globals] { run_serve(*arguments, globals); });
}

}  // namespace pelago::cli
