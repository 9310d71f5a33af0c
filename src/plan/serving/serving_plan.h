// Who reads prompts and who writes answers, where a model is served by unlike chips. Reading a
// prompt is matrix products, writing an answer is reading weights, keys and values: a chip with
// much arithmetic and slow memory (910B) is good at the one, its opposite (H20) at the other
// (DistServe, arXiv:2401.09670). As with two countries that trade, what counts is not who is
// faster but whose seconds for the one are cheapest in its seconds for the other.
//
// Each phase costs a chip so many seconds a request (the roofline of its operators). Starting from
// each kind serving whole requests, prompts move from kind to kind where that makes a request
// cheaper, the best pair first, until a side has nothing left to give or the line between is full.
// What time is left goes into whole requests again.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "chips/catalogue.h"
#include "model/config.h"
#include "plan/cost/device/operators.h"

namespace pelago::plan {

/// Some tokens of one sequence in a pass, and how many came before them.
struct PassChunk {
  double tokens = 1, context = 0;
};
/// Of one forward pass of the engine over these, 16-bit weights, keys and values. logit_rows: whose
/// next token is wanted.
double pass_time(const ModelSizes& sizes,
                 const DeviceRates& rates,
                 std::span<const PassChunk> chunks,
                 double logit_rows);
/// What the catalogue says of a chip in 16 bits. Throws Failure (exit 2) where it does not know.
DeviceRates serving_rates(const chips::Chip& chip);
/// Bytes of one token's keys and values, 16 bits each.
double kv_bytes_token(const model::ModelConfig& config);

struct ServingLoad {
  double prompt_tokens = 2048, answer_tokens = 256;
  double step_tokens = 512;   // of a pass
  double sequences_max = 64;  // at once on a chip
};

struct ServingKind {
  const chips::Chip* chip = nullptr;
  double count = 1;
  bool is_emulated = false;  // goes exactly at the catalogue's pace
};

/// A part of all requests.
struct ServingFlow {
  size_t prefill_idx = 0, decode_idx = 0;  // of the kinds; equal: whole requests
  double share = 0;                        // of all requests
};

struct ServingPlan {
  std::vector<ServingFlow> flows;        // largest first
  chips::Interval requests_s;            // of these flows, as far as the catalogue can tell
  chips::Interval each_both_requests_s;  // where every kind serves whole requests
  double link_bytes_s = 0;               // of keys and values between kinds

  /// Of the prompts whose answers the kind writes, by tokens: how many it reads itself. 1 if it
  /// writes none.
  double local_share(size_t kind_idx) const;
  /// Lines for a person: who does what.
  std::vector<std::string> describe(std::span<const ServingKind> kinds) const;
};

/// link_bytes_s: of the line between kinds. Throws Failure (exit 2) if no kind can serve the model,
/// or the catalogue knows too little of one.
ServingPlan plan_serving(const model::ModelConfig& config,
                         std::span<const ServingKind> kinds,
                         const ServingLoad& load,
                         double link_bytes_s);

}  // namespace pelago::plan
