#include "train/rank/trainer.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/clock.h"
#include "base/error.h"
#include "base/rng.h"
#include "chips/kernels.h"
#include "chips/torch.h"
#include "model/transformer.h"

namespace pelago::train {

namespace {

// Token sums already are as large as a mean scaled by the thousands of tokens of a microbatch, so
// the scale starts low; it doubles after as many good steps as cost little when one overflows.
constexpr double kLossScaleStart = 16;
constexpr double kLossScaleMin = 1.0 / 1024;
constexpr double kLossScaleMax = 65536;
constexpr int64_t kLossScaleSteps = 200;

c10::ScalarType training_dtype(const std::string& dtype, const chips::Device& device) {
  if (dtype == "f32") return torch::kFloat32;
  if (dtype == "bf16") return torch::kBFloat16;
  return device.training_dtype();
}

/// Copies contiguous f32 tensor values to host memory. out: tensor.numel() values.
void copy_to_host(const Tensor& tensor, std::span<float> out) {
  const Tensor host = tensor.to(torch::kCPU);
  std::copy_n(host.data_ptr<float>(), out.size(), out.begin());
}

/// A view of host memory as a tensor; from_blob wants a pointer that may be written to.
Tensor view_of(std::span<const float> values) {
  return torch::from_blob(
      const_cast<float*>(values.data()), {static_cast<int64_t>(values.size())}, torch::kFloat32);
}

}  // namespace

TrainerOptions trainer_options(const plan::JobConfig& job, const plan::Plan& plan, int site_idx) {
  return {.model = job.model,
          .train = job.train,
          .site = plan.sites.at(static_cast<size_t>(site_idx)),
          .batch_sequences = plan.batch_sequences,
          .sequence_length = plan.sequence_length,
          .num_steps = plan.steps};
}

/// One f64 vector that goes over the ranks with the gradient: every rank writes its own place, and
/// adding zeros elsewhere turns the sum into a gathering.
struct Trainer::Sums {
  static constexpr size_t kTotals = 2;  // loss, tokens
  static constexpr size_t kFields = 6;
  std::vector<double> values;

  explicit Sums(size_t num_ranks) : values(kTotals + kFields * num_ranks) {}
  double& loss() { return values[0]; }
  double loss() const { return values[0]; }
  int64_t tokens() const { return static_cast<int64_t>(values[1]); }

  void put(size_t rank, const RankReport& report) {
    double* place = values.data() + kTotals + kFields * rank;
    values[1] = static_cast<double>(report.tokens);
    place[0] = static_cast<double>(report.tokens);
    place[1] = report.compute_s;
    place[2] = report.wait_ranks_s;
    place[3] = report.late_s;
    place[4] = report.host_busy_s;
    place[5] = static_cast<double>(report.peak_memory_bytes);
  }
  RankReport get(size_t rank, const std::string& device) const {
    const double* place = values.data() + kTotals + kFields * rank;
    return {.device = device,
            .tokens = static_cast<int64_t>(place[0]),
            .compute_s = place[1],
            .wait_ranks_s = place[2],
            .late_s = place[3],
            .host_busy_s = place[4],
            .peak_memory_bytes = static_cast<int64_t>(place[5])};
  }
};

Trainer::Trainer(TrainerOptions options,
                 chips::Device& device,
                 chips::Collective& collective,
                 const TokenSource& samples)
    : options_(std::move(options)),
      device_(&device),
      collective_(&collective),
      samples_(&samples),
      order_(std::max<int64_t>(num_windows(samples, options_.sequence_length), 1),
             static_cast<uint64_t>(options_.train.seed)),
      loss_scale_(kLossScaleStart) {
  if (num_windows(samples, options_.sequence_length) < 1) {
    fail(
        "the corpus has {} tokens, one sequence needs {}: add text or shorten data.sequence_length",
        samples.num_tokens(),
        options_.sequence_length + 1);
  }
  PELAGO_ASSERT(static_cast<size_t>(collective.num_ranks()) == options_.site.devices.size(),
                "a site has one rank a device");
  const auto f32 = torch::TensorOptions().dtype(torch::kFloat32).device(device.torch_device());
  const int64_t num_values = options_.model.num_parameters();
  master_ = torch::zeros({num_values}, f32);
  m_ = torch::zeros({num_values}, f32);
  v_ = torch::zeros({num_values}, f32);
  gradient_ = torch::zeros({num_values}, f32);
  const c10::ScalarType dtype = training_dtype(options_.train.dtype, device);
  weights_ = dtype == torch::kFloat32 ? master_ : torch::zeros({num_values}, f32.dtype(dtype));
  parameters_ = std::make_unique<model::Parameters>(options_.model, weights_);
  transformer_ = std::make_unique<model::Transformer>(options_.model, *parameters_);
  int64_t begin = 0;
  for (const model::ParameterSpec& spec : parameters_->specs()) {
    const int64_t end = begin + spec.num_values();
    if (decay_runs_.empty() || decay_runs_.back().decays != spec.decays) {
      decay_runs_.push_back({begin, end, spec.decays});
    }
    decay_runs_.back().end = end;
    begin = end;
  }
}

Trainer::~Trainer() = default;

const plan::DevicePlan& Trainer::own_share() const {
  return options_.site.devices[static_cast<size_t>(collective_->rank())];
}

void Trainer::load_weights(const Tensor& flat) {
  const torch::NoGradGuard no_grad;
  PELAGO_ASSERT(flat.numel() == master_.numel(), "weights are checked when they are read");
  master_.copy_(flat);
  m_.zero_();
  v_.zero_();
  adam_steps_ = 0;
  refresh_weights({0, master_.numel()});
}

void Trainer::load_state(const Tensor& flat,
                         const Tensor& m,
                         const Tensor& v,
                         const TrainState& state) {
  const torch::NoGradGuard no_grad;
  load_weights(flat);
  m_.copy_(m);
  v_.copy_(v);
  adam_steps_ = state.adam_steps;
  loss_scale_ = state.loss_scale > 0 ? state.loss_scale : kLossScaleStart;
  loss_scale_steps_ = state.loss_scale_steps;
}

void Trainer::save_state(TrainState& state) const {
  state.adam_steps = adam_steps_;
  state.loss_scale = loss_scale_;
  state.loss_scale_steps = loss_scale_steps_;
}

std::vector<int64_t> Trainer::windows_of_step(int64_t step_idx) const {
  int64_t first = step_idx * options_.batch_sequences + options_.site.first_sequence;
  for (int rank = 0; rank < collective_->rank(); ++rank) {
    first += options_.site.devices[static_cast<size_t>(rank)].sequences;
  }
  std::vector<int64_t> windows(static_cast<size_t>(own_share().sequences));
  for (int64_t& window : windows) window = order_.sequence_of(first++);
  return windows;
}

/// Leaves the sum over this rank's tokens in gradient_ and returns the sum of their losses.
double Trainer::loss_and_gradient(int64_t step_idx) {
  const std::vector<int64_t> windows = windows_of_step(step_idx);
  const double scale = weights_.scalar_type() == torch::kHalf ? loss_scale_ : 1.0;
  const auto microbatch = static_cast<size_t>(std::max<int64_t>(own_share().microbatch, 1));
  gradient_.zero_();
  std::vector<Tensor> losses;  // read after the last microbatch: reading one waits for the device
  for (size_t begin = 0; begin < windows.size(); begin += microbatch) {
    const std::span<const int64_t> all(windows);
    const Batch batch = read_windows(*samples_,
                                     options_.sequence_length,
                                     all.subspan(begin, std::min(microbatch, all.size() - begin)));
    const Tensor loss = transformer_->loss_sum(batch.tokens.to(master_.device()),
                                               batch.targets.to(master_.device()));
    (scale == 1.0 ? loss : loss * scale).backward();
    parameters_->move_gradients_into(gradient_);
    losses.push_back(loss.detach());
  }
  if (scale != 1.0) gradient_.mul_(1.0 / scale);
  double loss_sum = 0;
  for (const Tensor& loss : losses) loss_sum += loss.item<double>();
  return loss_sum;
}

/// Norm of the mean gradient, the same number on every rank, and whether all ranks find loss and
/// gradient finite. The sums are the same bits everywhere, but unlike chips may treat an overflow
/// differently, and a step that one rank applies and another skips would part them for good.
bool Trainer::agree_on_norm(double& norm, double loss_sum, int64_t tokens) {
  const double own_norm = std::sqrt(chips::sum_of_squares(gradient_)) / static_cast<double>(tokens);
  const bool is_finite = std::isfinite(own_norm) && std::isfinite(loss_sum);
  std::vector<double> worst{is_finite ? 0.0 : 1.0, is_finite ? own_norm : 0.0};
  collective_->all_reduce_max(worst);
  const bool all_finite = worst[0] == 0.0;
  norm = all_finite ? worst[1] : std::numeric_limits<double>::quiet_NaN();
  return all_finite;
}

void Trainer::update(double lr, double grad_scale) {
  ++adam_steps_;
  for (const DecayRun& run : decay_runs_) {
    const int64_t length = run.end - run.begin;
    Tensor master = master_.narrow(0, run.begin, length);
    Tensor m = m_.narrow(0, run.begin, length);
    Tensor v = v_.narrow(0, run.begin, length);
    Tensor weights = weights_.narrow(0, run.begin, length);
    chips::adamw_step(master,
                      gradient_.narrow(0, run.begin, length),
                      m,
                      v,
                      weights,
                      {.lr = lr,
                       .beta1 = options_.train.beta1,
                       .beta2 = options_.train.beta2,
                       .eps = options_.train.eps,
                       .weight_decay = run.decays ? options_.train.weight_decay : 0.0,
                       .step = adam_steps_,
                       .grad_scale = grad_scale});
  }
}

void Trainer::adapt_loss_scale(bool skipped) {
  if (skipped) {
    loss_scale_ = std::max(loss_scale_ / 2, kLossScaleMin);
    loss_scale_steps_ = 0;
  } else if (++loss_scale_steps_ == kLossScaleSteps) {
    loss_scale_ = std::min(loss_scale_ * 2, kLossScaleMax);
    loss_scale_steps_ = 0;
  }
}

StepReport Trainer::step(int64_t step_idx) {
  const double begin_s = steady_now_s();
  const chips::DeviceStats before = device_->stats();
  Sums sums(options_.site.devices.size());
  sums.loss() = loss_and_gradient(step_idx);
  device_->synchronize();
  const double arrived_s = steady_now_s();
  const chips::DeviceStats computed = device_->stats();
  RankReport own = previous_;
  own.tokens = own_share().sequences * options_.sequence_length;
  own.compute_s += arrived_s - begin_s;
  own.late_s += computed.late_s - before.late_s;
  own.host_busy_s += computed.host_busy_s - before.host_busy_s;
  own.peak_memory_bytes = computed.peak_bytes;
  sums.put(static_cast<size_t>(collective_->rank()), own);

  const torch::NoGradGuard no_grad;
  collective_->all_reduce_sum(gradient_);
  collective_->all_reduce_sum(std::span<double>(sums.values));
  const double reduced_s = steady_now_s();
  StepReport report = apply_gradient(step_idx, sums);
  device_->synchronize();

  const double end_s = steady_now_s();
  const chips::DeviceStats after = device_->stats();
  previous_.compute_s = end_s - reduced_s;
  previous_.wait_ranks_s = reduced_s - arrived_s;
  previous_.late_s = after.late_s - computed.late_s;
  previous_.host_busy_s = after.host_busy_s - computed.host_busy_s;
  report.step_s = end_s - begin_s;
  return report;
}

/// Clips, checks and applies the reduced gradient, and fills a report but for its time.
StepReport Trainer::apply_gradient(int64_t step_idx, const Sums& sums) {
  StepReport report;
  report.site = options_.site.name;
  report.step = step_idx + 1;
  report.tokens = sums.tokens();
  const auto tokens = static_cast<double>(report.tokens);
  report.loss = sums.loss() / tokens;
  report.lr = options_.train.learning_rate(step_idx, options_.num_steps);
  report.skipped = !agree_on_norm(report.grad_norm, sums.loss(), report.tokens);
  if (!report.skipped) {
    const double clip_norm = options_.train.clip_norm;
    const bool clips = clip_norm > 0 && report.grad_norm > clip_norm;
    update(report.lr, (clips ? clip_norm / report.grad_norm : 1.0) / tokens);
  }
  adapt_loss_scale(report.skipped);
  report.reduce_s = std::numeric_limits<double>::infinity();
  for (size_t rank = 0; rank < options_.site.devices.size(); ++rank) {
    report.ranks.push_back(sums.get(rank, options_.site.devices[rank].device));
    // The rank that came last waited for nobody: its time is that of the reduction alone.
    report.reduce_s = std::min(report.reduce_s, report.ranks.back().wait_ranks_s);
  }
  return report;
}

void Trainer::refresh_weights(const Fragment& fragment) {
  if (weights_.is_same(master_)) return;
  const int64_t length = fragment.end - fragment.begin;
  weights_.narrow(0, fragment.begin, length).copy_(master_.narrow(0, fragment.begin, length));
}

void Trainer::align_ranks() {
  const torch::NoGradGuard no_grad;
  collective_->broadcast(master_, 0);
  collective_->broadcast(m_, 0);
  collective_->broadcast(v_, 0);
  refresh_weights({0, master_.numel()});
}

void Trainer::copy_fragment(const Fragment& fragment, std::span<float> out) const {
  copy_to_host(master_.narrow(0, fragment.begin, fragment.end - fragment.begin), out);
}

void Trainer::merge_fragment(const Fragment& fragment,
                             std::span<const float> global,
                             double alpha) {
  const torch::NoGradGuard no_grad;
  Tensor local = master_.narrow(0, fragment.begin, fragment.end - fragment.begin);
  if (collective_->rank() == 0) {
    const Tensor incoming = view_of(global).to(local.device());
    if (alpha == 0) {
      local.copy_(incoming);  // 0 * local would keep a NaN alive
    } else {
      local.mul_(alpha).add_(incoming, 1.0 - alpha);
    }
  }
  collective_->broadcast(local, 0);
  refresh_weights(fragment);
}

}  // namespace pelago::train
