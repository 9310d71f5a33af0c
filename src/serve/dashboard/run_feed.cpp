#include "serve/dashboard/run_feed.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/files.h"
#include "base/text/json.h"

namespace pelago::serve {

namespace {

using Json = nlohmann::json;
using Text = fmt::memory_buffer;

constexpr int64_t kFileBytesMax = 64 << 20;  // of plan.json: 100,000 devices take 40 MB

/// A number of a line that anybody may have written: absent, null and other kinds are 0.
double number(const Json& json, const char* key) {
  const auto found = json.find(key);
  return found != json.end() && found->is_number() ? found->get<double>() : 0;
}

std::string text(const Json& json, const char* key) {
  const auto found = json.find(key);
  return found != json.end() && found->is_string() ? found->get<std::string>() : "";
}

// Six digits are more than a chart shows, and a third of what a double takes.
void append_number(Text& out, double value) {
  if (!std::isfinite(value)) {
    fmt::format_to(std::back_inserter(out), "null");
  } else if (std::abs(value) < 1e15 && value == std::floor(value)) {
    fmt::format_to(std::back_inserter(out), "{}", static_cast<int64_t>(value));
  } else {
    fmt::format_to(std::back_inserter(out), "{:.6g}", value);
  }
}

void append_text(Text& out, std::string_view more) { out.append(more); }

/// "key":[...], one number an item of the range.
template <typename Range, typename Value>
void append_column(Text& out, const char* key, const Range& range, Value value) {
  fmt::format_to(std::back_inserter(out), "\"{}\":[", key);
  bool is_first = true;
  for (const auto& item : range) {
    if (!is_first) out.push_back(',');
    is_first = false;
    append_number(out, value(item));
  }
  out.push_back(']');
}

double mean_loss(const StepSums& sums) {
  return sums.counted_tokens > 0 ? sums.loss_tokens / sums.counted_tokens : std::nan("");
}

StepSums read_step(const Json& json) {
  StepSums step;
  step.num_steps = 1;
  step.first_step = step.last_step = static_cast<int64_t>(number(json, "step"));
  step.time_s = number(json, "time");
  step.tokens = number(json, "tokens");
  const auto loss = json.find("loss");
  if (loss != json.end() && loss->is_number()) {
    step.loss_tokens = loss->get<double>() * step.tokens;
    step.counted_tokens = step.tokens;
  }
  step.grad_norm = number(json, "grad_norm");
  step.lr = number(json, "lr");
  step.step_s = number(json, "step_s");
  step.wait_line_s = number(json, "wait_line_s");
  step.reduce_s = number(json, "reduce_s");
  const auto skipped = json.find("skipped");
  step.skipped = skipped != json.end() && skipped->is_boolean() && skipped->get<bool>() ? 1 : 0;
  const auto ranks = json.find("ranks");
  if (ranks == json.end() || !ranks->is_array()) return step;
  for (const Json& rank : *ranks) {
    if (!rank.is_object()) continue;
    step.ranks.push_back({.device = text(rank, "device"),
                          .tokens = number(rank, "tokens"),
                          .compute_s = number(rank, "compute_s"),
                          .wait_stages_s = number(rank, "wait_stages_s"),
                          .wait_ranks_s = number(rank, "wait_ranks_s"),
                          .late_s = number(rank, "late_s"),
                          .host_busy_s = number(rank, "host_busy_s"),
                          .peak_memory_bytes = number(rank, "peak_memory_bytes")});
  }
  return step;
}

/// Fields of a rank that are charted, and those that are only summed up.
struct RankField {
  const char* name;
  double RankSums::*value;
};
constexpr RankField kCharted[] = {{"tokens", &RankSums::tokens},
                                  {"compute_s", &RankSums::compute_s},
                                  {"wait_stages_s", &RankSums::wait_stages_s},
                                  {"wait_ranks_s", &RankSums::wait_ranks_s}};
constexpr RankField kSummed[] = {{"late_s", &RankSums::late_s},
                                 {"host_busy_s", &RankSums::host_busy_s},
                                 {"peak_memory_bytes", &RankSums::peak_memory_bytes}};

struct StepField {
  const char* name;
  double StepSums::*value;
};
constexpr StepField kStepFields[] = {{"steps", &StepSums::num_steps},
                                     {"tokens", &StepSums::tokens},
                                     {"step_s", &StepSums::step_s},
                                     {"wait_line_s", &StepSums::wait_line_s},
                                     {"reduce_s", &StepSums::reduce_s},
                                     {"skipped", &StepSums::skipped}};

void append_totals(Text& out, const StepSums& sums) {
  append_text(out, "\"totals\":{");
  for (const StepField& field : kStepFields) {
    fmt::format_to(std::back_inserter(out), "\"{}\":", field.name);
    append_number(out, sums.*field.value);
    out.push_back(',');
  }
  append_text(out, "\"ranks\":[");
  for (size_t rank = 0; rank < sums.ranks.size(); ++rank) {
    const RankSums& each = sums.ranks[rank];
    append_text(out, rank == 0 ? "{\"device\":" : ",{\"device\":");
    append_text(out, Json(each.device).dump(-1, ' ', false, Json::error_handler_t::replace));
    for (const auto& fields : {std::span<const RankField>(kCharted), {kSummed}}) {
      for (const RankField& field : fields) {
        fmt::format_to(std::back_inserter(out), ",\"{}\":", field.name);
        append_number(out, each.*field.value);
      }
    }
    out.push_back('}');
  }
  append_text(out, "]}");
}

void append_columns(Text& out, std::span<const StepSums> buckets, size_t num_ranks) {
  append_text(out, "\"columns\":{");
  for (const StepField& field : kStepFields) {
    append_column(
        out, field.name, buckets, [&](const StepSums& sums) { return sums.*field.value; });
    out.push_back(',');
  }
  append_column(out, "step", buckets, [](const StepSums& sums) {
    return static_cast<double>(sums.last_step);
  });
  append_text(out, ",\"time\":[");
  for (const StepSums& sums : buckets) {
    fmt::format_to(
        std::back_inserter(out), "{}{:.2f}", &sums == buckets.data() ? "" : ",", sums.time_s);
  }
  append_text(out, "],");
  append_column(out, "loss", buckets, mean_loss);
  out.push_back(',');
  append_column(out, "grad_norm", buckets, [](const StepSums& sums) {
    return sums.num_steps > 0 ? sums.grad_norm / sums.num_steps : 0;
  });
  out.push_back(',');
  append_column(out, "lr", buckets, [](const StepSums& sums) { return sums.lr; });
  append_text(out, ",\"ranks\":[");
  for (size_t rank = 0; rank < num_ranks; ++rank) {
    append_text(out, rank == 0 ? "{" : ",{");
    for (const RankField& field : kCharted) {
      if (&field != kCharted) out.push_back(',');
      append_column(out, field.name, buckets, [&](const StepSums& sums) {
        return rank < sums.ranks.size() ? sums.ranks[rank].*field.value : 0;
      });
    }
    out.push_back('}');
  }
  append_text(out, "]}");
}

template <typename Rows>
void append_rows(Text& out, const char* key, const Rows& rows, uint64_t since) {
  fmt::format_to(std::back_inserter(out), ",\"{}\":[", key);
  auto row = std::find_if(
      rows.begin(), rows.end(), [&](const auto& each) { return each.version > since; });
  for (bool is_first = true; row != rows.end(); ++row, is_first = false) {
    if (!is_first) append_text(out, ",\n");
    append_text(out, row->json);
  }
  out.push_back(']');
}

}  // namespace

RunFeed::RunFeed(std::filesystem::path run_dir, RunFeedOptions options)
    : run_dir_(std::move(run_dir)),
      options_(options),
      epoch_(options.first_epoch),
      metrics_(run_dir_ / "metrics.jsonl"),
      events_(run_dir_ / "events.jsonl") {
  plan_.path = run_dir_ / "plan.json";
  job_.path = run_dir_ / "job.toml";
}

void RunFeed::forget() {
  ++epoch_;
  metrics_.rewind();
  events_.rewind();
  sites_.clear();
  for (auto* rows : {&evaluations_, &commits_, &other_events_, &lines_}) rows->clear();
  num_given_up_ = num_unreadable_ = 0;
  for (TextFile* file : {&plan_, &job_}) *file = {.path = file->path, .text = {}};
}

void RunFeed::keep(std::deque<Row>& rows, std::string_view json, size_t num_max) {
  rows.push_back({version_, std::string(json)});
  if (rows.size() <= num_max) return;
  rows.pop_front();
  ++num_given_up_;
}

void RunFeed::take_metric(std::string_view line) {
  const Json json = try_parse_json(line);
  if (!json.is_object()) {
    ++num_unreadable_;
    return;
  }
  const std::string kind = text(json, "kind"), site = text(json, "site");
  if (kind == "step" && number(json, "step") >= 1) {
    sites_.try_emplace(site, options_.num_buckets_max).first->second.add(read_step(json), version_);
  } else if (kind == "evaluation") {
    keep(evaluations_, line, options_.num_events_max);
  } else if (kind == "line") {
    keep(lines_, line, options_.num_events_max);
  }
}

void RunFeed::take_event(std::string_view line) {
  const Json json = try_parse_json(line);
  if (!json.is_object()) {
    ++num_unreadable_;
    return;
  }
  keep(text(json, "event") == "commit" ? commits_ : other_events_, line, options_.num_events_max);
}

void RunFeed::refresh_text(TextFile& file) {
  std::error_code error;
  const auto written = std::filesystem::last_write_time(file.path, error);
  const bool is_there = !error && std::filesystem::is_regular_file(file.path, error);
  if (is_there == file.is_there && (!is_there || written == file.written)) return;
  file.is_there = is_there;
  file.written = written;
  file.version = version_;
  has_changed_ = true;
  file.text.clear();
  if (!is_there || std::filesystem::file_size(file.path, error) > kFileBytesMax || error) return;
  try {
    file.text = read_text_file(file.path);
  } catch (const Failure&) {
    file.is_there = false;  // gone in between: the next look finds it again
  }
}

void RunFeed::refresh() {
  if (metrics_.was_replaced() || events_.was_replaced()) forget();
  ++version_;
  has_changed_ = false;
  refresh_text(plan_);
  refresh_text(job_);
  has_changed_ |=
      metrics_.read(options_.read_bytes_max, [this](std::string_view line) { take_metric(line); });
  has_changed_ |=
      events_.read(options_.read_bytes_max, [this](std::string_view line) { take_event(line); });
  if (!has_changed_) --version_;
}

std::string RunFeed::site_json(const std::string& name,
                               const StepSeries& series,
                               uint64_t since) const {
  const size_t from = series.changed_since(since);
  const std::span<const StepSums> changed = std::span(series.buckets()).subspan(from);
  Text out;
  fmt::format_to(std::back_inserter(out),
                 "{{\"site\":{},\"stride\":{},\"repeated\":{},\"from\":{},",
                 Json(name).dump(-1, ' ', false, Json::error_handler_t::replace),
                 series.stride(),
                 series.num_repeated(),
                 from);
  append_totals(out, series.totals());
  out.push_back(',');
  append_columns(out, changed, series.totals().ranks.size());
  out.push_back('}');
  return fmt::to_string(out);
}

std::string RunFeed::answer(uint64_t epoch, uint64_t since, double now_s) {
  const std::lock_guard lock(mutex_);
  refresh();
  if (epoch != epoch_ || since > version_) since = 0;
  std::error_code ignored;
  Text out;
  fmt::format_to(
      std::back_inserter(out),
      "{{\"format\":1,\"epoch\":{},\"version\":{},\"since\":{},\"run\":{},\"now\":{:.3f},"
      "\"written\":{:.3f},\"found\":{},\"read_bytes\":{},\"total_bytes\":{},"
      "\"has_model\":{},\"given_up\":{},\"unreadable\":{}",
      epoch_,
      version_,
      since,
      Json(run_dir_.string()).dump(-1, ' ', false, Json::error_handler_t::replace),
      now_s,
      std::max(metrics_.written_s(), events_.written_s()),
      plan_.is_there,
      metrics_.read_bytes() + events_.read_bytes(),
      metrics_.total_bytes() + events_.total_bytes(),
      std::filesystem::exists(run_dir_ / "model" / "config.json", ignored),
      num_given_up_,
      num_unreadable_);
  if (plan_.version > since && !try_parse_json(plan_.text).is_discarded()) {
    append_text(out, ",\"plan\":");
    append_text(out, plan_.text);
  }
  if (job_.version > since) {
    append_text(out, ",\"job\":");
    append_text(out, Json(job_.text).dump(-1, ' ', false, Json::error_handler_t::replace));
  }
  append_text(out, ",\"sites\":[");
  for (const auto& [name, series] : sites_) {
    if (name != sites_.begin()->first) out.push_back(',');
    append_text(out, site_json(name, series, since));
  }
  out.push_back(']');
  append_rows(out, "evaluations", evaluations_, since);
  append_rows(out, "lines", lines_, since);
  append_rows(out, "commits", commits_, since);
  append_rows(out, "events", other_events_, since);
  out.push_back('}');
  return fmt::to_string(out);
}

}  // namespace pelago::serve
