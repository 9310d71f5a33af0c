#include "base/config.h"

#define TOML_EXCEPTIONS 1
#include <toml++/toml.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <set>
#include <sstream>

#include "base/error.h"

namespace pelago {

struct ConfigTable::Document {
  std::string name;
  toml::table root;
  std::map<std::string, std::set<std::string, std::less<>>, std::less<>>
      asked;  // table path -> keys
};

namespace {

const toml::table kEmpty;

std::string join(const std::string& path, std::string_view key) {
  return path.empty() ? std::string(key) : fmt::format("{}.{}", path, key);
}

std::string shown(const toml::node& node) {
  std::ostringstream out;
  node.visit([&](const auto& value) { out << value; });
  return out.str();
}

}  // namespace

ConfigTable::ConfigTable(std::shared_ptr<Document> document, std::string path)
    : document_(std::move(document)), path_(std::move(path)) {}

ConfigTable ConfigTable::parse(std::string_view text, const std::string& name) {
  auto document = std::make_shared<Document>();
  document->name = name;
  try {
    document->root = toml::parse(text, name);
  } catch (const toml::parse_error& error) {
    fail_usage("{}:{}: not valid TOML: {}", name, error.source().begin.line, error.description());
  }
  return ConfigTable(std::move(document), "");
}

ConfigTable ConfigTable::read_file(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in || std::filesystem::is_directory(path)) {
    fail_usage("{}: cannot be read; give the path of a TOML file", path.string());
  }
  std::stringstream text;
  text << in.rdbuf();
  return parse(text.str(), path.string());
}

void ConfigTable::set(std::string_view assignment) {
  const size_t equals = assignment.find('=');
  if (equals == std::string_view::npos || equals == 0) {
    fail_usage("--set {}: write it as --set section.key=value", assignment);
  }
  const std::string path(assignment.substr(0, equals));
  const std::string text(assignment.substr(equals + 1));
  toml::table parsed;
  try {
    parsed = toml::parse("value = " + text);
  } catch (const toml::parse_error&) {
    parsed.insert_or_assign("value", text);
  }
  toml::table* table = &document_->root;
  std::string rest = path;
  for (size_t dot = rest.find('.'); dot != std::string::npos; dot = rest.find('.')) {
    const std::string key = rest.substr(0, dot);
    if (!table->contains(key)) table->insert(key, toml::table{});
    table = (*table)[key].as_table();
    if (table == nullptr) fail_usage("--set {}: {} is not a section", assignment, key);
    rest = rest.substr(dot + 1);
  }
  table->insert_or_assign(rest, *parsed.get("value"));
}

namespace {

// Finds the table at "site[1].device[0]"; null if it is not there.
const toml::table* find_table(const toml::table& root, const std::string& path) {
  return path.empty() ? &root : root.at_path(path).as_table();
}

template <typename T>
void read_value(const toml::table* table,
                std::string_view key,
                const std::string& where,
                const char* wanted,
                T& out) {
  const toml::node* node = table ? table->get(key) : nullptr;
  if (node == nullptr) return;
  if constexpr (std::is_same_v<T, int>) {
    const auto value = node->value_exact<int64_t>();
    if (!value || *value < INT32_MIN || *value > INT32_MAX) {
      fail_usage("{}: {} = {} must be {}", where, key, shown(*node), wanted);
    }
    out = static_cast<int>(*value);
  } else if constexpr (std::is_same_v<T, double>) {
    if (!node->is_number()) fail_usage("{}: {} = {} must be {}", where, key, shown(*node), wanted);
    out = *node->value<double>();
  } else {
    const auto value = node->value_exact<T>();
    if (!value) fail_usage("{}: {} = {} must be {}", where, key, shown(*node), wanted);
    out = *value;
  }
}

template <typename T>
void read_array(const toml::table* table,
                std::string_view key,
                const std::string& where,
                const char* wanted,
                std::vector<T>& out) {
  const toml::node* node = table ? table->get(key) : nullptr;
  if (node == nullptr) return;
  const toml::array* array = node->as_array();
  if constexpr (std::is_same_v<T, double>) {  // one number is a list of one
    if (const auto one = node->value<double>(); array == nullptr && one) {
      out = {*one};
      return;
    }
  }
  if (array == nullptr) fail_usage("{}: {} = {} must be {}", where, key, shown(*node), wanted);
  out.clear();
  for (const toml::node& element : *array) {
    const auto value = element.value<T>();
    if (!value) fail_usage("{}: {} = {} must be {}", where, key, shown(*node), wanted);
    out.push_back(*value);
  }
}

}  // namespace

std::string ConfigTable::where() const {
  return path_.empty() ? document_->name : fmt::format("{}: {}", document_->name, path_);
}

#define PELAGO_READ(Type, reader, wanted)                                  \
  void ConfigTable::read(std::string_view key, Type& out) const {          \
    document_->asked[path_].emplace(key);                                  \
    reader(find_table(document_->root, path_), key, where(), wanted, out); \
  }
PELAGO_READ(bool, read_value, "true or false")
PELAGO_READ(int, read_value, "a whole number")
PELAGO_READ(int64_t, read_value, "a whole number")
PELAGO_READ(double, read_value, "a number")
PELAGO_READ(std::string, read_value, "a string in quotes")
PELAGO_READ(std::vector<std::string>, read_array, "a list of strings")
PELAGO_READ(std::vector<double>, read_array, "a number or a list of numbers")
#undef PELAGO_READ

bool ConfigTable::has(std::string_view key) const {
  document_->asked[path_].emplace(key);
  const toml::table* table = find_table(document_->root, path_);
  return table != nullptr && table->contains(key);
}

std::vector<std::string> ConfigTable::keys() const {
  std::vector<std::string> keys;
  if (const toml::table* table = find_table(document_->root, path_)) {
    for (const auto& [key, node] : *table) keys.emplace_back(key.str());
  }
  return keys;
}

ConfigTable ConfigTable::table(std::string_view key) const {
  if (has(key)) {
    const toml::node* node = find_table(document_->root, path_)->get(key);
    if (!node->is_table())
      fail_usage("{}: {} must be a section, written [{}]", where(), key, join(path_, key));
  }
  return ConfigTable(document_, join(path_, key));
}

std::vector<ConfigTable> ConfigTable::tables(std::string_view key) const {
  std::vector<ConfigTable> tables;
  if (!has(key)) return tables;
  const toml::array* array = find_table(document_->root, path_)->get(key)->as_array();
  if (array == nullptr || !array->is_homogeneous(toml::node_type::table)) {
    fail_usage("{}: {} must be a list of sections, written [[{}]]", where(), key, join(path_, key));
  }
  for (size_t i = 0; i < array->size(); ++i) {
    tables.push_back(ConfigTable(document_, fmt::format("{}[{}]", join(path_, key), i)));
  }
  return tables;
}

void ConfigTable::refuse_unknown() const {
  for (const auto& [path, asked] : document_->asked) {
    if (path.substr(0, path_.size()) != path_) continue;
    const toml::table* table = find_table(document_->root, path);
    if (table == nullptr) continue;
    for (const auto& [key, node] : *table) {
      if (asked.contains(key.str())) continue;
      const std::vector<std::string> known(asked.begin(), asked.end());
      const auto nearest = nearest_word(key.str(), known);
      fail_usage("{}:{}: unknown key {}{}",
                 document_->name,
                 node.source().begin.line,
                 join(path, key.str()),
                 nearest ? fmt::format("; did you mean {}?", *nearest)
                         : fmt::format("; known here: {}", fmt::join(known, ", ")));
    }
  }
}

std::string ConfigTable::to_toml() const {
  std::ostringstream out;
  const toml::table* table = find_table(document_->root, path_);
  out << (table ? *table : kEmpty) << "\n";
  return out.str();
}

std::optional<std::string> nearest_word(std::string_view word,
                                        const std::vector<std::string>& candidates) {
  std::optional<std::string> best;
  size_t best_distance = std::max<size_t>(2, word.size() / 3) + 1;
  for (const std::string& candidate : candidates) {
    std::vector<size_t> row(candidate.size() + 1);
    for (size_t j = 0; j < row.size(); ++j) row[j] = j;
    for (size_t i = 1; i <= word.size(); ++i) {
      size_t diagonal = row[0];
      row[0] = i;
      for (size_t j = 1; j < row.size(); ++j) {
        const size_t substituted = diagonal + (word[i - 1] == candidate[j - 1] ? 0 : 1);
        diagonal = row[j];
        row[j] = std::min({row[j] + 1, row[j - 1] + 1, substituted});
      }
    }
    if (row.back() < best_distance) {
      best_distance = row.back();
      best = candidate;
    }
  }
  return best;
}

}  // namespace pelago
