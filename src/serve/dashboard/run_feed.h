// What the dashboard page is told about a run: the content of the run folder's files at a size that
// a page can draw, and of that only what is new to it. Nothing is written and nothing is locked;
// the files may grow, end in half a line, be absent yet, or be replaced by those of a run begun
// anew. Each answer reads at most a few MB more of them, so a long run appears in steps and nobody
// waits.
#pragma once

#include <cstdint>
#include <deque>
#include <filesystem>
#include <map>
#include <mutex>
#include <string>

#include "serve/dashboard/line_tail.h"
#include "serve/dashboard/step_series.h"

namespace pelago::serve {

struct RunFeedOptions {
  int64_t read_bytes_max = 8 << 20;  // of each file, an answer; parsed in about 0.1 s
  size_t num_buckets_max = 600;      // a site: a chart has about so many columns of pixels
  size_t num_events_max = 4000;      // commits, and all others, each; the oldest go
  /// Tells one feed from an earlier one at the same address; raised when a run begins anew.
  uint64_t first_epoch = 1;
};

class RunFeed {
 public:
  explicit RunFeed(std::filesystem::path run_dir, RunFeedOptions options = {});

  /// Reads what is new in the folder and returns, as JSON, what has changed since the answer that
  /// bore this epoch and version; everything if the epoch is another. docs/DASHBOARD.md lists the
  /// fields. now_s: unix seconds. May be called from several threads.
  std::string answer(uint64_t epoch, uint64_t since, double now_s);

 private:
  struct Row {  // of events.jsonl, evaluations, lines: as it stands in the file
    uint64_t version = 0;
    std::string json;
  };
  struct TextFile {
    std::filesystem::path path;
    std::filesystem::file_time_type written = {};
    uint64_t version = 0;
    std::string text;
    bool is_there = false;
  };

  void refresh();
  void forget();
  void take_metric(std::string_view line);
  void take_event(std::string_view line);
  void refresh_text(TextFile& file);
  void keep(std::deque<Row>& rows, std::string_view json, size_t num_max);
  std::string site_json(const std::string& name, const StepSeries& series, uint64_t since) const;

  std::mutex mutex_;  // guards everything below
  std::filesystem::path run_dir_;
  RunFeedOptions options_;
  uint64_t epoch_;
  uint64_t version_ = 0;
  bool has_changed_ = false;
  LineTail metrics_, events_;
  TextFile plan_, job_;
  std::map<std::string, StepSeries> sites_;
  std::deque<Row> evaluations_, commits_, other_events_, lines_;
  uint64_t num_given_up_ = 0;    // rows that had to make room
  uint64_t num_unreadable_ = 0;  // lines that are no JSON object
};

}  // namespace pelago::serve
