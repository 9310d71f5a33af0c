#include "sites/across/checkpoint_fetcher.h"

#include <algorithm>
#include <span>

#include "base/error.h"
#include "base/files.h"
#include "base/text/json.h"

namespace pelago::sites {

namespace {

// 16 MiB fill a line of 10 Gbit/s with a round trip of 13 ms.
constexpr size_t kPiecesAsked = 16;
constexpr size_t kTriesByDonor = 5;

}  // namespace

bool is_checkpoint_file(const std::string& name) {
  return !name.empty() && name.front() != '.' && name.find('/') == std::string::npos;
}

CheckpointFetcher::CheckpointFetcher(Options options, CheckpointSink& sink)
    : options_(std::move(options)), sink_(&sink) {
  PELAGO_ASSERT(!options_.donors.empty(), "somebody has the checkpoint of the start");
  begin();
}

void CheckpointFetcher::begin() {
  wanted_.clear();
  wanted_[{kCheckpointManifest, 0}] = {};
}

void CheckpointFetcher::ask_next(const std::string& why) {
  if (++num_asked_ >= kTriesByDonor * options_.donors.size()) {
    failure_ = fmt::format("the checkpoint of step {} cannot be fetched from site {}: {}",
                           options_.step,
                           fmt::join(options_.donors, ", "),
                           why);
  }
  donor_idx_ = (donor_idx_ + 1) % options_.donors.size();
  heard_s_ = -1;
  for (auto& [place, want] : wanted_) want.is_asked = false;
}

CheckpointFetcher::Requests CheckpointFetcher::on_tick(double now_s) {
  if (heard_s_ < 0) heard_s_ = now_s;
  if (now_s - heard_s_ > options_.patience_s) {
    ask_next("it does not answer");
    heard_s_ = now_s;
  }
  return ask();
}

CheckpointFetcher::Requests CheckpointFetcher::on_piece(const std::string& from,
                                                        const CheckpointPiece& piece,
                                                        double now_s) {
  const auto want = wanted_.find({piece.file, piece.offset});
  const bool is_of_it = piece.step == options_.step && piece.hash == options_.hash;
  if (is_done_ || !failure_.empty() || !is_of_it || want == wanted_.end()) return {};
  const bool is_manifest = want->second.num_bytes == 0;
  if (piece.payload.empty() ||
      (!is_manifest && static_cast<int64_t>(piece.payload.size()) != want->second.num_bytes)) {
    if (from != donor()) return {};
    ask_next("it has it no more");
    return ask();
  }
  heard_s_ = now_s;
  num_bytes_ += static_cast<int64_t>(piece.payload.size());
  wanted_.erase(want);
  if (is_manifest) {
    take_manifest(piece.payload);
  } else {
    sink_->write(piece.file, piece.offset, piece.payload);
  }
  if (wanted_.empty()) {
    const std::string wrong = sink_->finish();
    is_done_ = wrong.empty();
    if (!is_done_) {
      begin();
      ask_next(wrong);
    }
  }
  return ask();
}

void CheckpointFetcher::take_manifest(const std::string& text) {
  try {
    if (hash_hex(std::as_bytes(std::span(text))) != options_.hash) fail("another manifest");
    const auto manifest = parse_json(text);
    for (const auto& [file, fields] : manifest.at("files").items()) {
      const auto num_bytes = fields.at("bytes").get<int64_t>();
      if (!is_checkpoint_file(file) || num_bytes < 0) fail("a manifest that names \"{}\"", file);
      if (num_bytes == 0) sink_->write(file, 0, "");
      for (int64_t offset = 0; offset < num_bytes; offset += kCheckpointPieceBytes) {
        wanted_[{file, offset}] = {.num_bytes =
                                       std::min(kCheckpointPieceBytes, num_bytes - offset)};
      }
    }
    sink_->write(kCheckpointManifest, 0, text);
    return;
  } catch (const nlohmann::json::exception&) {
    begin();
    ask_next("its manifest is damaged");
  } catch (const Failure& failure) {
    begin();
    ask_next(failure.what());
  }
}

CheckpointFetcher::Requests CheckpointFetcher::ask() {
  Requests requests;
  size_t num_asked = 0;
  for (auto& [place, want] : wanted_) {
    if (is_done_ || !failure_.empty() || num_asked >= kPiecesAsked) break;
    ++num_asked;
    if (std::exchange(want.is_asked, true)) continue;
    requests.emplace_back(donor(),
                          FetchPiece{.step = options_.step,
                                     .hash = options_.hash,
                                     .file = place.first,
                                     .offset = place.second});
  }
  return requests;
}

}  // namespace pelago::sites
