// The reader believes nothing. A file that comes from outside is checked here, once: every field
// of the header, every offset against the length of the file, every shape against its bytes, with
// arithmetic that cannot overflow. Behind this door the entries cannot hold a wrong value.
// Format: github.com/huggingface/safetensors, README, "Format".
#include "model/safetensors.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <set>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/text/json.h"
#include "chips/torch.h"
#include "model/files/safetensors_dtype.h"

namespace pelago::model {

namespace {

using Json = nlohmann::json;

static_assert(std::endian::native == std::endian::little, "the data part is little endian");

constexpr size_t kLengthBytes = 8;
constexpr size_t kHeaderBytesMax = 100'000'000;  // the limit of the reference implementation

/// Parses JSON and fails on a repeated key, which nlohmann would silently let win.
Json parse_without_duplicates(std::string_view text, const std::string& file) {
  std::vector<std::set<std::string>> keys_of_open_objects;
  std::string duplicate;
  const auto watch = [&](int /*depth*/, Json::parse_event_t event, Json& parsed) {
    if (event == Json::parse_event_t::object_start) keys_of_open_objects.emplace_back();
    if (event == Json::parse_event_t::object_end) keys_of_open_objects.pop_back();
    if (event == Json::parse_event_t::key) {
      const auto key = parsed.get<std::string>();
      if (!keys_of_open_objects.back().insert(key).second && duplicate.empty()) duplicate = key;
    }
    return true;
  };
  Json header = Json::parse(text.begin(), text.end(), watch, /*allow_exceptions=*/false);
  if (!header.is_object()) fail("{}: the header is not a JSON object; the file is corrupt", file);
  if (!duplicate.empty()) {
    fail("{}: the header has \"{}\" twice; the file is corrupt", file, duplicate);
  }
  return header;
}

/// The text of the header. Checks its length against the file.
std::string_view header_text(std::string_view file_text, const std::string& file) {
  if (file_text.size() < kLengthBytes) {
    fail(
        "{}: {} bytes are too few for a safetensors file; it is truncated", file, file_text.size());
  }
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, file_text.data(), kLengthBytes);
  if (header_bytes > kHeaderBytesMax) {
    fail("{}: the header claims {} bytes, more than the {} allowed; this is not a safetensors file",
         file,
         header_bytes,
         kHeaderBytesMax);
  }
  if (header_bytes > file_text.size() - kLengthBytes) {
    fail("{}: the header claims {} bytes but only {} follow; the file is truncated",
         file,
         header_bytes,
         file_text.size() - kLengthBytes);
  }
  const std::string_view text = file_text.substr(kLengthBytes, header_bytes);
  if (text.empty() || text.front() != '{') {
    fail("{}: the header is not a JSON object; this is not a safetensors file", file);
  }
  return text;
}

/// Names the tensor in each message.
struct EntryChecks {
  std::string where;  // file: tensor "name"

  const Json& field(const Json& entry, const char* key) const {
    if (!entry.is_object() || entry.size() != 3 || !entry.contains(key)) {
      fail("{}: dtype, shape and data_offsets are wanted, nothing else; the file is corrupt",
           where);
    }
    return entry.at(key);
  }

  uint64_t unsigned_number(const Json& value, const char* what) const {
    if (!value.is_number_unsigned()) {
      fail("{}: {} is {}, not a whole number from 0; the file is corrupt",
           where,
           what,
           value.dump());
    }
    return value.get<uint64_t>();
  }

  c10::ScalarType dtype(const Json& value) const {
    const std::string name = value.is_string() ? value.get<std::string>() : value.dump();
    const std::optional<c10::ScalarType> dtype = dtype_of_name(name);
    if (!dtype) fail("{}: dtype {} is unknown; convert the file to F32, F16 or BF16", where, name);
    return *dtype;
  }

  /// Bytes of the tensor, by its shape.
  uint64_t bytes_of_shape(const std::vector<int64_t>& shape, c10::ScalarType dtype) const {
    uint64_t bytes = c10::elementSize(dtype);
    for (const int64_t extent : shape) {
      if (__builtin_mul_overflow(bytes, static_cast<uint64_t>(extent), &bytes)) {
        fail("{}: the shape's bytes overflow 64 bits; the file is corrupt", where);
      }
    }
    return bytes;
  }

  std::vector<int64_t> shape(const Json& value) const {
    if (!value.is_array()) fail("{}: shape is not a list; the file is corrupt", where);
    std::vector<int64_t> shape;
    for (const Json& extent : value) {
      const uint64_t number = unsigned_number(extent, "shape");
      if (number > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
        fail("{}: shape holds {}, beyond 63 bits; the file is corrupt", where, number);
      }
      shape.push_back(static_cast<int64_t>(number));
    }
    return shape;
  }
};

}  // namespace

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path) : path_(path), file_(path) {
  const std::string file = path_.string();
  const std::string_view text = header_text(file_.text(), file);
  data_begin_ = kLengthBytes + text.size();
  const uint64_t data_bytes = file_.bytes().size() - data_begin_;
  const Json header = parse_without_duplicates(text, file);

  for (const auto& [name, value] : header.items()) {
    if (name == "__metadata__") continue;
    const EntryChecks checks{fmt::format("{}: tensor \"{}\"", file, name)};
    const c10::ScalarType dtype = checks.dtype(checks.field(value, "dtype"));
    std::vector<int64_t> shape = checks.shape(checks.field(value, "shape"));
    const Json& offsets = checks.field(value, "data_offsets");
    if (!offsets.is_array() || offsets.size() != 2) {
      fail("{}: data_offsets is not a pair; the file is corrupt", checks.where);
    }
    const uint64_t begin = checks.unsigned_number(offsets[0], "data_offsets");
    const uint64_t end = checks.unsigned_number(offsets[1], "data_offsets");
    if (begin > end || end > data_bytes) {
      fail("{}: data_offsets [{}, {}] lie outside the {} bytes of data; the file is truncated",
           checks.where,
           begin,
           end,
           data_bytes);
    }
    const uint64_t wanted_bytes = checks.bytes_of_shape(shape, dtype);
    if (wanted_bytes != end - begin) {
      fail("{}: its shape needs {} bytes but data_offsets hold {}; the file is corrupt",
           checks.where,
           wanted_bytes,
           end - begin);
    }
    entries_[name] = Entry{dtype, std::move(shape), begin, end};
  }
  check_coverage(data_bytes);
  if (!header.contains("__metadata__")) return;
  if (!header.at("__metadata__").is_object()) {
    fail("{}: __metadata__ is not an object; the file is corrupt", file);
  }
  for (const auto& [key, value] : header.at("__metadata__").items()) {
    if (!value.is_string()) {
      fail("{}: __metadata__ \"{}\" is not a string; the file is corrupt", file, key);
    }
    metadata_[key] = value.get<std::string>();
  }
}

void SafetensorsFile::check_coverage(uint64_t data_bytes) const {
  std::vector<std::pair<const Entry*, const std::string*>> in_file_order;
  for (const auto& [name, entry] : entries_) in_file_order.emplace_back(&entry, &name);
  std::sort(in_file_order.begin(), in_file_order.end(), [](const auto& a, const auto& b) {
    return std::pair(a.first->begin, a.first->end) < std::pair(b.first->begin, b.first->end);
  });
  uint64_t covered = 0;
  for (const auto& [entry, name] : in_file_order) {
    if (entry->begin != covered) {
      fail("{}: tensor \"{}\" begins at byte {} where {} was due ({}); the file is corrupt",
           path_.string(),
           *name,
           entry->begin,
           covered,
           entry->begin < covered ? "it overlaps the one before" : "there is a gap before it");
    }
    covered = entry->end;
  }
  if (covered != data_bytes) {
    fail("{}: {} bytes after the last tensor belong to none; the file is corrupt",
         path_.string(),
         data_bytes - covered);
  }
}

std::vector<std::string> SafetensorsFile::names() const {
  std::vector<std::string> names;
  for (const auto& [name, entry] : entries_) names.push_back(name);
  return names;
}

bool SafetensorsFile::has(const std::string& name) const { return entries_.contains(name); }

Tensor SafetensorsFile::tensor(const std::string& name) const {
  const auto found = entries_.find(name);
  if (found == entries_.end()) fail("{}: there is no tensor \"{}\"", path_.string(), name);
  const Entry& entry = found->second;
  const std::byte* data = file_.bytes().data() + data_begin_ + entry.begin;
  const auto options = at::TensorOptions().dtype(entry.dtype);
  // Old writers did not pad the header: such data cannot be read where it lies.
  if (reinterpret_cast<uintptr_t>(data) % c10::elementSize(entry.dtype) != 0) {
    Tensor copy = at::empty(entry.shape, options);
    if (copy.numel() > 0) std::memcpy(copy.data_ptr(), data, entry.end - entry.begin);
    return copy;
  }
  return at::from_blob(const_cast<std::byte*>(data), entry.shape, options);
}

}  // namespace pelago::model
