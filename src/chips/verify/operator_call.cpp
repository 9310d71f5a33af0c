// libtorch is shipped built with NDEBUG, and a RecordFunction read without it looks for a member
// that is not there. So this file takes what it needs of libtorch by itself.
#ifndef NDEBUG
#define NDEBUG
#endif

#include "chips/verify/operator_call.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <ATen/record_function.h>

#include <algorithm>

#include "base/error.h"

namespace pelago::chips {
namespace {

constexpr int64_t kLongVector = 1 << 20;

thread_local CallRecorder* the_recorder = nullptr;  // libtorch's observers are bare functions

bool is_kept(const std::string& op) {
  static const std::string kinds[] = {"aten::mm",
                                      "aten::addmm",
                                      "aten::bmm",
                                      "aten::baddbmm",
                                      "aten::embedding",
                                      "aten::index_add_"};
  return op.starts_with("pelago::") || std::ranges::find(kinds, op) != std::end(kinds);
}

bool works_number_by_number(const std::string& op) {
  return op == "pelago::adamw_" || op == "pelago::accumulate_" || op == "pelago::sum_of_squares";
}

CallArgument copy_of(const c10::IValue& value, bool cut_long) {
  if (value.isNone()) return std::monostate();
  if (value.isBool()) return value.toBool();
  if (value.isInt()) return value.toInt();
  if (value.isDouble()) return value.toDouble();
  PELAGO_ASSERT(value.isTensor(), "the operators that are kept take tensors and numbers");
  if (!value.toTensor().defined()) return std::monostate();
  const Tensor tensor = value.toTensor().detach();
  const bool is_long = cut_long && tensor.dim() == 1 && tensor.numel() > kLongVector;
  return (is_long ? tensor.narrow(0, 0, kLongVector) : tensor).clone();
}

std::string signature_of(const OperatorCall& call) {
  std::string signature = call.op + "." + call.overload + " " + call.phase;
  for (const CallArgument& argument : call.arguments) {
    const Tensor* const tensor = std::get_if<Tensor>(&argument);
    signature += " ";
    if (tensor == nullptr) continue;
    for (const int64_t extent : tensor->sizes()) signature += std::to_string(extent) + "x";
    signature += tensor->is_contiguous() ? "" : "t";
  }
  return signature;
}

}  // namespace

/// What libtorch calls before every operator of this thread.
struct CallObserver {
  static std::unique_ptr<at::ObserverContext> start(const at::RecordFunction& function) {
    CallRecorder* const recorder = the_recorder;
    const auto name = function.operator_name();
    if (recorder == nullptr || !name || !is_kept(name->name)) return nullptr;
    the_recorder = nullptr;  // copying calls operators too
    const at::NoGradGuard no_grad;
    OperatorCall call{name->name, name->overload_name, recorder->phase_, {}};
    const auto schema = c10::Dispatcher::singleton().findSchemaOrThrow(name->name.c_str(),
                                                                       name->overload_name.c_str());
    for (size_t i = 0; i < function.inputs().size(); ++i) {
      call.arguments.push_back(copy_of(function.inputs()[i], works_number_by_number(call.op)));
      // What an `out` holds before is memory that nobody set.
      const c10::Argument& argument = schema.schema().arguments()[i];
      const bool is_out = argument.kwarg_only() && argument.alias_info() != nullptr;
      Tensor* const tensor = std::get_if<Tensor>(&call.arguments.back());
      if (is_out && tensor != nullptr) tensor->zero_();
    }
    const std::string signature = signature_of(call);
    if (std::ranges::find(recorder->seen_, signature) == recorder->seen_.end()) {
      recorder->seen_.push_back(signature);
      recorder->calls_.push_back(std::move(call));
    }
    the_recorder = recorder;
    return nullptr;
  }
};

CallRecorder::CallRecorder() {
  PELAGO_ASSERT(the_recorder == nullptr, "one recorder at a time a thread");
  the_recorder = this;
  handle_ = at::addThreadLocalCallback(at::RecordFunctionCallback(&CallObserver::start)
                                           .needsInputs(true)
                                           .scopes({at::RecordScope::FUNCTION}));
}

CallRecorder::~CallRecorder() {
  at::removeCallback(handle_);
  the_recorder = nullptr;
}

std::vector<Tensor> replay(const OperatorCall& call, c10::Device device, c10::ScalarType dtype) {
  const at::NoGradGuard no_grad;
  const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow(call.op.c_str(), call.overload.c_str());
  torch::jit::Stack stack;
  std::vector<Tensor> written;
  for (size_t i = 0; i < call.arguments.size(); ++i) {
    const CallArgument& argument = call.arguments[i];
    if (const Tensor* const given = std::get_if<Tensor>(&argument)) {
      const bool is_rounded = given->scalar_type() == at::kBFloat16;
      // A copy even on the CPU: the given tensor may be a file that nobody may write to.
      const Tensor tensor =
          given->to(at::TensorOptions(device).dtype(is_rounded ? dtype : given->scalar_type()),
                    /*non_blocking=*/false,
                    /*copy=*/true);
      const c10::AliasInfo* const alias = op.schema().arguments()[i].alias_info();
      if (alias != nullptr && alias->isWrite()) written.push_back(tensor);
      stack.emplace_back(tensor);
    } else if (const double* const number = std::get_if<double>(&argument)) {
      stack.emplace_back(*number);
    } else if (const int64_t* const integer = std::get_if<int64_t>(&argument)) {
      stack.emplace_back(*integer);
    } else if (const bool* const flag = std::get_if<bool>(&argument)) {
      stack.emplace_back(*flag);
    } else {
      stack.emplace_back();
    }
  }
  op.callBoxed(&stack);
  std::vector<Tensor> results;
  for (const c10::IValue& value : stack) {
    const bool is_new = value.isTensor() && value.toTensor().defined() &&
                        std::ranges::none_of(written, [&](const Tensor& tensor) {
                          return tensor.is_same(value.toTensor());
                        });
    if (is_new) results.push_back(value.toTensor().cpu());
  }
  for (const Tensor& tensor : written) results.push_back(tensor.cpu());
  return results;
}

}  // namespace pelago::chips
