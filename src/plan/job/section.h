// How a section of job.toml is read: a key at a time, each with the range that its value may have.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "base/config.h"
#include "base/error.h"

namespace pelago::plan {

// A misspelt key leaves its default behind, and the range check of that default would then complain
// of a value that nobody wrote. So the file is read twice: once to learn which keys exist, and once
// more, when no key is unknown, to check what they say.
enum class Pass { kLearnKeys, kCheck };

/// One section of job.toml: reads a key and, in the second pass, refuses a value outside its range.
class Section {
 public:
  Section(ConfigTable table, Pass pass) : table_(std::move(table)), pass_(pass) {}
  bool checks() const { return pass_ == Pass::kCheck; }
  const ConfigTable& table() const { return table_; }

  template <typename T>
  void take(std::string_view key, T& out) const {
    table_.read(key, out);
  }

  /// Accepts lo <= value <= hi. NaN fails every comparison, so it is refused too.
  template <typename T>
  void take_between(std::string_view key,
                    T& out,
                    std::type_identity_t<T> lo,
                    std::type_identity_t<T> hi) const {
    table_.read(key, out);
    if (out >= lo && out <= hi) return;
    refuse(key, out, fmt::format("must be between {} and {}", lo, hi));
  }

  void take_positive(std::string_view key, double& out) const {
    table_.read(key, out);
    if (out > 0 && std::isfinite(out)) return;
    refuse(key, out, "must be greater than 0");
  }

  /// Accepts lo <= value < 1: betas and momenta, whose sums diverge at 1.
  void take_below_one(std::string_view key, double& out) const {
    table_.read(key, out);
    if (out >= 0 && out < 1) return;
    refuse(key, out, "must be at least 0 and less than 1");
  }

  void take_word(std::string_view key,
                 std::string& out,
                 std::initializer_list<std::string> allowed) const {
    table_.read(key, out);
    if (std::find(allowed.begin(), allowed.end(), out) != allowed.end()) return;
    const auto nearest = nearest_word(out, allowed);
    refuse(key,
           out,
           fmt::format("must be one of {}{}",
                       fmt::join(allowed, ", "),
                       nearest ? fmt::format("; did you mean {}?", *nearest) : ""));
  }

  /// A list of whole numbers from 1 on.
  void take_counts(std::string_view key, std::vector<int64_t>& out) const {
    std::vector<double> numbers;
    table_.read(key, numbers);
    out.clear();
    for (const double number : numbers) {
      if (!(number >= 1 && number <= 1e9 && number == std::floor(number))) {
        refuse(key, fmt::format("[{}]", fmt::join(numbers, ", ")), "must hold numbers from 1 on");
      }
      out.push_back(std::llround(number));
    }
  }

  template <typename T>
  void refuse(std::string_view key, const T& value, const std::string& why) const {
    if (!checks()) return;
    if constexpr (std::is_same_v<T, std::string>) {
      fail_usage("{}: {} = \"{}\" {}", table_.where(), key, value, why);
    } else {
      fail_usage("{}: {} = {} {}", table_.where(), key, value, why);
    }
  }

 private:
  ConfigTable table_;
  Pass pass_;
};

// Far above every real job, low enough that no product of two of them overflows an int64.
inline constexpr int64_t kCountMax = 1'000'000'000;

}  // namespace pelago::plan
