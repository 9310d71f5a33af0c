#include "serve/workers/link/messages.h"

#include <cstring>
#include <type_traits>

namespace pelago::serve {

namespace {

template <typename T>
concept PlainValue = std::is_arithmetic_v<T> || std::is_enum_v<T>;

class Writer {
 public:
  explicit Writer(std::string& out) : out_(out) {}
  template <typename... Values>
  void operator()(Values&... values) {
    (put(values), ...);
  }

 private:
  template <PlainValue T>
  void put(const T& value) {
    out_.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  void put(const std::string& text) {
    put(text.size());
    out_.append(text);
  }
  void put(const std::filesystem::path& path) { put(path.string()); }
  template <typename T>
  void put(const std::vector<T>& values) {
    put(values.size());
    if constexpr (PlainValue<T>) {
      out_.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
    } else {
      for (const T& value : values) put(value);
    }
  }
  template <typename A, typename B>
  void put(const std::pair<A, B>& both) {
    put(both.first);
    put(both.second);
  }
  template <typename K, typename V>
  void put(const std::map<K, V>& map) {
    put(map.size());
    for (const auto& entry : map) put(entry);
  }
  template <typename T>
  void put(const std::optional<T>& value) {
    put(value.has_value());
    if (value) put(*value);
  }
  template <typename T>
  requires std::is_class_v<T>
  void put(const T& value) { fields(*this, value); }

  std::string& out_;
};

class Reader {
 public:
  explicit Reader(std::string_view bytes) : left_(bytes) {}
  template <typename... Values>
  void operator()(Values&... values) {
    (take(values), ...);
  }
  bool is_whole() const { return !is_broken_ && left_.empty(); }

 private:
  void take_bytes(void* to, size_t num_bytes) {
    if (num_bytes > left_.size()) is_broken_ = true;
    if (is_broken_ || num_bytes == 0) return;
    std::memcpy(to, left_.data(), num_bytes);
    left_.remove_prefix(num_bytes);
  }
  /// How many items follow, each of at least so many bytes.
  size_t take_count(size_t item_bytes) {
    size_t count = 0;
    take(count);
    if (count > left_.size() / item_bytes) is_broken_ = true;
    return is_broken_ ? 0 : count;
  }
  template <PlainValue T>
  void take(T& value) {
    if constexpr (std::is_same_v<T, bool>) {
      uint8_t byte = 0;
      take_bytes(&byte, 1);
      value = byte != 0;
    } else {
      take_bytes(&value, sizeof value);
    }
  }
  void take(std::string& text) {
    text.resize(take_count(1));
    take_bytes(text.data(), text.size());
  }
  void take(std::filesystem::path& path) {
    std::string text;
    take(text);
    path = text;
  }
  template <typename T>
  void take(std::vector<T>& values) {
    if constexpr (PlainValue<T>) {
      values.resize(take_count(sizeof(T)));
      take_bytes(values.data(), values.size() * sizeof(T));
    } else {
      // Grows as the items come, so that a count that lies takes no memory.
      for (size_t left = take_count(1); left > 0 && !is_broken_; --left)
        take(values.emplace_back());
    }
  }
  template <typename A, typename B>
  void take(std::pair<A, B>& both) {
    take(both.first);
    take(both.second);
  }
  template <typename K, typename V>
  void take(std::map<K, V>& map) {
    for (size_t left = take_count(1); left > 0 && !is_broken_; --left) {
      std::pair<K, V> entry;
      take(entry);
      map.insert(std::move(entry));
    }
  }
  template <typename T>
  void take(std::optional<T>& value) {
    bool has_value = false;
    take(has_value);
    if (has_value) take(value.emplace());
  }
  template <typename T>
  requires std::is_class_v<T>
  void take(T& value) { fields(*this, value); }

  std::string_view left_;
  bool is_broken_ = false;
};

/// T, const or not: one list of fields serves both directions. Each is taken apart whole, so that a
/// field that is added does not compile until it travels.
template <typename M, typename T>
concept Is = std::is_same_v<std::remove_const_t<M>, T>;

#define PELAGO_FIELDS(Type, ...)          \
  template <typename Archive, Is<Type> M> \
  void fields(Archive& archive, M& m) {   \
    auto& [__VA_ARGS__] = m;              \
    archive(__VA_ARGS__);                 \
  }

PELAGO_FIELDS(SchedulerLimits, step_tokens, enough_tokens, sequences_max, choices_max)
PELAGO_FIELDS(SpeculationOptions, draft_max, rows_max, ngram_tokens)
PELAGO_FIELDS(EngineOptions,
              device,
              dtype,
              group_size,
              kv_dtype,
              kv_memory_gb,
              page_tokens,
              num_threads,
              context_tokens_max,
              scheduler,
              speculation,
              draft_folder,
              waiting_max,
              seed,
              prefill_link,
              prefill_local_share,
              prefill_device,
              shared_weights,
              slowdown)
PELAGO_FIELDS(ConstraintSource, kind, text)
PELAGO_FIELDS(Sampling,
              temperature,
              top_k,
              top_p,
              min_p,
              repetition_penalty,
              presence_penalty,
              frequency_penalty,
              logit_bias,
              seed)

// The constraint is not for sending: SubmitMessage has its source.
template <typename Archive, Is<GenerateRequest> M>
void fields(Archive& archive, M& m) {
  auto& [prompt,
         max_new_tokens,
         sampling,
         stop,
         stop_tokens,
         ignore_end,
         num_choices,
         num_logprobs,
         user,
         constraint] = m;
  archive(prompt,
          max_new_tokens,
          sampling,
          stop,
          stop_tokens,
          ignore_end,
          num_choices,
          num_logprobs,
          user);
}

PELAGO_FIELDS(TokenLogprob, token, logprob, top)
PELAGO_FIELDS(Piece,
              choice,
              text,
              tokens,
              logprobs,
              finish,
              error,
              is_last,
              prompt_tokens,
              cached_tokens,
              completion_tokens)
PELAGO_FIELDS(EngineStats,
              num_running,
              num_waiting,
              num_pages,
              num_pages_used,
              num_pages_cached,
              prompt_tokens,
              cached_tokens,
              completion_tokens,
              num_finished,
              num_cancelled,
              num_refused,
              num_preempted,
              draft_tokens,
              draft_accepted,
              num_read_elsewhere,
              num_prefill_sides,
              num_prefill_up,
              num_prefill_restarts)
PELAGO_FIELDS(OpenMessage, folder, engine)
PELAGO_FIELDS(SubmitMessage, id, request, constraint)
PELAGO_FIELDS(CancelMessage, id)
PELAGO_FIELDS(EmbedMessage, id, inputs)
PELAGO_FIELDS(ReadyMessage, context_length, stats)
PELAGO_FIELDS(PieceMessage, id, piece)
PELAGO_FIELDS(RefusalMessage, id, code, message)
PELAGO_FIELDS(EmbeddedMessage, id, vectors)
PELAGO_FIELDS(BeatMessage, stats)
PELAGO_FIELDS(LostMessage, why, exit_code)

#undef PELAGO_FIELDS

template <size_t kKind = 0>
Result<Message> read_kind(uint8_t kind, Reader& reader) {
  if constexpr (kKind < std::variant_size_v<Message>) {
    if (kind != kKind) return read_kind<kKind + 1>(kind, reader);
    std::variant_alternative_t<kKind, Message> message;
    fields(reader, message);
    if (reader.is_whole()) return Message(std::move(message));
  }
  return Error{ErrorCode::kCorrupt, fmt::format("a message of kind {} that is broken", kind)};
}

}  // namespace

std::string frame_of(const Message& message) {
  std::string frame(kFrameHeadBytes, '\0');
  frame += static_cast<char>(message.index());
  Writer writer(frame);
  std::visit([&](const auto& one) { fields(writer, one); }, message);
  const auto num_bytes = static_cast<uint32_t>(frame.size() - kFrameHeadBytes);
  std::memcpy(frame.data(), &num_bytes, sizeof num_bytes);
  return frame;
}

Result<Message> message_of(std::string_view frame) {
  if (frame.empty()) return Error{ErrorCode::kCorrupt, "an empty message"};
  Reader reader(frame.substr(1));
  return read_kind(static_cast<uint8_t>(frame[0]), reader);
}

}  // namespace pelago::serve
