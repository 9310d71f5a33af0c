#include "data/tokenizer.h"

#include <algorithm>
#include <mutex>
#include <unordered_map>
#include <utility>

#include "base/error.h"
#include "base/files.h"
#include "data/bpe/encoder.h"
#include "data/bpe/pre_tokenizer.h"
#include "data/bpe/tokenizer_spec.h"
#include "data/bpe/word_cache.h"

namespace pelago::data {

namespace {

// The long path of the encoder counts bytes in 31 bits.
constexpr size_t kPieceBytesMax = size_t{1} << 30;

/// What one thread needs while it encodes, kept warm between calls.
struct EncodeState {
  PieceCursor cursor;
  WordCache cache;
};

}  // namespace

struct Tokenizer::Impl {
  TokenizerSpec spec;
  PreTokenizer pre_tokenizer;
  BpeEncoder encoder;
  std::string hash;
  std::unordered_map<TokenId, AddedToken> added;
  TokenId end_of_text = -1;
  std::mutex states_mutex;                           // guards states
  std::vector<std::unique_ptr<EncodeState>> states;  // those that no thread is using

  explicit Impl(TokenizerSpec the_spec)
      : spec(std::move(the_spec)),
        pre_tokenizer(spec.patterns),
        encoder(spec),
        hash(hash_of(spec)) {
    for (const AddedToken& token : spec.added) added[token.id] = token;
    for (const char* name : {"<|end_of_text|>", "<|endoftext|>"}) {
      for (const AddedToken& token : spec.added) {
        if (token.content == name) end_of_text = token.id;
      }
    }
  }

  std::unique_ptr<EncodeState> take_state() {
    {
      const std::lock_guard lock(states_mutex);
      if (!states.empty()) {
        auto state = std::move(states.back());
        states.pop_back();
        return state;
      }
    }
    return std::make_unique<EncodeState>(
        EncodeState{.cursor = PieceCursor(pre_tokenizer), .cache = {}});
  }

  void give_back(std::unique_ptr<EncodeState> state) {
    const std::lock_guard lock(states_mutex);
    states.push_back(std::move(state));
  }
};

Tokenizer::Tokenizer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

Tokenizer Tokenizer::read(const std::filesystem::path& tokenizer_json) {
  return parse(read_text_file(tokenizer_json), tokenizer_json.string());
}

Tokenizer Tokenizer::parse(std::string_view json, const std::string& name) {
  TokenizerSpec spec = parse_tokenizer_json(json, name);
  try {
    return from_spec(std::move(spec));
  } catch (const Failure& failure) {
    fail("{}: {}", name, failure.what());
  }
}

Tokenizer Tokenizer::from_spec(TokenizerSpec spec) {
  return Tokenizer(std::make_unique<Impl>(std::move(spec)));
}

void Tokenizer::encode(std::string_view text, std::vector<TokenId>& out) const {
  auto state = impl_->take_state();
  state->cursor.start(text);
  const char* const text_end = text.data() + text.size();
  for (std::string_view piece; state->cursor.next(piece);) {
    if (piece.size() > WordKey::kBytesMax) {
      for (; piece.size() > kPieceBytesMax; piece.remove_prefix(kPieceBytesMax)) {
        impl_->encoder.encode(piece.substr(0, kPieceBytesMax), out);
      }
      impl_->encoder.encode(piece, out);
      continue;
    }
    const WordKey key(piece, static_cast<size_t>(text_end - piece.data()));
    if (state->cache.append(key, out)) continue;
    const size_t begin = out.size();
    impl_->encoder.encode(piece, out);
    state->cache.remember(key, std::span(out).subspan(begin));
  }
  impl_->give_back(std::move(state));
}

std::vector<TokenId> Tokenizer::encode(std::string_view text) const {
  std::vector<TokenId> tokens;
  tokens.reserve(text.size() / 3);
  encode(text, tokens);
  return tokens;
}

std::string Tokenizer::decode(std::span<const TokenId> tokens) const {
  std::string text;
  for (const TokenId token : tokens) text += token_bytes(token);
  return text;
}

std::string_view Tokenizer::token_bytes(TokenId token) const {
  PELAGO_ASSERT(token >= 0 && token < vocab_size(), "a token is one of this tokenizer's");
  const std::string& bytes = impl_->spec.token_bytes[static_cast<size_t>(token)];
  if (!bytes.empty()) return bytes;
  const auto added = impl_->added.find(token);
  return added == impl_->added.end() || added->second.special ? std::string_view()
                                                              : added->second.content;
}

std::string_view Tokenizer::special_text(TokenId token) const {
  const auto added = impl_->added.find(token);
  return added == impl_->added.end() || !added->second.special ? std::string_view()
                                                               : added->second.content;
}

int64_t Tokenizer::vocab_size() const {
  return static_cast<int64_t>(impl_->spec.token_bytes.size());
}

TokenId Tokenizer::end_of_text() const { return impl_->end_of_text; }

const std::string& Tokenizer::hash() const { return impl_->hash; }

const TokenizerSpec& Tokenizer::spec() const { return impl_->spec; }

void Tokenizer::write(const std::filesystem::path& folder) const {
  write_file(folder / "tokenizer.json", to_tokenizer_json(impl_->spec));
  write_file(folder / "tokenizer_config.json", to_tokenizer_config_json(impl_->spec));
}

}  // namespace pelago::data
