// What the pipelines of a site must mean together. A plan is a file that people edit, and every
// worker believes it: a stage that no rank computes would be a hang, a block that two stages hold a
// wrong model.
#include "plan/site_check.h"

#include <fmt/ranges.h>

#include "base/error.h"
#include "plan/across/joint.h"

namespace pelago::plan {

namespace {

void check_shares(const SitePlan& site, const std::string& where) {
  int64_t sum = 0;
  for (size_t i = 0; i < site.pipelines.size(); ++i) {
    const PipelinePlan& pipeline = site.pipelines[i];
    if (pipeline.sequences < 1 || pipeline.sequences > site.batch_sequences) {
      fail_usage(
          "{}.pipelines[{}]: sequences = {} must be between 1 and the site's batch_sequences = {}: "
          "its devices hold blocks, so they need a share",
          where,
          i,
          pipeline.sequences,
          site.batch_sequences);
    }
    if (pipeline.microbatch < 1 || pipeline.microbatch > pipeline.sequences) {
      fail_usage("{}.pipelines[{}]: microbatch = {} must be between 1 and sequences = {}",
                 where,
                 i,
                 pipeline.microbatch,
                 pipeline.sequences);
    }
    sum += pipeline.sequences;
  }
  if (sum != site.batch_sequences) {
    fail_usage("{}: batch_sequences = {}, but the sequences of its pipelines add up to {}",
               where,
               site.batch_sequences,
               sum);
  }
}

void check_blocks(const Plan& plan, const PipelinePlan& pipeline, const std::string& where) {
  if (pipeline.stages.empty()) fail_usage("{}: a pipeline needs at least one stage", where);
  int64_t next_block = 0;
  for (size_t i = 0; i < pipeline.stages.size(); ++i) {
    const StagePlan& stage = pipeline.stages[i];
    if (stage.first_block != next_block) {
      fail_usage("{}.stages[{}]: first_block = {} must be {}: each block is held exactly once",
                 where,
                 i,
                 stage.first_block,
                 next_block);
    }
    if (stage.last_block <= stage.first_block) {
      fail_usage("{}.stages[{}]: last_block = {} must be above first_block = {}",
                 where,
                 i,
                 stage.last_block,
                 stage.first_block);
    }
    next_block = stage.last_block;
  }
  // With fewer of its own than the next stage waits for, it would wait for that one for ever.
  for (size_t i = 0; i + 1 < pipeline.stages.size(); ++i) {
    if (in_flight(pipeline, i) >= in_flight(pipeline, i + 1)) continue;
    fail_usage("{}.stages[{}]: in_flight = {} must be at least the next stage's, {}",
               where,
               i,
               in_flight(pipeline, i),
               in_flight(pipeline, i + 1));
  }
  if (next_block != plan.num_blocks) {
    fail_usage("{}: its stages end with block {}, but the model has {} blocks",
               where,
               next_block,
               plan.num_blocks);
  }
}

void check_devices(const Plan& plan,
                   const SitePlan& site,
                   const StagePlan& stage,
                   const std::string& where) {
  if (stage.ranks.empty()) fail_usage("{}: a stage needs at least one rank", where);
  for (const int rank : stage.ranks) {
    if (rank < 0 || static_cast<size_t>(rank) >= site.devices.size()) {
      fail_usage("{}: rank {} does not exist: the site has {} devices, counted from 0",
                 where,
                 rank,
                 site.devices.size());
    }
    const DevicePlan& device = site.devices[static_cast<size_t>(rank)];
    const DevicePlan& first = site.devices[static_cast<size_t>(stage.ranks.front())];
    if (kind_of_device(device.device) != kind_of_device(first.device)) {
      fail_usage("{}: unlike chips in one stage: {} and {}; a stage has one kind of chip",
                 where,
                 first.device,
                 device.device);
    }
    if (device.node != first.node) {
      fail_usage(
          "{}: the stage is wider than its node: rank {} is in node \"{}\", rank {} in \"{}\"; "
          "tensor parallelism never leaves a node",
          where,
          stage.ranks.front(),
          first.node,
          rank,
          device.node);
    }
  }
  const auto width = static_cast<int64_t>(stage.ranks.size());
  if (plan.sequence_length % width != 0) {
    fail_usage(
        "{}: {} ranks must divide the sequence length {}", where, width, plan.sequence_length);
  }
}

}  // namespace

std::string kind_of_device(const std::string& device) {
  // "cuda:0" and "cuda:1" are alike; of "emulated:a100" the chip is what counts.
  if (is_emulated(device)) return device;
  return device.substr(0, device.find(':'));
}

Place place_of(const SitePlan& site, int rank) {
  for (size_t pipeline_idx = 0; pipeline_idx < site.pipelines.size(); ++pipeline_idx) {
    const std::vector<StagePlan>& stages = site.pipelines[pipeline_idx].stages;
    for (size_t stage_idx = 0; stage_idx < stages.size(); ++stage_idx) {
      const std::vector<int>& ranks = stages[stage_idx].ranks;
      for (size_t i = 0; i < ranks.size(); ++i) {
        if (ranks[i] == rank) return {pipeline_idx, stage_idx, static_cast<int>(i)};
      }
    }
  }
  fail("rank {} of site {} is in no stage of the plan", rank, site.name);
}

void check_whole_matrices(const std::string& optimizer,
                          const SitePlan& site,
                          const std::string& where) {
  if (optimizer != "muon") return;
  if (site.slice_optimizer) {
    fail_usage(
        "{}: slice_optimizer = true cuts matrices, which optimizer = \"muon\" needs whole: make it "
        "false, or plan with optimizer = \"adamw\"",
        where);
  }
  for (size_t i = 0; i < site.pipelines.size(); ++i) {
    for (size_t k = 0; k < site.pipelines[i].stages.size(); ++k) {
      const size_t width = site.pipelines[i].stages[k].ranks.size();
      if (width <= 1) continue;
      fail_usage(
          "{}.pipelines[{}].stages[{}]: its {} ranks cut matrices, which optimizer = \"muon\" "
          "needs "
          "whole: one rank a stage, or plan with optimizer = \"adamw\"",
          where,
          i,
          k,
          width);
    }
  }
}

void check_site(const Plan& plan, const SitePlan& site, const std::string& where) {
  if (site.name.empty() || site.devices.empty()) {
    fail_usage("{}: a site needs a name and at least one device", where);
  }
  check_whole_matrices(plan.optimizer, site, where);
  check_shares(site, where);
  std::vector<int> num_places(site.devices.size(), 0);
  for (size_t i = 0; i < site.pipelines.size(); ++i) {
    const PipelinePlan& pipeline = site.pipelines[i];
    const std::string here = fmt::format("{}.pipelines[{}]", where, i);
    check_blocks(plan, pipeline, here);
    for (size_t stage_idx = 0; stage_idx < pipeline.stages.size(); ++stage_idx) {
      const StagePlan& stage = pipeline.stages[stage_idx];
      check_devices(plan, site, stage, fmt::format("{}.stages[{}]", here, stage_idx));
      for (const int rank : stage.ranks) ++num_places[static_cast<size_t>(rank)];
    }
  }
  for (size_t rank = 0; rank < num_places.size(); ++rank) {
    if (num_places[rank] == 1) continue;
    fail_usage("{}: rank {} ({}) is in {} stages; every device is in exactly one",
               where,
               rank,
               site.devices[rank].device,
               num_places[rank]);
  }
}

}  // namespace pelago::plan
