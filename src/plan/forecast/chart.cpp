// The forecast as a picture: training rate over time, stacked by order of chips, and under it each
// model's time from its middle beginning to its middle end, with the span from early to late.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>

#include "plan/forecast/calendar.h"
#include "plan/forecast/forecast.h"

namespace pelago::plan {

namespace {

constexpr double kLeft = 150, kWidth = 820, kTop = 50, kAreaHeight = 240, kRow = 26;
constexpr const char* kColours[] = {
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#999999"};

std::string escape(const std::string& text) {
  std::string out;
  for (const char c : text) out += c == '&' ? "&amp;" : c == '<' ? "&lt;" : std::string(1, c);
  return out;
}

class Chart {
 public:
  Chart(const Scenario& scenario, const Forecast& forecast)
      : scenario_(scenario), forecast_(forecast) {
    const auto& weeks = forecast.middle.flop_s;
    for (size_t week = 0; week < weeks.front().size(); ++week) {
      double sum = 0;
      for (const auto& order : weeks) sum += order[week];
      most_ = std::max(most_, sum);
    }
    if (most_ <= 0) most_ = 1;
  }

  std::string draw() {
    const double height =
        kTop + kAreaHeight + 60 + kRow * static_cast<double>(forecast_.models.size()) + 30;
    fmt::format_to(
        std::back_inserter(out_),
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 1000 {0:.0f}\" "
        "width=\"1000\" height=\"{0:.0f}\" font-family=\"sans-serif\" font-size=\"11\">\n"
        "<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
        "<text x=\"10\" y=\"18\" font-size=\"14\" font-weight=\"bold\">{1}</text>\n",
        height,
        escape(scenario_.name));
    draw_time(height);
    draw_areas();
    draw_models();
    fmt::format_to(
        std::back_inserter(out_),
        "<text x=\"{}\" y=\"{:.0f}\" fill=\"#555\">blue: training in the middle trial; orange: "
        "done in 10 to 90 of 100 trials; black: wanted by</text>\n",
        kLeft,
        height - 8);
    return out_ + "</svg>\n";
  }

 private:
  double x(double day) const {
    const double ratio =
        (day - scenario_.from_day) / static_cast<double>(scenario_.until_day - scenario_.from_day);
    return kLeft + kWidth * std::clamp(ratio, 0.0, 1.0);
  }
  double y(double flop_s) const { return kTop + kAreaHeight * (1 - flop_s / most_); }

  void draw_time(double height) {
    const int span = scenario_.until_day - scenario_.from_day;
    const int step = std::max(1, span / 8);
    for (int day = scenario_.from_day; day <= scenario_.until_day; day += step) {
      fmt::format_to(
          std::back_inserter(out_),
          "<line x1=\"{0:.1f}\" y1=\"{1}\" x2=\"{0:.1f}\" y2=\"{2:.0f}\" stroke=\"#ddd\"/>"
          "<text x=\"{0:.1f}\" y=\"{3:.0f}\" text-anchor=\"middle\" fill=\"#555\">{4}</text>\n",
          x(day),
          kTop,
          height - 10,
          kTop + kAreaHeight + 16,
          day_text(day).substr(0, 7));
    }
    for (int i = 0; i <= 4; ++i) {
      const double value = most_ * i / 4;
      fmt::format_to(
          std::back_inserter(out_),
          "<text x=\"{}\" y=\"{:.0f}\" text-anchor=\"end\" fill=\"#555\">{:.3g} {}</text>\n",
          kLeft - 6,
          y(value) + 4,
          value / (most_ >= 1e18 ? 1e18 : 1e15),
          most_ >= 1e18 ? "EFLOP/s" : "PFLOP/s");
    }
  }

  void draw_areas() {
    const auto& weeks = forecast_.middle.flop_s;
    std::vector<double> below(weeks.front().size(), 0.0);
    double legend_x = kLeft;
    for (size_t i = 0; i < weeks.size(); ++i) {
      std::string upper, lower;
      for (size_t week = 0; week < below.size(); ++week) {
        const double at = x(scenario_.from_day + 7.0 * static_cast<double>(week));
        lower = fmt::format("{:.1f},{:.1f} ", at, y(below[week])) + lower;
        below[week] += weeks[i][week];
        upper += fmt::format("{:.1f},{:.1f} ", at, y(below[week]));
      }
      const char* colour = kColours[i % std::size(kColours)];
      const std::string name = escape(scenario_.orders[i].chip->name);
      fmt::format_to(std::back_inserter(out_),
                     "<polygon points=\"{}{}\" fill=\"{}\"><title>{}</title></polygon>\n"
                     "<rect x=\"{:.0f}\" y=\"28\" width=\"12\" height=\"12\" fill=\"{}\"/>"
                     "<text x=\"{:.0f}\" y=\"38\">{} ({})</text>\n",
                     upper,
                     lower,
                     colour,
                     name,
                     legend_x,
                     colour,
                     legend_x + 16,
                     name,
                     escape(scenario_.orders[i].site));
      legend_x += 40 + 6.5 * static_cast<double>(name.size() + scenario_.orders[i].site.size());
    }
  }

  void draw_models() {
    for (size_t i = 0; i < forecast_.models.size(); ++i) {
      const ModelForecast& model = forecast_.models[i];
      const double top = kTop + kAreaHeight + 34 + kRow * static_cast<double>(i);
      fmt::format_to(std::back_inserter(out_),
                     "<text x=\"{}\" y=\"{:.0f}\" text-anchor=\"end\">{}</text>\n",
                     kLeft - 6,
                     top + 13,
                     escape(model.name));
      if (std::isinf(model.begun_day.p50)) continue;
      const double from = x(model.begun_day.p50), to = x(model.done_day.p50);
      fmt::format_to(
          std::back_inserter(out_),
          "<rect x=\"{:.1f}\" y=\"{:.0f}\" width=\"{:.1f}\" height=\"16\" fill=\"#56b4e9\"/>"
          "<line x1=\"{:.1f}\" y1=\"{:.0f}\" x2=\"{:.1f}\" y2=\"{:.0f}\" stroke=\"#d55e00\" "
          "stroke-width=\"3\"><title>done: from 10 to 90 of 100 trials</title></line>\n",
          from,
          top,
          std::max(1.0, to - from),
          x(model.done_day.p10),
          top + 8,
          x(model.done_day.p90),
          top + 8);
      const int by_day = scenario_.models[i].by_day;
      if (by_day < 0) continue;
      fmt::format_to(
          std::back_inserter(out_),
          "<line x1=\"{0:.1f}\" y1=\"{1:.0f}\" x2=\"{0:.1f}\" y2=\"{2:.0f}\" stroke=\"black\" "
          "stroke-width=\"2\"><title>wanted by {3}</title></line>\n",
          x(by_day),
          top - 2,
          top + 18,
          day_text(by_day));
    }
  }

  const Scenario& scenario_;
  const Forecast& forecast_;
  double most_ = 0;
  std::string out_;
};

}  // namespace

std::string to_svg(const Scenario& scenario, const Forecast& forecast) {
  return Chart(scenario, forecast).draw();
}

}  // namespace pelago::plan
