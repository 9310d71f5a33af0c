// The SVG timeline. Spans narrower than half a pixel are drawn together with their neighbours of
// the same kind, so that a long run is a picture of a few hundred kilobytes.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>
#include <map>

#include "plan/simulation/output/trace.h"

namespace pelago::plan {

namespace {

constexpr double kLeft = 190, kWidth = 1000, kRow = 18, kTop = 64, kRight = 30;

/// Okabe and Ito's palette: told apart by everybody, in print too.
const char* colour_of(SpanKind kind) {
  switch (kind) {
    case SpanKind::kForward:
      return "#56b4e9";
    case SpanKind::kBackward:
      return "#e69f00";
    case SpanKind::kCompute:
      return "#0072b2";
    case SpanKind::kUpdate:
      return "#cc79a7";
    case SpanKind::kReduce:
      return "#009e73";
    case SpanKind::kLine:
      return "#009e73";
    case SpanKind::kWait:
      return "#f0e442";
    case SpanKind::kDown:
      return "#d55e00";
  }
  return "#000000";
}

std::string escape_xml(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '&')
      out += "&amp;";
    else if (c == '<')
      out += "&lt;";
    else if (c == '>')
      out += "&gt;";
    else
      out += c;
  }
  return out;
}

/// Tracks of one group under a time axis of their own: the stages of two steps would be a hair on
/// the axis of a day.
struct Panel {
  std::string group;
  size_t first_row = 0, num_rows = 0;  // tracks that are drawn
  size_t num_hidden = 0;               // and those of the group that are not
  double begin_s = 0, end_s = 1;
  double top = 0;
  double row_y(size_t row) const { return top + kRow * static_cast<double>(row - first_row); }
  double bottom() const { return row_y(first_row + num_rows); }
  double x(double at_s) const {
    const double ratio = (at_s - begin_s) / (end_s - begin_s);
    return kLeft + kWidth * std::clamp(ratio, 0.0, 1.0);
  }
};

std::vector<Panel> panels_of(const Trace& trace, const DrawingOptions& options) {
  std::vector<Panel> panels;
  std::vector<size_t> panel_of;
  for (size_t row = 0; row < trace.tracks().size(); ++row) {
    const std::string& group = trace.tracks()[row].group;
    if (panels.empty() || panels.back().group != group) {
      panels.push_back({.group = group, .first_row = row, .begin_s = options.begin_s, .end_s = 0});
    }
    Panel& panel = panels.back();
    (panel.num_rows < options.rows_max ? panel.num_rows : panel.num_hidden) += 1;
    panel_of.push_back(panels.size() - 1);
  }
  double last_s = options.end_s;
  for (const Trace::Span& span : trace.spans()) {
    double& end_s = panels[panel_of[span.track]].end_s;
    end_s = std::max(end_s, span.end_s);
    if (options.end_s < 0) last_s = std::max(last_s, span.end_s);
  }
  double top = kTop;
  for (Panel& panel : panels) {
    // What fills a good part of the time is drawn against all of it.
    if (panel.end_s > 0.3 * last_s || panel.end_s <= panel.begin_s) panel.end_s = last_s;
    if (panel.end_s <= panel.begin_s) panel.end_s = panel.begin_s + 1;
    panel.top = top;
    top = panel.bottom() + (panel.num_hidden > 0 ? 48 : 30);
  }
  return panels;
}

std::string time_text(double seconds, double unit_s, const char* unit) {
  return fmt::format("{:g} {}", seconds / unit_s, unit);
}

void draw_axis(const Panel& scale, std::string& out) {
  const double span_s = scale.end_s - scale.begin_s;
  const double raw = span_s / 8;
  double unit_s = 1;
  const char* unit = "s";
  if (span_s < 1) {
    unit_s = 1e-3;
    unit = "ms";
  } else if (span_s > 7200) {
    unit_s = 3600;
    unit = "h";
  } else if (span_s > 300) {
    unit_s = 60;
    unit = "min";
  }
  const double power = std::pow(10, std::floor(std::log10(raw / unit_s)));
  double tick = 10 * power;
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (factor * power >= raw / unit_s) {
      tick = factor * power;
      break;
    }
  }
  auto end = std::back_inserter(out);
  for (double at = std::ceil(scale.begin_s / unit_s / tick) * tick * unit_s; at <= scale.end_s;
       at += tick * unit_s) {
    fmt::format_to(
        end,
        "<line x1=\"{0:.1f}\" y1=\"{1}\" x2=\"{0:.1f}\" y2=\"{2:.0f}\" stroke=\"#ddd\"/>"
        "<text x=\"{0:.1f}\" y=\"{3}\" text-anchor=\"middle\" fill=\"#555\">{4}</text>\n",
        scale.x(at),
        scale.top - 4,
        scale.bottom(),
        scale.top - 8,
        time_text(at, unit_s, unit));
  }
}

void draw_legend(const Trace& trace, std::string& out) {
  std::array<bool, 8> is_used{};
  for (const Trace::Span& span : trace.spans()) is_used[static_cast<size_t>(span.kind)] = true;
  double x = kLeft;
  for (size_t i = 0; i < is_used.size(); ++i) {
    if (!is_used[i]) continue;
    const auto kind = static_cast<SpanKind>(i);
    fmt::format_to(std::back_inserter(out),
                   "<rect x=\"{0:.0f}\" y=\"28\" width=\"12\" height=\"12\" fill=\"{1}\"/>"
                   "<text x=\"{2:.0f}\" y=\"38\">{3}</text>\n",
                   x,
                   colour_of(kind),
                   x + 16,
                   name_of(kind));
    x += 90;
  }
}

void draw_spans(const Trace& trace, const std::vector<Panel>& panels, std::string& out) {
  struct Run {
    double from = 0, to = -1;
    uint64_t count = 0;
    const Trace::Span* first = nullptr;
  };
  std::map<std::pair<uint32_t, SpanKind>, Run> runs;
  std::vector<const Panel*> panel_of;
  for (const Panel& panel : panels) {
    panel_of.insert(panel_of.end(), panel.num_rows, &panel);
    panel_of.insert(panel_of.end(), panel.num_hidden, nullptr);
  }
  const auto draw = [&](uint32_t track, SpanKind kind, const Run& run) {
    if (run.first == nullptr) return;
    const double seconds = run.first->end_s - run.first->begin_s;
    fmt::format_to(
        std::back_inserter(out),
        "<rect x=\"{:.1f}\" y=\"{:.0f}\" width=\"{:.1f}\" height=\"{:.0f}\" fill=\"{}\">"
        "<title>{}</title></rect>\n",
        run.from,
        panel_of[track]->row_y(track) + 3,
        std::max(0.4, run.to - run.from),
        kRow - 6,
        colour_of(kind),
        run.count > 1
            ? fmt::format("{} x {}", run.count, name_of(kind))
            : fmt::format("{}: {:.4g} s", escape_xml(trace.names()[run.first->name]), seconds));
  };
  for (const Trace::Span& span : trace.spans()) {
    if (panel_of[span.track] == nullptr) continue;
    const Panel& scale = *panel_of[span.track];
    if (span.end_s < scale.begin_s || span.begin_s > scale.end_s) continue;
    Run& run = runs[{span.track, span.kind}];
    const double from = scale.x(span.begin_s), to = scale.x(span.end_s);
    if (run.first != nullptr && from - run.to < 0.25 &&
        (to - from < 0.5 || run.to - run.from < 0.5)) {
      run.to = std::max(run.to, to);
      run.count += 1;
      continue;
    }
    draw(span.track, span.kind, run);
    run = {from, to, 1, &span};
  }
  for (const auto& [key, run] : runs) draw(key.first, key.second, run);
}

}  // namespace

std::string to_svg(const Trace& trace, const DrawingOptions& options) {
  const std::vector<Panel> panels = panels_of(trace, options);
  const double bottom = panels.empty() ? kTop : panels.back().bottom();
  std::string out = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0:.0f} {1:.0f}\" width=\"{0:.0f}\" "
      "height=\"{1:.0f}\" font-family=\"sans-serif\" font-size=\"11\">\n"
      "<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
      "<text x=\"10\" y=\"18\" font-size=\"14\" font-weight=\"bold\">{2}</text>\n",
      kLeft + kWidth + kRight,
      bottom + 30,
      escape_xml(options.title));
  draw_legend(trace, out);
  for (const Panel& panel : panels) {
    draw_axis(panel, out);
    fmt::format_to(std::back_inserter(out),
                   "<text x=\"6\" y=\"{:.0f}\" fill=\"#888\">{}</text>\n",
                   panel.top - 8,
                   escape_xml(panel.group));
    for (size_t row = panel.first_row; row < panel.first_row + panel.num_rows; ++row) {
      fmt::format_to(std::back_inserter(out),
                     "<text x=\"{:.0f}\" y=\"{:.0f}\" text-anchor=\"end\">{}</text>\n",
                     kLeft - 6,
                     panel.row_y(row) + 13,
                     escape_xml(trace.tracks()[row].name));
    }
    if (panel.num_hidden > 0) {
      fmt::format_to(
          std::back_inserter(out),
          "<text x=\"{:.0f}\" y=\"{:.0f}\" fill=\"#888\">and {} more, in the trace</text>\n",
          kLeft,
          panel.bottom() + 12,
          panel.num_hidden);
    }
  }
  draw_spans(trace, panels, out);
  return out + "</svg>\n";
}

}  // namespace pelago::plan
