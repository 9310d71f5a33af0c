// Byte-level BPE, kept as Hugging Face's tokenizer.json. Any bytes survive encode and decode.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace pelago::data {

using TokenId = int32_t;

struct TokenizerSpec;  // data/bpe/tokenizer_spec.h

/// One tokenizer. Its const functions may be called by many threads at once.
class Tokenizer {
 public:
  /// Reads tokenizer.json: BPE model, ByteLevel pre-tokenizer (alone or after a Split with a
  /// regex), added special tokens. Throws Failure naming the file and the part that is wrong or not
  /// supported.
  static Tokenizer read(const std::filesystem::path& tokenizer_json);
  static Tokenizer parse(std::string_view json, const std::string& name);
  /// spec: as training made it.
  static Tokenizer from_spec(TokenizerSpec spec);
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  /// Appends the ids of text (any bytes, invalid UTF-8 included). Special tokens in the text are
  /// not recognised.
  void encode(std::string_view text, std::vector<TokenId>& out) const;
  std::vector<TokenId> encode(std::string_view text) const;
  /// Special tokens decode to nothing.
  std::string decode(std::span<const TokenId> tokens) const;
  /// The bytes of one token; none for a special token or an id that no token has.
  std::string_view token_bytes(TokenId token) const;
  /// What a special token is written as ("<|endoftext|>"); empty for all others.
  std::string_view special_text(TokenId token) const;

  int64_t vocab_size() const;
  /// "<|endoftext|>", which separates documents, or Llama 3's "<|end_of_text|>"; -1 if the
  /// tokenizer has neither.
  TokenId end_of_text() const;
  /// XXH3 of the canonical content, 32 hex digits: shards and checkpoints carry it.
  const std::string& hash() const;
  const TokenizerSpec& spec() const;
  /// Writes tokenizer.json and tokenizer_config.json into a folder that exists. Throws Failure.
  void write(const std::filesystem::path& folder) const;

 private:
  struct Impl;
  explicit Tokenizer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace pelago::data
