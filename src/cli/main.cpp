// pelago: one program, one subcommand a task. Errors end here, as one line and an exit code.
#include <c10/util/Exception.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <iostream>

#include "base/config.h"
#include "base/error.h"
#include "base/log.h"
#include "cli/commands/commands.h"
#include "cli/terminal.h"

namespace pelago::cli {

CLI::App* add_command(CLI::App& app,
                      Globals& globals,
                      const std::string& name,
                      const std::string& what,
                      const std::string& examples) {
  CLI::App* command = app.add_subcommand(name, what);
  command->add_flag("--json", globals.json, "machine-readable result on standard output");
  command->footer("\nExamples:\n" + examples);
  return command;
}

namespace {

// The exception's own text may be long: what a person needs is its first line.
std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

int report(const std::string& message, int exit_code) {
  std::fprintf(
      stderr, "%s %s\n", coloured("pelago:", Colour::kRed, STDERR_FILENO).c_str(), message.c_str());
  return exit_code;
}

// CLI11 answers an unknown command with "a subcommand is required", which names nothing.
void refuse_unknown_command(const CLI::App& app, int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word.empty() || word[0] == '-') continue;
    std::vector<std::string> names;
    for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; })) {
      if (command->get_name() == word) return;
      if (!command->get_group().empty()) names.push_back(command->get_name());
    }
    const auto nearest = nearest_word(word, names);
    fail_usage("no command is called {}; {}",
               word,
               nearest ? fmt::format("did you mean {}?", *nearest)
                       : fmt::format("there are {}", fmt::join(names, ", ")));
  }
}

int run(int argc, char** argv) {
  CLI::App app{
      "pelago trains one model on whatever accelerators there are: unlike chips in one room, many "
      "rooms joined by thin lines."};
  Globals globals;
  app.require_subcommand(1);
  app.set_version_flag("--version", PELAGO_VERSION);
  app.add_flag("-v,--verbose", globals.verbose, "say more");
  app.add_flag("-q,--quiet", globals.quiet, "say less: warnings and errors only");
  app.fallthrough();
  app.footer("\nBegin with:\n  pelago doctor\n  pelago COMMAND --help    (each has examples)");
  add_doctor(app, globals);
  add_probe(app, globals);
  add_data(app, globals);
  add_plan(app, globals);
  add_simulate(app, globals);
  add_forecast(app, globals);
  add_train(app, globals);
  add_coordinator(app, globals);
  add_agent(app, globals);
  add_status(app, globals);
  add_dashboard(app, globals);
  add_generate(app, globals);
  add_serve(app, globals);
  add_export(app, globals);
  add_compress(app, globals);
  add_certs(app, globals);
  add_verify(app, globals);
  add_children(app, globals);
  app.parse_complete_callback([&globals] {
    init_log(globals.verbose ? LogLevel::kDebug
             : globals.quiet ? LogLevel::kWarn
                             : LogLevel::kInfo);
  });
  refuse_unknown_command(app, argc, argv);
  try {
    app.parse(argc, argv);
    return kExitDone;
  } catch (const CLI::RuntimeError& ended) {  // a child process's own exit code
    return ended.get_exit_code();
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help, --version
    return report(first_line(error.what()) + "; see pelago --help", kExitUsage);
  }
}

int run_and_report(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const Failure& failure) {
    return report(failure.what(), failure.exit_code());
  } catch (const c10::Error& error) {
    return report(first_line(error.what_without_backtrace()), kExitFailed);
  } catch (const std::bad_alloc&) {
    return report("this machine's memory is used up; take a smaller model or microbatch",
                  kExitFailed);
  } catch (const std::exception& error) {
    return report(first_line(error.what()), kExitFailed);
  }
}

}  // namespace
}  // namespace pelago::cli

int main(int argc, char** argv) {
  std::signal(SIGPIPE, SIG_IGN);
  const int exit_code = pelago::cli::run_and_report(argc, argv);
  std::cout.flush();
  std::fflush(nullptr);
  // What ran has ended and given back what it held; taking libtorch's table of operators apart as
  // well costs every process 0.06 s.
  std::_Exit(exit_code);
}
