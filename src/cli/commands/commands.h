// One function a command: it adds the subcommand, its options and what it does.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

namespace pelago::cli {

/// Options that every command has.
struct Globals {
  bool json = false;  // machine-readable result on standard output
  bool verbose = false;
  bool quiet = false;
};

void add_doctor(CLI::App& app, Globals& globals);
void add_probe(CLI::App& app, Globals& globals);
void add_data(CLI::App& app, Globals& globals);
void add_plan(CLI::App& app, Globals& globals);
void add_simulate(CLI::App& app, Globals& globals);
void add_forecast(CLI::App& app, Globals& globals);
void add_train(CLI::App& app, Globals& globals);
void add_coordinator(CLI::App& app, Globals& globals);
void add_agent(CLI::App& app, Globals& globals);
void add_status(CLI::App& app, Globals& globals);
void add_dashboard(CLI::App& app, Globals& globals);
void add_generate(CLI::App& app, Globals& globals);
void add_serve(CLI::App& app, Globals& globals);
void add_export(CLI::App& app, Globals& globals);
void add_compress(CLI::App& app, Globals& globals);
void add_certs(CLI::App& app, Globals& globals);
void add_verify(CLI::App& app, Globals& globals);
/// Hidden: processes that pelago starts itself.
void add_children(CLI::App& app, Globals& globals);

/// A subcommand with --json, and examples under its help.
CLI::App* add_command(CLI::App& app,
                      Globals& globals,
                      const std::string& name,
                      const std::string& what,
                      const std::string& examples);

}  // namespace pelago::cli
