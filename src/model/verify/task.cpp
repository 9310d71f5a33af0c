#include "base/error.h"
#include "base/rng.h"
#include "chips/kernels.h"
#include "chips/torch.h"
#include "model/parameters.h"
#include "model/transformer.h"
#include "model/verify/model_run.h"
#include "model/verify/verification.h"

namespace pelago::model {
namespace {

Tensor made_up_tokens(const ModelConfig& config, const BatchShape& batch) {
  Rng rng = Rng(batch.seed).fork("verify");
  const Tensor tokens = at::empty({batch.sequences, batch.tokens + 1}, at::kLong);
  int64_t* const values = tokens.data_ptr<int64_t>();
  for (int64_t i = 0; i < tokens.numel(); ++i) {
    values[i] = static_cast<int64_t>(rng.next_below(static_cast<uint64_t>(config.vocab_size)));
  }
  return tokens;
}

}  // namespace

VerificationTask make_task(const ModelConfig& config,
                           const Tensor& weights,
                           const BatchShape& batch) {
  if (batch.sequences < 1 || batch.tokens < 1 || batch.tokens > config.max_position_embeddings) {
    fail_usage("a batch of {} sequences of {} tokens: the model takes 1 to {} tokens",
               batch.sequences,
               batch.tokens,
               config.max_position_embeddings);
  }
  VerificationTask task;
  task.config = config;
  task.weights = weights.to(at::kBFloat16).to(at::kFloat);
  const Tensor tokens = made_up_tokens(config, batch);
  task.tokens = tokens.narrow(1, 0, batch.tokens).contiguous();
  task.targets = tokens.narrow(1, 1, batch.tokens).contiguous();
  chips::CallRecorder recorder;
  run_model(task, at::kCPU, at::kBFloat16, [&](const char* phase) { recorder.enter_phase(phase); });
  task.calls = recorder.calls();
  return task;
}

ModelRun run_model(const VerificationTask& task,
                   c10::Device device,
                   c10::ScalarType dtype,
                   const std::function<void(const char* phase)>& enter_phase) {
  const auto f32 = at::TensorOptions(device).dtype(at::kFloat);
  Tensor master = task.weights.to(f32, /*non_blocking=*/false, /*copy=*/true);  // [N]
  Tensor weights = dtype == at::kFloat ? master : master.to(dtype);             // [N]
  Parameters parameters(task.config, weights);
  const Transformer transformer(task.config, parameters);
  // fp16 gradients of single tokens would fall below its smallest number.
  const double loss_scale = dtype == at::kHalf ? 64 : 1;
  const auto num_tokens = static_cast<double>(task.tokens.numel());

  enter_phase("forward");
  const Tensor loss = transformer.loss_sum(task.tokens.to(device), task.targets.to(device));
  enter_phase("backward");
  (loss * loss_scale).backward();
  Tensor gradient = at::zeros_like(master);  // [N]
  parameters.move_gradients_into(gradient);
  enter_phase("step");
  const torch::NoGradGuard no_grad;
  chips::sum_of_squares(gradient);
  Tensor m = at::zeros_like(master);
  Tensor v = at::zeros_like(master);
  const Tensor before = master.cpu().clone();
  constexpr double kLearningRate = 1e-3;
  chips::adamw_step(master,
                    gradient,
                    m,
                    v,
                    weights,
                    {.lr = kLearningRate, .grad_scale = 1 / (num_tokens * loss_scale)});
  return {.loss = loss.detach().cpu() / num_tokens,
          .gradient = gradient.cpu() / (num_tokens * loss_scale),
          .step = master.cpu() - before,
          .specs = parameter_specs(task.config)};
}

}  // namespace pelago::model
