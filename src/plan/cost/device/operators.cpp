#include "plan/cost/device/operators.h"

#include <algorithm>

namespace pelago::plan {

namespace {

class Operators {
 public:
  explicit Operators(const DeviceRates& rates) : rates_(rates) {}

  /// [rows,inner] x [inner,columns].
  void product(double rows, double inner, double columns) {
    const double values = rows * inner + inner * columns + rows * columns;
    add(2 * rows * inner * columns, rates_.value_bytes * values);
  }
  /// The two products of going back through one.
  void product_backward(double rows, double inner, double columns) {
    product(rows, columns, inner);
    product(columns, rows, inner);
  }
  /// Rows shared out over matrices of so many experts.
  void grouped_product(double experts, double rows, double inner, double columns) {
    const double values = rows * inner + experts * inner * columns + rows * columns;
    add(2 * rows * inner * columns, rates_.value_bytes * values);
  }
  void grouped_backward(double experts, double rows, double inner, double columns) {
    grouped_product(experts, rows, columns, inner);
    grouped_product(experts, rows, inner, columns);
  }
  /// Reads and writes so many values of the training dtype.
  void pass(double values) { add(0, rates_.value_bytes * values); }
  /// The same in bytes.
  void pass_bytes(double bytes) { add(0, bytes); }

  void add(double flops, double bytes) {
    const double compute_s = flops / rates_.flop_s;
    const double memory_s = bytes / rates_.bytes_s;
    (compute_s >= memory_s ? time_.compute_s : time_.memory_s) +=
        compute_s >= memory_s ? compute_s : memory_s;
    time_.launch_s += rates_.launch_s;
  }
  OperatorTime time() const { return time_; }

 private:
  DeviceRates rates_;
  OperatorTime time_;
};

/// Two products over the pairs of query and earlier key.
double attention_flops(const ModelSizes& sizes, double sequences) {
  return 4 * sequences * sizes.tokens * (sizes.tokens + 1) / 2 * sizes.query;
}

/// Five times the smaller side's square (2 s^2 l), its square (2 s^3) and the product with the
/// matrix (2 s^2 l).
constexpr int kNewtonSchulz = 5;

void muon_matrix(double rows, double columns, const DeviceRates& rates, Operators& operators) {
  const double values = rows * columns;
  const double small = std::min(rows, columns), large = std::max(rows, columns);
  const bool is_f32 = rates.value_bytes == 4;
  // Broken moments: |m|, its bound, the opposite, and what is filled in.
  for (const double bytes : {8, 5, 2, 9}) operators.pass_bytes(bytes * values);
  // Momentum, twice; the scaled gradient, and the momentum added to it.
  for (const double bytes : {8, 12, 8, 12}) operators.pass_bytes(bytes * values);
  // The norm, its floor, the quotient, and the rounded matrix.
  for (const double bytes : {4, 0, 8}) operators.pass_bytes(bytes * values);
  if (!is_f32) operators.pass_bytes((4 + rates.value_bytes) * values);
  if (rows > columns) operators.pass(2 * values);
  for (int i = 0; i < kNewtonSchulz; ++i) {
    operators.product(small, large, small);
    // What is added is read too.
    operators.add(2 * small * small * small, rates.value_bytes * 4 * small * small);
    operators.add(2 * small * small * large, rates.value_bytes * (3 * values + small * small));
  }
  // Its length, the bound, the opposite, what is filled in.
  operators.pass(values);
  for (int i = 0; i < 2; ++i) operators.pass(0);
  operators.pass(2 * values);
  // Decay, the step in f32, the step taken, the rounded weights.
  operators.pass_bytes(8 * values);
  if (!is_f32) operators.pass_bytes((4 + rates.value_bytes) * values);
  operators.pass_bytes(12 * values);
  operators.pass_bytes((4 + rates.value_bytes) * values);
}

/// AdamW reads f32 master, gradient and both moments (16 bytes), writes master, moments (12) and
/// the weight (2).
constexpr double kAdamwBytes = 30;

double num_leaves(const ModelSizes& sizes) {
  return 6 + (sizes.has_qk_norm ? 2 : 0) + (sizes.has_bias ? 1 : 0);
}

}  // namespace

OperatorTime block_forward_time(const ModelSizes& sizes,
                                const DeviceRates& rates,
                                double sequences) {
  const double rows = sequences * sizes.tokens;
  const double projected = sizes.query + 2 * sizes.key;
  Operators operators(rates);
  operators.pass(4 * rows * sizes.hidden);
  operators.product(rows, sizes.hidden, projected);
  for (const double heads : {sizes.query, sizes.key}) {
    if (sizes.has_qk_norm) operators.pass(2 * rows * heads);
    operators.pass(2 * rows * heads);
  }
  operators.add(attention_flops(sizes, sequences),
                rates.value_bytes * rows * (2 * sizes.query + 2 * sizes.key));
  operators.product(rows, sizes.query, sizes.hidden);
  operators.pass(4 * rows * sizes.hidden);
  // Through experts a token goes several times; their products run as one grouped launch each, in
  // which every expert's weights are read.
  const double routed = rows * sizes.experts_per_token;
  if (!sizes.is_dense()) {
    operators.product(rows, sizes.hidden, sizes.experts);
    operators.pass(4 * routed * sizes.hidden);  // to the experts and back
  }
  operators.grouped_product(sizes.experts, routed, sizes.hidden, 2 * sizes.feed_forward);
  operators.pass(3 * routed * sizes.feed_forward);
  operators.grouped_product(sizes.experts, routed, sizes.feed_forward, sizes.hidden);
  return operators.time();
}

double block_forward_flops(const ModelSizes& sizes) {
  // A token goes through the matrices of its experts only.
  ModelSizes active = sizes;
  active.experts = sizes.experts_per_token;
  double flops = attention_flops(sizes, 1);
  for (const BlockMatrix& matrix : block_matrices(active)) {
    flops += 2 * sizes.tokens * matrix.count * matrix.rows * matrix.columns;
  }
  return flops;
}

OperatorTime block_backward_time(const ModelSizes& sizes,
                                 const DeviceRates& rates,
                                 double sequences) {
  const double rows = sequences * sizes.tokens;
  const double projected = sizes.query + 2 * sizes.key;
  Operators operators(rates);
  const double routed = rows * sizes.experts_per_token;
  if (!sizes.is_dense()) {
    operators.product_backward(rows, sizes.hidden, sizes.experts);
    operators.pass(6 * routed * sizes.hidden);
  }
  operators.grouped_backward(sizes.experts, routed, sizes.feed_forward, sizes.hidden);
  operators.pass(5 * routed * sizes.feed_forward);
  operators.grouped_backward(sizes.experts, routed, sizes.hidden, 2 * sizes.feed_forward);
  operators.pass(4 * rows * sizes.hidden);
  operators.product_backward(rows, sizes.query, sizes.hidden);
  operators.add(2.5 * attention_flops(sizes, sequences),
                rates.value_bytes * rows * 4 * (sizes.query + sizes.key));
  for (const double heads : {sizes.query, sizes.key}) {
    operators.pass(2 * rows * heads);
    if (sizes.has_qk_norm) operators.pass(3 * rows * heads);
  }
  operators.pass(2 * rows * projected);  // the gradients of q, k and v side by side
  operators.product_backward(rows, sizes.hidden, projected);
  operators.pass(4 * rows * sizes.hidden);
  const double leaves = num_leaves(sizes);
  const double added_bytes = (rates.value_bytes + 8) * block_values(sizes, 1);
  for (double leaf = 0; leaf < leaves; ++leaf) operators.pass_bytes(added_bytes / leaves);
  return operators.time();
}

OperatorTime embedding_time(const ModelSizes& sizes, const DeviceRates& rates, double sequences) {
  const double values = sequences * sizes.tokens * sizes.hidden;
  Operators operators(rates);
  operators.pass_bytes(8 * sequences * sizes.tokens);  // the ids come from the host
  operators.pass(2 * values);
  operators.pass_bytes((rates.value_bytes + 4) * values);
  operators.pass_bytes(12 * values);  // rows read and written where they belong
  return operators.time();
}

OperatorTime head_time(const ModelSizes& sizes, const DeviceRates& rates, double sequences) {
  const double rows = sequences * sizes.tokens;
  const double values = rows * sizes.hidden;
  const double table = sizes.vocab * sizes.hidden;
  Operators operators(rates);
  operators.pass_bytes(8 * rows);
  operators.pass(4 * values);
  // Logits, and both gradients in the same pass; the logits themselves never leave the chip.
  operators.add(3 * 2 * values * sizes.vocab, rates.value_bytes * 2 * (values + table));
  operators.pass(2 * (values));
  operators.pass(2 * table);
  operators.pass(4 * values);
  operators.pass_bytes((rates.value_bytes + 8) * table);
  operators.pass_bytes((rates.value_bytes + 8) * sizes.hidden);
  return operators.time();
}

OperatorTime update_time(const DeviceRates& rates, double values, double num_runs) {
  // The gradient is read once more for its norm (4 bytes), and zeroed for the next step's sums (4).
  constexpr double kBytes = kAdamwBytes + 8;
  Operators operators(rates);
  operators.pass_bytes(kBytes * values);
  OperatorTime time = operators.time();
  time.launch_s += (num_runs + 6) * rates.launch_s;
  return time;
}

OperatorTime muon_time(const ModelSizes& sizes, const DeviceRates& rates) {
  OperatorTime time;
  for (const BlockMatrix& matrix : block_matrices(sizes)) {
    Operators operators(rates);
    muon_matrix(matrix.rows, matrix.columns, rates, operators);
    const OperatorTime one = operators.time();
    time.compute_s += matrix.count * one.compute_s;
    time.memory_s += matrix.count * one.memory_s;
    time.launch_s += matrix.count * one.launch_s;
  }
  return time;
}

OperatorTime block_adamw_time(const ModelSizes& sizes, const DeviceRates& rates) {
  double values = 0;
  for (const BlockMatrix& matrix : block_matrices(sizes)) {
    values += matrix.count * matrix.rows * matrix.columns;
  }
  OperatorTime time;
  time.memory_s = kAdamwBytes * values / rates.bytes_s;
  time.launch_s = decaying_runs(sizes) * rates.launch_s;
  return time;
}

double muon_flops(const ModelSizes& sizes) {
  double flops = 0;
  for (const BlockMatrix& matrix : block_matrices(sizes)) {
    const double small = std::min(matrix.rows, matrix.columns);
    const double large = std::max(matrix.rows, matrix.columns);
    flops += matrix.count * kNewtonSchulz * 2 * small * small * (2 * large + small);
  }
  return flops;
}

}  // namespace pelago::plan
