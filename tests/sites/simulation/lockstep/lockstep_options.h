// What is drawn for a run in step, and how its code can be made faulty.
#pragma once

#include <cstdint>
#include <functional>
#include <string_view>
#include <vector>

#include "sites/simulation/faulty_code.h"
#include "sites/transport/loopback.h"

namespace pelago::sites {

struct LockstepBug;

struct LockstepRunOptions {
  int64_t num_sites = 2;
  int64_t num_steps = 24;
  int64_t checkpoint_every_steps = 5;
  int64_t num_crashes = 0;
  int64_t num_long_absences = 0;  // crashes after which the site is away for longer than is borne
  int64_t num_freezes = 0;
  int64_t num_partitions = 0;
  int64_t num_coordinator_crashes = 0;
  int64_t num_coordinators = 1;  // more than one: they share a store
  int64_t num_store_outages = 0;
  bool has_frozen_coordinator = false;
  bool has_power_cut = false;   // everything dies at once
  int64_t num_lost_disks = 0;   // that die with their sites
  double disk_loss_at_cut = 0;  // chance that a power cut takes a site's disk
  int64_t num_lost_workers = 0;
  double restart_s = 2;     // until a crashed site is back
  double site_disk_s = 0;   // until a checkpoint is safe
  double disk_s = 0;        // the coordinator's disk, or the way to the store
  double stop_after_s = 0;  // 0: never
  bool is_stopped_by_site = false;
  bool has_fixed_ports = false;  // a site is found where its last start was
  double faults_until_s = 25;
  double limit_s = 400;  // of virtual time: longer is no progress
  LoopbackOptions network = {};
  const LockstepBug* bug = nullptr;  // outlives the run
};

/// Draws everything that can go wrong from the seed.
LockstepRunOptions any_lockstep_run(uint64_t seed);

/// What faulty code does differently.
struct FaultyLockstep {
  FaultyCode code;
  bool takes_frames_of_any_start = false;
  bool counts_frames_on = false;         // over all starts
  bool offers_what_is_not_safe = false;  // checkpoints still being written
  bool stops_alone = false;              // every site by itself, when it hears of the stop
  bool keeps_workers = false;            // a site that is told to return goes on where it was
  bool counts_tokens_on = false;         // those of steps that are repeated, too
  bool hides_lost_lines = false;         // nobody is told what a line has lost
  bool begins_without_fetch = false;     // who lacks the checkpoint begins afresh
};

struct LockstepBug {
  std::string_view name;  // what the code then does wrong
  std::function<void(FaultyLockstep&)> plant;
  std::function<void(LockstepRunOptions&)> provoke = {};
};
const std::vector<LockstepBug>& lockstep_bugs();

}  // namespace pelago::sites
