// What happened when, for people to look at: spans on tracks, one track a device, a site or a line.
// As JSON it opens in Perfetto (ui.perfetto.dev) and chrome://tracing; as SVG in any browser.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace pelago::plan {

/// What a span's time went to; decides its colour.
enum class SpanKind : uint8_t {
  kForward,
  kBackward,
  kCompute,
  kUpdate,
  kReduce,
  kLine,
  kWait,
  kDown
};
const char* name_of(SpanKind kind);

class Trace {
 public:
  struct Track {
    std::string group, name;  // "site lingang", "A100 #0"
  };
  struct Span {
    uint32_t track = 0;
    uint32_t name = 0;  // index into names()
    SpanKind kind = SpanKind::kCompute;
    double begin_s = 0, end_s = 0;
  };

  /// spans_max: what comes after so many is only counted, so that a day in virtual time does not
  /// fill a disk.
  explicit Trace(size_t spans_max = 400'000) : spans_max_(spans_max) {}

  uint32_t add_track(std::string group, std::string name);
  void add(uint32_t track, const std::string& name, SpanKind kind, double begin_s, double end_s);

  const std::vector<Track>& tracks() const { return tracks_; }
  const std::vector<Span>& spans() const { return spans_; }
  const std::vector<std::string>& names() const { return names_; }
  uint64_t num_left_out() const { return num_left_out_; }

 private:
  size_t spans_max_;
  std::vector<Track> tracks_;
  std::vector<Span> spans_;
  std::vector<std::string> names_;
  std::map<std::string, uint32_t> name_idx_;
  uint64_t num_left_out_ = 0;
};

/// Chrome's trace event format: one process a group, one thread a track, times in microseconds.
/// The same trace gives the same bytes.
std::string to_chrome_json(const Trace& trace);

struct DrawingOptions {
  double begin_s = 0;
  double end_s = -1;  // below 0: the end of the last span
  std::string title;
  size_t rows_max = 16;  // of a group; of the rest the drawing says how many there are
};
/// A timeline: tracks from top to bottom, time from left to right, a legend, a scale.
std::string to_svg(const Trace& trace, const DrawingOptions& options);

}  // namespace pelago::plan
