#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <tuple>

#include "base/error.h"
#include "chips/torch.h"
#include "model/verify/model_run.h"
#include "model/verify/verification.h"

namespace pelago::model {
namespace {

constexpr const char* kF32 = "f32";
constexpr const char* kTraining = "training";

std::string row_name(const chips::OperatorCall& call) {
  const bool says_its_phase = call.op.starts_with("pelago::");
  return says_its_phase ? call.op : call.op + " " + call.phase;
}

void answer_in(c10::ScalarType dtype,
               const std::string& tag,
               const VerificationTask& task,
               chips::Device& device,
               DeviceAnswers& answers) {
  for (size_t call_idx = 0; call_idx < task.calls.size(); ++call_idx) {
    const chips::OperatorCall& call = task.calls[call_idx];
    const std::vector<Tensor> results = chips::replay(call, device.torch_device(), dtype);
    for (size_t i = 0; i < results.size(); ++i) {
      answers.tensors.emplace_back(
          fmt::format("{}/operator/{}/{}/{}", tag, call_idx, i, row_name(call)), results[i]);
    }
  }
  const ModelRun run = run_model(task, device.torch_device(), dtype, [](const char*) {});
  answers.tensors.emplace_back(tag + "/loss/of a token", run.loss);
  int64_t begin = 0;
  for (const ParameterSpec& spec : run.specs) {
    for (const auto& [part, flat] : {std::pair("gradient", run.gradient), {"step", run.step}}) {
      answers.tensors.emplace_back(fmt::format("{}/{}/{}", tag, part, spec.name),
                                   flat.narrow(0, begin, spec.num_values()).view(spec.shape));
    }
    begin += spec.num_values();
  }
}

/// "training/operator/3/0/aten::mm forward" -> {training, operator, aten::mm forward}.
struct AnswerName {
  std::string tag, part, name;
};
AnswerName parse(const std::string& text) {
  const size_t first = text.find('/');
  const size_t second = text.find('/', first + 1);
  PELAGO_ASSERT(second != std::string::npos, "answers are named by answer_in()");
  AnswerName name{text.substr(0, first), text.substr(first + 1, second - first - 1), ""};
  size_t begin = second + 1;
  for (int skipped = 0; name.part == "operator" && skipped < 2; ++skipped) {
    begin = text.find('/', begin) + 1;
  }
  name.name = text.substr(begin);
  return name;
}

std::string short_name(c10::ScalarType dtype) {
  return dtype == at::kBFloat16 ? "bf16" : dtype == at::kHalf ? "fp16" : "f32";
}

std::string dtypes_of(const std::string& tag, const DeviceAnswers& a, const DeviceAnswers& b) {
  const std::string one = tag == kF32 ? kF32 : short_name(a.training_dtype);
  const std::string other = tag == kF32 ? kF32 : short_name(b.training_dtype);
  return one == other ? one : one + "/" + other;
}

chips::DifferenceBound bound_of(const std::string& part, c10::ScalarType dtype) {
  if (part == "operator") return chips::operator_bound(dtype);
  if (part == "loss") return chips::loss_bound(dtype);
  return part == "gradient" ? chips::gradient_bound(dtype) : chips::step_bound(dtype);
}

}  // namespace

DeviceAnswers answer(chips::Device& device, const VerificationTask& task) {
  DeviceAnswers answers{.device = device.name(), .training_dtype = device.training_dtype()};
  answer_in(at::kFloat, kF32, task, device, answers);
  answer_in(device.training_dtype(), kTraining, task, device, answers);
  device.synchronize();
  return answers;
}

std::vector<VerificationRow> compare(const DeviceAnswers& found, const DeviceAnswers& wanted) {
  std::map<std::string, Tensor> others(wanted.tensors.begin(), wanted.tensors.end());
  std::vector<VerificationRow> rows;
  for (const auto& [text, tensor] : found.tensors) {
    const auto other = others.find(text);
    if (other == others.end() || found.tensors.size() != wanted.tensors.size()) {
      fail("{} and {} answered different tasks: {} is not in both",
           found.device,
           wanted.device,
           text);
    }
    const AnswerName name = parse(text);
    const bool is_f32 = name.tag == kF32;
    const c10::ScalarType dtype =
        is_f32 ? at::kFloat : chips::coarser(found.training_dtype, wanted.training_dtype);
    const std::string dtypes = dtypes_of(name.tag, found, wanted);
    auto row = std::ranges::find_if(rows, [&](const VerificationRow& known) {
      return known.part == name.part && known.name == name.name && known.dtypes == dtypes;
    });
    if (row == rows.end()) {
      rows.push_back({.part = name.part, .name = name.name, .dtypes = dtypes});
      row = rows.end() - 1;
      row->bound = bound_of(name.part, dtype);
    }
    const chips::Difference difference = chips::difference_of(tensor, other->second);
    ++row->num_results;
    row->difference.largest = std::max(row->difference.largest, difference.largest);
    row->difference.rms = std::max(row->difference.rms, difference.rms);
    row->verdict = chips::judge(row->difference, row->bound);
  }
  std::ranges::stable_sort(rows, {}, [](const VerificationRow& row) {
    const std::string order = "operator loss gradient step";
    return std::tuple(order.find(row.part), row.dtypes != kF32, row.name);
  });
  return rows;
}

}  // namespace pelago::model
