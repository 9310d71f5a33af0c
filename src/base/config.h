// TOML in, structs out. A ConfigTable remembers which keys were asked for; refuse_unknown() then
// names every key that nobody asked for and the nearest one that exists.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace pelago {

/// One table of a TOML document. Copies share the document and the memory of keys read.
class ConfigTable {
 public:
  /// Throws Failure (exit 2) if the file cannot be read or is not TOML; the message has file and
  /// line.
  static ConfigTable read_file(const std::filesystem::path& path);
  /// name: what messages call this text.
  static ConfigTable parse(std::string_view text, const std::string& name);

  /// Applies one `--set a.b=value`. The value is TOML; a bare word is taken as a string. The path
  /// may name a table that the file lacks. Throws Failure (exit 2) if the assignment cannot be
  /// read.
  void set(std::string_view assignment);

  /// Puts the value under key into `out` and leaves `out` alone if the key is absent. Throws
  /// Failure (exit 2) naming file, key, value and the wanted type if the type is wrong. An integer
  /// is accepted where a double is wanted, and a number where a list of them is.
  void read(std::string_view key, bool& out) const;
  void read(std::string_view key, int& out) const;
  void read(std::string_view key, int64_t& out) const;
  void read(std::string_view key, double& out) const;
  void read(std::string_view key, std::string& out) const;
  void read(std::string_view key, std::vector<std::string>& out) const;
  void read(std::string_view key, std::vector<double>& out) const;

  bool has(std::string_view key) const;
  std::vector<std::string> keys() const;
  /// The table under key, empty if absent: its reads then leave every default.
  ConfigTable table(std::string_view key) const;
  /// The array of tables under key ([[site]]), empty if absent.
  std::vector<ConfigTable> tables(std::string_view key) const;

  /// Throws Failure (exit 2) if any key of this table or a table read from it was never asked for.
  void refuse_unknown() const;

  /// "fleet.toml: site[1].device[0]": for messages.
  std::string where() const;
  /// The document as TOML text, after set().
  std::string to_toml() const;

 private:
  struct Document;
  ConfigTable(std::shared_ptr<Document> document, std::string path);
  std::shared_ptr<Document> document_;  // owners: every ConfigTable over the same text
  std::string path_;                    // "site[1].device[0]"; empty for the root
};

/// The candidate nearest to word by edit distance, if it is near enough to be a slip.
std::optional<std::string> nearest_word(std::string_view word,
                                        const std::vector<std::string>& candidates);

}  // namespace pelago
