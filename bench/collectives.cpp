// What do the chips' own links save when two vendor groups of two chips add up a 40 MB gradient?
// native_ucx has pairs of switched links; in native_ucx_mesh one pair has a seventh of its cards'
// links between them, less than the way to the host.
#include "bench/report.h"
#include "bench/two_groups.h"

int main(int argc, char** argv) {
  using namespace pelago::bench;
  Program program("collectives",
                  "What do the chips' own links save in a sum?",
                  {"native_ucx", "native_ucx_mesh"});
  double slowdown = 300;
  double megabytes = 40;
  program.options().add_option("--slowdown", slowdown, "of the emulated chips");
  program.options().add_option("--mb", megabytes, "length of the vector");
  return program.run(argc, argv, [&](Report& report) {
    const char* const second_chip = report.case_name == "native_ucx" ? "910c" : "910b";
    two_groups::measure(second_chip, slowdown, megabytes, report);
  });
}
