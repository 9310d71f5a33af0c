// Fleets and jobs for benches of the planner: chips of the catalogue in nodes of eight.
#pragma once

#include <fmt/format.h>

#include <string>
#include <utility>
#include <vector>

#include "chips/catalogue.h"
#include "plan/fleet.h"
#include "plan/job.h"

namespace pelago::bench {

/// So many cards of a chip.
using Stock = std::pair<std::string, int>;

inline void add_cards(plan::FleetSite& site, const chips::Chip& chip, int count) {
  for (int i = 0; i < count; ++i) {
    plan::FleetDevice device;
    device.device = fmt::format("{}:{}", chip.torch_device.empty() ? "cuda" : chip.torch_device, i);
    device.chip = chip.id;
    device.node = fmt::format("{}-{}", chip.id, i / 8);
    site.devices.push_back(std::move(device));
  }
}

/// One site for each stock list, every pair joined by a line.
inline plan::FleetConfig fleet_of(const std::vector<std::vector<Stock>>& sites,
                                  const chips::Catalogue& catalogue,
                                  double line_mbit_s = 10'000) {
  plan::FleetConfig fleet;
  for (size_t i = 0; i < sites.size(); ++i) {
    plan::FleetSite site;
    site.name = fmt::format("site-{}", i);
    for (const auto& [chip, count] : sites[i]) add_cards(site, catalogue.find(chip), count);
    for (const plan::FleetSite& other : fleet.sites) {
      fleet.links.push_back(
          {.from = other.name, .to = site.name, .bandwidth_mbit_s = line_mbit_s, .rtt_ms = 30});
    }
    fleet.sites.push_back(std::move(site));
  }
  return fleet;
}

/// A dense model of Llama's proportions: "7b", "13b", "34b", "70b", "100b".
inline model::ModelConfig large_model(const std::string& name) {
  struct Shape {
    const char* name;
    int64_t hidden, feed_forward, layers, heads, key_heads;
  };
  constexpr Shape kShapes[] = {{"7b", 4096, 11008, 32, 32, 32},
                               {"13b", 5120, 13824, 40, 40, 40},
                               {"34b", 8192, 22016, 48, 64, 8},
                               {"70b", 8192, 28672, 80, 64, 8},
                               {"100b", 10240, 28672, 88, 80, 8}};
  model::ModelConfig config;
  config.model_type = "llama";
  config.qk_norm = false;
  config.tie_word_embeddings = false;
  config.vocab_size = 32'000;
  config.head_dim = 128;
  for (const Shape& shape : kShapes) {
    if (name != shape.name) continue;
    config.hidden_size = shape.hidden;
    config.intermediate_size = shape.feed_forward;
    config.num_hidden_layers = shape.layers;
    config.num_attention_heads = shape.heads;
    config.num_key_value_heads = shape.key_heads;
  }
  return config;
}

inline plan::JobConfig large_job(const std::string& model, int64_t batch) {
  plan::JobConfig job;
  job.name = model;
  job.model = large_model(model);
  job.data.sequence_length = 4096;
  job.train.batch_sequences = batch;
  job.train.steps = 1000;
  return job;
}

}  // namespace pelago::bench
