// Bugs of runs in step, as they would be in the code: each must turn the simulation red.
#include <memory>

#include "base/text/json.h"
#include "sites/simulation/lockstep/lockstep_run.h"

namespace pelago::sites {

namespace {

template <typename T>
T* as(Message& message) {
  return std::get_if<T>(&message);
}

template <typename T>
FaultyCode::Ear never_says_to_all() {
  return [](const std::string&, Message& message) { return as<T>(message) == nullptr; };
}

void often_lost(LockstepRunOptions& run) {
  run.num_crashes = 4;
  run.network.loss = 0.1;
  run.network.jitter_s = 0.4;
}

void disks_lost(LockstepRunOptions& run) {
  run.num_lost_disks = 3;
  run.restart_s = 0.3;
  run.checkpoint_every_steps = 3;
}

void stopped(LockstepRunOptions& run) {
  run.stop_after_s = 4;
  run.is_stopped_by_site = false;
}

std::vector<LockstepBug> bugs_of_the_coordinator() {
  return {
      {"nobody is told to return",
       [](FaultyLockstep& bug) { bug.code.coordinator_says = never_says_to_all<Refused>(); },
       often_lost},
      {"the newest checkpoint of any site is gone on from",
       [](FaultyLockstep& bug) {
         auto newest = std::make_shared<std::vector<CheckpointOffer>>();
         bug.code.coordinator_hears = [newest](const std::string&, Message& message) {
           auto* hello = as<Hello>(message);
           if (hello == nullptr) return true;
           for (const CheckpointOffer& offer : hello->checkpoints) newest->push_back(offer);
           hello->checkpoints = *newest;
           return true;
         };
       },
       often_lost},
      {"a site that returns hears of the start before",
       [](FaultyLockstep& bug) {
         auto first = std::make_shared<int64_t>(-1);
         bug.code.coordinator_says = [first](const std::string&, Message& message) {
           if (auto* welcome = as<Welcome>(message)) {
             if (*first < 0) *first = welcome->start_number;
             welcome->start_number = *first;
           }
           return true;
         };
       },
       often_lost},
      {"one site begins a checkpoint earlier",
       [](FaultyLockstep& bug) {
         bug.code.coordinator_says = [](const std::string& site, Message& message) {
           auto* welcome = as<Welcome>(message);
           if (welcome != nullptr && site == "site1" && welcome->mode == StartMode::kResume) {
             welcome->mode = StartMode::kFresh;
             welcome->start_step = 0;
           }
           return true;
         };
       },
       often_lost},
      {"leave to train is never given again",
       [](FaultyLockstep& bug) {
         auto said = std::make_shared<std::set<std::string>>();
         bug.code.coordinator_says = [said](const std::string& site, Message& message) {
           auto* allow = as<AllowTraining>(message);
           return allow == nullptr ||
                  said->insert(fmt::format("{} {}", site, allow->incarnation)).second;
         };
       },
       often_lost},
      {"the journal forgets the run",
       [](FaultyLockstep& bug) {
         bug.code.coordinator_reads = [](DurableState& state) { state.erase("run"); };
       },
       [](LockstepRunOptions& run) { run.num_coordinator_crashes = 3; }},
      {"Release is never sent",
       [](FaultyLockstep& bug) { bug.code.coordinator_says = never_says_to_all<Release>(); }},
  };
}

std::vector<LockstepBug> bugs_of_the_sites() {
  return {
      {"frames of an earlier start are taken for the workers of this one",
       [](FaultyLockstep& bug) { bug.takes_frames_of_any_start = true; },
       [](LockstepRunOptions& run) {
         often_lost(run);
         run.has_fixed_ports = true;
       }},
      {"frames are not counted anew with each start",
       [](FaultyLockstep& bug) { bug.counts_frames_on = true; },
       often_lost},
      {"a checkpoint is offered before it is safe",
       [](FaultyLockstep& bug) { bug.offers_what_is_not_safe = true; },
       [](LockstepRunOptions& run) {
         often_lost(run);
         run.site_disk_s = 4;
         run.restart_s = 0.3;
       }},
      {"every site stops as soon as it hears of that",
       [](FaultyLockstep& bug) { bug.stops_alone = true; },
       stopped},
      {"a site that is told to return keeps its workers",
       [](FaultyLockstep& bug) { bug.keeps_workers = true; },
       often_lost},
      {"nobody is told what a line has lost",
       [](FaultyLockstep& bug) { bug.hides_lost_lines = true; },
       [](LockstepRunOptions& run) {
         run.num_partitions = 6;
         run.num_crashes = run.num_lost_disks = run.num_lost_workers = 0;
       }},
      {"tokens of repeated steps are counted again",
       [](FaultyLockstep& bug) { bug.counts_tokens_on = true; },
       often_lost},
  };
}

std::vector<LockstepBug> bugs_of_lost_disks() {
  return {
      {"the journal forgets that there was a checkpoint",
       [](FaultyLockstep& bug) {
         bug.code.coordinator_reads = [](DurableState& state) {
           const auto run = state.find("run");
           if (run == state.end()) return;
           auto kept = parse_json(run->second);
           kept.erase("saved_step");
           run->second = kept.dump();
         };
       },
       [](LockstepRunOptions& run) {
         disks_lost(run);
         run.num_sites = 2;
         run.num_coordinator_crashes = 3;
         run.num_lost_disks = 6;
       }},
      {"a site without the checkpoint of the others begins afresh",
       [](FaultyLockstep& bug) { bug.begins_without_fetch = true; },
       disks_lost},
  };
}

}  // namespace

const std::vector<LockstepBug>& lockstep_bugs() {
  static const std::vector<LockstepBug> bugs = [] {
    std::vector<LockstepBug> all = bugs_of_the_coordinator();
    for (LockstepBug& bug : bugs_of_the_sites()) all.push_back(std::move(bug));
    for (LockstepBug& bug : bugs_of_lost_disks()) all.push_back(std::move(bug));
    return all;
  }();
  return bugs;
}

}  // namespace pelago::sites
