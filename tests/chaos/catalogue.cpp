#include "chaos/catalogue.h"

#include "chaos/injections.h"

namespace pelago::chaos {

namespace {

Fault injected(const char* id, const char* what, Stage stage, Injection inject) {
  return {.id = id, .what = what, .stage = stage, .inject = inject};
}

Fault by_test(const char* id, const char* what, const char* test) {
  return {.id = id, .what = what, .test = test};
}

Fault not_here(const char* id, const char* what, const char* why) {
  return {.id = id, .what = what, .why_not = why};
}

constexpr const char* kNoClock =
    "needs a clock of its own for each process; decisions are made by the steady clock alone";

void add_processes(std::vector<Fault>& faults) {
  const Stage steady = Stage::kSteady, changing = Stage::kChanging;
  faults.insert(
      faults.end(),
      {injected("F01", "worker killed in forward", steady, worker_in_forward),
       injected("F02", "worker killed in the local reduction", changing, worker_in_reduction),
       injected("F03", "worker killed in an exchange", steady, worker_in_exchange),
       injected("F04", "worker killed while saving", steady, worker_while_saving),
       injected("F05", "site stopped for 2 s", steady, site_stopped_shortly),
       injected("F06", "site stopped until given up, then back", changing, site_stopped_long),
       injected(
           "F07", "site stopped for longer than it is waited for", changing, site_stopped_for_ever),
       injected("F08", "worker: SIGSEGV", steady, worker_segfault),
       injected("F09", "worker: abort", steady, worker_abort),
       by_test(
           "F10", "out of memory", "cli_tests: *falls off its bus* hangs or runs out of memory*"),
       injected("F11", "coordinator killed idle", steady, coordinator_idle),
       injected("F12", "coordinator killed in a commit", steady, coordinator_in_commit),
       injected("F13", "coordinator killed twice in a row", steady, coordinator_twice)});
}

void add_lines(std::vector<Fault>& faults) {
  const Stage packets = Stage::kPackets, changing = Stage::kChanging;
  faults.insert(
      faults.end(),
      {injected("F16", "one site alone", packets, one_site_cut_off),
       injected("F17", "two halves", packets, two_halves),
       injected("F18", "one way, then the other", packets, one_way),
       injected("F19", "flapping at 1 Hz", packets, flapping),
       injected("F20", "a site's old address", changing, old_address),
       injected("F21", "rate of the lines falls to 0.1 Mbit/s", packets, thin_line),
       injected("F22", "round trip of 300 ms", packets, long_line),
       injected("F23", "loss of 10 %", packets, lossy_line),
       injected("F24", "one of several streams frozen", packets, one_stream_frozen),
       by_test("F25",
               "bit flip in a payload or head",
               "sites_tests: *one flipped bit anywhere in a chunk*"),
       by_test(
           "F26", "truncated frame", "sites_tests: *chunks that do not fit and frames far ahead*"),
       by_test(
           "F27", "replayed or reordered frame", "sites_tests: *a replayed frame is dropped*")});
}

void add_disks(std::vector<Fault>& faults) {
  faults.insert(
      faults.end(),
      {by_test("F28",
               "disk full at each write",
               "train_tests: *a disk that is full* or fails to sync*"),
       by_test("F29",
               "disk full in a run",
               "cli_tests: *a disk that is full while a checkpoint is saved*"),
       by_test("F30", "killed at each write, sync, rename", "train_tests: *killed at any write*"),
       by_test("F31",
               "power cut: what was not synced is lost",
               "train_tests: *without power at any call*"),
       by_test("F32",
               "any byte of a checkpoint flipped",
               "train_tests: *flipped bytes none is believed*"),
       by_test("F33",
               "any file of a checkpoint gone",
               "train_tests: *damaged* shortened or missing file*"),
       by_test("F34", "damaged at one site of several", "cli_tests: *sites go back together*"),
       by_test("F35",
               "object store answers 503 or is slow",
               "sites_tests: *broken connections and lost answers*"),
       by_test("F36",
               "object store: lost race",
               "sites_tests: *a race that is lost never moves latest back*"),
       by_test(
           "F37", "object store: half of an upload", "sites_tests: *large files go up in parts*")});
}

void add_sites(std::vector<Fault>& faults) {
  const Stage changing = Stage::kChanging;
  faults.insert(
      faults.end(),
      {injected("F38", "a joiner dies as it joins", changing, joiner_dies),
       injected("F39", "two join at once", changing, two_join_at_once),
       injected("F40", "join during an exchange", changing, join_during_exchange),
       by_test("F41", "NaN, infinity, 1e30 anywhere", "train_tests: *of 1*000 NaN*"),
       by_test("F42",
               "a gradient that is not finite on one rank",
               "train_tests: *not finite on one rank*"),
       by_test("F43",
               "a delta that is not finite",
               "sites_tests: *a delta that is not finite is never sent*"),
       by_test("F44", "wrong element of a matmul", "cli_tests: *a chip that computes wrong*"),
       by_test("F45",
               "delta x100, negated, zero, NaN",
               "sites_tests: *a site that sends a wrong delta*"),
       by_test("F46", "old or repeated data in a delta", "sites_tests: *two deltas of a fragment*"),
       injected("F47", "straggler, half its speed", changing, straggler),
       by_test("F48", "a chip becomes slower for good", "train_tests: *1.6 times its time*"),
       injected("F49", "a pause of 5 s", changing, long_pause),
       not_here("F50", "clock +1 h", kNoClock),
       not_here("F51", "clock -1 h", kNoClock),
       not_here("F52", "clock drifting", kNoClock),
       injected("F53", "whole site lost for 20 s and back", changing, site_away_and_back),
       injected("F55", "all sites but one lost and back", changing, one_site_left),
       by_test("F56", "shard missing", "cli_tests: *bad text* bad datasets*"),
       by_test("F57", "shard damaged or changed", "cli_tests: *bad text* bad datasets*"),
       by_test("F58", "another tokenizer or dataset", "cli_tests: *another tokenizer and dataset*"),
       by_test("F59", "another release", "sites_tests: *a site with another plan is refused*"),
       by_test(
           "F60", "another plan or config", "sites_tests: *a site with another plan is refused*"),
       by_test("F61", "the run folder's disk is full", "cli_tests: *sites whose disk stays full*"),
       not_here(
           "F62", "metrics sink down", "there is no sink: metrics are lines of a file, see F61"),
       not_here("F63",
                "a reader that never reads",
                "whoever looks on reads files; nothing waits for it"),
       by_test("F64", "SIGTERM with seconds to live", "cli_tests: *SIGTERM saves a checkpoint*"),
       by_test("F65", "all sites told to leave at once", "cli_tests: *SIGTERM saves a checkpoint*"),
       injected("F66", "power cut of all", changing, power_cut),
       injected("F54", "a site lost for good", changing, site_gone_for_good)});
}

}  // namespace

const std::vector<Fault>& catalogue() {
  static const std::vector<Fault> faults = [] {
    std::vector<Fault> all;
    add_processes(all);
    all.push_back(by_test("F14", "etcd's leader killed", "cli_tests: *while etcd loses its head*"));
    all.push_back(by_test("F15", "etcd without a quorum", "cli_tests: *while etcd has no quorum*"));
    add_lines(all);
    add_disks(all);
    add_sites(all);
    for (const char* id : {"F67", "F68", "F69"}) {
      all.push_back(not_here(id, "faults of serving", "there is no server yet"));
    }
    return all;
  }();
  return faults;
}

}  // namespace pelago::chaos
