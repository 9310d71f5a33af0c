// The model of runs that are about processes and lines, not about what is learnt: a step takes a
// few milliseconds.
#pragma once

namespace pelago::testing {

inline constexpr const char* kSmallModel = R"([model]
preset = "1m"
hidden_size = 64
intermediate_size = 128
num_hidden_layers = 2
num_attention_heads = 2
num_key_value_heads = 1
head_dim = 32
)";

}  // namespace pelago::testing
