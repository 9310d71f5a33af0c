#include "cli/run_view.h"

#include <fmt/format.h>

#include <algorithm>

#include "cli/terminal.h"

namespace pelago::cli {

namespace {

constexpr size_t kSitesOneByOne = 4;  // in the progress line
constexpr size_t kRecentSteps = 8;    // a rate over fewer jumps, over more lags

double ratio(double part, double whole) { return whole > 0 ? part / whole : 0; }

// "A100 80GB SXM" of "emulated:nvidia-a100-80g-sxm": the second word of a chip id tells chips
// apart.
std::string short_device(const std::string& device) {
  const std::string id = device.substr(device.find(':') + 1);
  const size_t first = id.find('-');
  if (device.rfind("emulated:", 0) != 0 || first == std::string::npos) return device;
  const size_t second = id.find('-', first + 1);
  return id.substr(first + 1, second == std::string::npos ? second : second - first - 1);
}

}  // namespace

RunView::RunView(const plan::Plan& plan) : plan_(plan) {
  for (const plan::SitePlan& planned : plan.sites) {
    SiteView view;
    view.name = planned.name;
    view.rank_tokens.resize(planned.devices.size());
    view.rank_compute_s.resize(planned.devices.size());
    view.rank_late_s.resize(planned.devices.size());
    sites_.push_back(std::move(view));
  }
}

SiteView* RunView::site(const std::string& name) {
  for (SiteView& view : sites_) {
    if (view.name == name) return &view;
  }
  return nullptr;
}

void RunView::add(const train::StepReport& report) {
  SiteView* view = site(report.site);
  if (view == nullptr) return;
  view->loss = view->tokens == 0 ? report.loss : 0.9 * view->loss + 0.1 * report.loss;
  view->step = report.step;
  view->tokens += report.tokens;
  view->step_s += report.step_s;
  view->wait_line_s += report.wait_line_s;
  view->reduce_s += report.reduce_s;
  for (size_t rank = 0; rank < report.ranks.size() && rank < view->rank_tokens.size(); ++rank) {
    view->rank_tokens[rank] += report.ranks[rank].tokens;
    view->rank_compute_s[rank] += report.ranks[rank].compute_s;
    view->rank_late_s[rank] += report.ranks[rank].late_s;
  }
  view->recent.push_back(report);
  if (view->recent.size() > kRecentSteps) view->recent.pop_front();
  double tokens = 0, seconds = 0;
  for (const train::StepReport& step : view->recent) {
    tokens += static_cast<double>(step.tokens);
    seconds += step.step_s;
  }
  view->recent_tokens_s = ratio(tokens, seconds);
}

void RunView::add(const train::EvaluationReport& report) {
  SiteView* view = site(report.site);
  if (view == nullptr) return;
  if (!view->first_evaluation) view->first_evaluation = report;
  view->last_evaluation = report;
}

double RunView::tokens_s() const {
  double sum = 0;
  for (const SiteView& view : sites_) sum += ratio(static_cast<double>(view.tokens), view.step_s);
  return sum;
}

double RunView::recent_tokens_s() const {
  double sum = 0;
  for (const SiteView& view : sites_) sum += view.recent_tokens_s;
  return sum;
}

double RunView::parts_tokens_s() const {
  double sum = 0;
  for (const plan::SitePlan& planned : plan_.sites) {
    for (const plan::DevicePlan& device : planned.devices) sum += device.predicted_tokens_s;
  }
  return sum;
}

double RunView::wait_line_ratio() const {
  double waited = 0, all = 0;
  for (const SiteView& view : sites_) {
    waited += view.wait_line_s;
    all += view.step_s;
  }
  return ratio(waited, all);
}

double RunView::eta_s() const {
  double eta_s = 0;
  for (const SiteView& view : sites_) {
    double seconds = 0;
    for (const train::StepReport& step : view.recent) seconds += step.step_s;
    const double step_s = ratio(seconds, static_cast<double>(view.recent.size()));
    eta_s = std::max(eta_s, step_s * static_cast<double>(plan_.steps - view.step));
  }
  return eta_s;
}

std::string RunView::words_of(size_t site_idx) const {
  const SiteView& view = sites_[site_idx];
  if (view.tokens == 0) return fmt::format("{} {}/{} starting", view.name, view.step, plan_.steps);
  std::vector<std::string> shares;
  for (size_t rank = 0; rank < view.rank_tokens.size(); ++rank) {
    const std::string device = short_device(plan_.sites[site_idx].devices[rank].device);
    const double share =
        ratio(static_cast<double>(view.rank_tokens[rank]), static_cast<double>(view.tokens));
    shares.push_back(view.rank_tokens.size() == 1 ? device
                                                  : fmt::format("{} {:.0f}%", device, 100 * share));
  }
  return fmt::format("{} {}/{} loss {:.3f} {} tok/s ({})",
                     view.name,
                     view.step,
                     plan_.steps,
                     view.loss,
                     short_number(view.recent_tokens_s),
                     fmt::join(shares, ", "));
}

/// Of more sites than a line has room for.
std::string RunView::words_of_all() const {
  const auto [last, first] =
      std::minmax_element(sites_.begin(), sites_.end(), [](const auto& one, const auto& other) {
        return one.step < other.step;
      });
  double loss = 0;
  int num_training = 0;
  for (const SiteView& view : sites_) {
    if (view.tokens == 0) continue;
    loss += view.loss;
    ++num_training;
  }
  std::string words = fmt::format("{} sites at {}/{}", sites_.size(), first->step, plan_.steps);
  if (last->step < first->step) words += fmt::format(", last {} {}", last->name, last->step);
  return num_training == 0 ? words + " starting"
                           : words + fmt::format(", loss {:.3f}", loss / num_training);
}

std::string RunView::progress_line() const {
  std::string line;
  if (sites_.size() > kSitesOneByOne) {
    line = words_of_all() + "  ";
  } else {
    for (size_t idx = 0; idx < sites_.size(); ++idx) line += words_of(idx) + "  ";
  }
  if (sites_.size() > 1) {
    line += fmt::format(
        "| all {} tok/s, line {:.1f} Mbit/s  ", short_number(recent_tokens_s()), line_.mbit_s);
  }
  return line + fmt::format("| ETA {}", short_duration(eta_s()));
}

}  // namespace pelago::cli
