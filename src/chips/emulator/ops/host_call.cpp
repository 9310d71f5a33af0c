#include "chips/emulator/ops/host_call.h"

#include <algorithm>
#include <cmath>
#include <ctime>
#include <optional>
#include <string_view>

#include "chips/emulator/machine.h"
#include "chips/emulator/memory.h"
#include "chips/emulator/ops/op_traits.h"
#include "chips/torch.h"

namespace pelago::emulator {
namespace {

using c10::IValue;
constexpr c10::DispatchKeySet kHostKeys(c10::DispatchKey::CPU);

double thread_cpu_s() {
  timespec used{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used);
  return static_cast<double>(used.tv_sec) + 1e-9 * static_cast<double>(used.tv_nsec);
}

/// The value with every tensor in it replaced by change(tensor).
template <typename Change>
IValue with_tensors(const IValue& value, const Change& change) {
  if (value.isTensor()) return change(value.toTensor());
  if (value.isTensorList()) {
    c10::List<at::Tensor> changed;
    for (const at::Tensor& tensor : value.toTensorVector()) changed.push_back(change(tensor));
    return changed;
  }
  if (value.isOptionalTensorList()) {
    c10::List<c10::optional<at::Tensor>> changed;
    for (const c10::optional<at::Tensor>& tensor : value.toOptionalTensorVector()) {
      changed.push_back(tensor ? c10::make_optional(change(*tensor)) : c10::nullopt);
    }
    return changed;
  }
  return value;
}

/// One call of an operator: its arguments as seen by the chip and by the host.
class HostCall {
 public:
  HostCall(const c10::OperatorHandle& op, OpTraits& traits, torch::jit::Stack& stack)
      : op_(op), traits_(traits), stack_(stack), first_(stack.size() - traits.num_arguments) {}

  void run() {
    bring_arguments();
    if (traits_.host_waits) machine().synchronize();
    machine().begin_work();
    const double start_s = thread_cpu_s();
    call_kernel();
    const double host_s = thread_cpu_s() - start_s;
    if (traits_.cost == CostKind::kMatmul) spoil_result();
    c10::SmallVector<at::Tensor, 4> outputs;
    take_results(outputs);
    machine().end_work(
        cost_of(traits_, {arguments_.data(), arguments_.size()}, {outputs.data(), outputs.size()}),
        host_s);
  }

 private:
  void bring_arguments() {
    for (size_t i = 0; i < traits_.num_arguments; ++i) {
      IValue& value = stack_[first_ + i];
      if (value.isTensor() || value.isList()) {
        value = with_tensors(value, [&](const at::Tensor& tensor) { return to_host(tensor, i); });
      } else if (value.isDevice()) {
        if (value.toDevice().type() == chip_device().type()) value = c10::Device(at::kCPU);
      }
    }
  }

  at::Tensor to_host(const at::Tensor& tensor, size_t argument_idx) {
    if (!tensor.defined()) return tensor;
    if (!is_on_chip(tensor)) {
      // A single number or a small index may come from the host on real chips too.
      TORCH_CHECK(tensor.dim() == 0 || traits_.cost == CostKind::kGather ||
                      at::isIntegralType(tensor.scalar_type(), /*includeBool=*/true),
                  op_.operator_name(),
                  ": expected all tensors on the emulated chip, found one of shape ",
                  tensor.sizes(),
                  " on ",
                  tensor.device());
      return tensor;
    }
    at::Tensor host = host_alias(tensor);
    has_half_ |= host.scalar_type() == at::kHalf;
    const auto is_in = [&](uint64_t mask) {
      return argument_idx < 64 && ((mask >> argument_idx) & 1) != 0;
    };
    arguments_.push_back({.on_chip = tensor,
                          .host = host,
                          .argument_idx = static_cast<int>(argument_idx),
                          .is_written = is_in(traits_.written),
                          .is_read = !is_in(traits_.write_only)});
    return host;
  }

  void call_kernel() {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    if (!has_half_) return op_.redispatchBoxed(kHostKeys, &stack_);
    if (!traits_.half_as_f32) {
      const auto begin = stack_.begin() + static_cast<std::ptrdiff_t>(first_);
      const std::vector<IValue> given(begin, stack_.end());
      try {
        return op_.redispatchBoxed(kHostKeys, &stack_);
      } catch (const c10::Error& error) {
        // libtorch's words for a kernel that lacks a dtype.
        const std::string_view what = error.what_without_backtrace();
        if (what.find("not implemented for 'Half'") == std::string_view::npos) throw;
        traits_.half_as_f32 = true;
        stack_.resize(first_);
        stack_.insert(stack_.end(), given.begin(), given.end());
      }
    }
    call_in_f32();
  }

  /// fp16 in, f32 arithmetic, fp16 out, as matrix units of fp16 chips do it.
  void call_in_f32() {
    struct Widened {
      at::Tensor narrow;
      at::Tensor wide;
    };
    std::vector<Widened> widened;
    for (size_t i = 0; i < traits_.num_arguments; ++i) {
      IValue& value = stack_[first_ + i];
      const bool is_dtype = i < 64 && ((traits_.dtypes >> i) & 1) != 0;
      if (is_dtype && value.isInt() && value.toInt() == static_cast<int64_t>(at::kHalf)) {
        value = static_cast<int64_t>(at::kFloat);
      }
      value = with_tensors(value, [&](const at::Tensor& tensor) {
        if (!tensor.defined() || tensor.scalar_type() != at::kHalf) return tensor;
        widened.push_back({tensor, tensor.to(at::kFloat)});
        return widened.back().wide;
      });
    }
    op_.redispatchBoxed(kHostKeys, &stack_);
    for (TensorArgument& argument : arguments_) {
      if (!argument.is_written) continue;
      for (const Widened& pair : widened) {
        if (pair.narrow.is_same(argument.host)) {
          argument.host.resize_(pair.wide.sizes()).copy_(pair.wide);
        }
      }
    }
    for (size_t i = 0; i < traits_.num_returns; ++i) {
      IValue& value = stack_[first_ + i];
      const bool stays_f32 = ((traits_.f32_outputs >> i) & 1) != 0;
      value = with_tensors(value, [&](const at::Tensor& tensor) {
        for (const Widened& pair : widened) {
          if (pair.wide.is_same(tensor)) return pair.narrow;
        }
        if (stays_f32 || !tensor.defined() || tensor.scalar_type() != at::kFloat) return tensor;
        return tensor.to(at::kHalf);
      });
    }
  }

  /// Makes one element wrong where a fault on order says so.
  void spoil_result() {
    const at::Tensor& result = stack_[first_].toTensor();
    if (result.numel() == 0) return;
    const std::optional<WrongElement> wrong = machine().take_wrong_element();
    if (!wrong) return;
    at::Tensor element = result;  // [] in the end
    auto rest = static_cast<int64_t>(wrong->draw % static_cast<uint64_t>(result.numel()));
    for (const int64_t length : result.sizes()) {
      element = element.select(0, rest % length);
      rest /= length;
    }
    const double value = element.item().toDouble();
    // Copied, since filling refuses what overflows the dtype.
    element.copy_(at::scalar_tensor(value + wrong->value * std::max(1.0, std::abs(value)),
                                    at::device(at::kCPU).dtype(at::kDouble)));
  }

  /// Gives the results to the chip. new_outputs: those that are no argument.
  void take_results(c10::SmallVector<at::Tensor, 4>& new_outputs) {
    for (const TensorArgument& argument : arguments_) {
      if (argument.is_written) follow_host(argument.on_chip, argument.host);
    }
    for (size_t i = 0; i < traits_.num_returns; ++i) {
      IValue& value = stack_[first_ + i];
      if (!value.isTensor() && !value.isList()) continue;
      value = with_tensors(value,
                           [&](const at::Tensor& tensor) { return to_chip(tensor, new_outputs); });
    }
  }

  at::Tensor to_chip(const at::Tensor& result, c10::SmallVector<at::Tensor, 4>& new_outputs) {
    if (!result.defined()) return result;
    for (const TensorArgument& argument : arguments_) {
      if (argument.host.is_same(result)) return argument.on_chip;
    }
    new_outputs.push_back(result);
    for (const TensorArgument& argument : arguments_) {
      if (argument.host.storage().is_alias_of(result.storage())) {
        return view_like(argument.on_chip, result);
      }
    }
    return adopt(result);
  }

  const c10::OperatorHandle& op_;
  OpTraits& traits_;
  torch::jit::Stack& stack_;
  const size_t first_;  // where the arguments begin on the stack, and later the results
  TensorArguments arguments_;
  bool has_half_ = false;
};

}  // namespace

void run_on_host(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
  HostCall(op, traits_of(op), *stack).run();
}

at::Tensor copy_between(const at::Tensor& from, const at::Tensor& to, bool /*non_blocking*/) {
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  const auto num_bytes = to.numel() * static_cast<int64_t>(to.element_size());
  machine().begin_work();
  if (!is_on_chip(to)) {
    machine().copy_to_host(machine().mark(), num_bytes);
    machine().synchronize();
    to.copy_(host_alias(from));
    return to;
  }
  const double start_s = thread_cpu_s();
  if (!is_on_chip(from)) {
    host_alias(to).copy_(from);
    machine().copy_to_chip_in_turn(num_bytes, thread_cpu_s() - start_s);
    return to;
  }
  host_alias(to).copy_(host_alias(from));
  machine().end_work({.bytes = 2.0 * static_cast<double>(num_bytes)}, thread_cpu_s() - start_s);
  return to;
}

}  // namespace pelago::emulator
