#include "train/rank/trainer.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/clock.h"
#include "base/error.h"
#include "base/rng.h"
#include "chips/torch.h"
#include "chips/vendor/trial.h"
#include "model/parameters.h"
#include "plan/across/joint.h"
#include "plan/cost/sizes.h"
#include "plan/fleet.h"
#include "plan/site_check.h"

namespace pelago::train {

namespace {

c10::ScalarType training_dtype(const std::string& dtype, const chips::Device& device) {
  if (dtype == "f32") return torch::kFloat32;
  if (dtype == "bf16") return torch::kBFloat16;
  return device.training_dtype();
}

std::vector<c10::ScalarType> gather_dtypes(chips::Collective& collective, c10::ScalarType own) {
  const auto byte = static_cast<std::byte>(own);
  std::vector<c10::ScalarType> dtypes;
  for (const std::byte other : collective.all_gather(std::span(&byte, 1))) {
    dtypes.push_back(static_cast<c10::ScalarType>(other));
  }
  return dtypes;
}

/// Divides what passed until a rank's passes were done into their parts. busy_s: of that, computing
/// by a clock of the device's own; 0: it has none.
/// is_alone: it holds the whole model and waits for no stage, but for its gradients on their way
/// out.
void settle_passes(double passed_s, double busy_s, bool is_alone, RankReport& own) {
  plan::PartSeconds& parts = own.parts;
  if (busy_s > 0) {
    parts.optimizer_s += busy_s - parts.forward_s - parts.backward_s;  // gradients were cleared
    parts.bubble_s = is_alone ? 0 : passed_s - busy_s;
    parts.reduce_s += is_alone ? passed_s - busy_s : 0;
    return;
  }
  parts.bubble_s = own.wait_stages_s;
  const double rest_s = passed_s - parts.forward_s - parts.backward_s - parts.bubble_s;
  const bool is_told_apart = parts.forward_s > 0;
  (is_told_apart ? parts.optimizer_s : parts.backward_s) += rest_s;
}

}  // namespace

TrainerOptions trainer_options(const plan::JobConfig& job, const plan::Plan& plan, int site_idx) {
  TrainerOptions options;
  options.model = job.model;
  options.train = job.train;
  options.site = plan::joint_site(plan, static_cast<size_t>(site_idx));
  options.batch_sequences = plan.batch_sequences;
  options.sequence_length = plan.sequence_length;
  options.num_steps = plan.steps;
  if (!plan::is_joint(plan)) return options;
  options.activation_bits = plan.exchange.activation_bits;
  for (size_t rank = 0; rank < options.site.devices.size(); ++rank) {
    options.site_of_rank.push_back(
        static_cast<int>(plan::site_of_joint_rank(plan, static_cast<int>(rank))));
  }
  return options;
}

Trainer::Trainer(TrainerOptions options,
                 chips::Device& device,
                 const RankLinks& links,
                 const TokenSource& samples)
    : options_(std::move(options)),
      device_(&device),
      links_(links),
      samples_(&samples),
      order_(std::max<int64_t>(num_windows(samples, options_.sequence_length), 1),
             static_cast<uint64_t>(options_.train.seed)),
      place_(plan::place_of(options_.site, links.control->rank())) {
  if (num_windows(samples, options_.sequence_length) < 1) {
    fail(
        "the corpus has {} tokens, one sequence needs {}: add text or shorten data.sequence_length",
        samples.num_tokens(),
        options_.sequence_length + 1);
  }
  PELAGO_ASSERT(static_cast<size_t>(links.control->num_ranks()) == options_.site.devices.size(),
                "a site has one rank a device");
  plan::check_whole_matrices(options_.train.optimizer, options_.site, "plan");
  const int rank = links.control->rank();
  const c10::ScalarType dtype = training_dtype(options_.train.dtype, device);
  chips::require_dtype(device, dtype);
  dtypes_ = gather_dtypes(*links.control, dtype);

  SiteBuckets buckets = buckets_of(options_.model,
                                   options_.site,
                                   rank,
                                   static_cast<int64_t>(plan::usual_bucket_values(
                                       static_cast<double>(options_.model.num_parameters()))));
  open_groups(buckets.groups);
  std::vector<chips::Collective::Slice> own_slices;
  for (const Bucket& bucket : buckets.own) {
    own_slices.push_back(written_slice(bucket));
  }
  const model::ModelPart part = part_of(options_.site, options_.model.num_hidden_layers, rank);
  shards_ = std::make_unique<Shards>(
      std::move(buckets.own),
      std::move(own_slices),
      model::num_values(model::part_specs(options_.model, part)),
      device,
      ShardOptions{.weights_dtype = dtype, .slices_optimizer = options_.site.slice_optimizer});
  parameters_ = std::make_unique<model::Parameters>(options_.model, part, shards_->weights());
  pipeline_ =
      std::make_unique<Pipeline>(PipelineOptions{.model = options_.model,
                                                 .site = options_.site,
                                                 .rank = rank,
                                                 .dtypes = dtypes_,
                                                 .site_of_rank = options_.site_of_rank,
                                                 .activation_bits = options_.activation_bits,
                                                 .courier = links.courier,
                                                 .tensor_group = tensor_group_.get(),
                                                 .pulse = links.pulse,
                                                 .tamper = options_.tamper.blocks},
                                 device,
                                 *parameters_);
}

Trainer::~Trainer() = default;

/// All ranks go through the same list, each takes part in the groups that it is in.
void Trainer::open_groups(const std::vector<std::vector<int>>& groups) {
  const int rank = links_.control->rank();
  const auto open = [&](chips::Collective& collective, const std::vector<int>& ranks) {
    const bool is_in = std::find(ranks.begin(), ranks.end(), rank) != ranks.end();
    return is_in ? collective.group(ranks) : nullptr;
  };
  group_ranks_ = groups;
  for (const std::vector<int>& ranks : groups) groups_.push_back(open(*links_.reduction, ranks));
  for (const plan::PipelinePlan& pipeline : options_.site.pipelines) {
    for (const plan::StagePlan& stage : pipeline.stages) {
      if (stage.ranks.size() == 1) continue;
      if (auto group = open(*links_.control, stage.ranks)) tensor_group_ = std::move(group);
    }
  }
}

chips::Collective& Trainer::group_of(const Bucket& bucket) {
  const auto found = std::find(group_ranks_.begin(), group_ranks_.end(), bucket.ranks);
  return *groups_[static_cast<size_t>(found - group_ranks_.begin())];
}

/// What this rank writes of a bucket for others: its slice among those holders who see the same
/// memory.
chips::Collective::Slice Trainer::written_slice(const Bucket& bucket) const {
  const int own_rank = links_.control->rank();
  const auto site_of = [&](int rank) {
    return options_.site_of_rank.empty() ? 0 : options_.site_of_rank[static_cast<size_t>(rank)];
  };
  int num_slices = 0, slice_idx = 0;
  for (const int rank : bucket.ranks) {
    if (rank == own_rank) slice_idx = num_slices;
    num_slices += site_of(rank) == site_of(own_rank) ? 1 : 0;
  }
  return chips::Collective::slice_of(bucket.num_values, num_slices, slice_idx);
}

const plan::PipelinePlan& Trainer::own_pipeline() const {
  return options_.site.pipelines[place_.pipeline_idx];
}

/// The tokens of a pipeline are divided among its ranks by what they hold of the model, for the
/// report: each counts once in the site's sum.
int64_t Trainer::own_tokens() const {
  const plan::StagePlan& stage = own_pipeline().stages[place_.stage_idx];
  const auto width = static_cast<int64_t>(stage.ranks.size());
  const int64_t whole = options_.model.num_hidden_layers * width;
  const int64_t begin =
      stage.first_block * width + place_.tensor_idx * (stage.last_block - stage.first_block);
  const int64_t end = begin + stage.last_block - stage.first_block;
  const int64_t tokens = own_pipeline().sequences * options_.sequence_length;
  return tokens * end / whole - tokens * begin / whole;
}

void Trainer::load(const HostState& state, const TrainState& counters) {
  PELAGO_ASSERT(static_cast<int64_t>(state.master.size()) == options_.model.num_parameters(),
                "weights are checked when they are read");
  shards_->read(state, {0, options_.model.num_parameters()});
  adam_steps_ = counters.adam_steps;
  loss_scale_.value = counters.loss_scale > 0 ? counters.loss_scale : LossScale::kStart;
  loss_scale_.num_good_steps = counters.loss_scale_steps;
}

void Trainer::save_counters(TrainState& counters) const {
  counters.adam_steps = adam_steps_;
  counters.loss_scale = loss_scale_.value;
  counters.loss_scale_steps = loss_scale_.num_good_steps;
}

void Trainer::store(const HostState& state, const Fragment& range) const {
  shards_->write(state, range);
}

/// Real chips copy to the host at 12 bytes a parameter over tens of GB/s: for small batches that is
/// longer than a step. Their own memory takes the same copy in a hundredth of the time.
bool Trainer::has_room_for_copies() {
  constexpr double kSpare = 0.1;  // of the memory: what has not yet been used may be needed
  const auto memory_bytes = static_cast<double>(device_->memory_bytes());
  const int64_t work_bytes = device_->stats().peak_bytes - copies_bytes_;
  const int64_t copy_bytes = shards_->copy_bytes();
  if (static_cast<double>(work_bytes + copy_bytes) > (1 - kSpare) * memory_bytes) return false;
  copies_bytes_ = std::max(copies_bytes_, copy_bytes);
  return true;
}

void Trainer::store_behind(const HostState& state, std::function<void()> on_done) {
  storing_reads_masters_ = !has_room_for_copies();
  if (storing_reads_masters_) {
    storer_.add([this, state, after = device_->mark(), done = std::move(on_done)] {
      shards_->write_behind(state, *device_, after);
      done();
    });
    return;
  }
  auto copies = shards_->copy_own();
  storer_.add([this, state, copies, after = device_->mark(), done = std::move(on_done)] {
    shards_->write_copies(*copies, state, *device_, after);
    done();
  });
}

void Trainer::finish_storing() {
  const double begin_s = steady_now_s();
  storer_.wait();
  storing_reads_masters_ = false;
  const double end_s = steady_now_s();
  device_->note_host_wait(begin_s, end_s);
  storing_s_ += end_s - begin_s;
}

void Trainer::take_shares(const plan::SitePlan& site) {
  PELAGO_ASSERT(plan::has_same_stages(site, options_.site), "other stages need another trainer");
  options_.site = site;
}

void Trainer::store_gradient(std::span<float> out) const { shards_->write_gradient(out); }

std::vector<int64_t> Trainer::windows_of_step(int64_t step_idx) const {
  int64_t first =
      (step_idx + options_.data_shift) * options_.batch_sequences + options_.site.first_sequence;
  for (size_t i = 0; i < place_.pipeline_idx; ++i) first += options_.site.pipelines[i].sequences;
  std::vector<int64_t> windows(static_cast<size_t>(own_pipeline().sequences));
  for (int64_t& window : windows) window = order_.sequence_of(first++);
  return windows;
}

Microbatches Trainer::microbatches_of(std::span<const int64_t> windows) const {
  const auto microbatch = static_cast<size_t>(std::max<int64_t>(own_pipeline().microbatch, 1));
  Microbatches microbatches;
  for (size_t begin = 0; begin < windows.size(); begin += microbatch) {
    microbatches.push_back(windows.subspan(begin, std::min(microbatch, windows.size() - begin)));
  }
  return microbatches;
}

/// Gives a bucket whose gradients are whole to the reducer.
void Trainer::reduce(size_t bucket_idx, double loss_scale) {
  const Bucket& bucket = shards_->buckets()[bucket_idx];
  shards_->collect_gradient(bucket_idx);
  Tensor& gradient = shards_->bucket_gradient(bucket_idx);
  if (loss_scale != 1.0) gradient.mul_(1.0 / loss_scale);
  chips::Collective& group = group_of(bucket);
  if (group.num_ranks() == 1) return;
  const bool slices = options_.site.slice_optimizer;
  reducer_.add([&gradient, &group, slices, mark = device_->mark()] {
    if (slices) {
      group.reduce_scatter_sum(gradient, mark);
    } else {
      group.all_reduce_sum(gradient, mark);
    }
  });
}

/// Leaves the site's sum over tokens in the buckets that this rank keeps, once the reducer is done;
/// returns the sum of this rank's token losses.
double Trainer::compute(int64_t step_idx, RankReport& own) {
  const std::vector<int64_t> windows = windows_of_step(step_idx);
  const double scale = pipeline_->needs_loss_scale() ? loss_scale_.value : 1.0;
  shards_->clear_gradients();
  num_reduced_ = 0;
  const std::vector<Bucket>& buckets = shards_->buckets();
  const auto reduce_down_to = [&](int64_t unit) {
    const torch::NoGradGuard no_grad;
    while (num_reduced_ < buckets.size() && buckets[num_reduced_].lowest_unit >= unit) {
      reduce(num_reduced_++, scale);
    }
  };
  const PipelineResult result = pipeline_->train(*samples_,
                                                 options_.sequence_length,
                                                 microbatches_of(windows),
                                                 scale,
                                                 shards_->gradient(),
                                                 reduce_down_to);
  // A tied embedding at the end of the model has no unit of its own there.
  reduce_down_to(0);
  own.wait_stages_s = result.waited_s;
  own.parts.forward_s = result.forward_s;
  own.parts.backward_s = result.backward_s;
  // All ranks skip a step whose loss is not finite: so one that saw nonsense tells the others.
  const bool is_plausible = result.peak <= kHiddenMax;
  return is_plausible ? result.loss_sum : std::numeric_limits<double>::quiet_NaN();
}

StepReport Trainer::step(int64_t step_idx) {
  const double begin_s = steady_now_s();
  const chips::DeviceStats before = device_->stats();
  StepSums sums(options_.site.devices.size());
  RankReport own = previous_;
  sums.add_loss(compute(step_idx, own));
  device_->synchronize();
  const double arrived_s = steady_now_s();
  const chips::DeviceStats computed = device_->stats();
  const double begun_busy_s = computed.device_busy_s - before.device_busy_s;
  const std::vector<plan::StagePlan>& stages = own_pipeline().stages;
  const bool is_alone = stages.size() == 1 && stages.front().ranks.size() == 1;
  settle_passes(arrived_s - begin_s, begun_busy_s, is_alone, own);
  own.tokens = own_tokens();
  own.compute_s += arrived_s - begin_s - own.wait_stages_s;
  own.late_s += computed.late_s - before.late_s;
  own.host_busy_s += computed.host_busy_s - before.host_busy_s;
  own.peak_memory_bytes = computed.peak_bytes;
  sums.put(static_cast<size_t>(links_.control->rank()), own);

  const torch::NoGradGuard no_grad;
  reducer_.wait();
  give_sign();
  for (size_t i = 0; options_.tamper.reduced && i < shards_->buckets().size(); ++i) {
    options_.tamper.reduced(i, shards_->bucket_gradient(i));
  }
  sums.add_squares(shards_->sum_of_squares());
  links_.control->all_reduce_sum(sums.values());
  const double reduced_s = steady_now_s();
  give_sign();
  if (storing_reads_masters_) finish_storing();
  StepReport report = apply_gradient(step_idx, sums);
  device_->synchronize();
  give_sign();

  const double end_s = steady_now_s();
  const chips::DeviceStats after = device_->stats();
  const bool has_own_clock = after.device_busy_s > 0;
  previous_.parts.optimizer_s = has_own_clock ? after.device_busy_s - computed.device_busy_s
                                              : end_s - reduced_s - gathering_s_;
  previous_.parts.reduce_s = end_s - arrived_s - previous_.parts.optimizer_s;
  previous_.compute_s = end_s - reduced_s;
  previous_.wait_ranks_s = reduced_s - arrived_s;
  previous_.late_s = after.late_s - computed.late_s;
  previous_.host_busy_s = after.host_busy_s - computed.host_busy_s;
  report.step_s = end_s - begin_s;
  return report;
}

/// Clips, checks and applies the reduced gradient, and fills a report but for its time. The sums
/// are the same bits on every rank, so all of them decide alike.
StepReport Trainer::apply_gradient(int64_t step_idx, const StepSums& sums) {
  StepReport report;
  report.site = options_.site.name;
  report.step = step_idx + 1;
  report.tokens = sums.tokens();
  const auto tokens = static_cast<double>(report.tokens);
  report.loss = sums.loss() / tokens;
  report.grad_norm = std::sqrt(sums.squares()) / tokens;
  report.lr = options_.train.learning_rate(step_idx, options_.num_steps);
  report.skipped = !std::isfinite(report.loss) || !gradient_watch_.accepts(report.grad_norm);
  if (!report.skipped) {
    const double clip_norm = options_.train.clip_norm;
    const bool clips = clip_norm > 0 && report.grad_norm > clip_norm;
    const double grad_scale = (clips ? clip_norm / report.grad_norm : 1.0) / tokens;
    for (size_t i = 0; options_.tamper.moments && i < shards_->buckets().size(); ++i) {
      options_.tamper.moments(i, shards_->m(i), shards_->v(i));
    }
    shards_->update(options_.train, ++adam_steps_, report.lr, grad_scale);
    gather_weights();
  }
  loss_scale_.adapt(report.skipped);
  report.reduce_s = std::numeric_limits<double>::infinity();
  for (size_t rank = 0; rank < options_.site.devices.size(); ++rank) {
    report.ranks.push_back(sums.get(rank, options_.site.devices[rank].device));
    // The rank that came last waited for nobody: its time is that of the reduction alone.
    report.reduce_s = std::min(report.reduce_s, report.ranks.back().wait_ranks_s);
  }
  return report;
}

void Trainer::gather_weights() {
  gathering_s_ = 0;
  if (!options_.site.slice_optimizer) return;
  const double begin_s = steady_now_s();
  // The reducer's thread owns the groups; it has nothing else to do now.
  reducer_.add([this] {
    for (size_t i = 0; i < shards_->buckets().size(); ++i) {
      const std::vector<int>& ranks = shards_->buckets()[i].ranks;
      const bool in_f32 = std::any_of(ranks.begin(), ranks.end(), [&](int rank) {
        return dtypes_[static_cast<size_t>(rank)] != dtypes_[static_cast<size_t>(ranks.front())];
      });
      shards_->gather_weights(i, group_of(shards_->buckets()[i]), in_f32);
    }
  });
  reducer_.wait();
  gathering_s_ = steady_now_s() - begin_s;
}

bool Trainer::may_differ() const {
  const std::vector<plan::DevicePlan>& devices = options_.site.devices;
  const bool has_copies = options_.site.pipelines.size() > 1 && !options_.site.slice_optimizer;
  // A matrix product need not have the same bits on two chips of one kind: a processor with more
  // cores adds up in another order.
  if (has_copies && options_.train.has_muon()) return true;
  return has_copies && std::any_of(devices.begin(), devices.end(), [&](const auto& device) {
           return plan::kind_of_device(device.device) !=
                  plan::kind_of_device(devices.front().device);
         });
}

bool Trainer::copies_agree() {
  std::vector<uint64_t> own(group_ranks_.size() + 1, 0);  // by group; last: whether one cannot tell
  try {
    for (size_t i = 0; i < shards_->buckets().size(); ++i) {
      const auto group =
          std::find(group_ranks_.begin(), group_ranks_.end(), shards_->buckets()[i].ranks);
      uint64_t& digest = own[static_cast<size_t>(group - group_ranks_.begin())];
      digest = Rng::mix(digest ^ shards_->digest(i));
    }
  } catch (const c10::NotImplementedError& missing) {  // a chip without sums of whole numbers
    own.back() = 1;
  }
  const std::vector<std::byte> gathered = links_.control->all_gather(std::as_bytes(std::span(own)));
  const auto of = [&](int rank, size_t idx) {
    uint64_t value = 0;
    std::memcpy(&value,
                gathered.data() + (static_cast<size_t>(rank) * own.size() + idx) * sizeof value,
                sizeof value);
    return value;
  };
  for (int rank = 0; rank < links_.control->num_ranks(); ++rank) {
    if (of(rank, own.size() - 1) != 0) return false;
  }
  for (size_t group = 0; group < group_ranks_.size(); ++group) {
    const std::vector<int>& ranks = group_ranks_[group];
    const bool agree = std::all_of(ranks.begin(), ranks.end(), [&](int rank) {
      return of(rank, group) == of(ranks.front(), group);
    });
    if (!agree) return false;
  }
  return true;
}

void Trainer::align_ranks(const HostState& scratch) {
  shards_->write(scratch, {0, options_.model.num_parameters()});
  links_.control->barrier();
  shards_->read_others(scratch);
  links_.control->barrier();  // nobody writes there again before all have read
}

void Trainer::merge(const Fragment& range,
                    std::span<const float> given,
                    const MergeFactors& factors,
                    const HostState& scratch) {
  shards_->write_merged(scratch.master, given, factors, range);
  links_.control->barrier();
  shards_->read_weights(scratch.master, range);
  links_.control->barrier();
}

}  // namespace pelago::train
