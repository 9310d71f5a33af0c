#include "data/build.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <set>

#include "base/error.h"
#include "base/files.h"
#include "data/dataset.h"
#include "data/inspect.h"
#include "data/shards/dataset_index.h"
#include "data/test_text.h"

namespace pelago::data {
namespace {

namespace fs = std::filesystem;

/// A folder "text" with num_documents files of code, each ending in its own mark.
void write_corpus(const TestFolder& folder, uint64_t num_documents) {
  fs::create_directories(folder / "text" / "deep");
  for (uint64_t i = 1; i <= num_documents; ++i) {
    const auto path = folder / "text" / (i % 2 == 0 ? "deep" : ".") / fmt::format("{}.h", i);
    write_plainly(path, code_like_text(i, 300) + fmt::format("end of {}", i));
  }
}

BuildOptions options_for(const TestFolder& folder) {
  return {.from = {folder / "text"},
          .globs = {"*.h", "*.hpp"},
          .out = folder / "set",
          .vocab_size = 300,
          .heldout_ratio = 0.2};
}

std::vector<std::string> documents_of(const fs::path& dataset, const std::string& split) {
  const TokenStream stream(dataset, split, /*verify=*/true);
  const Tokenizer tokenizer = Tokenizer::read(dataset / "tokenizer.json");
  std::vector<int64_t> tokens(static_cast<size_t>(stream.num_tokens()));
  stream.read(0, tokens);
  std::vector<std::string> documents(1);
  for (const int64_t token : tokens) {
    if (token == tokenizer.end_of_text()) {
      documents.emplace_back();
    } else {
      documents.back() += tokenizer.token_bytes(static_cast<TokenId>(token));
    }
  }
  CHECK(documents.back().empty());  // every document is followed by end-of-text
  documents.pop_back();
  return documents;
}

std::string refusal_to_build(const BuildOptions& options) {
  try {
    build_dataset(options);
  } catch (const Failure& failure) {
    return failure.what();
  }
  return "no failure";
}

size_t num_entries(const fs::path& folder) {
  return static_cast<size_t>(std::distance(fs::directory_iterator(folder), {}));
}

TEST_CASE("every document is in exactly one split, byte for byte") {
  const TestFolder folder("splits");
  write_corpus(folder, 50);
  const BuildReport report = build_dataset(options_for(folder));
  auto found = documents_of(folder / "set", "train");
  const auto heldout = documents_of(folder / "set", "heldout");
  CHECK(static_cast<int64_t>(found.size()) == report.train.num_documents);
  CHECK(report.heldout.num_documents > 2);
  CHECK(report.heldout.num_documents < 20);
  found.insert(found.end(), heldout.begin(), heldout.end());
  std::multiset<std::string> expected;
  for (uint64_t i = 1; i <= 50; ++i) {
    expected.insert(code_like_text(i, 300) + fmt::format("end of {}", i));
  }
  CHECK(std::multiset<std::string>(found.begin(), found.end()) == expected);
  std::string joined;
  for (const auto& document : heldout) joined += document;
  CHECK(read_text_file(folder / "set" / "heldout.txt") == joined);
  CHECK(report.heldout.num_text_bytes == static_cast<int64_t>(joined.size()));
}

TEST_CASE("identical documents are kept once") {
  const TestFolder folder("duplicates");
  write_corpus(folder, 30);
  fs::create_directories(folder / "text" / "copy");
  for (int i = 1; i <= 10; ++i) {
    fs::copy_file(folder / "text" / (i % 2 == 0 ? "deep" : ".") / fmt::format("{}.h", i),
                  folder / "text" / "copy" / fmt::format("{}.h", i));
  }
  const BuildReport report = build_dataset(options_for(folder));
  CHECK(report.num_duplicates == 10);
  CHECK(report.train.num_documents + report.heldout.num_documents == 30);
}

TEST_CASE("the dataset does not depend on the number of threads") {
  const TestFolder folder("threads");
  write_corpus(folder, 40);
  BuildOptions options = options_for(folder);
  options.num_threads = 1;
  const std::string alone = build_dataset(options).dataset_hash;
  options.replace = true;
  for (const int num_threads : {2, 5}) {
    options.num_threads = num_threads;
    CHECK(build_dataset(options).dataset_hash == alone);
  }
  options.seed = 2;
  CHECK(build_dataset(options).dataset_hash != alone);
}

TEST_CASE("a document held out stays held out when others come") {
  const TestFolder folder("stable");
  write_corpus(folder, 40);
  build_dataset(options_for(folder));
  const auto before = documents_of(folder / "set", "heldout");
  write_corpus(folder, 60);
  BuildOptions options = options_for(folder);
  options.replace = true;
  build_dataset(options);
  const auto after = documents_of(folder / "set", "heldout");
  for (const auto& document : before) {
    CHECK(std::find(after.begin(), after.end(), document) != after.end());
  }
}

TEST_CASE("only file names that match a glob are taken, hidden folders are not searched") {
  const TestFolder folder("globs");
  write_corpus(folder, 30);
  write_plainly(folder / "text" / "note.txt", "not taken");
  fs::create_directories(folder / "text" / ".git");
  write_plainly(folder / "text" / ".git" / "x.h", "not taken");
  CHECK(build_dataset(options_for(folder)).num_files == 30);
  CHECK(split_globs("*.h,*.hpp,,") == std::vector<std::string>{"*.h", "*.hpp"});
}

TEST_CASE("a JSONL file yields a document a line") {
  const TestFolder folder("jsonl");
  std::string lines;
  for (uint64_t i = 1; i <= 30; ++i) {
    lines += fmt::format("{{\"id\": {}, \"body\": \"line {} {}\\n\\u00e9\"}}\n\n",
                         i,
                         i,
                         std::string(200, static_cast<char>('a' + i % 26)));
  }
  write_plainly(folder / "c.jsonl", lines);
  BuildOptions options = options_for(folder);
  options.from = {folder / "c.jsonl"};
  options.text_field = "body";
  const BuildReport report = build_dataset(options);
  CHECK(report.train.num_documents + report.heldout.num_documents == 30);
  const auto documents = documents_of(folder / "set", "train");
  CHECK(documents[0].starts_with("line "));
  CHECK(documents[0].ends_with("\né"));
  options.replace = true;
  options.text_field = "text";
  CHECK(refusal_to_build(options) ==
        (folder / "c.jsonl").string() +
            ":1: no field text; its fields are id, body (choose one with "
            "--text-field)");
  write_plainly(folder / "c.jsonl", lines + "{\"body\": \n");
  options.text_field = "body";
  CHECK(refusal_to_build(options).starts_with((folder / "c.jsonl").string() +
                                              ":61: not valid JSON: "));
  CHECK(fs::exists(folder / "set" / "dataset.json"));  // the older dataset stands
}

TEST_CASE("a corpus of one document is cut in two at a line") {
  const TestFolder folder("one");
  std::string text;
  for (int i = 0; i < 1000; ++i) text += fmt::format("line {}\n", i);
  write_plainly(folder / "one.txt", text);
  BuildOptions options = options_for(folder);
  options.from = {folder / "one.txt"};
  options.heldout_ratio = 0.1;
  build_dataset(options);
  const std::string heldout = read_text_file(folder / "set" / "heldout.txt");
  CHECK(documents_of(folder / "set", "train")[0] + heldout == text);
  CHECK(heldout.starts_with("line 9"));
}

TEST_CASE("reading stops after the document that reaches the limit") {
  const TestFolder folder("limit");
  write_corpus(folder, 50);
  BuildOptions options = options_for(folder);
  options.text_bytes_max = 6000;
  const BuildReport report = build_dataset(options);
  const int64_t text_bytes = report.train.num_text_bytes + report.heldout.num_text_bytes;
  CHECK(text_bytes >= 6000);
  CHECK(text_bytes < 6400);
}

TEST_CASE("a limit takes a fair part of the text, wherever the folder lies, and another by seed") {
  const TestFolder folder("spread");
  write_corpus(folder, 60);
  fs::create_directories(folder / "elsewhere");
  fs::copy(folder / "text", folder / "elsewhere" / "text", fs::copy_options::recursive);
  BuildOptions options = options_for(folder);
  options.text_bytes_max = 6000;  // about a third
  const BuildReport here = build_dataset(options);
  size_t num_deep = 0, num_all = 0;
  for (const std::string split : {"train", "heldout"}) {
    for (const std::string& document : documents_of(folder / "set", split)) {
      ++num_all;
      num_deep += std::stoi(document.substr(document.rfind(' '))) % 2 == 0;
    }
  }
  // In the order of paths the folder "deep", half of the text, would follow all the others.
  CHECK(4 * num_deep > num_all);
  CHECK(4 * num_deep < 3 * num_all);

  options.from = {folder / "elsewhere" / "text"};
  options.out = folder / "set-elsewhere";
  CHECK(build_dataset(options).dataset_hash == here.dataset_hash);
  options.seed = 2;
  options.out = folder / "set-seed";
  CHECK(build_dataset(options).dataset_hash != here.dataset_hash);
}

TEST_CASE("a folder that is missing, empty or without a match is named") {
  const TestFolder folder("bad-from");
  fs::create_directories(folder / "empty");
  fs::create_directories(folder / "text");
  write_plainly(folder / "text" / "a.txt", "text");
  BuildOptions options = options_for(folder);
  options.from = {folder / "gone"};
  CHECK(refusal_to_build(options) ==
        (folder / "gone").string() + ": no such file or folder; name one that exists with --from");
  options.from = {folder / "empty"};
  CHECK(refusal_to_build(options) ==
        (folder / "empty").string() + ": empty folder; name one with text");
  options.from = {folder / "text"};
  CHECK(refusal_to_build(options) ==
        (folder / "text").string() +
            ": no file in it matches *.h,*.hpp; give other patterns with --glob");
  CHECK(num_entries(folder.path()) == 2);  // no temporary folder stays
}

TEST_CASE("a file that cannot be opened is skipped and counted, unless it was named") {
  const TestFolder folder("unreadable");
  write_corpus(folder, 30);
  fs::create_symlink("nowhere", folder / "text" / "dangling.h");
  BuildOptions options = options_for(folder);
  CHECK(build_dataset(options).num_unreadable == 1);
  options.replace = true;
  options.from.push_back(folder / "text" / "dangling.h");
  CHECK(refusal_to_build(options).starts_with((folder / "text" / "dangling.h").string()));
}

TEST_CASE("a corpus too small is refused with its size") {
  const TestFolder folder("small");
  fs::create_directories(folder / "text");
  write_plainly(folder / "text" / "a.h", "int a;");
  CHECK(refusal_to_build(options_for(folder)) ==
        "corpus too small: 6 bytes of text in 1 documents, at least 4096 are needed");
}

TEST_CASE("an older dataset is replaced only when asked, and nothing else ever is") {
  const TestFolder folder("exists");
  write_corpus(folder, 30);
  BuildOptions options = options_for(folder);
  build_dataset(options);
  CHECK(refusal_to_build(options) ==
        (folder / "set").string() + ": exists; --fresh replaces it, or choose another --out");
  options.replace = true;
  CHECK(refusal_to_build(options) == "no failure");
  options.out = folder / "text";
  CHECK(refusal_to_build(options) ==
        (folder / "text").string() + ": exists and is not a dataset; choose another --out");
  CHECK(num_entries(folder.path()) == 2);
}

TEST_CASE("a build that is stopped leaves nothing behind") {
  const TestFolder folder("stopped");
  write_corpus(folder, 30);
  for (const std::string phase : {"reading", "learning the vocabulary", "encoding"}) {
    std::stop_source source;
    const auto stop_there = [&](const BuildProgress& progress) {
      if (progress.phase == phase) source.request_stop();
    };
    CHECK_THROWS_AS(build_dataset(options_for(folder), stop_there, source.get_token()), Failure);
    CHECK(num_entries(folder.path()) == 1);
  }
}

TEST_CASE("an option out of range is named with its value") {
  const TestFolder folder("options");
  BuildOptions options = options_for(folder);
  options.heldout_ratio = 0.9;
  CHECK(refusal_to_build(options) == "heldout_ratio = 0.9 must be 0 to 0.5");
  options.heldout_ratio = 0.1;
  options.num_threads = 0;
  CHECK(refusal_to_build(options) == "num_threads = 0 must be at least 1");
}

TEST_CASE("inspecting a dataset tells what was built") {
  const TestFolder folder("inspect");
  write_corpus(folder, 30);
  const BuildReport report = build_dataset(options_for(folder));
  const DatasetSummary summary = inspect_dataset(folder / "set");
  CHECK(summary.hashes_verified);
  CHECK(summary.dataset_hash == report.dataset_hash);
  CHECK(summary.vocab_size == report.vocab_size);
  REQUIRE(summary.splits.size() == 2);
  CHECK(summary.splits[0].num_documents == report.train.num_documents);
  CHECK(summary.splits[0].bytes_per_token > 1.5);
  CHECK(summary.most_frequent.size() == 20);
  CHECK(summary.most_frequent[0].count >= summary.most_frequent[1].count);
  CHECK(documents_of(folder / "set", "train")[0].starts_with(summary.sample.substr(0, 50)));
  CHECK(escaped("a\n\t\\é\xff\x01") == "a\\n\\t\\\\é\\xff\\x01");
  write_plainly(folder / "set" / "heldout.txt", "changed");
  CHECK_THROWS_AS(inspect_dataset(folder / "set"), Failure);
}

}  // namespace
}  // namespace pelago::data
