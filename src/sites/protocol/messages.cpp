#include "sites/protocol/messages.h"

#include <array>
#include <nlohmann/json.hpp>

namespace pelago::sites {

// A phase or mode that is not in these lists reads as the first entry, the one that permits least.
NLOHMANN_JSON_SERIALIZE_ENUM(SitePhase,
                             {{SitePhase::kCatchingUp, "catching_up"},
                              {SitePhase::kStarting, "starting"},
                              {SitePhase::kReady, "ready"},
                              {SitePhase::kTraining, "training"},
                              {SitePhase::kFinished, "finished"}})
NLOHMANN_JSON_SERIALIZE_ENUM(StartMode,
                             {{StartMode::kFresh, "fresh"},
                              {StartMode::kResume, "resume"},
                              {StartMode::kJoin, "join"}})
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(SiteAddress, site, address)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(MemberShare, site, address, tokens)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(CheckpointOffer, step, hash)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Hello,
                                   incarnation,
                                   wire_version,
                                   plan_hash,
                                   tokenizer_hash,
                                   dataset_hash,
                                   weights_hash,
                                   address,
                                   checkpoints)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Heartbeat, incarnation)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(ReadyExchange, exchange, tokens, begun_epoch, hash, missing)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(SiteStatus,
                                   incarnation,
                                   sequence,
                                   phase,
                                   completed_steps,
                                   exchanges,
                                   applied,
                                   stop_step,
                                   wants_stop,
                                   num_commits,
                                   num_missed,
                                   num_refused,
                                   sent_bytes,
                                   exchange_payload_bytes,
                                   exchanged_values)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Report, name, json)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(
    Welcome, incarnation, mode, start_step, first_exchange, first_logged, donors)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Refused, incarnation, reason, exit_code)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(AllowTraining, incarnation)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Begin, exchange, epoch, members)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Commit, exchange, epoch, members, hash, donors)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(StopAt, step)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Slice, exchange, epoch, of_mean)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Want, exchange, epoch, of_mean)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Fetch, fragment, exchange_min, address)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(FragmentState, fragment, exchange, hash)
void to_json(nlohmann::json& json, const Release&) { json = nlohmann::json::object(); }
void from_json(const nlohmann::json&, Release&) {}
void to_json(nlohmann::json& json, const Alive&) { json = nlohmann::json::object(); }
void from_json(const nlohmann::json&, Alive&) {}

namespace {

constexpr std::array<std::string_view, std::variant_size_v<Message>> kNames = {"hello",
                                                                               "heartbeat",
                                                                               "status",
                                                                               "report",
                                                                               "welcome",
                                                                               "refused",
                                                                               "allow_training",
                                                                               "begin",
                                                                               "commit",
                                                                               "stop_at",
                                                                               "release",
                                                                               "alive",
                                                                               "slice",
                                                                               "want",
                                                                               "fetch",
                                                                               "fragment_state"};

// JSON heads are small; anything larger is not one of ours.
constexpr size_t kHeadBytesMax = 4 << 20;

template <typename T>
concept HasPayload = requires(T message) {
  message.payload;
};

template <size_t kKind>
Message decode_as(Frame& frame) {
  using T = std::variant_alternative_t<kKind, Message>;
  T message = nlohmann::json::parse(frame.head).template get<T>();
  if constexpr (HasPayload<T>) message.payload = std::move(frame.payload);
  return message;
}

template <size_t... kKinds>
Message decode_kind(Frame& frame, std::index_sequence<kKinds...>) {
  using Decoder = Message (*)(Frame&);
  constexpr Decoder kDecoders[] = {&decode_as<kKinds>...};
  return kDecoders[frame.kind](frame);
}

}  // namespace

std::string_view name_of(const Message& message) { return kNames[message.index()]; }

Frame encode(const std::string& from, Message message) {
  Frame frame{
      .from = from, .kind = static_cast<uint32_t>(message.index()), .head = {}, .payload = {}};
  std::visit(
      [&](auto& content) {
        frame.head = nlohmann::json(content).dump();
        if constexpr (HasPayload<decltype(content)>) frame.payload = std::move(content.payload);
      },
      message);
  return frame;
}

Result<Message> decode(Frame frame) {
  if (frame.kind >= kNames.size()) {
    return Error{ErrorCode::kCorrupt,
                 fmt::format("frame of {}: unknown kind {}", frame.from, frame.kind)};
  }
  if (frame.head.size() > kHeadBytesMax) {
    return Error{ErrorCode::kCorrupt,
                 fmt::format("frame of {}: head of {} bytes", frame.from, frame.head.size())};
  }
  try {
    return decode_kind(frame, std::make_index_sequence<std::variant_size_v<Message>>());
  } catch (const nlohmann::json::exception& error) {
    return Error{ErrorCode::kCorrupt,
                 fmt::format("frame of {}: {} that cannot be read: {}",
                             frame.from,
                             kNames[frame.kind],
                             error.what())};
  }
}

}  // namespace pelago::sites
