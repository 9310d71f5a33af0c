// What the dashboard is told, of folders as they are met: growing, cut in mid-line, absent,
// replaced, damaged and long.
#include "serve/dashboard/run_feed.h"

#include <doctest/doctest.h>
#include <fmt/format.h>
#include <unistd.h>

#include <fstream>

#include "base/text/json.h"

namespace pelago::serve {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

class FeedFolder {
 public:
  FeedFolder() {
    static int num_folders = 0;
    path = fs::temp_directory_path() / fmt::format("pelago-feed-{}-{}", getpid(), num_folders++);
    fs::create_directories(path);
  }
  ~FeedFolder() { fs::remove_all(path); }
  FeedFolder(const FeedFolder&) = delete;
  FeedFolder& operator=(const FeedFolder&) = delete;

  void append(const std::string& file, const std::string& text) const {
    std::ofstream(path / file, std::ios::app | std::ios::binary) << text;
  }
  fs::path path;
};

std::string step_line(const std::string& site, int step, double loss, double tokens = 100) {
  return Json({{"kind", "step"},
               {"site", site},
               {"step", step},
               {"loss", loss},
               {"tokens", tokens},
               {"step_s", 2.0},
               {"wait_line_s", 0.5},
               {"time", 1000.0 + step},
               {"ranks",
                {{{"device", "emulated:a"}, {"tokens", tokens}, {"peak_memory_bytes", step}}}}})
             .dump() +
         "\n";
}

/// A page: asks as the real one does, and keeps what it was told last.
class FeedReader {
 public:
  explicit FeedReader(RunFeed& feed) : feed_(&feed) {}
  Json ask() {
    Json answer = Json::parse(feed_->answer(epoch_, version_, 5000));
    epoch_ = answer["epoch"];
    version_ = answer["version"];
    return answer;
  }

 private:
  RunFeed* feed_;  // outlives this
  uint64_t epoch_ = 0, version_ = 0;
};

TEST_CASE("a page that has everything is told nothing twice") {
  FeedFolder run;
  run.append("plan.json", "{\"steps\":9}");
  run.append("metrics.jsonl", step_line("lingang", 1, 4) + step_line("guizhou", 1, 5));
  run.append("events.jsonl", "{\"event\":\"ready\"}\n{\"event\":\"commit\",\"exchange\":0}\n");
  RunFeed feed(run.path);
  FeedReader page(feed);
  const Json first = page.ask();
  CHECK(first["found"] == true);
  CHECK(first["plan"]["steps"] == 9);
  CHECK(first["sites"].size() == 2);
  CHECK(first["sites"][1]["columns"]["loss"] == Json({4}));
  CHECK(first["events"].size() == 1);
  CHECK(first["commits"].size() == 1);
  const Json second = page.ask();
  CHECK(second["version"] == first["version"]);
  CHECK(!second.contains("plan"));
  CHECK(second["sites"][1]["from"] == 1);
  CHECK(second["sites"][1]["columns"]["loss"].empty());
  CHECK(second["events"].empty());
  run.append("metrics.jsonl", step_line("lingang", 2, 3));
  const Json third = page.ask();
  CHECK(third["sites"][1]["from"] == 1);
  CHECK(third["sites"][1]["columns"]["loss"] == Json({3}));
  CHECK(third["sites"][0]["columns"]["loss"].empty());
}

TEST_CASE("half a line counts when its other half has come") {
  FeedFolder run;
  const std::string line = step_line("room", 1, 4);
  run.append("metrics.jsonl", line.substr(0, 20));
  RunFeed feed(run.path);
  FeedReader page(feed);
  CHECK(page.ask()["sites"].empty());
  run.append("metrics.jsonl", line.substr(20));
  CHECK(page.ask()["sites"][0]["totals"]["steps"] == 1);
}

TEST_CASE("a folder that is absent may come") {
  FeedFolder run;
  RunFeed feed(run.path / "later");
  FeedReader page(feed);
  CHECK(page.ask()["found"] == false);
  fs::create_directories(run.path / "later");
  run.append("later/plan.json", "{}");
  run.append("later/metrics.jsonl", step_line("room", 1, 4));
  const Json answer = page.ask();
  CHECK(answer["found"] == true);
  CHECK(answer["sites"].size() == 1);
}

TEST_CASE("a run begun anew makes the page forget the old one") {
  FeedFolder run;
  run.append("metrics.jsonl", step_line("room", 1, 4) + step_line("room", 2, 4));
  RunFeed feed(run.path);
  FeedReader page(feed);
  const Json before = page.ask();
  fs::remove(run.path / "metrics.jsonl");
  run.append("metrics.jsonl", step_line("other", 1, 7));
  const Json after = page.ask();
  CHECK(after["epoch"] > before["epoch"]);
  CHECK(after["since"] == 0);
  REQUIRE(after["sites"].size() == 1);
  CHECK(after["sites"][0]["site"] == "other");
}

TEST_CASE("of a step that stands twice the later line counts") {
  FeedFolder run;
  for (int step = 1; step <= 6; ++step) run.append("metrics.jsonl", step_line("room", step, 9));
  RunFeed feed(run.path);
  FeedReader page(feed);
  page.ask();
  run.append("metrics.jsonl", step_line("room", 4, 1));
  const Json site = page.ask()["sites"][0];
  CHECK(site["from"] == 3);
  CHECK(site["columns"]["step"] == Json({4}));
  CHECK(site["repeated"] == 3);
}

TEST_CASE("a long run comes in a bounded answer that keeps its sums") {
  FeedFolder run;
  std::string lines;
  for (int step = 1; step <= 1000; ++step) lines += step_line("room", step, step % 2 ? 1 : 3, 10);
  run.append("metrics.jsonl", lines);
  RunFeed feed(run.path, {.num_buckets_max = 64});
  const Json site = Json::parse(feed.answer(0, 0, 0))["sites"][0];
  CHECK(site["columns"]["step"].size() <= 64);
  CHECK(site["columns"]["step"].back() == 1000);
  CHECK(site["stride"] == 16);
  CHECK(site["columns"]["loss"][0] == 2);
  double tokens = 0;
  for (const Json& each : site["columns"]["tokens"]) tokens += each.get<double>();
  CHECK(tokens == 10000);
  CHECK(site["totals"]["step_s"] == 2000);
  CHECK(site["totals"]["ranks"][0]["peak_memory_bytes"] == 1000);
}

TEST_CASE("a run that goes back into a joined bucket keeps that bucket's fair part") {
  StepSeries series(4);
  const auto step = [](int64_t completed) {
    StepSums sums;
    sums.num_steps = 1;
    sums.first_step = sums.last_step = completed;
    sums.tokens = 10;
    return sums;
  };
  for (int64_t completed = 1; completed <= 8; ++completed) series.add(step(completed), 1);
  REQUIRE(series.stride() == 2);
  series.add(step(6), 2);
  CHECK(series.buckets().back().last_step == 6);
  CHECK(series.buckets().back().tokens == doctest::Approx(20));
  CHECK(series.changed_since(1) == 2);
}

TEST_CASE("each answer reads a bounded piece and says how far it is") {
  FeedFolder run;
  std::string lines;
  for (int step = 1; step <= 100; ++step) lines += step_line("room", step, 4);
  run.append("metrics.jsonl", lines);
  RunFeed feed(run.path, {.read_bytes_max = 4000});
  FeedReader page(feed);
  Json answer = page.ask();
  CHECK(answer["read_bytes"] == 4000);
  CHECK(answer["total_bytes"] == lines.size());
  size_t num_asked = 1;
  for (; answer["read_bytes"] < answer["total_bytes"] && num_asked < 100; ++num_asked) {
    answer = page.ask();
  }
  CHECK(answer["sites"][0]["totals"]["steps"] == 100);
  CHECK(num_asked > 2);
}

TEST_CASE("lines that are damaged or strange are counted and do no harm") {
  FeedFolder run;
  run.append("plan.json", "{ half a plan");
  run.append(
      "metrics.jsonl",
      "\n{\"kind\":\"step\"\n[1,2]\n\"text\"\n{\"kind\":\"step\",\"step\":-4}\n"
      "{\"kind\":7,\"site\":[]}\n\xff\xfe\n{\"kind\":\"step\",\"site\":\"a\\\"b\",\"step\":1,"
      "\"loss\":null,\"tokens\":\"many\",\"step_s\":1e999,\"ranks\":[3,{}]}\n" +
          std::string(LineTail::kLineBytesMax + 10, 'x') + "\n" + step_line("room", 1, 4));
  RunFeed feed(run.path);
  const Json answer = Json::parse(feed.answer(0, 0, 0));
  CHECK(answer["found"] == true);
  CHECK(!answer.contains("plan"));
  CHECK(answer["unreadable"].get<int>() >= 4);
  bool has_room = false;
  for (const Json& site : answer["sites"]) has_room |= site["site"] == "room";
  CHECK(has_room);
}

TEST_CASE("old events give way to new ones, and the page is told how many") {
  FeedFolder run;
  for (int i = 0; i < 30; ++i) {
    run.append("events.jsonl", fmt::format("{{\"event\":\"warning\",\"i\":{}}}\n", i));
  }
  RunFeed feed(run.path, {.num_events_max = 10});
  const Json answer = Json::parse(feed.answer(0, 0, 0));
  CHECK(answer["events"].size() == 10);
  CHECK(answer["events"].back()["i"] == 29);
  CHECK(answer["given_up"] == 20);
}

TEST_CASE("answering writes nothing into the run folder") {
  FeedFolder run;
  run.append("metrics.jsonl", step_line("room", 1, 4));
  const auto before = fs::last_write_time(run.path);
  fs::permissions(run.path / "metrics.jsonl", fs::perms::owner_read);
  RunFeed feed(run.path);
  feed.answer(0, 0, 0);
  CHECK(fs::last_write_time(run.path) == before);
  CHECK(std::distance(fs::directory_iterator(run.path), fs::directory_iterator()) == 1);
}

}  // namespace
}  // namespace pelago::serve
