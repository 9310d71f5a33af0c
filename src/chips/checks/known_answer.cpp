#include "chips/checks/known_answer.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <span>

#include "base/rng.h"
#include "chips/kernels.h"
#include "chips/reference/reference.h"
#include "chips/torch.h"

namespace pelago::chips {
namespace {

using Values = std::vector<double>;

// Primes: kernels are most often wrong at the edges of their tiles.
constexpr int64_t kRows = 389;
constexpr int64_t kInner = 256;  // more, and the products' sum is no longer exact in f32
constexpr int64_t kColumns = 331;
constexpr int64_t kFewRows = 61;  // of the operators that work on rows

constexpr reference::HeadShape kHeads = {
    .batch = 1, .tokens = 47, .all_tokens = 47, .heads = 4, .key_heads = 2, .head_dim = 64};

Values made_up(const char* name, int64_t num_values) {
  Rng rng = Rng(20240229).fork(name);
  Values values(static_cast<size_t>(num_values));
  for (double& value : values) value = (static_cast<double>(rng.next_below(257)) - 128) / 128;
  return values;
}

Values matmul(const Values& left, const Values& right) {
  Values product(static_cast<size_t>(kRows * kColumns));
  for (int64_t i = 0; i < kRows; ++i) {
    double* const row = product.data() + i * kColumns;
    for (int64_t k = 0; k < kInner; ++k) {
      const double factor = left[static_cast<size_t>(i * kInner + k)];
      const double* const other = right.data() + k * kColumns;
      for (int64_t j = 0; j < kColumns; ++j) row[j] += factor * other[j];
    }
  }
  return product;
}

Values softmax(Values values) {
  for (size_t begin = 0; begin < values.size(); begin += kColumns) {
    const std::span row(values.data() + begin, static_cast<size_t>(kColumns));
    double sum = 0;
    for (double& value : row) sum += value = std::exp(value);
    for (double& value : row) value /= sum;
  }
  return values;
}

Values row_sums(const Values& values) {
  Values sums;
  for (size_t begin = 0; begin < values.size(); begin += kColumns) {
    double sum = 0;
    for (size_t i = begin; i < begin + kColumns; ++i) sum += values[i];
    sums.push_back(sum);
  }
  return sums;
}

/// The largest relative error of one rounding.
double rounding_of(c10::ScalarType dtype) {
  return dtype == at::kBFloat16 ? 0x1p-8 : dtype == at::kHalf ? 0x1p-11 : 0x1p-24;
}

Tensor on_host(const Values& values, at::IntArrayRef sizes, c10::ScalarType dtype) {
  return at::from_blob(const_cast<double*>(values.data()), sizes, at::TensorOptions(at::kDouble))
      .to(dtype);
}

double largest_difference(const Tensor& answer, const Values& truth) {
  const Tensor host = answer.cpu().to(at::kDouble).contiguous();
  const std::span found(host.data_ptr<double>(), static_cast<size_t>(host.numel()));
  if (found.size() != truth.size()) return HUGE_VAL;
  double squares = 0;
  for (const double value : truth) squares += value * value;
  const double rms = std::sqrt(squares / static_cast<double>(truth.size()));
  double largest = 0;
  for (size_t i = 0; i < truth.size(); ++i) {
    const double difference = std::abs(found[i] - truth[i]) / std::max(std::abs(truth[i]), rms);
    if (!(difference <= largest)) largest = std::isnan(difference) ? HUGE_VAL : difference;
  }
  return largest;
}

}  // namespace

std::string KnownAnswer::to_string() const {
  return fmt::format("{} in {} is off by {:.2g} of its magnitude, allowed is {:.2g}",
                     op,
                     c10::toString(dtype),
                     difference,
                     bound);
}

KnownAnswerTest::KnownAnswerTest(Device& device) : device_(&device) {
  const c10::ScalarType training = device.training_dtype();
  for (const c10::ScalarType dtype : {at::kFloat, at::kHalf, at::kBFloat16}) {
    if (dtype == at::kBFloat16 && training != dtype) continue;
    add_matmul(dtype);
    if (dtype == training || dtype == at::kFloat) continue;
    try {
      ask(questions_.back());
    } catch (const c10::Error&) {
      questions_.pop_back();  // CPUs have no fp16 matmul in libtorch 1.13
    }
  }
  for (const c10::ScalarType dtype : {at::kFloat, training}) {
    add_rows(dtype);
    add_attention(dtype);
    if (training == at::kFloat) break;
  }
}

Tensor KnownAnswerTest::ask(const Question& question) const {
  std::vector<Tensor> inputs;
  for (const Tensor& input : question.inputs) inputs.push_back(input.to(device_->torch_device()));
  return question.ask(inputs);
}

void KnownAnswerTest::add_matmul(c10::ScalarType dtype) {
  const Values left = made_up("left", kRows * kInner);
  const Values right = made_up("right", kInner * kColumns);
  // One rounding is what must be; the second is for chips that add parts of a sum in 16 bits.
  const double bound = dtype == at::kFloat ? 1e-6 : 2 * rounding_of(dtype);
  questions_.push_back(
      {"matmul",
       dtype,
       bound,
       {on_host(left, {kRows, kInner}, dtype), on_host(right, {kInner, kColumns}, dtype)},
       matmul(left, right),
       [](const std::vector<Tensor>& inputs) { return at::mm(inputs[0], inputs[1]); }});
}

void KnownAnswerTest::add_rows(c10::ScalarType dtype) {
  const Values rows = made_up("rows", kFewRows * kColumns);
  const Values weight = made_up("weight", kColumns);
  const Tensor x = on_host(rows, {kFewRows, kColumns}, dtype);  // [61,331]
  // 16 bits: the result's rounding and that of a chip's intermediate results. f32: exp and 1/sqrt
  // of chips are good to some 2^-20.
  const double bound = dtype == at::kFloat ? 1e-5 : 4 * rounding_of(dtype);
  questions_.push_back({"softmax", dtype, bound, {x}, softmax(rows), [](const auto& inputs) {
                          return at::softmax(inputs[0], -1);
                        }});
  questions_.push_back({"sum", dtype, bound, {x}, row_sums(rows), [](const auto& inputs) {
                          return at::sum(inputs[0], 1);
                        }});
  constexpr double kEps = 1e-6;
  questions_.push_back({"rms_norm",
                        dtype,
                        bound,
                        {x, on_host(weight, {kColumns}, dtype)},
                        reference::rms_norm(rows, weight, kEps),
                        [](const auto& inputs) { return rms_norm(inputs[0], inputs[1], kEps); }});
}

void KnownAnswerTest::add_attention(c10::ScalarType dtype) {
  const auto size_of = [](int64_t heads) { return kHeads.tokens * heads * kHeads.head_dim; };
  const Values q = made_up("q", size_of(kHeads.heads));
  const Values k = made_up("k", size_of(kHeads.key_heads));
  const Values v = made_up("v", size_of(kHeads.key_heads));
  const auto put = [&](const Values& values, int64_t heads) {
    return on_host(values, {1, kHeads.tokens, heads, kHeads.head_dim}, dtype);
  };
  // Scores of up to 2 and their exponentials are rounded to 16 bits where a chip composes attention
  // of other operators.
  const double bound = dtype == at::kFloat ? 1e-4 : 8 * rounding_of(dtype);
  questions_.push_back(
      {"attention",
       dtype,
       bound,
       {put(q, kHeads.heads), put(k, kHeads.key_heads), put(v, kHeads.key_heads)},
       reference::attention(q, k, v, kHeads),
       [](const auto& inputs) { return attention(inputs[0], inputs[1], inputs[2]); }});
}

std::vector<KnownAnswer> KnownAnswerTest::run() {
  const at::NoGradGuard no_grad;
  std::vector<KnownAnswer> answers;
  for (const Question& question : questions_) {
    const Tensor answer = ask(question);
    answers.push_back({.op = question.op,
                       .dtype = question.dtype,
                       .difference = largest_difference(answer, question.truth),
                       .bound = question.bound});
  }
  return answers;
}

std::string first_fault(const std::vector<KnownAnswer>& answers) {
  const auto wrong = std::ranges::find_if_not(answers, &KnownAnswer::is_right);
  return wrong == answers.end() ? "" : wrong->to_string();
}

}  // namespace pelago::chips
