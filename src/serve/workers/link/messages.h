// What a router and its workers say to each other: frames over a Unix socket, each a length, a kind
// and a message. Both ends are one program on one machine, so numbers go as they lie in memory; a
// frame that does not add up is still refused, since a worker may be broken in any way.
//
//   router -> worker   Open (once), Submit, Cancel, Embed
//   worker -> router   Beat (from its start on), Ready (once), Pieces, Refusal, Embedded, Lost
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "serve/engine.h"
#include "serve/grammar/constraint_maker.h"
#include "serve/local/local_engine.h"

namespace pelago::serve {

/// What the worker is to answer with. Its cores were given to the process.
struct OpenMessage {
  std::string folder;
  EngineOptions engine;
};
struct SubmitMessage {
  RequestId id = 0;
  GenerateRequest request;                     // without its constraint,
  std::optional<ConstraintSource> constraint;  // which is made again from its text
};
struct CancelMessage {
  RequestId id = 0;
};
struct EmbedMessage {
  RequestId id = 0;
  std::vector<std::vector<int32_t>> inputs;
};
struct ReadyMessage {
  int64_t context_length = 0;  // tokens
  EngineStats stats;
};
struct PieceMessage {
  RequestId id = 0;
  Piece piece;
};
/// The engine did not take a request, or could not embed.
struct RefusalMessage {
  RequestId id = 0;
  ErrorCode code = ErrorCode::kRefused;
  std::string message;
};
struct EmbeddedMessage {
  RequestId id = 0;
  std::vector<std::vector<float>> vectors;
};
/// The worker lives.
struct BeatMessage {
  EngineStats stats;
};
/// The last word of a worker that ends: it cannot open the model, or has lost it.
struct LostMessage {
  std::string why;
  int exit_code = 1;
};

using Message = std::variant<OpenMessage,
                             SubmitMessage,
                             CancelMessage,
                             EmbedMessage,
                             ReadyMessage,
                             PieceMessage,
                             RefusalMessage,
                             EmbeddedMessage,
                             BeatMessage,
                             LostMessage>;

inline constexpr size_t kFrameBytesMax = size_t{256} << 20;  // a body of 32 MB as tokens, and more
inline constexpr size_t kFrameHeadBytes = 4;                 // the length of what follows

/// A whole frame, its length in front.
std::string frame_of(const Message& message);
/// kCorrupt if the frame, its length taken off, is not one message and nothing else.
Result<Message> message_of(std::string_view frame);

}  // namespace pelago::serve
