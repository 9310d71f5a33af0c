#include "sites/copies/checkpoint_copier.h"

#include <algorithm>
#include <cctype>
#include <chrono>
#include <fstream>

#include "base/clock.h"
#include "base/files.h"
#include "base/log.h"
#include "base/text/json.h"
#include "sites/process/site_checkpoint.h"
#include "train/checkpoint.h"

namespace pelago::sites {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

constexpr const char* kLatest = "latest";
constexpr const char* kManifest = "manifest.json";
constexpr int kRacesMax = 20;  // lost in a row: then something else is wrong

std::string key_of(const CopierOptions& options, const std::string& name) {
  return key_part(options.run) + "/" + key_part(options.site) + "/" + name;
}

std::string file_key(const CopierOptions& options, int64_t step, const std::string& file) {
  return key_of(options, fmt::format("step-{}/{}", step, file));
}

Result<CopyIndex> index_of(S3Client& store, const CopierOptions& options) {
  const auto object = store.get(key_of(options, kLatest));
  if (!object) return object.error();
  if (!*object) return CopyIndex{};
  Result<CopyIndex> index = index_from_json((*object)->bytes);
  if (index) index->etag = (*object)->etag;
  return index;
}

// Files of a folder, the manifest last: whoever finds it finds all it names.
std::vector<std::string> files_of(const fs::path& folder) {
  std::vector<std::string> names;
  std::error_code gone;
  for (const auto& entry : fs::directory_iterator(folder, gone)) {
    if (entry.path().filename() != kManifest) names.push_back(entry.path().filename());
  }
  std::sort(names.begin(), names.end());
  names.push_back(kManifest);
  return names;
}

}  // namespace

std::string key_part(const std::string& name) {
  std::string part = name;
  for (char& c : part) {
    const bool is_plain = std::isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '_';
    if (!is_plain) c = '_';
  }
  return part;
}

std::string to_json(const CopyIndex& index) {
  json checkpoints = json::array();
  for (const CheckpointOffer& offer : index.checkpoints) {
    checkpoints.push_back(
        {{"step", offer.step}, {"hash", offer.hash}, {"data_step", offer.data_step}});
  }
  return json({{"format", 1}, {"course", index.course}, {"checkpoints", checkpoints}}).dump(2) +
         "\n";
}

Result<CopyIndex> index_from_json(const std::string& text) {
  CopyIndex index;
  try {
    const json value = parse_json(text);
    value.at("course").get_to(index.course);
    for (const json& each : value.at("checkpoints")) {
      CheckpointOffer& offer = index.checkpoints.emplace_back();
      each.at("step").get_to(offer.step);
      each.at("hash").get_to(offer.hash);
      each.at("data_step").get_to(offer.data_step);
      if (offer.step < 0 || offer.data_step < 0) fail("a step is negative");
    }
  } catch (const std::exception& error) {
    return Error{
        ErrorCode::kCorrupt,
        fmt::format("the store's \"latest\" is no index of checkpoints: {}", error.what())};
  }
  std::sort(index.checkpoints.begin(), index.checkpoints.end(), [](const auto& a, const auto& b) {
    return a.step < b.step;
  });
  return index;
}

CheckpointCopier::CheckpointCopier(CopierOptions options)
    : options_(std::move(options)), worker_([this](const std::stop_token& stop) { work(stop); }) {}

CheckpointCopier::~CheckpointCopier() = default;

void CheckpointCopier::offer(int64_t step) {
  const std::lock_guard lock(mutex_);
  wanted_ = step;
  changed_.notify_all();
}

std::vector<std::pair<std::string, std::string>> CheckpointCopier::take_events() {
  const std::lock_guard lock(mutex_);
  return std::exchange(events_, {});
}

bool CheckpointCopier::finish(double timeout_s) {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(
      lock, std::chrono::duration<double>(timeout_s), [&] { return !wanted_ && !is_working_; });
}

void CheckpointCopier::work(const std::stop_token& stop) {
  S3Client store(options_.store, [&stop] { return stop.stop_requested(); });
  std::unique_lock lock(mutex_);
  while (changed_.wait(lock, stop, [&] { return wanted_.has_value(); })) {
    const int64_t step = *std::exchange(wanted_, std::nullopt);
    is_working_ = true;
    lock.unlock();
    const double begin_s = steady_now_s();
    const int64_t retries_before = store.num_retries();
    Result<int64_t> copied = Error{ErrorCode::kUnavailable, "not begun"};
    try {
      copied = copy(store, step);
    } catch (const std::exception& error) {
      copied = Error{ErrorCode::kUnavailable, error.what()};
    }
    lock.lock();
    is_working_ = false;
    // A newer checkpoint may have taken its place on the disk: that one waits already.
    const bool is_gone =
        !copied && !fs::exists(train::checkpoint_path(options_.checkpoints_dir, step));
    if (copied || !(is_gone || stop.stop_requested())) {
      note(step, copied, steady_now_s() - begin_s, store.num_retries() - retries_before);
    }
    changed_.notify_all();
  }
}

void CheckpointCopier::note(int64_t step,
                            const Result<int64_t>& copied,
                            double seconds,
                            int64_t num_retries) {
  if (copied) {
    num_failures_ = 0;
    const json fields{
        {"step", step}, {"bytes", *copied}, {"seconds", seconds}, {"retries", num_retries}};
    events_.emplace_back("checkpoint_copied", fields.dump());
    return;
  }
  const std::string& reason = copied.error().message;
  const json fields{{"step", step}, {"reason", reason}, {"failures", ++num_failures_}};
  events_.emplace_back("checkpoint_copy_failed", fields.dump());
  if (num_failures_ > 1) return;
  const std::string message = fmt::format(
      "checkpoint of step {} not copied, training goes on and the next one is tried: {}",
      step,
      reason);
  events_.emplace_back("warning", json{{"message", message}}.dump());
}

Status CheckpointCopier::learn_course(S3Client& store) {
  if (course_) return ok();
  Result<CopyIndex> index = index_of(store, options_);
  if (!index) return index.error();
  const bool goes_on =
      index->checkpoints.empty() || index->checkpoints.back().step <= options_.start_step;
  course_ = goes_on ? index->course : index->course + 1;
  return ok();
}

Status CheckpointCopier::copy_plan(S3Client& store) {
  if (plan_is_there_ || options_.plan_path.empty()) return ok();
  const MappedFile plan(options_.plan_path);
  const Status put = store.put(key_part(options_.run) + "/plan.json", plan.bytes());
  if (put) plan_is_there_ = true;
  return put;
}

Result<int64_t> CheckpointCopier::copy(S3Client& store, int64_t step) {
  const fs::path folder = train::checkpoint_path(options_.checkpoints_dir, step);
  Result<CheckpointOffer> offer = offer_of(folder);
  if (!offer) return offer.error();
  Status done = learn_course(store);
  if (done) done = copy_plan(store);
  int64_t num_bytes = 0;
  for (const std::string& name : files_of(folder)) {
    if (!done) break;
    const MappedFile file(folder / name);  // stays readable if the folder is superseded
    num_bytes += static_cast<int64_t>(file.bytes().size());
    done = store.put(file_key(options_, step, name), file.bytes());
  }
  if (done) done = move_latest(store, *offer);
  if (!done) return done.error();
  return num_bytes;
}

// False if the index need not change: it is there, or a newer one is.
bool CheckpointCopier::add_to(CopyIndex& index, const CheckpointOffer& offer) const {
  std::vector<CheckpointOffer>& known = index.checkpoints;
  if (index.course < *course_) known.clear();
  index.course = *course_;
  const bool is_there = std::any_of(known.begin(), known.end(), [&](const auto& each) {
    return each.step == offer.step && each.hash == offer.hash;
  });
  const bool is_older = !known.empty() && known.back().step > offer.step;
  if (is_there || is_older) return false;
  std::erase_if(known, [&](const auto& each) { return each.step == offer.step; });
  known.push_back(offer);
  while (static_cast<int64_t>(known.size()) > options_.keep) known.erase(known.begin());
  return true;
}

// Read, change, write if nobody else has: until it is done, or a newer course has begun.
Status CheckpointCopier::move_latest(S3Client& store, const CheckpointOffer& offer) {
  for (int race = 0; race < kRacesMax; ++race) {
    Result<CopyIndex> before = index_of(store, options_);
    if (!before) return before.error();
    if (before->course > *course_) {
      return Error{ErrorCode::kRefused,
                   fmt::format("site {}: a newer course of the run writes to the store; this one "
                               "does not move it back",
                               options_.site)};
    }
    CopyIndex after = *before;
    if (!add_to(after, offer)) return ok();
    Result<bool> won = store.put_if(key_of(options_, kLatest), to_json(after), before->etag);
    if (!won) return won.error();
    if (!*won) continue;
    remove_superseded(store, *before, after);
    return ok();
  }
  return Error{ErrorCode::kUnavailable, "the store's \"latest\" never stands still"};
}

// Nobody names them any more. One that stays costs room and nothing else.
void CheckpointCopier::remove_superseded(S3Client& store,
                                         const CopyIndex& before,
                                         const CopyIndex& after) {
  for (const CheckpointOffer& old : before.checkpoints) {
    const bool stays = std::any_of(after.checkpoints.begin(),
                                   after.checkpoints.end(),
                                   [&](const auto& kept) { return kept.step == old.step; });
    if (stays) continue;
    for (const char* name : {kManifest,
                             "state.json",
                             "weights.safetensors",
                             "optimizer.safetensors",
                             "sites.safetensors"}) {
      const Status removed = store.remove(file_key(options_, old.step, name));
      if (!removed)
        log_warn("old copy stays step={} reason=\"{}\"", old.step, removed.error().message);
    }
  }
}

Result<std::optional<CopyIndex>> find_copies(const CopierOptions& options) {
  S3Client store(options.store);
  Result<CopyIndex> index = index_of(store, options);
  if (!index) return index.error();
  if (index->checkpoints.empty()) return std::optional<CopyIndex>();
  return std::optional<CopyIndex>(*index);
}

Result<std::optional<std::string>> fetch_plan(const CopierOptions& options) {
  S3Client store(options.store);
  const auto object = store.get(key_part(options.run) + "/plan.json");
  if (!object) return object.error();
  if (!*object) return std::optional<std::string>();
  return std::optional<std::string>((*object)->bytes);
}

namespace {

void fetch_file(S3Client& store,
                const CopierOptions& options,
                int64_t step,
                const fs::path& path,
                int64_t num_bytes,
                const std::function<void()>& on_progress) {
  std::ofstream out(path, std::ios::binary);
  const auto part = static_cast<int64_t>(options.store.part_bytes);
  for (int64_t begin = 0; begin < num_bytes; begin += part) {
    on_progress();
    Result<std::string> bytes = store.get_range(
        file_key(options, step, path.filename()), begin, std::min(part, num_bytes - begin));
    if (!bytes) fail("{}", bytes.error().message);
    out << *bytes;
  }
  out.close();
  if (!out) fail("{}: cannot be written", path.string());
}

// Throws Failure or json::exception.
void fetch_into(const fs::path& folder,
                const CopierOptions& options,
                int64_t step,
                const std::function<void()>& on_progress) {
  S3Client store(options.store);
  const auto manifest = store.get(file_key(options, step, kManifest));
  if (!manifest) fail("{}", manifest.error().message);
  if (!*manifest) fail("the copy of step {} has no manifest", step);
  const json listed = parse_json((*manifest)->bytes);
  for (const auto& [name, fields] : listed.at("files").items()) {
    const bool is_plain = fs::path(name).filename() == name && name != ".." && name != ".";
    if (!is_plain) fail("the copy of step {} names a file \"{}\"", step, name);
    fetch_file(store, options, step, folder / name, fields.at("bytes").get<int64_t>(), on_progress);
  }
  write_file(folder / kManifest, (*manifest)->bytes);
  const std::string wrong = train::verify_checkpoint(folder);
  if (!wrong.empty()) fail("{}", wrong);
}

}  // namespace

Status fetch_copy(const CopierOptions& options,
                  int64_t step,
                  const std::function<void()>& on_progress) {
  std::string wrong;
  const fs::path folder = train::begin_checkpoint(options.checkpoints_dir, step);
  try {
    fetch_into(folder, options, step, on_progress);
    return train::finish_checkpoint(options.checkpoints_dir, step, options.keep);
  } catch (const json::exception& error) {
    wrong = fmt::format("the manifest is damaged: {}", error.what());
  } catch (const Failure& failure) {
    wrong = failure.what();
  }
  std::error_code ignored;
  fs::remove_all(folder, ignored);
  return Error{ErrorCode::kUnavailable,
               fmt::format("the copy of step {} cannot be taken: {}", step, wrong)};
}

}  // namespace pelago::sites
