#include "sites/across/checkpoint_exchange.h"

#include <algorithm>
#include <fstream>
#include <utility>

#include "base/error.h"
#include "base/files.h"
#include "train/checkpoint.h"

namespace pelago::sites {

namespace fs = std::filesystem;

CheckpointPiece piece_of(const fs::path& checkpoints_dir, const FetchPiece& wanted) {
  CheckpointPiece piece{.step = wanted.step,
                        .hash = wanted.hash,
                        .file = wanted.file,
                        .offset = wanted.offset,
                        .payload = {}};
  if (!is_checkpoint_file(wanted.file) || wanted.offset < 0) return piece;
  const fs::path folder = train::checkpoint_path(checkpoints_dir, wanted.step);
  try {
    if (hash_hex(read_text_file(folder / kCheckpointManifest)) != wanted.hash) return piece;
    const MappedFile file(folder / wanted.file);
    const auto offset = static_cast<size_t>(wanted.offset);
    if (offset >= file.bytes().size()) return piece;
    const auto num_bytes =
        std::min(static_cast<size_t>(kCheckpointPieceBytes), file.bytes().size() - offset);
    const auto bytes = file.bytes().subspan(offset, num_bytes);
    piece.payload.assign(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  } catch (const Failure&) {
    // It is not here any more: the empty answer says so.
  }
  return piece;
}

CheckpointFolder::CheckpointFolder(fs::path checkpoints_dir, int64_t step, int64_t keep)
    : checkpoints_dir_(std::move(checkpoints_dir)),
      temporary_(train::begin_checkpoint(checkpoints_dir_, step)),
      step_(step),
      keep_(keep) {}

CheckpointFolder::~CheckpointFolder() {
  std::error_code ignored;  // there is none once it is whole
  fs::remove_all(temporary_, ignored);
}

void CheckpointFolder::write(const std::string& file, int64_t offset, const std::string& bytes) {
  const fs::path path = temporary_ / file;
  const bool is_new = offset == 0 && !fs::exists(path);
  std::fstream out(path,
                   std::ios::binary | std::ios::out | (is_new ? std::ios::trunc : std::ios::in));
  if (!out.is_open()) out.open(path, std::ios::binary | std::ios::out);
  out.seekp(offset);
  out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  out.close();
  if (!out) fail("{}: cannot be written; make room and start the site again", path.string());
}

std::string CheckpointFolder::finish() {
  std::string wrong = train::verify_checkpoint(temporary_);
  if (!wrong.empty()) return wrong;
  const Status finished = train::finish_checkpoint(checkpoints_dir_, step_, keep_);
  return finished ? "" : finished.error().message;
}

CheckpointExchange::CheckpointExchange(Options options, Transport& transport)
    : options_(std::move(options)), transport_(&transport) {}

bool CheckpointExchange::begin(const StartWorkers& start, double now_s) {
  const bool is_here = fs::exists(train::checkpoint_path(options_.checkpoints_dir, start.step));
  if (start.mode != StartMode::kResume || start.donors.empty() || is_here) return false;
  CheckpointFetcher::Options fetch{.step = start.step, .hash = start.hash, .donors = {}};
  for (const SiteAddress& donor : start.donors) fetch.donors.push_back(donor.site);
  start_ = start;
  begun_s_ = now_s;
  folder_ = std::make_unique<CheckpointFolder>(options_.checkpoints_dir, start.step, options_.keep);
  fetcher_ = std::make_unique<CheckpointFetcher>(std::move(fetch), *folder_);
  return true;
}

bool CheckpointExchange::take(const std::string& from, const Message& message, double now_s) {
  if (const auto* wanted = std::get_if<FetchPiece>(&message)) {
    transport_->send(from, encode(options_.site, piece_of(options_.checkpoints_dir, *wanted)));
    return true;
  }
  const auto* piece = std::get_if<CheckpointPiece>(&message);
  if (piece != nullptr && fetcher_) send(fetcher_->on_piece(from, *piece, now_s));
  return piece != nullptr;
}

void CheckpointExchange::tick(double now_s) {
  if (!fetcher_ || fetcher_->is_done()) return;
  send(fetcher_->on_tick(now_s));
  if (!fetcher_->failure().empty()) fail("{}", fetcher_->failure());
}

std::optional<CheckpointExchange::Ready> CheckpointExchange::take_ready(double now_s) {
  if (!start_ || !fetcher_->is_done()) return std::nullopt;
  return Ready{.start = *std::exchange(start_, std::nullopt),
               .num_bytes = fetcher_->num_bytes(),
               .took_s = now_s - begun_s_};
}

void CheckpointExchange::send(CheckpointFetcher::Requests requests) {
  for (auto& [to, request] : requests) {
    transport_->send(to, encode(options_.site, std::move(request)));
  }
}

}  // namespace pelago::sites
