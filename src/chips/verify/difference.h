// How far two devices' answers lie apart, and how far they may. TeleChat3 (arXiv:2512.24157) tells
// how a model that moved to another maker's chips was checked operator by operator: most faults
// were wrong in one operator, in few elements, and invisible in the loss for hundreds of steps.
#pragma once

#include <c10/core/ScalarType.h>

#include <string>

#include "chips/tensor.h"

namespace pelago::chips {

struct Difference {
  double largest = 0;  // max |a - b| / max |b|
  double rms = 0;      // rms of a - b / rms of b
};
/// Of any dtypes and the same number of values, on the CPU. Infinite where a value is not finite in
/// one of them alone, or where shapes differ.
Difference difference_of(const Tensor& a, const Tensor& b);

enum class Verdict { kOk, kWarn, kFail };

/// What a difference may be: beyond `warn` somebody should look, beyond `fail` one of the two is
/// wrong.
struct DifferenceBound {
  Difference warn, fail;
};
Verdict judge(const Difference& difference, const DifferenceBound& bound);

/// For one operator on the same inputs. dtype: the coarser of the two devices'.
DifferenceBound operator_bound(c10::ScalarType dtype);
/// For what a whole model makes of the same weights and tokens.
DifferenceBound loss_bound(c10::ScalarType dtype);
DifferenceBound gradient_bound(c10::ScalarType dtype);
/// For the first step of AdamW, as the change of the weights. Its size is that of the learning rate
/// whatever the gradient's, so where a gradient is near zero its sign, and with it the change, may
/// differ by chance: only the rms counts.
DifferenceBound step_bound(c10::ScalarType dtype);

/// Of f32, fp16 and bf16 the one with fewer digits.
c10::ScalarType coarser(c10::ScalarType a, c10::ScalarType b);

}  // namespace pelago::chips
