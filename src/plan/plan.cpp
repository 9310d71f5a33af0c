// plan.json and probe.json. A field is listed once for both ways; what the fields must mean
// together (shares add up, samples do not overlap) is checked here too, because a plan is a file
// that people edit and every worker believes.
#include "plan/plan.h"

#include <set>

#include "base/files.h"
#include "plan/across/joint.h"
#include "plan/record.h"
#include "plan/site_check.h"

namespace pelago::plan {

// Raised whenever a reader of the old file would misread the new one.
constexpr int64_t kPlanVersion = 2;
constexpr int64_t kProbeVersion = 2;

template <typename Visitor, Like<LinearCost> P>
void each_field(Visitor& visit, P& cost) {
  visit("fixed_s", cost.fixed_s);
  visit("sequence_s", cost.sequence_s);
}

template <typename Visitor, Like<CutProfile> P>
void each_field(Visitor& visit, P& cut) {
  visit("width", cut.width);
  visit("block_forward", cut.block_forward);
  visit("block_backward", cut.block_backward);
  visit("embedding", cut.embedding);
  visit("head", cut.head);
  visit("update_parameter_s", cut.update_parameter_s);
}

template <typename Visitor, Like<DeviceProfile> P>
void each_field(Visitor& visit, P& profile) {
  visit("device", profile.device);
  visit("dtype", profile.dtype);
  visit("block_forward", profile.block_forward);
  visit("block_backward", profile.block_backward);
  visit("embedding", profile.embedding);
  visit("head", profile.head);
  visit.maybe("stage_forward", profile.stage_forward);
  visit.maybe("stage_backward", profile.stage_backward);
  visit("update_s", profile.update_s);
  visit.maybe("update_run_s", profile.update_run_s);
  visit("update_parameter_s", profile.update_parameter_s);
  visit.maybe("update_block_s", profile.update_block_s);
  visit("host_copy_s", profile.host_copy_s);
  visit("host_byte_s", profile.host_byte_s);
  visit("group_call_s", profile.group_call_s);
  visit("group_byte_s", profile.group_byte_s);
  visit.maybe("reduce_place_s", profile.reduce_place_s);
  visit.maybe("group_hop_s", profile.group_hop_s);
  visit.maybe("pair_byte_s", profile.pair_byte_s);
  visit.maybe("network_byte_s", profile.network_byte_s);
  visit.maybe("network_message_s", profile.network_message_s);
  visit("host_busy_ratio", profile.host_busy_ratio);
  visit("measured", profile.measured);
  visit.maybe("least_ratio", profile.least_ratio, 1.0);
  visit.maybe("most_ratio", profile.most_ratio, 1.0);
  visit.maybe("cuts", profile.cuts);
}

template <typename Visitor, Like<Probe> P>
void each_field(Visitor& visit, P& probe) {
  visit("job_hash", probe.job_hash);
  visit("devices", probe.devices);
}

template <typename Visitor, Like<MemoryPlan> P>
void each_field(Visitor& visit, P& memory) {
  visit("weights", memory.weights);
  visit("gradients", memory.gradients);
  visit("optimizer", memory.optimizer);
  visit("activations", memory.activations);
  visit("buffers", memory.buffers);
}

template <typename Visitor, Like<DevicePlan> P>
void each_field(Visitor& visit, P& device) {
  visit("device", device.device);
  visit("node", device.node);
  visit("cores", device.cores);
  visit("faults", device.faults);
  visit("predicted_step_s", device.predicted_step_s);
  visit("predicted_tokens_s", device.predicted_tokens_s);
  visit("predicted_memory", device.predicted_memory);
  visit("memory_bytes", device.memory_bytes);
  visit("measured", device.measured);
}

template <typename Visitor, Like<StagePlan> P>
void each_field(Visitor& visit, P& stage) {
  visit("first_block", stage.first_block);
  visit("last_block", stage.last_block);
  visit("ranks", stage.ranks);
  visit("recompute", stage.recompute);
  visit.maybe("in_flight", stage.in_flight);
}

template <typename Visitor, Like<PipelinePlan> P>
void each_field(Visitor& visit, P& pipeline) {
  visit("sequences", pipeline.sequences);
  visit("microbatch", pipeline.microbatch);
  visit("predicted_step_s", pipeline.predicted_step_s);
  visit("stages", pipeline.stages);
}

template <typename Visitor, Like<SitePlan> P>
void each_field(Visitor& visit, P& site) {
  visit("name", site.name);
  visit("listen", site.listen);
  visit("batch_sequences", site.batch_sequences);
  visit("first_sequence", site.first_sequence);
  visit("predicted_step_s", site.predicted_step_s);
  visit("bound_by", site.bound_by);
  visit("devices", site.devices);
  visit("pipelines", site.pipelines);
  visit("slice_optimizer", site.slice_optimizer);
}

template <typename Visitor, Like<FleetLink> P>
void each_field(Visitor& visit, P& link) {
  visit("from", link.from);
  visit("to", link.to);
  visit("bandwidth_mbit_s", link.bandwidth_mbit_s);
  visit("rtt_ms", link.rtt_ms);
  visit.maybe("back_mbit_s", link.back_mbit_s);
  visit.maybe("loss", link.loss);
  visit("emulate", link.emulate);
}

template <typename Visitor, Like<SitesConfig> P>
void each_field(Visitor& visit, P& exchange) {
  visit("inner_steps", exchange.inner_steps);
  visit("fragments", exchange.fragments);
  visit("overlap_steps", exchange.overlap_steps);
  visit("delta_bits", exchange.delta_bits);
  visit("merge_alpha", exchange.merge_alpha);
  visit("outer_lr", exchange.outer_lr);
  visit("outer_momentum", exchange.outer_momentum);
  visit("combine", exchange.combine);
  visit("error_decay", exchange.error_decay);
  visit("grace_s", exchange.grace_s);
  visit("share_rounds", exchange.share_rounds);
  visit("heartbeat_s", exchange.heartbeat_s);
  visit.maybe("activation_bits", exchange.activation_bits, 16);
  visit.maybe("behind_s", exchange.behind_s, 1.0);
}

template <typename Visitor, Like<Plan> P>
void each_field(Visitor& visit, P& plan) {
  visit("job_name", plan.job_name);
  visit("steps", plan.steps);
  visit("batch_sequences", plan.batch_sequences);
  visit("sequence_length", plan.sequence_length);
  visit("num_parameters", plan.num_parameters);
  visit("num_blocks", plan.num_blocks);
  visit.maybe("optimizer", plan.optimizer, std::string("adamw"));
  visit("sites", plan.sites);
  visit.maybe("pipelines", plan.pipelines);
  visit("links", plan.links);
  visit("exchange", plan.exchange);
  visit("emulation_slowdown", plan.emulation_slowdown);
  visit("emulation_memory_bytes", plan.emulation_memory_bytes);
  visit("predicted_tokens_s", plan.predicted_tokens_s);
  visit.maybe("predicted_tokens_s_lo", plan.predicted_tokens_s_lo);
  visit.maybe("predicted_tokens_s_hi", plan.predicted_tokens_s_hi);
  visit.maybe("bound_tokens_s", plan.bound_tokens_s);
  visit.maybe("predicted_power_w", plan.predicted_power_w);
  visit.maybe("predicted_price_hour", plan.predicted_price_hour);
  visit("predicted_line_mbit_s", plan.predicted_line_mbit_s);
  visit.maybe("predicted_rounds_tokens_s", plan.predicted_rounds_tokens_s);
  visit.maybe("predicted_line_share", plan.predicted_line_share);
  visit("host_load", plan.host_load);
  visit("host_cores", plan.host_cores);
  visit("warnings", plan.warnings);
  visit("profiles", plan.profiles);
}

namespace {

void check_links(const Plan& plan,
                 const std::set<std::string>& site_names,
                 const std::string& name) {
  for (size_t i = 0; i < plan.links.size(); ++i) {
    for (const std::string& end : {plan.links[i].from, plan.links[i].to}) {
      if (site_names.contains(end)) continue;
      fail_usage("{}: links[{}]: \"{}\" is no site of the plan", name, i, end);
    }
  }
}

void check_exchange(const Plan& plan, const std::string& name) {
  const SitesConfig& exchange = plan.exchange;
  const int activation_bits = exchange.activation_bits;
  if (activation_bits != 8 && activation_bits != 16 && activation_bits != 32) {
    fail_usage("{}: exchange: activation_bits = {} must be 8, 16 or 32", name, activation_bits);
  }
  if ((plan.sites.size() == 1 || is_joint(plan)) && exchange.fragments == 0) return;
  const bool rhythm = exchange.fragments > 0 && exchange.inner_steps > 0 &&
                      exchange.inner_steps % exchange.fragments == 0;
  if (!rhythm) {
    fail_usage("{}: exchange: inner_steps = {} must be a multiple of fragments = {}, both above 0",
               name,
               exchange.inner_steps,
               exchange.fragments);
  }
  const int64_t interval = exchange.inner_steps / exchange.fragments;
  if (exchange.overlap_steps < 0 || exchange.overlap_steps >= interval) {
    fail_usage("{}: exchange: overlap_steps = {} must be between 0 and {}",
               name,
               exchange.overlap_steps,
               interval - 1);
  }
  const int bits = exchange.delta_bits;
  if (bits != 2 && bits != 4 && bits != 8 && bits != 32) {
    fail_usage("{}: exchange: delta_bits = {} must be 2, 4, 8 or 32", name, bits);
  }
  const std::string& combine = exchange.combine;
  const bool is_by_value = combine == "trimmed" || combine == "median_of_means";
  if (combine != "mean" && combine != "direction" && (!is_by_value || bits == 2)) {
    fail_usage(
        "{}: exchange: combine = \"{}\" must be mean or direction, or above 2 bits trimmed or "
        "median_of_means",
        name,
        combine);
  }
}

void check_plan(const Plan& plan, const std::string& name) {
  if (plan.sites.empty()) fail_usage("{}: sites is empty; a plan needs at least one", name);
  if (plan.steps < 1) fail_usage("{}: steps = 0 must be 1 or more", name);
  if (plan.optimizer != "adamw" && plan.optimizer != "muon") {
    fail_usage("{}: optimizer = \"{}\" must be adamw or muon", name, plan.optimizer);
  }
  if (plan.sequence_length < 1) fail_usage("{}: sequence_length = 0 must be 1 or more", name);
  std::set<std::string> site_names;
  int64_t sum = 0;
  for (size_t i = 0; i < plan.sites.size(); ++i) {
    const SitePlan& site = plan.sites[i];
    const std::string where = fmt::format("{}: sites[{}]", name, i);
    if (site.batch_sequences > plan.batch_sequences) {
      fail_usage("{}: batch_sequences = {} is more than the plan's {}",
                 where,
                 site.batch_sequences,
                 plan.batch_sequences);
    }
    if (!is_joint(plan)) check_site(plan, site, where);
    if (!site_names.insert(site.name).second) {
      fail_usage("{}: a second site of the name \"{}\"", where, site.name);
    }
    if (site.first_sequence != sum) {
      fail_usage("{}: first_sequence = {} must be {}, the sum of the sites before it",
                 where,
                 site.first_sequence,
                 sum);
    }
    sum += site.batch_sequences;
  }
  if (sum != plan.batch_sequences && !is_joint(plan)) {
    fail_usage(
        "{}: batch_sequences = {}, but its sites add up to {}", name, plan.batch_sequences, sum);
  }
  if (is_joint(plan)) check_joint(plan, name);
  check_links(plan, site_names, name);
  check_exchange(plan, name);
}

}  // namespace

std::string to_json(const Plan& plan) { return write_record(plan, kPlanVersion); }

Plan plan_from_json(std::string_view json, const std::string& name) {
  Plan plan = read_record<Plan>(json, name, kPlanVersion);
  check_plan(plan, name);
  return plan;
}

std::string to_json(const Probe& probe) { return write_record(probe, kProbeVersion); }

Probe probe_from_json(std::string_view json, const std::string& name) {
  Probe probe = read_record<Probe>(json, name, kProbeVersion);
  for (const auto& [device, profile] : probe.devices) {
    if (profile.block_forward.sequence_s > 0 && profile.block_backward.sequence_s > 0) continue;
    fail_usage(
        "{}: devices.{}: block_forward and block_backward: sequence_s must be greater than 0; run "
        "`pelago probe` again",
        name,
        device);
  }
  return probe;
}

std::string probe_hash(const JobConfig& job, const FleetConfig& fleet) {
  return hash_hex(fmt::format("{} {} {} {} {}{}",
                              model::to_config_json(job.model, job.train.dtype),
                              job.data.sequence_length,
                              job.train.microbatch_sequences,
                              job.train.dtype,
                              fleet.emulation_slowdown,
                              job.train.has_muon() ? " muon" : ""));
}

}  // namespace pelago::plan
