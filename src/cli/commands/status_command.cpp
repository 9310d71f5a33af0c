// pelago status: how a run stands, from the files of its folder; never able to disturb it.
#include <cstdio>
#include <memory>

#include "cli/commands/commands.h"
#include "cli/run_view.h"

namespace pelago::cli {

void add_status(CLI::App& app, Globals& globals) {
  auto run = std::make_shared<std::string>();
  CLI::App* command = add_command(app,
                                  globals,
                                  "status",
                                  "how a run stands, live or finished",
                                  "  pelago status runs/two-sites\n"
                                  "  pelago status runs/two-sites --json\n");
  command->add_option("run", *run, "the run folder")->required();
  command->callback([run, &globals] {
    const RunView view = read_run(*run);
    std::printf(
        "%s\n",
        globals.json ? summary_json(view, *run).c_str() : summary_table(view, *run).c_str());
  });
}

}  // namespace pelago::cli
