// The account of a run: what it reached, against what its parts would reach, and where time went.
#include <fmt/format.h>

#include <fstream>
#include <map>

#include "base/error.h"
#include "base/files.h"
#include "base/text/json.h"
#include "cli/many_sites.h"
#include "cli/run_view.h"
#include "plan/across/joint.h"
#include "train/run_folder.h"

namespace pelago::cli {

namespace {

using Json = nlohmann::json;

double ratio(double part, double whole) { return whole > 0 ? part / whole : 0; }

void for_each_line(const std::filesystem::path& path, auto&& take) {
  std::ifstream in(path);
  for (std::string line; std::getline(in, line);) {
    const Json json = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!json.is_discarded()) take(json, line);  // the last line of a live run may be half there
  }
}

struct Evaluations {
  std::optional<train::EvaluationReport> first, last;
};

/// What lost and returning devices cost the run, resumed or not.
Json recovery_json(const std::filesystem::path& run_dir) {
  int64_t num_lost = 0, num_returned = 0, num_restarts = 0, steps_repeated = 0;
  double seconds_lost = 0;
  for_each_line(run_dir / "events.jsonl", [&](const Json& json, const std::string&) {
    const std::string event = json.value("event", "");
    num_lost += event == "device_lost" ? 1 : 0;
    num_returned += event == "device_returned" ? 1 : 0;
    num_restarts += event == "restarting_together" ? 1 : 0;
    if (event != "recovered" && event != "rejoined") return;
    steps_repeated += json.value("steps_repeated", int64_t{0});
    seconds_lost += json.value("seconds_lost", 0.0);
  });
  return {{"devices_lost", num_lost},
          {"devices_returned", num_returned},
          {"sites_restarted_together", num_restarts},
          {"steps_repeated", steps_repeated},
          {"seconds_lost", seconds_lost}};
}

/// Sites whose deltas the others found at fault, and that are not yet cleared of it.
Json suspects_json(const std::filesystem::path& run_dir) {
  std::map<std::string, Json> suspects;
  for_each_line(run_dir / "events.jsonl", [&](const Json& json, const std::string&) {
    const std::string event = json.value("event", ""), site = json.value("site", "");
    if (event == "site_cleared") suspects.erase(site);
    if (event != "site_suspect") return;
    suspects[site] = {{"site", site},
                      {"fault", json.value("fault", "")},
                      {"exchange", json.value("exchange", int64_t{-1})},
                      {"back_at_exchange", json.value("back_at_exchange", int64_t{-1})}};
  });
  Json list = Json::array();
  for (const auto& [site, suspect] : suspects) list.push_back(suspect);
  return list;
}

std::string suspects_lines(const Json& suspects) {
  std::string text;
  for (const Json& suspect : suspects) {
    text += fmt::format(
        "  suspect                          {}: {} of its delta at exchange {}, takes part again "
        "from exchange {}\n",
        suspect["site"].get<std::string>(),
        suspect["fault"].get<std::string>(),
        suspect["exchange"].get<int64_t>(),
        suspect["back_at_exchange"].get<int64_t>());
  }
  return text;
}

/// The newest shares of the batch, if the sites have left those of the plan.
Json shares_json(const std::filesystem::path& run_dir) {
  Json shares = Json::object();
  for_each_line(run_dir / "events.jsonl", [&](const Json& json, const std::string&) {
    if (json.value("event", "") != "site_shares_changed") return;
    shares = {{"from_data_step", json.value("from_data_step", int64_t{0})},
              {"sites", json.value("sites", std::vector<std::string>())},
              {"sequences", json.value("sequences", std::vector<int64_t>())},
              {"sequences_before", json.value("sequences_before", std::vector<int64_t>())}};
  });
  return shares;
}

std::string shares_line(const Json& shares) {
  if (shares.empty()) return "";
  std::vector<std::string> parts;
  for (size_t i = 0; i < shares["sites"].size(); ++i) {
    parts.push_back(fmt::format("{} {} (before: {})",
                                shares["sites"].at(i).get<std::string>(),
                                shares["sequences"].at(i).get<int64_t>(),
                                shares["sequences_before"].at(i).get<int64_t>()));
  }
  return fmt::format("  shares from data step {:<10} {} sequences\n",
                     shares["from_data_step"].get<int64_t>(),
                     fmt::join(parts, ", "));
}

/// Copies of checkpoints in a store: how many, how many failed, and the newest step.
Json copies_json(const std::filesystem::path& run_dir) {
  int64_t num_copied = 0, num_failed = 0, newest_step = -1;
  for_each_line(run_dir / "events.jsonl", [&](const Json& json, const std::string&) {
    const std::string event = json.value("event", "");
    num_failed += event == "checkpoint_copy_failed" ? 1 : 0;
    if (event != "checkpoint_copied") return;
    ++num_copied;
    newest_step = json.value("step", int64_t{-1});
  });
  return {{"copied", num_copied}, {"failed", num_failed}, {"newest_step", newest_step}};
}

/// Nothing for a run that copies nothing.
std::string copies_line(const Json& copies) {
  const auto num_copied = copies["copied"].get<int64_t>(),
             num_failed = copies["failed"].get<int64_t>();
  if (num_copied + num_failed == 0) return "";
  return fmt::format("  checkpoints copied               {}, the newest of step {}; {} failed\n",
                     num_copied,
                     copies["newest_step"].get<int64_t>(),
                     num_failed);
}

/// Nothing for a run that lost nothing.
std::string recovery_line(const Json& recovery) {
  if (recovery["seconds_lost"].get<double>() <= 0) return "";
  return fmt::format(
      "  devices lost and taken back      {} and {}; {} steps repeated, {:.1f} s lost\n",
      recovery["devices_lost"].get<int64_t>(),
      recovery["devices_returned"].get<int64_t>(),
      recovery["steps_repeated"].get<int64_t>(),
      recovery["seconds_lost"].get<double>());
}

/// Every token of a run of several sites.
std::string ledger_lines(const Json& ledger) {
  if (ledger.empty()) return "";
  std::string text = fmt::format("  {:<10} {:>14} {:>12} {:>12} {:>12} {:>12} {:>12}\n",
                                 "tokens",
                                 "spent",
                                 "partly",
                                 "repeated",
                                 "lost",
                                 "unread",
                                 "returned");
  for (const Json& site : ledger) {
    text += fmt::format("  {:<10} {:>14} {:>12} {:>12} {:>12} {:>12} {:>12}\n",
                        site["site"].get<std::string>(),
                        site["spent"].get<int64_t>(),
                        site["partly"].get<int64_t>(),
                        site["repeated"].get<int64_t>(),
                        site["lost"].get<int64_t>(),
                        site["unread"].get<int64_t>(),
                        site["returned"].get<int64_t>());
  }
  return text;
}

// All sites hold the same weights at the start and at the end: the first site speaks for all.
Evaluations evaluations(const RunView& view) {
  for (const SiteView& site : view.sites()) {
    if (site.first_evaluation) return {site.first_evaluation, site.last_evaluation};
  }
  return {};
}

Json site_json(const SiteView& site, const plan::SitePlan& planned) {
  Json devices = Json::array();
  for (size_t rank = 0; rank < site.rank_tokens.size(); ++rank) {
    devices.push_back(
        {{"device", planned.devices[rank].device},
         {"tokens", site.rank_tokens[rank]},
         {"tokens_s", ratio(static_cast<double>(site.rank_tokens[rank]), site.step_s)},
         {"alone_tokens_s", planned.devices[rank].predicted_tokens_s},
         {"busy_ratio", ratio(site.rank_compute_s[rank], site.step_s)},
         {"late_ratio", ratio(site.rank_late_s[rank], site.step_s)}});
  }
  return {{"site", site.name},
          {"step", site.step},
          {"loss", site.loss},
          {"tokens", site.tokens},
          {"tokens_s", ratio(static_cast<double>(site.tokens), site.step_s)},
          {"wait_line_ratio", ratio(site.wait_line_s, site.step_s)},
          {"reduce_ratio", ratio(site.reduce_s, site.step_s)},
          {"devices", devices}};
}

Json summary(const RunView& view, const std::filesystem::path& run_dir) {
  Json json = {
      {"run", run_dir.string()},
      {"steps", view.plan().steps},
      {"parameters", view.plan().num_parameters},
      {"tokens_s", view.tokens_s()},
      {"parts_tokens_s", view.parts_tokens_s()},
      {"efficiency", ratio(view.tokens_s(), view.parts_tokens_s())},
      {"wait_line_ratio", view.wait_line_ratio()},
      {"line_sent_bytes", view.line().sent_bytes},
      {"line_bytes_per_parameter", view.line().bytes_per_parameter},
      {"commits", view.line().commits},
      {"model", std::filesystem::exists(run_dir / "model") ? (run_dir / "model").string() : ""},
      {"sites", Json::array()}};
  json["recovery"] = recovery_json(run_dir);
  json["suspects"] = suspects_json(run_dir);
  json["shares"] = shares_json(run_dir);
  json["copies"] = copies_json(run_dir);
  json["ledger"] = Json::parse(token_accounts_json(run_dir, view.plan()));
  const Evaluations evaluated = evaluations(view);
  if (evaluated.first) {
    json["bits_per_byte_start"] = evaluated.first->bits_per_byte;
    json["bits_per_byte_end"] = evaluated.last->bits_per_byte;
    json["heldout_loss_end"] = evaluated.last->loss;
  }
  for (size_t i = 0; i < view.sites().size(); ++i) {
    json["sites"].push_back(site_json(view.sites()[i], view.plan().sites[i]));
  }
  return json;
}

/// What the lines between sites cost and carried.
std::string line_lines(const Json& json, bool is_joint) {
  std::string text;
  if (is_joint) {
    text += fmt::format(
        "  sites in step                    {:.1f} MB sent in all, {} common restarts\n",
        json["line_sent_bytes"].get<double>() / 1e6,
        json["recovery"]["sites_restarted_together"].get<int64_t>());
  } else if (json["sites"].size() > 1) {
    text += fmt::format("  time spent waiting for the line  {:.2f}%\n",
                        100 * json["wait_line_ratio"].get<double>());
    text += fmt::format(
        "  sent a parameter and round       {:.3f} bytes by each site, {} commits, {:.1f} MB in "
        "all\n",
        json["line_bytes_per_parameter"].get<double>(),
        json["commits"].get<int64_t>(),
        json["line_sent_bytes"].get<double>() / 1e6);
  }
  return text;
}

}  // namespace

std::string summary_json(const RunView& view, const std::filesystem::path& run_dir) {
  return summary(view, run_dir).dump();
}

std::string summary_table(const RunView& view, const std::filesystem::path& run_dir) {
  const Json json = summary(view, run_dir);
  std::string text =
      fmt::format("run {}: {} parameters\n", run_dir.string(), json["parameters"].get<int64_t>());
  text += fmt::format("  {:<10} {:<32} {:>10} {:>10} {:>10} {:>6} {:>6}\n",
                      "site",
                      "device",
                      "tokens",
                      "tokens/s",
                      "alone",
                      "busy",
                      "late");
  for (const Json& site : json["sites"]) {
    for (const Json& device : site["devices"]) {
      text += fmt::format("  {:<10} {:<32} {:>10} {:>10.0f} {:>10.0f} {:>5.0f}% {:>5.1f}%\n",
                          site["site"].get<std::string>(),
                          device["device"].get<std::string>(),
                          device["tokens"].get<int64_t>(),
                          device["tokens_s"].get<double>(),
                          device["alone_tokens_s"].get<double>(),
                          100 * device["busy_ratio"].get<double>(),
                          100 * device["late_ratio"].get<double>());
    }
    text += fmt::format(
        "  {:<10} step {}/{}, loss {:.4f}, {:.0f} tokens/s, {:.1f}% of the time reducing, {:.1f}% "
        "waiting for the line\n",
        site["site"].get<std::string>(),
        site["step"].get<int64_t>(),
        json["steps"].get<int64_t>(),
        site["loss"].get<double>(),
        site["tokens_s"].get<double>(),
        100 * site["reduce_ratio"].get<double>(),
        100 * site["wait_line_ratio"].get<double>());
  }
  if (json.contains("bits_per_byte_start")) {
    text += fmt::format("  bits per byte of held-out text   {:.4f} at the start, {:.4f} now\n",
                        json["bits_per_byte_start"].get<double>(),
                        json["bits_per_byte_end"].get<double>());
  }
  text +=
      fmt::format("  tokens/s, all devices            {:.0f}\n", json["tokens_s"].get<double>());
  text += fmt::format(
      "  efficiency against its parts     {:.1f}% ({:.0f} tokens/s if each device trained alone)\n",
      100 * json["efficiency"].get<double>(),
      json["parts_tokens_s"].get<double>());
  text += line_lines(json, plan::is_joint(view.plan()));
  text += ledger_lines(json["ledger"]) + recovery_line(json["recovery"]);
  text += suspects_lines(json["suspects"]) + shares_line(json["shares"]);
  text += copies_line(json["copies"]);
  const auto model = json["model"].get<std::string>();
  if (!model.empty()) text += fmt::format("  exported model                   {}\n", model);
  return text;
}

RunView read_run(const std::filesystem::path& run_dir) {
  if (!std::filesystem::exists(run_dir / "plan.json")) {
    fail_usage("{}: not a run folder (no plan.json); name one under runs/", run_dir.string());
  }
  RunView view(train::read_run_plan(run_dir));
  for_each_line(run_dir / "metrics.jsonl", [&](const Json& json, const std::string& line) {
    if (json.value("kind", "") == "step") view.add(train::step_report_from_json(line));
    if (json.value("kind", "") == "evaluation") view.add(train::evaluation_report_from_json(line));
  });
  LineView line_view;
  for_each_line(run_dir / "events.jsonl", [&](const Json& json, const std::string&) {
    if (json.value("event", "") == "commit") ++line_view.commits;
    if (json.value("event", "") != "summary") return;
    line_view.sent_bytes = json.value("line_sent_bytes", 0.0);
    line_view.bytes_per_parameter = json.value("line_bytes_per_parameter", 0.0);
  });
  view.set_line(line_view);
  return view;
}

}  // namespace pelago::cli
