// A tokenizer.json from anywhere. The input is the JSON, then perhaps a byte 0 and a text for it.
#include <algorithm>

#include "data/tokenizer.h"
#include "outside_bytes.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t num_bytes) {
  const std::string_view input = pelago::fuzz::text_of(data, num_bytes);
  const size_t end = std::min(input.find('\0'), input.size());
  const std::string_view text =
      end < input.size() ? input.substr(end + 1) : std::string_view("int main() { return 0; }\n");
  pelago::fuzz::expect_answer([&] {
    const auto tokenizer = pelago::data::Tokenizer::parse(input.substr(0, end), "fuzz.json");
    const auto tokens = tokenizer.encode(text);
    for (const pelago::data::TokenId token : tokens) {
      PELAGO_ASSERT(token >= 0 && token < tokenizer.vocab_size(), "encoding gives known tokens");
    }
    (void)tokenizer.decode(tokens);
    (void)tokenizer.hash();
  });
  return 0;
}
