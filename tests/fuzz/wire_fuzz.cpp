// Frames from another site: chunks into frames, frames into messages, messages into the state
// machines of both sides. The input is lines, a frame each: a letter for the kind ('a' is 0), one
// for the sender, the head as JSON, and perhaps a tab and the payload.
#include <map>
#include <utility>

#include "base/rng.h"
#include "outside_bytes.h"
#include "sites/protocol/member.h"
#include "sites/protocol/round_machine.h"
#include "sites/transport/frame_assembly.h"

namespace pelago::sites {
namespace {

constexpr train::ExchangeSchedule kSchedule{
    .inner_steps = 4, .num_fragments = 2, .overlap_steps = 1, .num_steps = 12};
constexpr uint64_t kIncarnation = 7;
constexpr int64_t kNumValues = 160;  // two fragments of a block and a quarter

std::optional<Frame> assemble(std::string_view line) {
  if (line.size() < 2) return std::nullopt;
  const char* const kSenders[] = {"a", "b", "c", kCoordinatorName};
  const size_t tab = std::min(line.find('\t'), line.size());
  const std::string_view payload = tab < line.size() ? line.substr(tab + 1) : std::string_view();
  FrameAssembly assembly(kSenders[static_cast<unsigned char>(line[1]) % 4], 1 << 18);
  // A payload of two chunks comes in the wrong order.
  const std::string_view head = line.substr(2, tab - std::min<size_t>(tab, 2));
  FrameChunk first{.session = 1,
                   .frame = 0,
                   .kind = static_cast<uint32_t>(static_cast<unsigned char>(line[0]) - 'a'),
                   .head = head,
                   .frame_payload_bytes = payload.size(),
                   .offset = 0,
                   .payload = payload.substr(0, kChunkBytes),
                   .oldest = 0,
                   .checksum = 0};
  FrameChunk second = first;
  second.offset = kChunkBytes;
  second.head = {};
  second.kind = 0;
  std::optional<Frame> whole;
  for (FrameChunk* chunk : {&second, &first}) {
    if (chunk->offset > 0 && payload.size() <= kChunkBytes) continue;
    chunk->payload = payload.substr(static_cast<size_t>(chunk->offset), kChunkBytes);
    chunk->checksum = checksum_of(*chunk);
    Result<std::vector<Frame>> frames = assembly.add(*chunk);
    if (!frames) return std::nullopt;
    for (Frame& frame : *frames) whole = std::move(frame);
  }
  return whole;
}

/// A site of two, with workers that are ready at once and have taken every snapshot.
class Site {
 public:
  Site()
      : state_(std::vector<float>(kNumValues, 1.0F),
               {{.begin = 0, .end = 80}, {.begin = 80, .end = kNumValues}}),
        member_(options(), state_) {}

  void take(const Frame& frame, const Message& message, double now_s) {
    carry_out(member_.on_message(frame.from, message, now_s), now_s);
    carry_out(member_.on_tick(now_s), now_s);
  }

 private:
  static MemberOptions options() {
    MemberOptions options;
    options.site = std::string("a");  // g++ 12 warns falsely of the assignment of a literal
    options.schedule = kSchedule;
    options.sequence_tokens = 10;
    options.hello.incarnation = kIncarnation;
    return options;
  }

  void carry_out(const MemberActions& actions, double now_s) {
    for (const MemberAction& action : actions) {
      if (const auto* send = std::get_if<SendMessage>(&action)) {
        (void)decode(encode("a", send->message));
      } else if (std::holds_alternative<StartWorkers>(action)) {
        carry_out(member_.on_workers_ready(now_s), now_s);
      } else if (std::holds_alternative<LetTrain>(action)) {
        for (int64_t exchange = 0; exchange < 2; ++exchange) {
          carry_out(member_.on_snapshot(exchange, local_, now_s), now_s);
        }
      }
    }
  }

  GlobalState state_;
  Member member_;
  const std::vector<float> local_ = std::vector<float>(kNumValues / 2, 0.5F);
};

void deliver(std::string_view input) {
  Site site;
  RoundOptions options;
  options.sites = {"a", "b"};
  options.schedule = kSchedule;
  RoundMachine rounds(options);
  double now_s = 0;
  while (!input.empty()) {
    const size_t end = std::min(input.find('\n'), input.size());
    const std::optional<Frame> frame = assemble(input.substr(0, end));
    input.remove_prefix(std::min(end + 1, input.size()));
    if (!frame) continue;
    const Result<Message> message = decode(*frame);
    if (!message) continue;
    now_s += 0.3;
    site.take(*frame, *message, now_s);
    for (const RoundOutput& output :
         {rounds.on_message(frame->from, *message, now_s), rounds.on_tick(now_s)}) {
      for (const auto& [to, answer] : output.messages) {
        const Frame sent = encode(kCoordinatorName, answer);
        if (to == "a") site.take(sent, answer, now_s);
      }
    }
  }
}

}  // namespace
}  // namespace pelago::sites

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t num_bytes) {
  pelago::fuzz::expect_answer(
      [&] { pelago::sites::deliver(pelago::fuzz::text_of(data, num_bytes)); });
  return 0;
}
