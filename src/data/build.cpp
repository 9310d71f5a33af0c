#include "data/build.h"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <unordered_set>
#include <utility>

#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"
#include "base/rng.h"
#include "data/bpe_trainer.h"
#include "data/corpus/corpus.h"
#include "data/corpus/parallel.h"
#include "data/corpus/split_writer.h"

namespace pelago::data {

namespace {

namespace fs = std::filesystem;

// Less than this is no corpus: it is smaller than one training sequence of the smallest models.
constexpr int64_t kTextBytesMin = 4096;
// Files scanned, and text encoded, between two looks at the progress and the stop token.
constexpr size_t kFilesABatch = 512;
constexpr int64_t kTextBytesABatch = 32 << 20;

class DatasetBuild {
 public:
  DatasetBuild(const BuildOptions& options,
               const std::function<void(const BuildProgress&)>& on_progress,
               const std::stop_token& stop)
      : options_(options),
        on_progress_(on_progress),
        stop_(stop),
        folder_(free_place(options)),
        corpus_(find_files(), options.text_field) {}

  BuildReport build() {
    const double begin_s = steady_now_s();
    report_.out = options_.out;
    report_.num_files = static_cast<int64_t>(corpus_.num_files());
    collect_documents();
    choose_heldout();
    const Tokenizer tokenizer = train_tokenizer();
    tokenizer.write(folder_.path());

    DatasetIndex index{.tokenizer_hash = tokenizer.hash(),
                       .vocab_size = tokenizer.vocab_size(),
                       .splits = {},
                       .heldout_text_hash = {}};
    index.splits.push_back(write_split("train", train_, tokenizer, fs::path()));
    const fs::path text_path = folder_.path() / "heldout.txt";
    index.splits.push_back(write_split("heldout", heldout_, tokenizer, text_path));
    index.heldout_text_hash = hash_hex(MappedFile(text_path).bytes());
    write_file(folder_.path() / "dataset.json", index.to_json());
    (void)fs::remove(spool_path());
    check_stop();
    folder_.commit();

    report_.train = report_of(index.splits[0]);
    report_.heldout = report_of(index.splits[1]);
    report_.vocab_size = tokenizer.vocab_size();
    report_.tokenizer_hash = tokenizer.hash();
    report_.dataset_hash = index.dataset_hash();
    report_.total_s = steady_now_s() - begin_s;
    return report_;
  }

 private:
  static const fs::path& free_place(const BuildOptions& options) {
    refuse_taken_folder(options.out, options.replace);
    return options.out;
  }

  fs::path spool_path() const { return folder_.path() / "stdin.tmp"; }

  void check_stop() const {
    if (stop_.stop_requested()) {
      throw Failure("stopped before the dataset was whole; nothing was written", kExitInterrupted);
    }
  }

  void show(const char* phase, int64_t done_bytes, int64_t total_bytes) const {
    if (on_progress_) on_progress_({phase, done_bytes, total_bytes});
    check_stop();
  }

  std::vector<SourceFile> find_files() {
    SourceList sources = find_sources(options_.from, options_.globs);
    report_.num_unreadable += sources.num_unreadable;
    if (is_limited()) spread(sources.files);
    if (options_.from_stdin) {
      spool_stdin();
      sources.files.push_back({.path = spool_path(), .is_jsonl = false, .was_named = true});
    }
    return std::move(sources.files);
  }

  bool is_limited() const { return options_.text_bytes_max < BuildOptions().text_bytes_max; }

  // A part of the text should look like all of it. In the order of paths it would be the files of
  // one or two libraries; by a hash of each path it is a fair draw, and the same one everywhere.
  void spread(std::vector<SourceFile>& files) const {
    const uint64_t key = Rng(options_.seed).fork("files").state();
    std::stable_sort(files.begin(), files.end(), [&](const SourceFile& a, const SourceFile& b) {
      return Rng::mix(a.name_hash ^ key) < Rng::mix(b.name_hash ^ key);
    });
  }

  // Documents are read twice, standard input can be read once. Whoever writes to it may be slow:
  // we look up twice a second, so that Ctrl-C is heard.
  void spool_stdin() const {
    std::ofstream spool(spool_path(), std::ios::binary);
    std::string buffer(size_t{1} << 20, '\0');
    int64_t num_bytes = 0;
    while (true) {
      show("reading", num_bytes, -1);
      pollfd input{.fd = STDIN_FILENO, .events = POLLIN, .revents = 0};
      if (::poll(&input, 1, /*timeout_ms=*/500) <= 0) continue;  // silent, or a signal came
      const ssize_t got = ::read(STDIN_FILENO, buffer.data(), buffer.size());
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) fail("standard input: cannot be read: {}", std::strerror(errno));
      if (got == 0) break;
      spool.write(buffer.data(), got);
      num_bytes += got;
    }
    spool.close();
    if (!spool) fail("{}: cannot be written: {}", spool_path().string(), std::strerror(errno));
  }

  void collect_documents() {
    std::unordered_set<uint64_t> seen;
    int64_t num_text_bytes = 0;
    for (size_t begin = 0; begin < corpus_.num_files(); begin += kFilesABatch) {
      const size_t end = std::min(begin + kFilesABatch, corpus_.num_files());
      for (const auto& documents : scan_files(begin, end)) {
        for (const Document& document : documents) {
          if (num_text_bytes >= options_.text_bytes_max) break;
          if (!seen.insert(document.hash ^ Rng::mix(document.text_bytes)).second) {
            ++report_.num_duplicates;
            continue;
          }
          num_text_bytes += static_cast<int64_t>(document.text_bytes);
          train_.push_back(document);
        }
      }
      show("reading", num_text_bytes, -1);
      if (num_text_bytes >= options_.text_bytes_max) break;
    }
    if (num_text_bytes < kTextBytesMin) {
      fail("corpus too small: {} bytes of text in {} documents, at least {} are needed",
           num_text_bytes,
           train_.size(),
           kTextBytesMin);
    }
  }

  std::vector<std::vector<Document>> scan_files(size_t begin, size_t end) {
    std::vector<std::vector<Document>> documents(end - begin);
    std::atomic<int64_t> num_unreadable = 0;
    for_each_in_parallel(end - begin, options_.num_threads, [&](size_t idx, size_t) {
      const SourceFile& file = corpus_.file(begin + idx);
      // A file that is there but cannot be opened is skipped; what is wrong inside one is not.
      if (!file.was_named && ::access(file.path.c_str(), R_OK) != 0) {
        log_warn("file skipped path={} reason=\"{}\"", file.path.string(), std::strerror(errno));
        ++num_unreadable;
        return;
      }
      documents[idx] = corpus_.scan(begin + idx, options_.text_bytes_max);
    });
    report_.num_unreadable += num_unreadable;
    return documents;
  }

  // By content, so that a document stays on its side of the split when others come and go.
  void choose_heldout() {
    const uint64_t split_key = Rng(options_.seed).fork("heldout").state();
    const auto draw = [&](const Document& document) {
      return static_cast<double>(Rng::mix(document.hash ^ split_key) >> 11) * 0x1.0p-53;
    };
    const bool wants_heldout = options_.heldout_ratio > 0;
    if (wants_heldout && train_.size() == 1) {
      const auto [first, rest] =
          cut_document(train_[0], corpus_.read(train_[0]), options_.heldout_ratio);
      train_ = {first};
      heldout_ = {rest};
      return;
    }
    // The smallest draw is always held out and the largest never: neither split is empty.
    const uint64_t order_key = Rng(options_.seed).fork("order").state();
    const auto by_draw = [&](const Document& a, const Document& b) { return draw(a) < draw(b); };
    std::sort(train_.begin(), train_.end(), by_draw);
    const auto threshold = std::partition_point(train_.begin(), train_.end(), [&](const auto& it) {
      return draw(it) < options_.heldout_ratio;
    });
    const auto num_documents = static_cast<std::ptrdiff_t>(train_.size());
    const std::ptrdiff_t num_heldout =
        wants_heldout ? std::clamp<std::ptrdiff_t>(threshold - train_.begin(), 1, num_documents - 1)
                      : 0;
    heldout_.assign(train_.begin(), train_.begin() + num_heldout);
    train_.erase(train_.begin(), train_.begin() + num_heldout);
    for (std::vector<Document>* split : {&train_, &heldout_}) {
      std::sort(split->begin(), split->end(), [&](const Document& a, const Document& b) {
        return Rng::mix(a.hash ^ order_key) < Rng::mix(b.hash ^ order_key);
      });
    }
  }

  // The end of the batch that begins at begin: enough text to keep all threads busy.
  static size_t batch_end(const std::vector<Document>& documents, size_t begin) {
    int64_t num_text_bytes = 0;
    size_t end = begin;
    while (end < documents.size() && num_text_bytes < kTextBytesABatch) {
      num_text_bytes += static_cast<int64_t>(documents[end++].text_bytes);
    }
    return end;
  }

  static int64_t text_bytes_of(const std::vector<Document>& documents) {
    int64_t num_text_bytes = 0;
    for (const auto& document : documents) {
      num_text_bytes += static_cast<int64_t>(document.text_bytes);
    }
    return num_text_bytes;
  }

  // From the training split alone: the held-out text stays unseen.
  Tokenizer train_tokenizer() {
    const double begin_s = steady_now_s();
    const BpeTrainOptions train_options{
        .vocab_size = options_.vocab_size, .num_threads = options_.num_threads, .stop = stop_};
    const PreTokenizer pre_tokenizer(train_options.patterns);
    std::vector<WordCounts> counts(static_cast<size_t>(options_.num_threads));
    const int64_t total_bytes = std::min(text_bytes_of(train_), options_.tokenizer_text_bytes_max);
    int64_t done_bytes = 0;
    for (size_t begin = 0; begin < train_.size() && done_bytes < total_bytes;) {
      const size_t end = batch_end(train_, begin);
      for_each_in_parallel(end - begin, options_.num_threads, [&](size_t idx, size_t thread_idx) {
        PieceCursor cursor(pre_tokenizer);
        counts[thread_idx].add_text(cursor, corpus_.read(train_[begin + idx]));
      });
      for (; begin < end; ++begin) done_bytes += static_cast<int64_t>(train_[begin].text_bytes);
      show("learning the vocabulary", std::min(done_bytes, total_bytes), total_bytes);
    }
    for (size_t i = 1; i < counts.size(); ++i) counts[0].add_all(counts[i]);
    Tokenizer tokenizer = Tokenizer::from_spec(train_bpe(counts[0], train_options));
    report_.tokenizer_s = steady_now_s() - begin_s;
    return tokenizer;
  }

  // text_path: where the raw text goes too; none if empty.
  SplitEntry write_split(const std::string& name,
                         const std::vector<Document>& documents,
                         const Tokenizer& tokenizer,
                         const fs::path& text_path) {
    SplitWriter writer(folder_.path(), name, tokenizer, options_.shard_tokens);
    std::ofstream text_file;
    if (!text_path.empty()) text_file.open(text_path, std::ios::binary);
    const int64_t total_bytes = text_bytes_of(documents);
    int64_t done_bytes = 0;
    for (size_t begin = 0; begin < documents.size();) {
      const size_t end = batch_end(documents, begin);
      std::vector<std::string> texts(end - begin);
      std::vector<std::vector<TokenId>> tokens(end - begin);
      for_each_in_parallel(end - begin, options_.num_threads, [&](size_t idx, size_t) {
        texts[idx] = corpus_.read(documents[begin + idx]);
        tokens[idx] = tokenizer.encode(texts[idx]);
      });
      for (size_t idx = 0; idx < texts.size(); ++idx) {
        const auto text_bytes = static_cast<int64_t>(texts[idx].size());
        if (!text_path.empty()) text_file.write(texts[idx].data(), text_bytes);
        writer.add(std::move(tokens[idx]), text_bytes);
        done_bytes += text_bytes;
      }
      begin = end;
      show("encoding", done_bytes, total_bytes);
    }
    if (!text_path.empty()) {
      text_file.close();
      if (!text_file) fail("{}: cannot be written: {}", text_path.string(), std::strerror(errno));
      sync_to_disk(text_path);
    }
    return writer.finish();
  }

  static SplitReport report_of(const SplitEntry& entry) {
    return {.num_documents = entry.num_documents,
            .num_tokens = entry.num_tokens,
            .num_text_bytes = entry.num_text_bytes,
            .num_shards = static_cast<int64_t>(entry.shards.size())};
  }

  const BuildOptions& options_;                                   // outlives me
  const std::function<void(const BuildProgress&)>& on_progress_;  // outlives me
  const std::stop_token& stop_;                                   // outlives me
  BuildReport report_;
  PendingFolder folder_;
  Corpus corpus_;
  std::vector<Document> train_;  // until the split is chosen, all documents
  std::vector<Document> heldout_;
};

}  // namespace

void BuildOptions::validate() const {
  if (from.empty() && !from_stdin) {
    fail_usage("no text named; give files or folders with --from, or pipe text in");
  }
  if (out.empty()) fail_usage("no folder named for the dataset; give one with --out");
  if (globs.empty()) fail_usage("glob is empty; give a pattern such as *.h,*.hpp");
  if (text_field.empty()) fail_usage("text_field is empty; name the field of the JSONL lines");
  if (!(heldout_ratio >= 0 && heldout_ratio <= 0.5)) {
    fail_usage("heldout_ratio = {} must be 0 to 0.5", heldout_ratio);
  }
  if (shard_tokens < 1 || shard_tokens > int64_t{1} << 31) {
    fail_usage("shard_tokens = {} must be 1 to {}", shard_tokens, int64_t{1} << 31);
  }
  if (text_bytes_max < 1) fail_usage("text_bytes_max = {} must be at least 1", text_bytes_max);
  if (tokenizer_text_bytes_max < 1) {
    fail_usage("tokenizer_text_bytes_max = {} must be at least 1", tokenizer_text_bytes_max);
  }
  BpeTrainOptions{.vocab_size = vocab_size, .num_threads = num_threads}.validate();
}

BuildReport build_dataset(const BuildOptions& options,
                          const std::function<void(const BuildProgress&)>& on_progress,
                          const std::stop_token& stop) {
  options.validate();
  return DatasetBuild(options, on_progress, stop).build();
}

}  // namespace pelago::data
