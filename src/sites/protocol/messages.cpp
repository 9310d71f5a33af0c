#include "sites/protocol/messages.h"

#include <array>
#include <type_traits>

#include "base/text/json.h"

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
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(ShareChange, data_step, sequences)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(MemberShare, site, address, tokens, data_begin, data_end)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(CheckpointOffer, step, hash, data_step)
// With defaults: of another version it is still read, and told that the versions differ.
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE_WITH_DEFAULT(Hello,
                                                incarnation,
                                                wire_version,
                                                plan_hash,
                                                plan_facts,
                                                tokenizer_hash,
                                                dataset_hash,
                                                weights_hash,
                                                address,
                                                checkpoints)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE_WITH_DEFAULT(Heartbeat, incarnation, completed_steps)

namespace {

template <typename T>
bool is_usual(const T& value, const T& usual) {
  return value == usual;
}
bool is_usual(const std::vector<ReadyExchange>& value, const std::vector<ReadyExchange>&) {
  return value.empty();
}

}  // namespace

// A site's status goes out most often of all, and most of it is as it always is: what has its
// default value is left out, and read as that.
#define PELAGO_TO_CHANGED(field) \
  if (!is_usual(value.field, usual.field)) json[#field] = value.field;
#define PELAGO_FROM_CHANGED(field) \
  if (const auto found = json.find(#field); found != json.end()) found->get_to(value.field);
#define PELAGO_DEFINE_CHANGED_ONLY(Type, ...)                                   \
  void to_json(nlohmann::json& json, const Type& value) {                       \
    static const Type usual{};                                                  \
    json = nlohmann::json::object();                                            \
    NLOHMANN_JSON_EXPAND(NLOHMANN_JSON_PASTE(PELAGO_TO_CHANGED, __VA_ARGS__))   \
  }                                                                             \
  void from_json(const nlohmann::json& json, Type& value) {                     \
    json.get_ref<const nlohmann::json::object_t&>(); /* throws if it is none */ \
    value = Type{};                                                             \
    NLOHMANN_JSON_EXPAND(NLOHMANN_JSON_PASTE(PELAGO_FROM_CHANGED, __VA_ARGS__)) \
  }
PELAGO_DEFINE_CHANGED_ONLY(ReadyExchange,
                           exchange,
                           tokens,
                           data_begin,
                           data_end,
                           begun_epoch,
                           hash,
                           missing,
                           suspects,
                           faults)
PELAGO_DEFINE_CHANGED_ONLY(SiteStatus,
                           incarnation,
                           sequence,
                           phase,
                           completed_steps,
                           left_out_steps,
                           step_us,
                           shares_from,
                           exchanges,
                           applied,
                           applied_epochs,
                           stop_step,
                           wants_stop,
                           lost_line,
                           saved_step,
                           num_commits,
                           num_missed,
                           num_refused,
                           sent_bytes,
                           exchange_payload_bytes,
                           exchanged_values)
#undef PELAGO_DEFINE_CHANGED_ONLY
#undef PELAGO_FROM_CHANGED
#undef PELAGO_TO_CHANGED
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Report, name, json)
// A journal of an earlier version has no sites in step.
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE_WITH_DEFAULT(Welcome,
                                                incarnation,
                                                mode,
                                                start_step,
                                                data_step,
                                                first_exchange,
                                                first_logged,
                                                donors,
                                                checkpoint_hash,
                                                shares,
                                                peers,
                                                start_number)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Refused, incarnation, reason, exit_code)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(AllowTraining, incarnation)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Begin, exchange, epoch, members)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(
    Commit, exchange, epoch, members, hash, donors, taken_exchange, taken_epoch, lost_epoch, shares)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(StopAt, step)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Alive, term, address)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Slice, exchange, epoch, part, of_mean)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Want, exchange, epoch, part, of_mean)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Fetch, fragment, exchange_min, hash, address)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(FragmentManifest, fragment, exchange, hash)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(FetchLeaf, fragment, hash, leaf, address)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(FragmentLeaf, fragment, hash, leaf)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(FetchPiece, step, hash, file, offset)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(CheckpointPiece, step, hash, file, offset)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(OthersAt, incarnation, step)
void to_json(nlohmann::json& json, const Release&) { json = nlohmann::json::object(); }
void from_json(const nlohmann::json&, Release&) {}

namespace {

constexpr std::array<std::string_view, std::variant_size_v<Message>> kNames = {
    "hello",      "heartbeat",     "status",         "report",
    "welcome",    "refused",       "allow_training", "begin",
    "commit",     "stop_at",       "release",        "alive",
    "slice",      "want",          "fetch",          "fragment_manifest",
    "fetch_leaf", "fragment_leaf", "fetch_piece",    "checkpoint_piece",
    "others_at"};

// JSON heads are small; anything larger is not one of ours.
constexpr size_t kHeadBytesMax = 4 << 20;

// Counts, steps and numbers of exchanges: whole, at least -1 ("none"), and small enough that sums
// of a few thousand do not overflow. Only an incarnation is drawn from all 64 bits. No message of
// ours is nested deeper than a list of records in a record.
bool is_plausible(const nlohmann::json& value, int depth_max = 4) {
  constexpr uint64_t kNumberMax = uint64_t{1} << 52;
  if (value.is_number_float()) return false;
  if (value.is_number_unsigned()) return value.get<uint64_t>() <= kNumberMax;
  if (value.is_number_integer()) return value.get<int64_t>() >= -1;
  if (!value.is_structured()) return true;
  if (depth_max == 0) return false;
  for (const auto& [key, item] : value.items()) {
    const bool is_incarnation = key == "incarnation" && item.is_number_unsigned();
    if (!is_incarnation && !is_plausible(item, depth_max - 1)) return false;
  }
  return true;
}

template <typename T>
concept HasPayload = requires(T message) {
  message.payload;
};

template <size_t kKind>
Message decode_as(const nlohmann::json& head, Frame& frame) {
  using T = std::variant_alternative_t<kKind, Message>;
  T message = head.get<T>();
  if constexpr (HasPayload<T>) message.payload = std::move(frame.payload);
  return message;
}

template <size_t... kKinds>
Message decode_kind(const nlohmann::json& head, Frame& frame, std::index_sequence<kKinds...>) {
  using Decoder = Message (*)(const nlohmann::json&, Frame&);
  constexpr Decoder kDecoders[] = {&decode_as<kKinds>...};
  return kDecoders[frame.kind](head, frame);
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
    const auto head = parse_json(frame.head);
    if (!is_plausible(head)) {
      return Error{ErrorCode::kCorrupt,
                   fmt::format("frame of {}: {} with a number or a depth that no message has",
                               frame.from,
                               kNames[frame.kind])};
    }
    return decode_kind(head, frame, std::make_index_sequence<std::variant_size_v<Message>>());
  } catch (const nlohmann::json::exception& error) {
    return Error{ErrorCode::kCorrupt,
                 fmt::format("frame of {}: {} that cannot be read: {}",
                             frame.from,
                             kNames[frame.kind],
                             error.what())};
  }
}

}  // namespace pelago::sites
