// A shard of tokens. What dataset.json would say of it is taken from the shard's own header, so
// that the checks behind the first ones are reached.
#include <cstring>
#include <vector>

#include "data/shards/shard.h"
#include "outside_bytes.h"

namespace {

template <typename T>
T field(std::string_view bytes, size_t at) {
  T value{};
  if (at + sizeof value <= bytes.size()) std::memcpy(&value, bytes.data() + at, sizeof value);
  return value;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t num_bytes) {
  const std::string_view bytes = pelago::fuzz::text_of(data, num_bytes);
  const pelago::fuzz::MemoryFile file(bytes);
  // docs/FILES.md: magic 8, version 4, token_bytes 4, num_tokens 8, vocab_size 8, tokenizer 32.
  const pelago::data::ShardExpectation expected{
      .num_tokens = field<int64_t>(bytes, 16),
      .vocab_size = field<int64_t>(bytes, 24),
      .tokenizer_hash = std::string(bytes.substr(std::min<size_t>(32, bytes.size()), 32)),
      .hash = {}};
  pelago::fuzz::expect_answer([&] {
    const pelago::data::Shard shard(file.path(), expected, /*verify=*/false);
    std::vector<int64_t> tokens(static_cast<size_t>(shard.num_tokens()));
    shard.read(0, tokens);
  });
  return 0;
}
