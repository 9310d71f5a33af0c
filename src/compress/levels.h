// A matrix in few bits: levels of 4 or 8 bits with one f16 scale a group of inputs, symmetric.
// Rounding to nearest looks at the weights alone. GPTQ (arXiv:2210.17323) goes column by column and
// moves what a column lost into the columns not yet rounded, as far as the layer's inputs on a
// calibration set say that they can make up for it.
#pragma once

#include "chips/tensor.h"
#include "model/quantisation.h"

namespace pelago::compress {

struct QuantisedMatrix {
  Tensor levels;   // U8 [Out,In]: level + 2^(bits-1)
  Tensor scales;   // F16 [Out, In / group]
  Tensor numbers;  // F32 [Out,In]: what they stand for
};

/// weight: [Out,In] f32, In a multiple of the group. Of 4 bits a scale is that of 13 candidates,
/// 0.7 to 1 of the range, which leaves the least squared error.
QuantisedMatrix round_to_nearest(const Tensor& weight, const model::Quantisation& format);

/// inputs_squared: [In,In] f64, the sum of x x^T over the layer's inputs on the calibration set.
/// damping: of the mean of its diagonal, added to it (the paper's 0.01).
QuantisedMatrix gptq(const Tensor& weight,
                     const Tensor& inputs_squared,
                     const model::Quantisation& format,
                     double damping);

/// Levels as they are stored: I32 [Out, In * bits / 32].
Tensor pack_levels(const Tensor& levels, int bits);

}  // namespace pelago::compress
