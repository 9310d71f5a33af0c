// Do two devices make the same of one model? The model runs once on the CPU, and every operator in
// that run is kept with its inputs. Each device then makes the same calls again, and runs the whole
// model, backward pass and one step of the optimizer included. The answers are compared name by
// name. Devices of different vendors need a process each, so all of it goes through files.
#pragma once

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "chips/device.h"
#include "chips/tensor.h"
#include "chips/verify/difference.h"
#include "chips/verify/operator_call.h"
#include "model/config.h"

namespace pelago::model {

/// What both devices are given.
struct VerificationTask {
  ModelConfig config;
  Tensor weights;          // f32 [N] on the CPU, every value exact in bf16
  Tensor tokens, targets;  // [B,T] int64
  std::vector<chips::OperatorCall> calls;
};

struct BatchShape {
  int64_t sequences = 2;
  int64_t tokens = 64;  // of each
  uint64_t seed = 1;    // of the tokens, which are made up
};
/// Runs the model on the CPU in bf16 and keeps its calls. weights: f32 [N]; they are rounded to
/// bf16.
VerificationTask make_task(const ModelConfig& config,
                           const Tensor& weights,
                           const BatchShape& batch);

/// To and from a folder that exists: config.json and task.safetensors. Throws Failure.
void write_task(const VerificationTask& task, const std::filesystem::path& folder);
VerificationTask read_task(const std::filesystem::path& folder);

/// What one device makes of it, in f32 and, if that is another, in its training dtype.
struct DeviceAnswers {
  std::string device;
  c10::ScalarType training_dtype = c10::ScalarType::Float;
  /// "f32/operator/3/0/pelago::attention", "training/gradient/lm_head.weight", ...; on the CPU.
  std::vector<std::pair<std::string, Tensor>> tensors = {};
};
/// Throws c10::Error if the device refuses an operator or has too little memory.
DeviceAnswers answer(chips::Device& device, const VerificationTask& task);
/// Throws Failure.
void write_answers(const DeviceAnswers& answers, const std::filesystem::path& file);
DeviceAnswers read_answers(const std::filesystem::path& file);

/// One line of the result: an operator with all its calls, or one tensor of the whole model.
struct VerificationRow {
  std::string part;    // "operator", "loss", "gradient" or "step"
  std::string name;    // "pelago::attention", "aten::mm backward", a parameter's name
  std::string dtypes;  // "f32", "bf16", "bf16/fp16"
  int num_results = 0;
  chips::Difference difference = {};  // the largest of its results
  chips::DifferenceBound bound = {};
  chips::Verdict verdict = chips::Verdict::kOk;
};
/// found against wanted. Throws Failure if they do not answer the same task.
std::vector<VerificationRow> compare(const DeviceAnswers& found, const DeviceAnswers& wanted);

}  // namespace pelago::model
