#include "plan/cost/device/layer_times.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "base/config.h"
#include "base/error.h"
#include "base/files.h"
#include "base/text/json.h"
#include "plan/cost/device/operators.h"
#include "plan/cost/sizes.h"

namespace pelago::plan {

namespace {

using Json = nlohmann::json;

/// Of one microbatch on one of `width` devices.
struct Measured {
  double block_forward_s = 0, block_backward_s = 0;  // mean over the blocks
  double embedding_s = 0, head_s = 0;                // both ways
  double update_s = 0;                               // of all that was on the device
  int64_t num_measured_blocks = 0;                   // of that: further ones are copies
};
using ByMicrobatch = std::map<int64_t, Measured>;
struct ChipTimes {
  std::string where;  // "gh200.json", for messages
  std::map<int64_t, ByMicrobatch> by_width;
};

int64_t read_count(const std::string& text, const std::string& where, const char* what) {
  int64_t count = 0;
  const char* end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, count);
  if (error == std::errc() && rest == end && count >= 1 && count <= 1'000'000) return count;
  fail_usage("{}: {} \"{}\" must be a whole number from 1 on", where, what, text.substr(0, 40));
}

struct LayerSeconds {
  double forward = 0, backward = 0, update = 0;
  bool operator==(const LayerSeconds&) const = default;
};
LayerSeconds read_layer(const Json& json, const std::string& where) {
  LayerSeconds seconds;
  double* const parts[] = {&seconds.forward, &seconds.backward, &seconds.update};
  bool is_good = json.is_array() && json.size() == 3;
  for (size_t i = 0; is_good && i < 3; ++i) {
    is_good = json[i].is_number();
    if (is_good) *parts[i] = json[i].get<double>();
    is_good = is_good && std::isfinite(*parts[i]) && *parts[i] >= 0 && *parts[i] < 1e6;
  }
  if (is_good) return seconds;
  fail_usage("{} must be [forward_s, backward_s, update_s], three numbers of seconds from 0 on",
             where);
}

/// A profiler that knows that blocks are alike measures two (the first waits for the embedding) and
/// writes the second for all that follow: two measurements never agree to the last digit. Its
/// optimizer had those two and the ends to update.
int64_t count_measured(const std::vector<LayerSeconds>& blocks) {
  constexpr size_t kMeasured = 2;
  if (blocks.size() <= kMeasured + 1 || blocks[0] == blocks[1]) {
    return static_cast<int64_t>(blocks.size());
  }
  const bool are_copies = std::all_of(blocks.begin() + kMeasured, blocks.end(), [&](const auto& b) {
    return b == blocks[kMeasured - 1];
  });
  return static_cast<int64_t>(are_copies ? kMeasured : blocks.size());
}

Measured read_layers(const Json& json, int64_t num_blocks, const std::string& where) {
  if (!json.is_object()) fail_usage("{} must be an object of layers", where);
  const int64_t head = num_blocks + 1;
  Measured measured;
  std::vector<LayerSeconds> blocks;
  for (int64_t layer = 0; layer <= head; ++layer) {
    const auto found = json.find(std::to_string(layer));
    if (found == json.end()) {
      fail_usage(
          "{}: layer {} is missing; a model of {} blocks has layers from 0 (the embedding) to {} "
          "(the head)",
          where,
          layer,
          num_blocks,
          head);
    }
    const LayerSeconds seconds = read_layer(*found, fmt::format("{}: layer {}", where, layer));
    measured.update_s = std::max(measured.update_s, seconds.update);
    if (layer == 0) {
      measured.embedding_s = seconds.forward + seconds.backward;
    } else if (layer == head) {
      measured.head_s = seconds.forward + seconds.backward;
    } else {
      blocks.push_back(seconds);
      measured.block_forward_s += seconds.forward / static_cast<double>(num_blocks);
      measured.block_backward_s += seconds.backward / static_cast<double>(num_blocks);
    }
  }
  measured.num_measured_blocks = count_measured(blocks);
  for (const auto& [name, value] : json.items()) {
    const int64_t layer = name == "0" ? 0 : read_count(name, where, "layer");
    if (layer <= head) continue;
    fail_usage("{}: layer {} is one too many for a model of {} blocks", where, layer, num_blocks);
  }
  if (measured.block_forward_s > 0 && measured.block_backward_s > 0) return measured;
  fail_usage("{}: blocks that take no time, forward or backward", where);
}

ChipTimes read_chip(const Json& json, int64_t num_blocks, const std::string& where) {
  if (!json.is_object() || json.empty()) {
    fail_usage("{} must be an object {{microbatch: {{tensor_parallel: {{layer: ...}}}}}}", where);
  }
  ChipTimes times{.where = where, .by_width = {}};
  for (const auto& [microbatch_text, of_microbatch] : json.items()) {
    const int64_t microbatch = read_count(microbatch_text, where, "microbatch");
    const std::string at = fmt::format("{}: microbatch {}", where, microbatch);
    if (!of_microbatch.is_object()) fail_usage("{} must be an object by tensor_parallel", at);
    for (const auto& [width_text, layers] : of_microbatch.items()) {
      const int64_t width = read_count(width_text, at, "tensor_parallel");
      times.by_width[width][microbatch] =
          read_layers(layers, num_blocks, fmt::format("{}, tensor_parallel {}", at, width));
    }
  }
  return times;
}

/// Files of one chip are bare, files of several have their names.
void read_source(const std::string& source,
                 const JobConfig& job,
                 std::map<std::string, ChipTimes>& chips) {
  const size_t equals = source.find('=');
  const std::string name = equals == std::string::npos ? "" : source.substr(0, equals);
  const std::string file = equals == std::string::npos ? source : source.substr(equals + 1);
  Json json;
  try {
    json = parse_json(read_text_file(file));
  } catch (const Json::exception& error) {
    fail_usage("{}: not valid JSON: {}", file, error.what());
  }
  const int64_t num_blocks = job.model.num_hidden_layers;
  if (json.is_object() && json.contains("chips")) {
    const Json tokens = json.value("sequence_length", Json());
    if (!tokens.is_number_integer() || tokens.get<int64_t>() != job.data.sequence_length) {
      fail_usage("{}: sequence_length = {}, and the job has {}: measure at the job's",
                 file,
                 tokens.is_primitive() ? tokens.dump() : "?",
                 job.data.sequence_length);
    }
    if (!json["chips"].is_object()) fail_usage("{}: chips must be an object by name", file);
    for (const auto& [chip, times] : json["chips"].items()) {
      if (!name.empty() && chip != name) continue;
      chips[chip] = read_chip(times, num_blocks, fmt::format("{}: {}", file, chip));
    }
    return;
  }
  if (name.empty()) {
    fail_usage("{}: holds times of one chip without its name: write --profile NAME={}", file, file);
  }
  chips[name] = read_chip(json, num_blocks, file);
}

/// More work at once cannot be done sooner: what was measured longer than a larger microbatch had
/// something else in it.
void level(ByMicrobatch& times, const std::string& where, std::vector<std::string>& notes) {
  const Measured* larger = nullptr;
  int64_t larger_microbatch = 0;
  for (auto at = times.rbegin(); at != times.rend(); ++at) {
    Measured& one = at->second;
    if (larger != nullptr) {
      const double before_s = one.block_forward_s + one.block_backward_s;
      for (double Measured::*part : {&Measured::block_forward_s,
                                     &Measured::block_backward_s,
                                     &Measured::embedding_s,
                                     &Measured::head_s}) {
        one.*part = std::min(one.*part, larger->*part);
      }
      const double after_s = one.block_forward_s + one.block_backward_s;
      constexpr double kNoticeable = 1.05;
      if (before_s > kNoticeable * after_s) {
        notes.push_back(fmt::format(
            "{}: a block of microbatch {} takes {:.3g} ms and one of {} less: taken as {:.3g} ms",
            where,
            at->first,
            1e3 * before_s,
            larger_microbatch,
            1e3 * after_s));
      }
    }
    larger = &one;
    larger_microbatch = at->first;
  }
}

/// The line through a microbatch and a smaller one.
LinearCost line_through(const ByMicrobatch& times,
                        int64_t microbatch,
                        double (*seconds_of)(const Measured&)) {
  const auto many = times.find(microbatch);
  const double many_s = seconds_of(many->second);
  const auto count = static_cast<double>(microbatch);
  auto few = many;
  while (few != times.begin() && few->first * 4 > microbatch) --few;
  if (few == many) return {0, many_s / count};
  const double slope_s =
      (many_s - seconds_of(few->second)) / static_cast<double>(microbatch - few->first);
  // Where large microbatches are dearer by the sequence, a line would start below nothing.
  if (slope_s * count > many_s) return {0, many_s / count};
  return {many_s - slope_s * count, slope_s};
}

std::string listed(const ByMicrobatch& times) {
  std::vector<int64_t> microbatches;
  for (const auto& [microbatch, measured] : times) microbatches.push_back(microbatch);
  return fmt::format("{}", fmt::join(microbatches, ", "));
}

void refuse_missing(const ChipTimes& chip, const JobConfig& job) {
  const int64_t width = job.train.tensor_parallel;
  const int64_t microbatch = job.train.microbatch_sequences;
  std::vector<int64_t> widths;
  for (const auto& [one, times] : chip.by_width) widths.push_back(one);
  if (width > 0 && !chip.by_width.contains(width)) {
    fail_usage("{}: has no times of tensor_parallel {}, which the job asks for; it has {}",
               chip.where,
               width,
               fmt::join(widths, ", "));
  }
  for (const auto& [one, times] : chip.by_width) {
    if (width > 0 && one != width) continue;
    if (times.contains(microbatch)) return;
  }
  fail_usage(
      "{}: has no times of microbatch {}{}; it has {}: set train.microbatch_sequences to one",
      chip.where,
      microbatch,
      width > 0 ? fmt::format(" at tensor_parallel {}", width) : "",
      listed(chip.by_width.at(width > 0 ? width : widths.front())));
}

/// What a device's optimizer had to update when it was measured. Vocabularies are cut over a set
/// there, as Megatron cuts them, whatever a plan does.
double updated_values(const ModelSizes& sizes, const Measured& measured, int64_t width) {
  const auto members = static_cast<double>(width);
  const double tables = (sizes.is_tied ? 1 : 2) * sizes.vocab * sizes.hidden / members;
  return tables + sizes.hidden +
         static_cast<double>(measured.num_measured_blocks) * block_values(sizes, members);
}

DeviceProfile profile_of_layers(const ChipTimes& chip, const JobConfig& job) {
  refuse_missing(chip, job);
  const ModelSizes sizes = sizes_of(job, job.data.sequence_length);
  const int64_t microbatch = job.train.microbatch_sequences;
  DeviceProfile profile;
  profile.measured = true;
  for (const auto& [width, times] : chip.by_width) {
    if (!times.contains(microbatch)) continue;
    const auto line = [&](double (*seconds_of)(const Measured&)) {
      return line_through(times, microbatch, seconds_of);
    };
    CutProfile cut;
    cut.width = width;
    cut.block_forward = line([](const Measured& one) { return one.block_forward_s; });
    cut.block_backward = line([](const Measured& one) { return one.block_backward_s; });
    cut.embedding = line([](const Measured& one) { return one.embedding_s; });
    cut.head = line([](const Measured& one) { return one.head_s; });
    const Measured& at_microbatch = times.at(microbatch);
    cut.update_parameter_s = at_microbatch.update_s / updated_values(sizes, at_microbatch, width);
    profile.cuts.push_back(cut);
  }
  // Where single devices were not measured, one is as fast as its share of the smallest set.
  const CutProfile& least = profile.cuts.front();
  const auto width = static_cast<double>(least.width);
  const auto alone = [&](const LinearCost& cost) {
    return LinearCost{cost.fixed_s, cost.sequence_s * width};
  };
  profile.block_forward = alone(least.block_forward);
  profile.block_backward = alone(least.block_backward);
  profile.embedding = alone(least.embedding);
  profile.head = alone(least.head);
  profile.update_parameter_s = least.update_parameter_s;
  // The files know AdamW alone. Muon's products go at the pace of those of a forward pass.
  if (job.train.has_muon()) {
    const double flop_s = block_forward_flops(sizes) / profile.block_forward.sequence_s;
    profile.update_block_s = muon_flops(sizes) / flop_s;
  }
  return profile;
}

}  // namespace

LayerTimes read_layer_times(const std::vector<std::string>& sources,
                            const JobConfig& job,
                            const FleetConfig& fleet,
                            const chips::Catalogue& catalogue) {
  std::map<std::string, ChipTimes> chips;
  for (const std::string& source : sources) read_source(source, job, chips);
  LayerTimes layers;
  layers.probe.job_hash = probe_hash(job, fleet);
  std::vector<std::string> names;
  for (auto& [name, chip] : chips) {
    names.push_back(name);
    for (auto& [width, times] : chip.by_width) {
      level(times, fmt::format("{}, tensor_parallel {}", chip.where, width), layers.notes);
    }
  }
  std::map<std::string, std::string> name_of_device;
  for (const FleetSite& site : fleet.sites) {
    for (const FleetDevice& device : site.devices) {
      const std::string& id = device.chip;
      const std::string name = !device.profile.empty() ? device.profile : id;
      const auto by_alias = std::ranges::find_if(names, [&](const std::string& one) {
        if (one == name) return true;
        const auto& all = catalogue.chips();
        return !id.empty() && device.profile.empty() &&
               std::ranges::any_of(all, [&](const auto& chip) {
                 return chip.id == id && std::ranges::find(chip.aliases, one) != chip.aliases.end();
               });
      });
      if (by_alias == names.end()) {
        fail_usage("no times of {} (site \"{}\"){}: give --profile {}=FILE; there are those of {}",
                   device.device,
                   site.name,
                   name.empty() ? ", which has neither chip nor profile in fleet.toml"
                                : fmt::format(", which is a {}", name),
                   name.empty() ? "NAME" : name,
                   fmt::join(names, ", "));
      }
      // Where one site's "cuda:0" is of another kind than a site's before it, it has its own entry.
      std::string key = device.device;
      const auto known = name_of_device.find(key);
      if (known != name_of_device.end() && known->second != *by_alias) {
        key = fmt::format("{}/{}/{}", site.name, device.node, device.device);
      }
      if (!name_of_device.try_emplace(key, *by_alias).second) continue;
      DeviceProfile profile = profile_of_layers(chips.at(*by_alias), job);
      profile.device = device.device;
      layers.probe.devices[key] = std::move(profile);
    }
  }
  return layers;
}

}  // namespace pelago::plan
