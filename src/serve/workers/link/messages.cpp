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

/// T, const or not: one list of fields serves both directions.
template <typename M, typename T>
concept Is = std::is_same_v<std::remove_const_t<M>, T>;

template <typename Archive, Is<SchedulerLimits> M>
void fields(Archive& archive, M& m) {
  archive(m.step_tokens, m.sequences_max);
}
template <typename Archive, Is<SpeculationOptions> M>
void fields(Archive& archive, M& m) {
  archive(m.draft_max, m.rows_max, m.ngram_tokens);
}
template <typename Archive, Is<EngineOptions> M>
void fields(Archive& archive, M& m) {
  archive(m.device, m.dtype, m.group_size, m.kv_dtype, m.kv_memory_gb, m.page_tokens);
  archive(m.num_threads, m.context_tokens_max, m.scheduler, m.speculation, m.draft_folder);
  archive(m.waiting_max, m.seed);
}
template <typename Archive, Is<ConstraintSource> M>
void fields(Archive& archive, M& m) {
  archive(m.kind, m.text);
}
template <typename Archive, Is<Sampling> M>
void fields(Archive& archive, M& m) {
  archive(m.temperature, m.top_k, m.top_p, m.min_p, m.repetition_penalty, m.presence_penalty);
  archive(m.frequency_penalty, m.logit_bias, m.seed);
}
template <typename Archive, Is<GenerateRequest> M>
void fields(Archive& archive, M& m) {
  archive(m.prompt, m.max_new_tokens, m.sampling, m.stop, m.stop_tokens, m.ignore_end);
  archive(m.num_choices, m.num_logprobs, m.user);
}
template <typename Archive, Is<TokenLogprob> M>
void fields(Archive& archive, M& m) {
  archive(m.token, m.logprob, m.top);
}
template <typename Archive, Is<Piece> M>
void fields(Archive& archive, M& m) {
  archive(m.choice, m.text, m.tokens, m.logprobs, m.finish, m.error, m.is_last);
  archive(m.prompt_tokens, m.cached_tokens, m.completion_tokens);
}
template <typename Archive, Is<EngineStats> M>
void fields(Archive& archive, M& m) {
  archive(m.num_running, m.num_waiting, m.num_pages, m.num_pages_used, m.num_pages_cached);
  archive(m.prompt_tokens, m.cached_tokens, m.completion_tokens);
  archive(m.num_finished, m.num_cancelled, m.num_refused, m.num_preempted);
  archive(m.draft_tokens, m.draft_accepted);
}
template <typename Archive, Is<OpenMessage> M>
void fields(Archive& archive, M& m) {
  archive(m.folder, m.engine);
}
template <typename Archive, Is<SubmitMessage> M>
void fields(Archive& archive, M& m) {
  archive(m.id, m.request, m.constraint);
}
template <typename Archive, Is<CancelMessage> M>
void fields(Archive& archive, M& m) {
  archive(m.id);
}
template <typename Archive, Is<EmbedMessage> M>
void fields(Archive& archive, M& m) {
  archive(m.id, m.inputs);
}
template <typename Archive, Is<ReadyMessage> M>
void fields(Archive& archive, M& m) {
  archive(m.context_length, m.stats);
}
template <typename Archive, Is<PieceMessage> M>
void fields(Archive& archive, M& m) {
  archive(m.id, m.piece);
}
template <typename Archive, Is<RefusalMessage> M>
void fields(Archive& archive, M& m) {
  archive(m.id, m.code, m.message);
}
template <typename Archive, Is<EmbeddedMessage> M>
void fields(Archive& archive, M& m) {
  archive(m.id, m.vectors);
}
template <typename Archive, Is<BeatMessage> M>
void fields(Archive& archive, M& m) {
  archive(m.stats);
}
template <typename Archive, Is<LostMessage> M>
void fields(Archive& archive, M& m) {
  archive(m.why, m.exit_code);
}

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
