// A Plan is a value: who computes what, and how long it should take. `plan` writes it, everything
// else reads it; a person can read it, diff it and edit it (plan.json).
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "chips/catalogue.h"
#include "plan/cost/device_profile.h"
#include "plan/fleet.h"
#include "plan/job.h"

namespace pelago::plan {

/// Bytes that one device needs for its stage, at their peak.
struct MemoryPlan {
  double weights = 0;      // in the training dtype, beside their f32 masters
  double gradients = 0;    // f32 sums over microbatches
  double optimizer = 0;    // masters and moments, or its slice of them
  double activations = 0;  // of the microbatches in flight
  double buffers = 0;      // what a block, the head or the optimizer needs while it runs
  double total() const { return weights + gradients + optimizer + activations + buffers; }
};

struct DevicePlan {
  std::string device;
  std::string node;  // tensor parallelism stays within one
  std::vector<int> cores;
  std::vector<std::string> faults;  // emulated: what breaks and when, for tests
  double predicted_step_s = 0;      // of computing, in a step
  double predicted_tokens_s = 0;    // of the site's, its part: those of all devices add up
  MemoryPlan predicted_memory;
  double memory_bytes = 0;  // what it has; 0: not known
  bool measured = false;    // its pace comes from a probe, else from the catalogue
};

/// Blocks [first_block, last_block) on devices of one kind in one node. The first stage of a
/// pipeline also holds the embedding, the last one the final norm and the head.
struct StagePlan {
  int64_t first_block = 0;
  int64_t last_block = 0;
  std::vector<int> ranks;  // more than one: each block is cut over them (tensor parallelism)
  bool recompute = false;  // keeps what enters a block, and computes the block again going back
  // Microbatches under way, at most; 0: one a stage from this on. More cover a line behind it.
  int64_t in_flight = 0;
};

/// Stages that together hold the whole model, and their share of the site's batch.
struct PipelinePlan {
  int64_t sequences = 0;   // every step
  int64_t microbatch = 0;  // sequences at once; the last microbatch may be smaller
  std::vector<StagePlan> stages;
  double predicted_step_s = 0;  // with its bubble, without the reduction
  int64_t num_microbatches() const { return (sequences + microbatch - 1) / microbatch; }
};

struct SitePlan {
  std::string name;
  std::string listen;
  std::vector<DevicePlan> devices;      // rank order
  std::vector<PipelinePlan> pipelines;  // every rank is in one stage of one of them
  bool slice_optimizer = false;  // ZeRO-1: optimizer state is cut over those who share a block
  int64_t batch_sequences = 0;   // sum over pipelines
  int64_t first_sequence = 0;    // offset of the site's samples within the whole batch of a step
  double predicted_step_s = 0;
  std::string bound_by;  // "A100 compute", ...
};

/// A plan says all that another plan of the same job needs: a site that loses a device plans anew
/// from this alone.
struct Plan {
  std::string job_name;
  int64_t steps = 0;            // of each site
  int64_t batch_sequences = 0;  // all sites, a step
  int64_t sequence_length = 0;
  int64_t num_parameters = 0;
  int64_t num_blocks = 0;
  std::string optimizer = "adamw";  // train.optimizer of the job
  std::vector<SitePlan> sites;      // site order, everywhere
  /// Pipelines whose stages lie in several sites: across/joint.h. Their ranks count through all
  /// sites in order; the sites then have no pipelines and no batch of their own.
  std::vector<PipelinePlan> pipelines;
  std::map<std::string, DeviceProfile> profiles;  // by profile_name() of the devices, and
                                                  // SITE/NAME where sites differ: profile_key.h
  std::vector<FleetLink> links;
  SitesConfig exchange;  // H, P, tau, bits, ...; a single site has fragments = 0
  double emulation_slowdown = 0;
  double emulation_memory_bytes = 0;  // 0: the catalogue's
  double predicted_tokens_s = 0;
  double predicted_tokens_s_lo = 0, predicted_tokens_s_hi = 0;  // with facts at their worst, best
  double bound_tokens_s = 0;  // no plan of these devices is faster, by the same costs
  double predicted_power_w = 0, predicted_price_hour = 0;  // of all chips; 0: not known
  double predicted_line_mbit_s = 0;                        // sent by each site, average
  double predicted_rounds_tokens_s = 0;  // of a joint plan: what its sites would do by rounds; 0:
                                         // one of them cannot hold the model
  double predicted_line_share = 0;       // of a joint plan: of a step, what the lines cost
  double host_load = 0;                  // processors that emulation keeps busy
  double host_cores = 0;
  std::vector<std::string> warnings;  // odd, but not refused: one sentence each
};
std::string to_json(const Plan& plan);

/// Where a rank stands in its site.
struct Place {
  size_t pipeline_idx = 0;
  size_t stage_idx = 0;
  int tensor_idx = 0;  // within the stage
};
/// Throws Failure if the plan has no such rank.
Place place_of(const SitePlan& site, int rank);

/// Throws Failure (exit 2) naming the file and the field: not JSON, another version, a field that
/// is missing, unknown or of the wrong kind, shares that do not add up.
Plan plan_from_json(std::string_view json, const std::string& name);
/// The plan as a table for people.
std::string to_table(const Plan& plan);

/// The name of a device in Plan::profiles (cost/device/profile_key.h): its string, and of a "cpu"
/// how many processors it has.
std::string profile_name(const std::string& device, size_t num_cores);

/// Chooses pipelines, stages, shares, batch, steps. probe may be null: profiles then come from the
/// catalogue. host_cores: processors for emulation. Throws Failure (exit 2): model larger than a
/// site's memory (what is missing, which preset would fit); emulated fleet faster than the host
/// (with the numbers and the slowdown that would do).
Plan make_plan(const JobConfig& job,
               const FleetConfig& fleet,
               const chips::Catalogue& catalogue,
               const Probe* probe,
               double host_cores);

/// The site on the devices that are left, and as fast as they have become; batch, steps and all
/// other sites stay. Takes milliseconds and touches no file. lost: ranks of the site that are gone;
/// the others move up, in their order. pace_factors: by rank, how many times longer a device takes
/// than its profile says; empty: 1 for all. If nothing is lost, the stages stay as they are unless
/// others are a tenth faster. Throws Failure (exit 1) if the model does not fit what is left.
Plan replan_site(const Plan& plan,
                 const JobConfig& job,
                 size_t site_idx,
                 std::span<const size_t> lost,
                 std::span<const double> pace_factors);
/// Every rank holds the same part of the model in both: only shares differ.
bool has_same_stages(const SitePlan& one, const SitePlan& other);

/// Throws Failure (exit 2) in one line if the plan, which a person may have edited, is not of this
/// job and fleet: another model, sequence length or batch, a site or device that the fleet lacks
/// (what it leaves out stays free: planner/aim/part_of_fleet.h), a dtype that a chip lacks, a stage
/// that its chip's memory cannot hold. name: of the plan's file.
void check_plan_fits(const Plan& plan,
                     const JobConfig& job,
                     const FleetConfig& fleet,
                     const chips::Catalogue& catalogue,
                     const std::string& name);

}  // namespace pelago::plan
