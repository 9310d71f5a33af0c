// Does this chip compute right? A few operators on made-up numbers whose answers are known in f64.
// A chip can be wrong without a word: one element of one matmul, one core among many, one day
// (arXiv:2102.11245, "Cores that don't count"). Workers ask when they join and when they are idle.
//
// The numbers are multiples of 1/128 within [-1, 1]. Those are exact in every dtype, the short
// inputs of TF32 included, and a sum of up to 256 products of them is exact in f32 whatever the
// order. So a matmul may differ from the true answer by nothing but the rounding of its result, and
// a single wrong element stands out unless it is off by less than a hundredth of its neighbours.
#pragma once

#include <c10/core/ScalarType.h>

#include <functional>
#include <string>
#include <vector>

#include "chips/device.h"
#include "chips/tensor.h"

namespace pelago::chips {

/// What a device answered to one question.
struct KnownAnswer {
  std::string op;         // "matmul", "softmax", "sum", "rms_norm", "attention"
  c10::ScalarType dtype;  // of inputs and answer
  double difference = 0;  // the largest |answer - truth| / max(|truth|, rms of truth); inf for NaN
  double bound = 0;       // what rounding may explain
  bool is_right() const { return difference <= bound; }
  /// "matmul in BFloat16 is off by 0.3 of its magnitude, allowed is 0.0078"
  std::string to_string() const;
};

/// Holds nothing of the device between runs; a run needs about 1 MB of it, takes some 10 ms of an
/// idle processor and gives the same answers every time. The device outlives it, and no other
/// thread uses the device meanwhile.
class KnownAnswerTest {
 public:
  explicit KnownAnswerTest(Device& device);
  /// Every question once: the matmul in f32, fp16 and bf16 as far as the chip has them, the others
  /// in f32 and the training dtype. Throws c10::Error if the device refuses one.
  std::vector<KnownAnswer> run();

 private:
  struct Question {
    std::string op;
    c10::ScalarType dtype;
    double bound;
    std::vector<Tensor> inputs;  // on the host
    std::vector<double> truth;
    std::function<Tensor(const std::vector<Tensor>& inputs)> ask;
  };
  void add_matmul(c10::ScalarType dtype);
  void add_rows(c10::ScalarType dtype);
  void add_attention(c10::ScalarType dtype);
  Tensor ask(const Question& question) const;

  Device* device_;
  std::vector<Question> questions_;
};

/// What is wrong first, or nothing.
std::string first_fault(const std::vector<KnownAnswer>& answers);

}  // namespace pelago::chips
